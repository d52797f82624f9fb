"""The people that were seen in tokens and imports: who can be assigned, and who shares a team with whom."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from projections.projection import Projection, Row, Step
from tickets.connections import Pool
from tickets.events import PersonSeen
from tickets.permissions import Assignee


def _rows(step: Step) -> Sequence[Row]:
    seen = step.fact
    if not isinstance(seen, PersonSeen):
        return ()
    return ((seen.person_id, seen.username, seen.role, seen.teams, step.envelope.position),)


PEOPLE: Final = Projection(
    name="people",
    columns=("person_id", "username", "role", "teams", "position"),
    rows=_rows,
    newest_only=True,
    one_a_stream=True,
    about=frozenset({PersonSeen}),
    of_stream=None,
)


async def find(pool: Pool, person_id: UUID) -> Assignee | None:
    """Somebody who was seen, with the teams they were last seen in."""
    teams = await pool.fetchval("select teams from read_model.people where person_id = $1", person_id)
    return None if teams is None else Assignee(id=person_id, teams=tuple(teams))
