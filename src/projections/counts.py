"""How many tickets there are of each kind: the numbers on the tabs, behind GET /tickets/counts.

Kept as sums: each fact adds what it changed, for everybody's eyes and for the requester's own. Whether a
deadline has been missed depends on the moment of asking, so missed ones are summed by the day, and only
today's are looked at one by one. Deliberately absent: the tickets (tickets.py).
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from asyncpg import Record
from msgspec import Struct

from projections.periods import planned, then
from projections.projection import Projection, Row, Step
from projections.tickets import Filter, conditions, first_breach
from tickets.connections import Pool
from tickets.lifecycle import Status
from tickets.sla import Priority
from tickets.ticket import Ticket
from tickets.values import Category

_EVERYBODY: Final = "everybody"
"""The scope that has all tickets; each requester's own is by their id."""

_LARGEST: Final = 100
"""Of teams and assignees, so many are told, those with most tickets."""


def _kinds(ticket: Ticket | None) -> tuple[tuple[str, str, str], ...]:
    """Whose and which sums a ticket is in."""
    if ticket is None or ticket.deleted:
        return ()
    breach = first_breach(ticket)
    kinds: list[tuple[str, str]] = [
        ("status", ticket.status),
        ("priority", ticket.priority),
        ("category", ticket.category),
    ]
    if ticket.team is not None:
        kinds.append(("team", ticket.team))
    if ticket.assignee_id is not None:
        kinds.append(("assignee", str(ticket.assignee_id)))
    if breach is not None:
        kinds.append(("breach", breach.date().isoformat()))
    return tuple((scope, kind, value) for scope in (_EVERYBODY, str(ticket.requester_id)) for kind, value in kinds)


def _rows(step: Step) -> Sequence[Row]:
    before, after = _kinds(step.before), _kinds(step.after)
    if before == after:
        return ()
    if not before:
        return [(*key, 1) for key in after]
    change = Counter(after)
    change.subtract(before)
    return [(*key, n) for key, n in change.items() if n]


COUNTS: Final = Projection(
    name="counts",
    columns=("scope", "kind", "value", "n"),
    rows=_rows,
    newest_only=False,
    sums=True,
    of_stream=None,
    key_columns=3,
)


class Counts(Struct, frozen=True):
    """How many tickets somebody sees, deleted ones left out. Of teams and assignees, the hundred with most."""

    total: int
    status: dict[Status, int]
    priority: dict[Priority, int]
    category: dict[Category, int]
    team: dict[str, int]
    assignee: dict[UUID, int]
    unassigned: int
    breached: int


async def read(pool: Pool, *, visible_to: UUID | None = None) -> Counts:
    """The numbers for everybody's tickets, or for those that one person requested."""
    rows = await pool.fetch(
        """select k.kind, c.value, c.n, c.of_all
           from unnest($2::text[]) k(kind), lateral (
             select value, n, (sum(n) over ())::bigint as of_all from read_model.counts
             where scope = $1 and kind = k.kind order by n desc, value limit $3) c
           union all
           select 'breached', '', (
             (select coalesce(sum(n), 0) from read_model.counts
              where scope = $1 and kind = 'breach' and value < (now() at time zone 'UTC')::date::text)
             + (select count(*) from read_model.tickets
                where not deleted and breach_at >= date_trunc('day', now(), 'UTC') and breach_at < now()
                  and ($4::uuid is null or requester_id = $4)))::bigint, 0""",
        _EVERYBODY if visible_to is None else str(visible_to),
        ["status", "priority", "category", "team", "assignee"],
        _LARGEST,
        visible_to,
    )
    return _counts(rows)


async def read_at(pool: Pool, at: datetime, *, visible_to: UUID | None = None) -> Counts:
    """The numbers as they were at a moment. They are counted then: no sums are kept of the past."""
    where, arguments = conditions(Filter(visible_to=visible_to), at)
    each = "status, priority, category, team, assignee_id, breach_at < $1 as late, count(*) as n"
    found = then(each, where, "group by 1, 2, 3, 4, 5, 6")
    async with planned(pool) as connection:
        rows = await connection.fetch(
            f"""select kind, value, n, of_all from (
              select kind, value, sum(n)::bigint as n, (sum(sum(n)) over (partition by kind))::bigint as of_all,
                     row_number() over (partition by kind order by sum(n) desc, value) as place
              from {found}, lateral (values ('status', status), ('priority', priority), ('category', category),
                                          ('team', team), ('assignee', assignee_id::text),
                                          ('breached', case when late then '' end)) v(kind, value)
              where value is not null group by kind, value) k
            where place <= {_LARGEST}""",
            *arguments,
        )
    return _counts(rows)


def _counts(rows: Sequence[Record]) -> Counts:
    found: dict[str, dict[str, int]] = {}
    of_all: dict[str, int] = {}
    for kind, value, n, sum_ in rows:
        found.setdefault(kind, {})[value] = n
        of_all[kind] = sum_
    total = of_all.get("status", 0)
    return Counts(
        total=total,
        status={one: found.get("status", {}).get(one, 0) for one in Status},
        priority={one: found.get("priority", {}).get(one, 0) for one in Priority},
        category={one: found.get("category", {}).get(one, 0) for one in Category},
        team=found.get("team", {}),
        assignee={UUID(one): n for one, n in found.get("assignee", {}).items()},
        unassigned=total - of_all.get("assignee", 0),
        breached=found.get("breached", {}).get("", 0),
    )
