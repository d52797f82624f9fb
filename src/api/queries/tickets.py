"""The queries about tickets: what the read models hold, sent as it is; the past, read off the ledger.

Deliberately absent: how read models are searched (projections/) and what may happen next (tickets/).
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import get
from msgspec import UNSET, Meta, Struct, UnsetType

from api.openapi import answers
from api.problems import InvalidRequest
from api.requests import Answer, ApiRequest, before_query, installation, not_modified, query
from projections import comments, history, tickets
from projections.comments import CommentView
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
Moment = Annotated[datetime, Meta(tz=True)]
Text = Annotated[str, Meta(max_length=1_000)]
PersonId = Annotated[
    str,
    Meta(
        pattern="^(me|none|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$",
        description="A person's id, `me` or `none`.",
    ),
]
SortBy = Literal[
    "relevance",
    "-relevance",
    "created_at",
    "-created_at",
    "updated_at",
    "-updated_at",
    "priority",
    "-priority",
    "status",
    "-status",
]


_Q: Final = (
    'What to search for in number, title, description and comments: words, "phrases", or, -not. All of it must be in '
    "the ticket's own text or in one comment."
)


class ListQuery(Struct, frozen=True, kw_only=True):
    """What a list can be asked for. A repeated parameter means any of its values."""

    q: Annotated[str, Meta(max_length=10_000, description=_Q)] | None = None
    status: tuple[Status, ...] = ()
    priority: tuple[Priority, ...] = ()
    category: tuple[Category, ...] = ()
    environment: tuple[Environment, ...] = ()
    assignee_id: PersonId | None = None
    team: Text | None = None
    requester_id: UUID | None = None
    affected_service: Text | None = None
    tag: Text | None = None
    created_from: Moment | None = None
    created_to: Moment | None = None
    updated_from: Moment | None = None
    updated_to: Moment | None = None
    breached: bool | None = None
    sort: (
        Annotated[
            SortBy, Meta(description="By default -created_at, with `q` by relevance, which is best first either way.")
        ]
        | None
    ) = None
    page: Number | None = None
    page_size: PageSize = 20
    cursor: Text | None = None


class TicketQuery(Struct, frozen=True, kw_only=True):
    """Which moment of a ticket's life; without either, now."""

    version: Number | None = None
    as_of: Moment | None = None


class HistoryQuery(Struct, frozen=True, kw_only=True):
    """Which entries of an audit trail."""

    action: tuple[Action, ...] = ()
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] | None = None
    page_size: PageSize = 20


class CommentQuery(Struct, frozen=True, kw_only=True):
    """Which comments."""

    cursor: Annotated[str, Meta(pattern="^[0-9]{1,9}$")] | None = None
    page_size: PageSize = 20


class NoQuery(Struct, frozen=True):
    """No parameters."""


QUERIES: Final[dict[str, type[Struct]]] = {
    "listTickets": ListQuery,
    "getTicket": TicketQuery,
    "getHistory": HistoryQuery,
    "getTransitions": NoQuery,
    "listComments": CommentQuery,
}
"""The parameters of each operation here."""


class ListedTicket(TicketView, frozen=True):
    """A ticket in a list; with `q`, the places that have what was searched for: HTML, the words in <mark>."""

    highlights: list[str] | UnsetType = UNSET


class TicketList(Struct):
    """A page of tickets."""

    items: list[ListedTicket]
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


class CommentList(Struct):
    """A page of a ticket's comments, oldest first."""

    items: list[CommentView]
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
async def list_tickets(request: ApiRequest) -> Answer:
    """The tickets that the caller may see and that fit every filter; a repeated filter means any of them."""
    wanted = query(request, ListQuery)
    if wanted.page is not None and wanted.cursor is not None:
        raise InvalidRequest("cursor", "page and cursor cannot go together")
    q = wanted.q if wanted.q and wanted.q.strip() else None  # an empty search box
    sort = wanted.sort or ("-created_at" if q is None else "relevance")
    if q is None and "relevance" in sort:
        raise InvalidRequest("sort", "goes by relevance only with q")
    served, actor = installation(request), request.user
    position = served.freshness.projected
    found = await tickets.search(
        served.ledger.pool,
        Filter(
            q=q,
            status=wanted.status,
            priority=wanted.priority,
            category=wanted.category,
            environment=wanted.environment,
            requester_id=wanted.requester_id,
            assignee_id=_person(wanted.assignee_id, actor),
            unassigned=wanted.assignee_id == "none",
            team=wanted.team,
            affected_service=wanted.affected_service,
            tag=wanted.tag,
            created_from=wanted.created_from,
            created_to=wanted.created_to,
            updated_from=wanted.updated_from,
            updated_to=wanted.updated_to,
            breached=wanted.breached,
            visible_to=None if actor.is_staff else actor.id,
        ),
        sort=Sort(sort.removeprefix("-")),
        descending=sort.startswith("-") or sort == "relevance",
        page=wanted.page or 1,
        page_size=wanted.page_size,
        cursor=wanted.cursor,
    )
    about = {
        "page": None if wanted.cursor is not None else wanted.page or 1,
        "page_size": wanted.page_size,
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
async def get_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """A ticket as it is, or as it was: at a version, or at a time."""
    served, wanted = installation(request), query(request, TicketQuery)
    position = served.freshness.projected
    version, at = wanted.version, wanted.as_of
    if version is None and at is None:
        found = await _found(request, ticket_id)
        return _ticket(request, found.doc, found.version, position)
    if version is not None and at is not None:
        raise InvalidRequest("as_of", "version and as_of cannot go together")
    upto = version if at is None else await served.ledger.version_at(ticket_id, at)
    then = _visible(await served.handler.ticket(ticket_id, upto=upto), request.user)
    if version is not None and then.version != version:
        raise NotFound
    body = tickets.document(then, at or then.updated_at, internal=request.user.is_staff)
    return _ticket(request, body, then.version, max(position, served.ledger.newest))


@get(
    "/tickets/{ticket_id:uuid}/history",
    operation_id="getHistory",
    responses=answers(200, History, "A page of entries."),
    **_QUERY,
)
async def get_history(request: ApiRequest, ticket_id: UUID) -> Answer:
    """The audit trail: who changed what, when, from where and why."""
    served, wanted = installation(request), query(request, HistoryQuery)
    position = served.freshness.projected
    await _found(request, ticket_id)
    read = await history.read(
        served.ledger.pool,
        ticket_id,
        internal=request.user.is_staff,
        actions=wanted.action,
        after=int(wanted.cursor or 0),
        page_size=wanted.page_size,
    )
    entries = read.entries if request.user.is_staff else [history.without_addresses(one) for one in read.entries]
    return _growing(request, entries, wanted, read, position)


@get(
    "/tickets/{ticket_id:uuid}/transitions",
    operation_id="getTransitions",
    responses=answers(200, Transitions, "The steps from here."),
    **_QUERY,
)
async def get_transitions(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Each step that the workflow has from here: whether the caller may take it, and if not why."""
    query(request, NoQuery)
    served = installation(request)
    ticket = _visible(await served.handler.ticket(ticket_id), request.user)
    found = steps(ticket, actor=request.user, at=datetime.now(UTC), policy=served.handler.policy)
    answer = Transitions(
        ticket.status, [Transition(to, no is None, None if no is None else str(no)) for to, no in found]
    )
    return _json(_encode(answer), served.ledger.newest, {"ETag": f'"{ticket.version}"'})


@get(
    "/tickets/{ticket_id:uuid}/comments",
    operation_id="listComments",
    responses=answers(200, CommentList, "A page of comments."),
    **_QUERY,
)
async def list_comments(request: ApiRequest, ticket_id: UUID) -> Answer:
    """What was said of the ticket, oldest first, with a line by the system for each change of status."""
    served, wanted = installation(request), query(request, CommentQuery)
    position = served.freshness.projected
    await _found(request, ticket_id)
    read = await comments.read(
        served.ledger.pool,
        ticket_id,
        internal=request.user.is_staff,
        after=int(wanted.cursor or 0),
        page_size=wanted.page_size,
    )
    return _growing(request, read.docs, wanted, read, position)


QUERY_ROUTES: Final = (list_tickets, get_ticket, get_history, get_transitions, list_comments)
"""All queries."""


def _visible(ticket: Ticket | None, actor: Actor) -> Ticket:
    if ticket is None or not may(Permission.VIEW, ticket, actor):
        raise NotFound
    return ticket


async def _found(request: ApiRequest, ticket_id: UUID) -> tickets.Found:
    """The ticket in the read model, if the caller may see it."""
    found = await tickets.find(installation(request).ledger.pool, ticket_id, internal=request.user.is_staff)
    if found is None or not (request.user.is_staff or found.requester_id == request.user.id):
        raise NotFound
    return found


def _person(assignee_id: str | None, actor: Actor) -> UUID | None:
    if assignee_id is None or assignee_id == "none":
        return None
    if assignee_id == "me":
        return actor.id
    try:
        return UUID(assignee_id)
    except ValueError:  # a line end after it, which `$` in a pattern lets through
        raise InvalidRequest("assignee_id", "must be a person's id, me or none") from None


def _ticket(request: ApiRequest, body: bytes, version: int, position: int) -> Answer:
    etag = f'"{version}"'
    if not_modified(request, etag):
        return Answer({"ETag": etag, "Ledger-Position": str(position)}, status=304)
    return _json(body, position, {"ETag": etag})


def _growing(
    request: ApiRequest,
    documents: list[bytes],
    wanted: HistoryQuery | CommentQuery,
    read: history.HistoryPage | comments.CommentPage,
    position: int,
) -> Answer:
    """A page of what only ever grows, oldest first: its cursor is where it ended."""
    about = {
        "page": None if wanted.cursor is not None else 1,
        "page_size": wanted.page_size,
        "total": min(read.total, tickets.TOTALS_EXACT_UPTO),
        "total_is_exact": read.total <= tickets.TOTALS_EXACT_UPTO,
        "next_cursor": None if read.next_after is None else str(read.next_after),
    }
    return _list(request, documents, about, position)


def _list(request: ApiRequest, documents: list[bytes], about: dict[str, Any], position: int) -> Answer:
    body = b'{"items":[%b],%b' % (b",".join(documents), _encode(about)[1:])
    return _json(body, position, _links(request, about))


def _links(request: ApiRequest, about: dict[str, Any]) -> dict[str, str]:
    """Link, RFC 8288: the first page and, if there is one, the next."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name not in ("page", "cursor")]
    path = request.url.path
    links = [f'<{path}?{urlencode(rest)}>; rel="first"' if rest else f'<{path}>; rel="first"']
    if about["next_cursor"] is not None:
        links.append(f'<{path}?{urlencode([*rest, ("cursor", about["next_cursor"])])}>; rel="next"')
    return {"Link": ", ".join(links)}


def _json(body: bytes, position: int, headers: dict[str, str]) -> Answer:
    return Answer({**headers, "Ledger-Position": str(position), "Cache-Control": "private, no-cache"}, body)
