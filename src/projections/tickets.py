"""The tickets as they are now: the read model behind GET /tickets/{id} and, in lists.py, GET /tickets.

A row keeps the answer as it is sent, with the two breach flags false: whether a deadline has been missed
depends on the moment of asking, so the moment from which on it is kept beside, and the query sets the
flag. Deliberately absent: lists (lists.py), and who may see what; the edge says that by what it asks for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from asyncpg import Record
from msgspec import UNSET, Struct, UnsetType

from projections.projection import Projection, Row, Step, is_parked
from tickets.batching import Batched
from tickets.connections import Pool
from tickets.lifecycle import Status
from tickets.sla import Priority, breach_at
from tickets.ticket import Ticket
from tickets.values import Category, Environment


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
    if response is None or resolution is None:
        return response or resolution
    return min(response, resolution)


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


class Found(Struct, frozen=True):
    """One ticket, as JSON, with what the edge needs to know of it."""

    doc: bytes
    version: int
    requester_id: UUID
    stale: bool


SHOWN: Final = "doc, response_breach_at < now(), resolution_breach_at < now(), internal_comments, " + is_parked(
    "tickets", "ticket_id"
)
SHOWN_COLUMNS: Final = 5
"""What `shown` wants to know, as columns, and how many."""


Finding = Batched[UUID, Record | None]


def finding(pool: Pool) -> Finding:
    """For `find`: the rows of tickets, for all who ask at the same time at once."""

    async def rows(ticket_ids: Sequence[UUID]) -> list[Record | None]:
        found = await pool.fetch(
            f"""select {SHOWN}, version, requester_id, ticket_id from read_model.tickets
                where ticket_id = any($1::uuid[])""",
            ticket_ids,
        )
        of_ids = {row[7]: row for row in found}
        return [of_ids.get(one) for one in ticket_ids]

    return Batched(rows)


async def find(finding: Finding, ticket_id: UUID, *, internal: bool) -> Found | None:
    """One ticket as it is now, deleted or not; `internal` is whether internal comments count."""
    row = await finding(ticket_id)
    return None if row is None else Found(shown(*row[:SHOWN_COLUMNS], internal=internal), row[5], row[6], stale=row[4])


def shown(
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
