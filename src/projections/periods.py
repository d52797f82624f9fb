"""How tickets were until they changed: what lists of the past are made of, behind GET /tickets?as_of=.

A row for each stretch of a ticket's life that is over, with all that a list filters or sorts by: from the public
fact that it began with (`updated_at`) until the next one at a later moment (`valid_to`), by the time that they
occurred at. Of several facts at one moment the last counts. The stretch that is not over has no row here: the
ticket as it is now has all of it, and holds since its own updated_at. So a row is written once, when all of it is
known, and never changed; and of what was so at some moment, only tickets that have changed since are here: those
that were at work then. Internal comments change nothing that a list shows, and end no stretch. While a ticket was
deleted it is in no list, so that is no row either.

Deliberately absent: the tickets themselves, which are folded off the ledger for the page that is asked for
(past.py), and words to search for.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final
from uuid import UUID

from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from projections.counts import LARGEST, Counts, counts_of
from projections.cursors import cursor_after
from projections.lists import COLUMN, TOTALS_EXACT_UPTO, Filter, Page, Sort, after_cursor, conditions
from projections.past import tickets_at
from projections.projection import Projection, Row, Step
from projections.tickets import RANK, document, first_breach
from tickets.connections import Pool, in_transaction
from tickets.ledger import Ledger

_COLUMNS: Final = (
    "ticket_id",
    "updated_at",
    "valid_to",
    "version",
    "status",
    "status_rank",
    "priority",
    "category",
    "environment",
    "affected_service",
    "tags",
    "requester_id",
    "assignee_id",
    "team",
    "created_at",
    "breach_at",
)


def _rows(step: Step) -> Sequence[Row]:
    was, now = step.before, step.after
    if was is None or now is None or was.deleted or was.updated_at >= now.updated_at:
        return ()
    return (
        (
            was.id,
            was.updated_at,
            now.updated_at,
            was.version,
            was.status,
            RANK[was.status],
            was.priority,
            was.category,
            was.environment,
            was.affected_service,
            was.tags,
            was.requester_id,
            was.assignee_id,
            was.team,
            was.created_at,
            first_breach(was),
        ),
    )


PERIODS: Final = Projection(
    name="periods",
    columns=_COLUMNS,
    rows=_rows,
    newest_only=False,
    key_columns=2,
)


def then(what: str, where: str, further: str = "") -> str:
    """What of the tickets as they were at the moment $1, as SQL: of those that have not changed since, and of periods.

    Each is asked by itself, `further` (an order and a limit, or groups) included, so that each has a plan of its own.
    That no ticket was created later follows; it is said so that a walk from the newest begins at that moment.
    """
    return f"""((select {what} from read_model.tickets
                 where not deleted and created_at <= $1 and updated_at <= $1 and {where} {further})
                union all
                (select {what} from read_model.periods
                 where tstzrange(updated_at, valid_to) @> $1 and {where} {further})) then_"""


@asynccontextmanager
async def planned(pool: Pool) -> AsyncIterator["PoolConnectionProxy[Record]"]:
    """A connection that plans each question for its own moment: a plan for any moment takes a hundred times as long."""
    async with pool.acquire() as connection, in_transaction(connection, readonly=True):
        await connection.execute("set local plan_cache_mode = force_custom_plan")
        yield connection


async def search(
    ledger: Ledger,
    wanted: Filter,
    at: datetime,
    *,
    sort: Sort = Sort.CREATED_AT,
    descending: bool = True,
    page: int = 1,
    page_size: int = 20,
    cursor: str | None = None,
) -> Page:
    """A page of the tickets that fitted at a moment, as they then were; otherwise as lists.search.

    There is nothing to search for in the past: `wanted.q` is not looked at. Raises BadCursor.
    """
    where, arguments = conditions(wanted, at)
    column, order = COLUMN[sort][0], "desc" if descending else "asc"
    if sort is Sort.STATUS and wanted.status:  # so that a walk in this order passes over the others
        arguments.append([RANK[status] for status in wanted.status])
        where += f" and status_rank = any(${len(arguments)}::smallint[])"
    counted = list(arguments)
    after = "" if cursor is None else after_cursor(cursor, sort, arguments, descending=descending)
    offset = 0 if cursor is not None else (page - 1) * page_size
    in_order = f"order by {column} {order}, ticket_id {order}"
    found = then(f"ticket_id, {column}", where + after, f"{in_order} limit {offset + page_size + 1}")
    async with planned(ledger.pool) as connection:
        rows = await connection.fetch(
            f"select ticket_id, {column} from {found} {in_order} limit {page_size + 1} offset {offset}", *arguments
        )
        more = len(rows) > page_size
        rows = rows[:page_size]
        total = offset + len(rows)
        if more or cursor is not None or not rows:
            fitting = then("1", where, f"limit {TOTALS_EXACT_UPTO + 1}")
            total = await connection.fetchval(
                f"select count(*) from (select from {fitting} limit {TOTALS_EXACT_UPTO + 1}) t", *counted
            )
    tickets = await tickets_at(ledger, [row[0] for row in rows], at)
    return Page(
        docs=[document(tickets[row[0]], at, internal=wanted.visible_to is None) for row in rows],
        total=min(total, TOTALS_EXACT_UPTO),
        total_is_exact=total <= TOTALS_EXACT_UPTO,
        next_cursor=cursor_after((sort, descending, rows[-1][1], rows[-1][0])) if more else None,
    )


async def count(pool: Pool, at: datetime, *, visible_to: UUID | None = None) -> Counts:
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
            where place <= {LARGEST}""",
            *arguments,
        )
    return counts_of(tuple(row) for row in rows)
