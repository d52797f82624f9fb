"""The tickets as they are now: the read model behind GET /tickets and GET /tickets/{id}.

A row keeps the answer as it is sent, with the two breach flags false: whether a deadline has been missed
depends on the moment of asking, so the moment from which on it is kept beside, and the query sets the
flag. Deliberately absent: who may see what; the edge says that by what it asks for.
"""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from projections.projection import Projection, Row, Step
from tickets.connections import Pool
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


def view(ticket: Ticket, at: datetime | None = None) -> TicketView:
    """The ticket as it is shown, its breaches as of `at`; without it, as if none were."""
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
        comment_count=0,
        attachment_count=0,
        reopen_count=ticket.reopen_count,
        deleted=ticket.deleted,
        created_at=ticket.created_at,
        updated_at=ticket.updated_at,
        resolved_at=ticket.resolved_at,
        closed_at=ticket.closed_at,
    )


def document(ticket: Ticket, at: datetime | None = None) -> bytes:
    """`view` as JSON."""
    return _encode(view(ticket, at))


_encode: Final = msgspec.json.Encoder().encode
_RANK: Final = {status: rank for rank, status in enumerate(Status)}


def _breaches(ticket: Ticket) -> tuple[datetime | None, datetime | None]:
    return (
        breach_at(ticket.response_due_at, ticket.responded_at or ticket.resolved_at or ticket.closed_at),
        breach_at(ticket.resolution_due_at, ticket.resolution_stopped_at),
    )


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
            _RANK[ticket.status],
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
            min((moment for moment in (response, resolution) if moment is not None), default=None),
            ticket.deleted,
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
        "doc",
    ),
    rows=_rows,
    newest_only=True,
)


class Sort(StrEnum):
    """What a list can be sorted by."""

    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"
    PRIORITY = "priority"
    STATUS = "status"


_COLUMN: Final = {
    Sort.CREATED_AT: ("created_at", "timestamptz"),
    Sort.UPDATED_AT: ("updated_at", "timestamptz"),
    Sort.PRIORITY: ("priority", "text"),
    Sort.STATUS: ("status_rank", "smallint"),
}


class Filter(Struct, frozen=True, kw_only=True):
    """Which tickets: all that fit every one of these that is set. Deleted ones are in no list."""

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


class BadCursor(Exception):  # noqa: N818 - it says what is bad
    """The cursor is not one that this list gave out."""


class Found(Struct, frozen=True):
    """One ticket, as JSON, with what the edge needs to know of it."""

    doc: bytes
    version: int
    requester_id: UUID


async def find(pool: Pool, ticket_id: UUID) -> Found | None:
    """One ticket as it is now, deleted or not."""
    row = await pool.fetchrow(
        """select doc, version, requester_id, response_breach_at < now(), resolution_breach_at < now()
           from read_model.tickets where ticket_id = $1""",
        ticket_id,
    )
    return None if row is None else Found(_with_breaches(row[0], row[3], row[4]), row[1], row[2])


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

    Raises BadCursor.
    """
    column, kind = _COLUMN[sort]
    where, arguments = _where(wanted)
    counted = list(arguments)
    after = ""
    if cursor is not None:
        value, ticket_id = _read_cursor(cursor, sort, descending=descending)
        arguments += [value, ticket_id]
        sign = "<" if descending else ">"
        after = f" and ({column}, ticket_id) {sign} (${len(arguments) - 1}::{kind}, ${len(arguments)}::uuid)"
    order = "desc" if descending else "asc"
    offset = 0 if cursor is not None else (page - 1) * page_size
    rows = await pool.fetch(
        f"""select doc, response_breach_at < now(), resolution_breach_at < now(), {column}, ticket_id
            from read_model.tickets where {where}{after}
            order by {column} {order}, ticket_id {order} limit {page_size + 1} offset {offset}""",
        *arguments,
    )
    more = len(rows) > page_size
    rows = rows[:page_size]
    total = offset + len(rows)
    if more or cursor is not None or not rows:
        total = await pool.fetchval(
            f"select count(*) from (select from read_model.tickets where {where} limit {TOTALS_EXACT_UPTO + 1}) t",
            *counted,
        )
    return Page(
        docs=[_with_breaches(row[0], row[1], row[2]) for row in rows],
        total=min(total, TOTALS_EXACT_UPTO),
        total_is_exact=total <= TOTALS_EXACT_UPTO,
        next_cursor=_cursor(sort, rows[-1][3], rows[-1][4], descending=descending) if more else None,
    )


def _where(wanted: Filter) -> tuple[str, list[Any]]:
    parts, arguments = ["not deleted"], list[Any]()

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
        parts.append("breach_at < now()" if wanted.breached else "(breach_at is null or breach_at >= now())")
    return " and ".join(parts), arguments


def _with_breaches(doc: bytes, response: bool | None, resolution: bool | None) -> bytes:  # noqa: FBT001 - columns
    """Set the flags. Inside a JSON string a quote is escaped, so the names cannot occur in a text."""
    if response:
        doc = doc.replace(b'"response_breached":false', b'"response_breached":true', 1)
    if resolution:
        doc = doc.replace(b'"resolution_breached":false', b'"resolution_breached":true', 1)
    return doc


def _cursor(sort: Sort, value: Any, ticket_id: UUID, *, descending: bool) -> str:
    return base64.urlsafe_b64encode(_encode((sort, descending, value, ticket_id))).decode().rstrip("=")


def _read_cursor(cursor: str, sort: Sort, *, descending: bool) -> tuple[Any, UUID]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        of_sort, of_descending, value, ticket_id = _CURSORS[sort].decode(raw)
        if isinstance(value, datetime):
            value = value.astimezone(UTC)
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise BadCursor(str(error)) from error
    if (of_sort, of_descending) != (sort, descending):
        raise BadCursor(f"it belongs to a list sorted by {'-' if of_descending else ''}{of_sort}")
    return value, ticket_id


_Moment = Annotated[datetime, Meta(tz=True)]
_CURSORS: Final[dict[Sort, msgspec.json.Decoder[Any]]] = {
    Sort.CREATED_AT: msgspec.json.Decoder(tuple[Sort, bool, _Moment, UUID]),
    Sort.UPDATED_AT: msgspec.json.Decoder(tuple[Sort, bool, _Moment, UUID]),
    Sort.PRIORITY: msgspec.json.Decoder(tuple[Sort, bool, Priority, UUID]),
    Sort.STATUS: msgspec.json.Decoder(tuple[Sort, bool, Annotated[int, Meta(ge=0, le=32_767)], UUID]),
}
