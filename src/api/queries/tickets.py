"""The queries about tickets: what the read models hold, sent as it is; the past, read off the ledger.

Deliberately absent: how read models are searched (projections/) and what may happen next (tickets/).
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.params import Parameter
from msgspec import Meta, Struct

from api.openapi import answers
from api.problems import InvalidRequest
from api.requests import ApiRequest, before_query, installation, not_modified
from projections import history, tickets
from projections.history import Action, Entry
from projections.tickets import Filter, Sort, TicketView
from tickets.commands import may, steps
from tickets.errors import NotFound
from tickets.lifecycle import Status
from tickets.permissions import Actor, Permission
from tickets.sla import Priority
from tickets.ticket import Ticket
from tickets.values import Category, Environment

Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
PageSize = Annotated[int, Meta(ge=1, le=100)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Statuses = Annotated[list[Status] | None, Parameter(query="status")]
Priorities = Annotated[list[Priority] | None, Parameter(query="priority")]
Categories = Annotated[list[Category] | None, Parameter(query="category")]
Environments = Annotated[list[Environment] | None, Parameter(query="environment")]
Actions = Annotated[list[Action] | None, Parameter(query="action")]
AssigneeId = Annotated[
    str,
    Meta(
        pattern="^(me|none|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$",
        description="A person's id, me or none.",
    ),
]
SortBy = Literal[
    "created_at", "-created_at", "updated_at", "-updated_at", "priority", "-priority", "status", "-status"
]


class TicketList(Struct):
    """A page of tickets."""

    items: list[TicketView]
    page: int | None
    page_size: int
    total: int
    total_is_exact: bool
    next_cursor: str | None


class History(Struct):
    """A page of a ticket's audit trail, oldest first."""

    items: list[Entry]
    page: int | None
    page_size: int
    total: int
    total_is_exact: bool
    next_cursor: str | None


class Transition(Struct):
    """A step that the workflow has from here, and whether the caller may take it now."""

    to: Status
    allowed: bool
    reason: str | None


class Transitions(Struct):
    """The steps from here."""

    status: Status
    items: list[Transition]


_QUERY: Final[dict[str, Any]] = {
    "before_request": before_query,
    "security": [{"bearer": []}],
    "tags": ["Queries"],
}
_encode: Final = msgspec.json.Encoder().encode


@get(
    "/tickets",
    operation_id="listTickets",
    responses=answers(200, TicketList, "A page of the tickets that fit."),
    **_QUERY,
)
async def list_tickets(
    request: ApiRequest,
    status: Statuses = None,
    priority: Priorities = None,
    category: Categories = None,
    environment: Environments = None,
    assignee_id: AssigneeId | None = None,
    team: Name | None = None,
    requester_id: UUID | None = None,
    affected_service: Name | None = None,
    tag: Name | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
    updated_from: datetime | None = None,
    updated_to: datetime | None = None,
    breached: bool | None = None,
    sort: SortBy = "-created_at",
    page: Number | None = None,
    page_size: PageSize = 20,
    cursor: Name | None = None,
) -> Response[bytes]:
    """The tickets that the caller may see and that fit every filter; a repeated filter means any of them."""
    if page is not None and cursor is not None:
        raise InvalidRequest("cursor", "page and cursor cannot go together")
    served = installation(request)
    actor = request.user
    position = served.freshness.projected
    found = await tickets.search(
        served.ledger.pool,
        Filter(
            status=tuple(status or ()),
            priority=tuple(priority or ()),
            category=tuple(category or ()),
            environment=tuple(environment or ()),
            requester_id=requester_id,
            assignee_id=actor.id
            if assignee_id == "me"
            else assignee_id
            if isinstance(assignee_id, UUID)
            else None,
            unassigned=assignee_id == "none",
            team=team,
            affected_service=affected_service,
            tag=tag,
            created_from=_zoned("created_from", created_from),
            created_to=_zoned("created_to", created_to),
            updated_from=_zoned("updated_from", updated_from),
            updated_to=_zoned("updated_to", updated_to),
            breached=breached,
            visible_to=None if actor.is_staff else actor.id,
        ),
        sort=Sort(sort.lstrip("-")),
        descending=sort.startswith("-"),
        page=page or 1,
        page_size=page_size,
        cursor=cursor,
    )
    about = {
        "page": None if cursor is not None else page or 1,
        "page_size": page_size,
        "total": found.total,
        "total_is_exact": found.total_is_exact,
        "next_cursor": found.next_cursor,
    }
    return _list(request, found.docs, about, position)


@get(
    "/tickets/{ticket_id:uuid}",
    operation_id="getTicket",
    responses=answers(200, TicketView, "The ticket."),
    **_QUERY,
)
async def get_ticket(
    request: ApiRequest, ticket_id: UUID, version: Number | None = None, as_of: datetime | None = None
) -> Response[bytes]:
    """A ticket as it is, or as it was: at a version, or at a time."""
    served = installation(request)
    position = served.freshness.projected
    if version is None and as_of is None:
        found = await tickets.find(served.ledger.pool, ticket_id)
        if found is None or not (request.user.is_staff or found.requester_id == request.user.id):
            raise NotFound
        return _ticket(request, found.doc, found.version, position)
    if version is not None and as_of is not None:
        raise InvalidRequest("as_of", "version and as_of cannot go together")
    at = _zoned("as_of", as_of)
    upto = version if at is None else await served.ledger.version_at(ticket_id, at)
    then = _visible(await served.handler.ticket(ticket_id, upto=upto), request.user)
    if version is not None and then.version != version:
        raise NotFound
    body = tickets.document(then, at or then.updated_at)
    return _ticket(request, body, then.version, max(position, served.ledger.newest))


@get(
    "/tickets/{ticket_id:uuid}/history",
    operation_id="getHistory",
    responses=answers(200, History, "A page of entries."),
    **_QUERY,
)
async def get_history(
    request: ApiRequest,
    ticket_id: UUID,
    action: Actions = None,
    cursor: Name | None = None,
    page_size: PageSize = 20,
) -> Response[bytes]:
    """The audit trail: who changed what, when, from where and why."""
    served = installation(request)
    position = served.freshness.projected
    found = await tickets.find(served.ledger.pool, ticket_id)
    if found is None or not (request.user.is_staff or found.requester_id == request.user.id):
        raise NotFound
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidRequest("cursor", "is not one that this list gave out")
    read = await history.read(
        served.ledger.pool, ticket_id, actions=action or (), after=int(cursor or 0), page_size=page_size
    )
    entries = (
        read.entries if request.user.is_staff else [history.without_addresses(one) for one in read.entries]
    )
    about = {
        "page": None if cursor is not None else 1,
        "page_size": page_size,
        "total": min(read.total, tickets.TOTALS_EXACT_UPTO),
        "total_is_exact": read.total <= tickets.TOTALS_EXACT_UPTO,
        "next_cursor": None if read.next_after is None else str(read.next_after),
    }
    return _list(request, entries, about, position)


@get(
    "/tickets/{ticket_id:uuid}/transitions",
    operation_id="getTransitions",
    responses=answers(200, Transitions, "The steps from here."),
    **_QUERY,
)
async def get_transitions(request: ApiRequest, ticket_id: UUID) -> Response[bytes]:
    """Each step that the workflow has from here: whether the caller may take it, and if not why."""
    served = installation(request)
    now = datetime.now().astimezone()
    ticket = _visible(await served.handler.ticket(ticket_id), request.user)
    answer = Transitions(
        ticket.status,
        [
            Transition(to, objection is None, None if objection is None else str(objection))
            for to, objection in steps(ticket, actor=request.user, at=now, policy=served.handler.policy)
        ],
    )
    return _json(_encode(answer), served.ledger.newest, {"ETag": f'"{ticket.version}"'})


QUERY_ROUTES: Final = (list_tickets, get_ticket, get_history, get_transitions)
"""All queries."""


def _visible(ticket: Ticket | None, actor: Actor) -> Ticket:
    if ticket is None or not may(Permission.VIEW, ticket, actor):
        raise NotFound
    return ticket


def _person(assignee_id: str | None, actor: Actor) -> UUID | None:
    if assignee_id is None or assignee_id == "none":
        return None
    return actor.id if assignee_id == "me" else UUID(assignee_id)


def _zoned(field: str, at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise InvalidRequest(
            field, "needs a zone: 2026-01-31T12:00:00Z, or +02:00 with the plus written as %2B"
        )
    return at


def _ticket(request: ApiRequest, body: bytes, version: int, position: int) -> Response[bytes]:
    etag = f'"{version}"'
    if not_modified(request, etag):
        return Response(b"", status_code=304, headers={"ETag": etag, "Ledger-Position": str(position)})
    return _json(body, position, {"ETag": etag})


def _list(
    request: ApiRequest, documents: list[bytes], about: dict[str, Any], position: int
) -> Response[bytes]:
    body = b'{"items":[%b],%b' % (b",".join(documents), _encode(about)[1:])
    return _json(body, position, _links(request, about))


def _links(request: ApiRequest, about: dict[str, Any]) -> dict[str, str]:
    """Link, RFC 8288: the first page and, if there is one, the next."""
    rest = [
        (name, value) for name, value in request.query_params.multi_items() if name not in ("page", "cursor")
    ]
    path = request.url.path
    links = [f'<{path}?{urlencode(rest)}>; rel="first"' if rest else f'<{path}>; rel="first"']
    if about["next_cursor"] is not None:
        links.append(f'<{path}?{urlencode([*rest, ("cursor", about["next_cursor"])])}>; rel="next"')
    return {"Link": ", ".join(links)}


def _json(body: bytes, position: int, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        body,
        media_type="application/json",
        headers={**headers, "Ledger-Position": str(position), "Cache-Control": "private, no-cache"},
    )
