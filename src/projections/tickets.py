"""The tickets as they are now: the read model behind GET /tickets and GET /tickets/{id}.

A row keeps the answer as it is sent, with the two breach flags false: whether a deadline has been missed
depends on the moment of asking, so the moment from which on it is kept beside, and the query sets the
flag. Deliberately absent: who may see what; the edge says that by what it asks for.
"""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from projections.cursors import BadCursor, Moment, cursor_after, read_cursor
from projections.projection import Projection, Row, Step, is_parked
from projections.texts import FEW, LOOKED_AT, expected, is_common, snippets
from tickets.connections import Connection, Pool
from tickets.lifecycle import Status
from tickets.sla import Priority, breach_at
from tickets.ticket import Ticket
from tickets.values import Category, Environment

TOTALS_EXACT_UPTO: Final = 10_000
"""Up to how many hits are counted; more are said to be more."""


class SlaView(Struct, frozen=True, gc=False):
    """What was promised for a ticket, and whether it was kept."""

    response_due_at: datetime
    resolution_due_at: datetime
    responded_at: datetime | None
    paused_since: datetime | None
    response_breached: bool
    resolution_breached: bool


class TicketView(Struct, frozen=True, gc=False):
    """A ticket as the API shows it."""

    id: UUID
    number: str
    version: int
    title: str
    description: str
    category: Category
    priority: Priority
    status: Status
    environment: Environment | None
    affected_service: str | None
    tags: tuple[str, ...]
    requester_id: UUID
    assignee_id: UUID | None
    team: str | None
    resolution_notes: str | None
    sla: SlaView
    comment_count: int
    attachment_count: int
    reopen_count: int
    deleted: bool
    created_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    closed_at: datetime | None
    stale: bool | UnsetType = UNSET
    """True where there are facts that the read model could not digest yet; not there otherwise."""


def view(ticket: Ticket, at: datetime | None = None, *, internal: bool = False) -> TicketView:
    """The ticket as it is shown, its breaches as of `at`; without it, as if none were.

    Internal comments count with `internal` only.
    """
    response, resolution = _breaches(ticket)
    return TicketView(
        id=ticket.id,
        number=ticket.number,
        version=ticket.version,
        title=ticket.title,
        description=ticket.description,
        category=ticket.category,
        priority=ticket.priority,
        status=ticket.status,
        environment=ticket.environment,
        affected_service=ticket.affected_service,
        tags=ticket.tags,
        requester_id=ticket.requester_id,
        assignee_id=ticket.assignee_id,
        team=ticket.team,
        resolution_notes=ticket.resolution_notes,
        sla=SlaView(
            response_due_at=ticket.response_due_at,
            resolution_due_at=ticket.resolution_due_at,
            responded_at=ticket.responded_at,
            paused_since=ticket.paused_since,
            response_breached=at is not None and response is not None and response < at,
            resolution_breached=at is not None and resolution is not None and resolution < at,
        ),
        comment_count=ticket.public_comments + ticket.internal_comments * internal,
        attachment_count=len(ticket.attachments),
        reopen_count=ticket.reopen_count,
        deleted=ticket.deleted,
        created_at=ticket.created_at,
        updated_at=ticket.updated_at,
        resolved_at=ticket.resolved_at,
        closed_at=ticket.closed_at,
    )


def document(ticket: Ticket, at: datetime | None = None, *, internal: bool = False) -> bytes:
    """`view` as JSON."""
    return _encode(view(ticket, at, internal=internal))


_encode: Final = msgspec.json.Encoder().encode
RANK: Final = {status: rank for rank, status in enumerate(Status)}
"""Each status's place in the workflow, to sort by."""


def _breaches(ticket: Ticket) -> tuple[datetime | None, datetime | None]:
    return (
        breach_at(ticket.response_due_at, ticket.responded_at or ticket.resolved_at or ticket.closed_at),
        breach_at(ticket.resolution_due_at, ticket.resolution_stopped_at),
    )


def first_breach(ticket: Ticket) -> datetime | None:
    """The moment from which on the ticket counts as late, if nothing happens; None if never."""
    return _earlier(*_breaches(ticket))


def _earlier(response: datetime | None, resolution: datetime | None) -> datetime | None:
    return min((moment for moment in (response, resolution) if moment is not None), default=None)


def _rows(step: Step) -> Sequence[Row]:
    ticket = step.after
    if ticket is None:
        return ()
    response, resolution = _breaches(ticket)
    return (
        (
            ticket.id,
            ticket.number,
            ticket.version,
            step.envelope.position,
            ticket.status,
            RANK[ticket.status],
            ticket.priority,
            ticket.category,
            ticket.environment,
            ticket.affected_service,
            ticket.tags,
            ticket.requester_id,
            ticket.assignee_id,
            ticket.team,
            ticket.created_at,
            ticket.updated_at,
            response,
            resolution,
            _earlier(response, resolution),
            ticket.deleted,
            ticket.internal_comments,
            document(ticket),
        ),
    )


TICKETS: Final = Projection(
    name="tickets",
    columns=(
        "ticket_id",
        "number",
        "version",
        "position",
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
        "updated_at",
        "response_breach_at",
        "resolution_breach_at",
        "breach_at",
        "deleted",
        "internal_comments",
        "doc",
    ),
    rows=_rows,
    newest_only=True,
    one_a_stream=True,
)


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


class Found(Struct, frozen=True):
    """One ticket, as JSON, with what the edge needs to know of it."""

    doc: bytes
    version: int
    requester_id: UUID
    stale: bool


_SHOWN: Final = "doc, response_breach_at < now(), resolution_breach_at < now(), internal_comments, " + is_parked(
    "tickets", "ticket_id"
)
_COLUMNS: Final = 5


async def find(pool: Pool, ticket_id: UUID, *, internal: bool) -> Found | None:
    """One ticket as it is now, deleted or not; `internal` is whether internal comments count."""
    row = await pool.fetchrow(
        f"select {_SHOWN}, version, requester_id from read_model.tickets where ticket_id = $1", ticket_id
    )
    return None if row is None else Found(_shown(*row[:_COLUMNS], internal=internal), row[5], row[6], stale=row[4])


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
        texts = await expected(pool, wanted.q)
        if texts > FEW and is_common(texts, **await _expected(pool, where, arguments[:-1])):
            source = _asked_one_by_one(where, len(arguments), wanted, ranked=sort is Sort.RELEVANCE)
            countable = LOOKED_AT
        else:
            source, hits = _looked_up(where, len(arguments), wanted), "hits"
    counted = list(arguments)
    after = "" if cursor is None else after_cursor(cursor, sort, arguments, descending=descending)
    order = "desc" if descending else "asc"
    offset = 0 if cursor is not None else (page - 1) * page_size
    rows = await pool.fetch(
        f"""select {_SHOWN}, {column}, ticket_id, {hits}
            from {source}{after}
            order by {column} {order}, ticket_id {order} limit {page_size + 1} offset {offset}""",
        *arguments,
    )
    more = len(rows) > page_size
    rows = rows[:page_size]
    total = offset + len(rows)
    if rows and rows[0][7] is not None:
        total = rows[0][7]
    elif more or cursor is not None or not rows:
        total = await pool.fetchval(
            f"select count(*) from (select from {source} limit {countable + 1}) t",
            *counted,
        )
    docs = [_shown(*row[:_COLUMNS], internal=wanted.visible_to is None) for row in rows]
    if wanted.q is not None:
        found = await snippets(pool, [row[6] for row in rows], wanted.q, internal=wanted.visible_to is None)
        docs = [
            b'%b,"highlights":%b}' % (doc[:-1], _encode(found[row[6]])) for doc, row in zip(docs, rows, strict=True)
        ]
    return Page(
        docs=docs,
        total=min(total, countable),
        total_is_exact=total <= countable,
        next_cursor=cursor_after((sort, descending, rows[-1][5], rows[-1][6])) if more else None,
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
    """The tickets with what is searched for, argument number `q`, by their words: all of them ranked and counted."""
    query, visible = _query(q, wanted)
    return f"""(with hit as materialized
                  (select x.ticket_id, max(ts_rank(x.words, {query}))::float8 as rank from read_model.texts x
                   where x.words @@ {query}{visible} group by x.ticket_id)
                select t.*, hit.rank, count(*) over () as hits
                from hit join read_model.tickets t using (ticket_id) where {where}) found
               where true"""


def _asked_one_by_one(where: str, q: int, wanted: Filter, *, ranked: bool) -> str:
    """What many have: the tickets that fit are asked one after the other; to be ranked, so many of the newest."""
    query, visible = _query(q, wanted)
    newest = f"order by created_at desc limit {LOOKED_AT + 1}" if ranked else ""
    return f"""(select t.*, hit.rank from read_model.tickets t, lateral
                  (select max(ts_rank(x.words, {query}))::float8 as rank from read_model.texts x
                   where x.ticket_id = t.ticket_id and x.words @@ {query}{visible}) hit
                where {where} and hit.rank is not null {newest}) found
               where true"""


def _query(q: int, wanted: Filter) -> tuple[str, str]:
    visible = "" if wanted.visible_to is None else " and not x.internal"
    return f"websearch_to_tsquery('english', ${q})", visible


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
        if values:
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


def _shown(
    doc: bytes,
    response: bool | None,  # noqa: FBT001 - columns
    resolution: bool | None,  # noqa: FBT001
    internal_comments: int,
    stale: bool,  # noqa: FBT001
    *,
    internal: bool,
) -> bytes:
    """Set what depends on the moment and the reader.

    Inside a JSON string a quote is escaped, so the names cannot occur in a text.
    """
    if response:
        doc = doc.replace(b'"response_breached":false', b'"response_breached":true', 1)
    if resolution:
        doc = doc.replace(b'"resolution_breached":false', b'"resolution_breached":true', 1)
    if internal and internal_comments:
        before, name, after = doc.partition(b'"comment_count":')
        count, comma, after = after.partition(b",")
        doc = b"%b%b%d%b%b" % (before, name, int(count) + internal_comments, comma, after)
    if stale:
        doc = doc[:-1] + b',"stale":true}'
    return doc


_CURSORS: Final[dict[Sort, msgspec.json.Decoder[Any]]] = {
    Sort.CREATED_AT: msgspec.json.Decoder(tuple[Sort, bool, Moment, UUID]),
    Sort.UPDATED_AT: msgspec.json.Decoder(tuple[Sort, bool, Moment, UUID]),
    Sort.PRIORITY: msgspec.json.Decoder(tuple[Sort, bool, Priority, UUID]),
    Sort.RELEVANCE: msgspec.json.Decoder(tuple[Sort, bool, float, UUID]),
    Sort.STATUS: msgspec.json.Decoder(tuple[Sort, bool, Annotated[int, Meta(ge=0, le=32_767)], UUID]),
}
