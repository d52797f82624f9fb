"""How many tickets there are of each kind: the numbers on the tabs, behind GET /tickets/counts.

Kept as sums: each fact adds what it changed, for everybody's eyes and for the requester's own. Status, priority,
category and environment are summed together, a cell for each four that occur, so that any of them and all of them
are a sum over cells: the totals of lists as well. Whether a deadline has been missed depends on the moment of
asking, so missed ones are summed by the day, and only today's are looked at one by one. Deliberately absent: the
tickets (tickets.py), and numbers as they were (periods.py).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from projections.projection import Projection, Row, Step
from projections.tickets import first_breach
from tickets.connections import Pool
from tickets.lifecycle import Status
from tickets.sla import Priority
from tickets.ticket import Ticket
from tickets.values import Category, Environment

_EVERYBODY: Final = "everybody"
"""The scope that has all tickets; each requester's own is by their id."""

_NONE: Final = ""
"""In a cell, where a ticket has no environment."""

LARGEST: Final = 100
"""Of teams and assignees, so many are told, those with most tickets."""


def _kinds(ticket: Ticket | None) -> tuple[tuple[str, str, str], ...]:
    """Whose and which sums a ticket is in."""
    if ticket is None or ticket.deleted:
        return ()
    breach = first_breach(ticket)
    kinds = [("cell", f"{ticket.status}/{ticket.priority}/{ticket.category}/{ticket.environment or _NONE}")]
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
    version=2,
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
        """select kind, value, n, n as of_all from read_model.counts where scope = $1 and kind = 'cell'
           union all
           select k.kind, c.value, c.n, c.of_all
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
        _scope(visible_to),
        ["team", "assignee"],
        LARGEST,
        visible_to,
    )
    return counts_of(tuple(row) for row in rows)


def fitting(
    status: Sequence[Status],
    priority: Sequence[Priority],
    category: Sequence[Category],
    environment: Sequence[Environment],
    *,
    visible_to: UUID | None,
    arguments: list[Any],
) -> str:
    """SQL: how many tickets are of one of these of each, where there are any; of what somebody sees.

    Its arguments are added.
    """
    arguments.append(_scope(visible_to))
    among = f"where scope = ${len(arguments)} and kind = 'cell'"
    if status or priority or category or environment:
        environments: Iterable[str] = environment or (*Environment, _NONE)
        cells = product(status or Status, priority or Priority, category or Category, environments)
        arguments.append(["/".join(one) for one in cells])
        among += f" and value = any(${len(arguments)}::text[])"
    return f"(select coalesce(sum(n), 0)::bigint from read_model.counts {among})"


def _scope(visible_to: UUID | None) -> str:
    return _EVERYBODY if visible_to is None else str(visible_to)


def counts_of(rows: Iterable[tuple[str, str, int, int]]) -> Counts:
    """The numbers from rows of a kind, a value, how many there are of it, and how many of the kind in all."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ("status", "priority", "category")}
    assigned = 0
    for kind, value, n, of_all in rows:
        if kind == "cell":
            for part, name in zip(value.split("/"), ("status", "priority", "category", "environment"), strict=True):
                found.setdefault(name, Counter())[part] += n
        else:
            found.setdefault(kind, Counter())[value] += n
            assigned = of_all if kind == "assignee" else assigned
    total = found["status"].total()
    return Counts(
        total=total,
        status={one: found["status"][one] for one in Status},
        priority={one: found["priority"][one] for one in Priority},
        category={one: found["category"][one] for one in Category},
        team=dict(found.get("team", {})),
        assignee={UUID(one): n for one, n in found.get("assignee", {}).items()},
        unassigned=total - assigned,
        breached=found.get("breached", Counter())[""],
    )
