"""Lists of tickets as they are now: filtered, searched, sorted, a page at a time, with how many there are in all.

Where sums are kept of what a list asks for, they are its total, whatever it comes to; otherwise hits are counted, up to
a bound. Deliberately absent: what a ticket looks like (tickets.py), how words are found (texts.py), and the past
(periods.py).
"""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from projections import texts
from projections.counts import fitting
from projections.cursors import BadCursor, Moment, cursor_after, read_cursor
from projections.texts import FEW, LOOKED_AT, is_common, snippets
from projections.tickets import SHOWN, SHOWN_COLUMNS, shown
from tickets.connections import Connection, Pool
from tickets.lifecycle import Status
from tickets.sla import Priority
from tickets.values import Category, Environment

TOTALS_EXACT_UPTO: Final = 10_000
"""Up to how many hits are counted; more are said to be more."""


class Sort(StrEnum):
    """What a list can be sorted by."""

    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"
    PRIORITY = "priority"
    STATUS = "status"
    RELEVANCE = "relevance"


COLUMN: Final = {
    Sort.CREATED_AT: ("created_at", "timestamptz"),
    Sort.UPDATED_AT: ("updated_at", "timestamptz"),
    Sort.PRIORITY: ("priority", "text"),
    Sort.STATUS: ("status_rank", "smallint"),
    Sort.RELEVANCE: ("rank", "float8"),
}
"""The column that each sort goes by, and its type."""


class Filter(Struct, frozen=True, kw_only=True):
    """Which tickets: all that fit every one of these that is set. Deleted ones are in no list."""

    q: str | None = None
    """What to search for, as websearch_to_tsquery understands it."""
    status: tuple[Status, ...] = ()
    priority: tuple[Priority, ...] = ()
    category: tuple[Category, ...] = ()
    environment: tuple[Environment, ...] = ()
    requester_id: UUID | None = None
    assignee_id: UUID | None = None
    unassigned: bool = False
    team: str | None = None
    affected_service: str | None = None
    tag: str | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    updated_from: datetime | None = None
    updated_to: datetime | None = None
    breached: bool | None = None
    visible_to: UUID | None = None
    """Only what this person requested: all that an end user may see."""


class Page(Struct, frozen=True):
    """Some of the tickets that fit, as JSON, and where the next ones begin."""

    docs: list[bytes]
    total: int
    total_is_exact: bool
    next_cursor: str | None


async def search(
    pool: Pool,
    wanted: Filter,
    *,
    sort: Sort = Sort.CREATED_AT,
    descending: bool = True,
    page: int = 1,
    page_size: int = 20,
    cursor: str | None = None,
) -> Page:
    """A page of the tickets that fit, ties broken by id. `cursor` goes on after an earlier page.

    By relevance only where there is something to search for. Raises BadCursor.
    """
    column = COLUMN[sort][0]
    where, arguments = conditions(wanted)
    source, hits, countable = f"read_model.tickets where {where}", "null::bigint", TOTALS_EXACT_UPTO
    if wanted.q is not None:
        arguments.append(wanted.q)
        having = await texts.expected(pool, wanted.q)
        if having > FEW and is_common(having, **await _expected(pool, where, arguments[:-1])):
            ranked = sort is Sort.RELEVANCE
            source, countable = _asked_one_by_one(where, len(arguments), wanted, ranked=ranked), LOOKED_AT
            hits = "count(*) over ()" if ranked and cursor is None else hits
        else:
            source, hits = _looked_up(where, len(arguments), wanted), "hits"
    counting, counted = f"select count(*) from (select from {source} limit {countable + 1}) t", list(arguments)
    if summed := _is_summed(wanted):
        counting, counted = f"select {_sum(wanted, of_it := list[Any]())}", of_it
        hits = _sum(wanted, arguments)
    after = "" if cursor is None else after_cursor(cursor, sort, arguments, descending=descending)
    order = "desc" if descending else "asc"
    in_order = f"order by {column} {order}, ticket_id {order}"
    offset = 0 if cursor is not None else (page - 1) * page_size
    best = "" if wanted.q is None else ", best"
    selected = f"""select {SHOWN}, {column}, ticket_id, {hits}{best} from {source}{after}
                   {in_order} limit {page_size + 1} offset {offset}"""
    if wanted.q is not None:
        found = snippets("page.best", _query(len(counted), wanted)[0])
        selected = f"select page.*, {found} from ({selected}) page {in_order}"
    rows = await pool.fetch(selected, *arguments)
    more = len(rows) > page_size
    rows = rows[:page_size]
    total = offset + len(rows)
    if rows and rows[0][7] is not None:
        total = rows[0][7]
    elif more or cursor is not None or not rows:
        total = await pool.fetchval(counting, *counted)
    docs = [shown(*row[:SHOWN_COLUMNS], internal=wanted.visible_to is None) for row in rows]
    if wanted.q is not None:
        docs = [
            b'%b,"highlights":%b}' % (doc[:-1], msgspec.json.encode([texts.shown(one) for one in row[9]]))
            for doc, row in zip(docs, rows, strict=True)
        ]
    return Page(
        docs=docs,
        total=total if summed else min(total, countable),
        total_is_exact=summed or total <= countable,
        next_cursor=cursor_after((sort, descending, rows[-1][5], rows[-1][6])) if more else None,
    )


def _is_summed(wanted: Filter) -> bool:
    """Whether sums are kept of all that it asks for."""
    return wanted == Filter(
        status=wanted.status,
        priority=wanted.priority,
        category=wanted.category,
        environment=wanted.environment,
        visible_to=wanted.visible_to,
    )


def _sum(wanted: Filter, arguments: list[Any]) -> str:
    return fitting(
        wanted.status,
        wanted.priority,
        wanted.category,
        wanted.environment,
        visible_to=wanted.visible_to,
        arguments=arguments,
    )


async def ids_of(connection: Connection, wanted: Filter) -> AsyncIterator[tuple[UUID, int]]:
    """The tickets that fit, in the order of their ids, each with how many facts it has. Needs a transaction."""
    where, arguments = conditions(wanted)
    if wanted.q is not None:
        arguments.append(wanted.q)
        query, visible = _query(len(arguments), wanted)
        where += f" and ticket_id in (select x.ticket_id from read_model.texts x where x.words @@ {query}{visible})"
    rows = connection.cursor(
        f"select ticket_id, version from read_model.tickets where {where} order by ticket_id",
        *arguments,
        prefetch=1_000,
    )
    async for row in rows:
        yield row[0], row[1]


async def _expected(pool: Pool, where: str, arguments: Sequence[Any]) -> dict[str, int]:
    """How many tickets fit, and how many there are, as the database expects."""
    plan = await pool.fetchval(f"explain (format json) select from read_model.tickets where {where}", *arguments)
    rows: int = json.loads(plan)[0]["Plan"]["Plan Rows"]
    all_: int = await pool.fetchval(
        "select greatest(reltuples, 0)::bigint from pg_class where oid = 'read_model.tickets'::regclass"
    )
    return {"fitting": rows, "tickets": all_}


def _looked_up(where: str, q: int, wanted: Filter) -> str:
    """The tickets with what is searched for, argument number `q`, by their words: all that fit ranked and counted."""
    query, visible = _query(q, wanted)
    # The limits have each ticket looked up by its id: before its texts are ranked, because most do not fit, and however
    # many the database takes it for, which cannot know how many texts have the words.
    ranked = f"""select x.ticket_id, x.text_id, x.position, ts_rank(x.words, {query}) as rank
                 from read_model.texts x,
                      lateral (select from read_model.tickets t where t.ticket_id = x.ticket_id and {where} limit 1) t
                 where x.words @@ {query}{visible}"""
    return f"""(with hit as materialized (select r.ticket_id, {texts.best(ranked)} group by r.ticket_id)
                select t.*, hit.rank, hit.best, (select count(*) from hit) as hits
                from hit, lateral (select * from read_model.tickets where ticket_id = hit.ticket_id limit 1) t) found
               where true"""


def _asked_one_by_one(where: str, q: int, wanted: Filter, *, ranked: bool) -> str:
    """What many have: the tickets that fit are asked one after the other; to be ranked, so many of the newest."""
    query, visible = _query(q, wanted)
    newest = f"order by created_at desc limit {LOOKED_AT + 1}" if ranked else ""
    of_one = f"""select x.text_id, x.position, ts_rank(x.words, {query}) as rank from read_model.texts x
                 where x.ticket_id = t.ticket_id and {texts.asked(query)}{visible}"""
    return f"""(select t.*, hit.rank, hit.best from read_model.tickets t, lateral (select {texts.best(of_one)}) hit
                where {where} and hit.rank is not null {newest}) found
               where true"""


def _query(q: int, wanted: Filter) -> tuple[str, str]:
    visible = "" if wanted.visible_to is None else " and not x.internal"
    # Within a query of its own, so that it is not made anew for each row.
    return f"(select websearch_to_tsquery('english', ${q}))", visible


def after_cursor(cursor: str, sort: Sort, arguments: list[Any], *, descending: bool) -> str:
    """The condition that a list goes on after an earlier page; what it compares with is added. Raises BadCursor."""
    of_sort, of_descending, value, ticket_id = read_cursor(cursor, _CURSORS[sort])
    if (of_sort, of_descending) != (sort, descending):
        raise BadCursor(f"it belongs to a list sorted by {'-' if of_descending else ''}{of_sort}")
    arguments += [value, ticket_id]
    column, kind = COLUMN[sort]
    sign = "<" if descending else ">"
    return f" and ({column}, ticket_id) {sign} (${len(arguments) - 1}::{kind}, ${len(arguments)}::uuid)"


def conditions(wanted: Filter, at: datetime | None = None) -> tuple[str, list[Any]]:
    """Which tickets fit, as SQL, and its arguments. With `at`, which is then the first, as of that moment."""
    parts, arguments = (["not deleted"], list[Any]()) if at is None else (["true"], [at])
    moment = "now()" if at is None else "$1"

    def add(condition: str, value: Any) -> None:
        arguments.append(value)
        parts.append(condition.format(f"${len(arguments)}"))

    for name in ("status", "priority", "category", "environment"):
        values = getattr(wanted, name)
        if len(values) == 1:  # as an equation, because then its index has them in order
            add(name + " = {}", values[0])
        elif values:
            add(name + " = any({}::text[])", list(values))
    for name in ("requester_id", "assignee_id", "team", "affected_service"):
        value = getattr(wanted, name)
        if value is not None:
            add(name + " = {}", value)
    if wanted.visible_to is not None:
        add("requester_id = {}", wanted.visible_to)
    if wanted.unassigned:
        parts.append("assignee_id is null")
    if wanted.tag is not None:
        add("tags @> array[{}::text]", wanted.tag)
    for name in ("created", "updated"):
        if (start := getattr(wanted, name + "_from")) is not None:
            add(name + "_at >= {}", start)
        if (end := getattr(wanted, name + "_to")) is not None:
            add(name + "_at <= {}", end)
    if wanted.breached is not None:
        on_time = f"(breach_at is null or breach_at >= {moment})"
        parts.append(f"breach_at < {moment}" if wanted.breached else on_time)
    return " and ".join(parts), arguments


_CURSORS: Final[dict[Sort, msgspec.json.Decoder[Any]]] = {
    Sort.CREATED_AT: msgspec.json.Decoder(tuple[Sort, bool, Moment, UUID]),
    Sort.UPDATED_AT: msgspec.json.Decoder(tuple[Sort, bool, Moment, UUID]),
    Sort.PRIORITY: msgspec.json.Decoder(tuple[Sort, bool, Priority, UUID]),
    Sort.RELEVANCE: msgspec.json.Decoder(tuple[Sort, bool, float, UUID]),
    Sort.STATUS: msgspec.json.Decoder(tuple[Sort, bool, Annotated[int, Meta(ge=0, le=32_767)], UUID]),
}
