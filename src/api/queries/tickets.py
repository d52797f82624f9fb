"""The queries about tickets: what the read models hold, sent as it is; the past, read off the ledger.

Deliberately absent: how read models are searched (projections/) and what may happen next (tickets/).
"""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final, Literal
from uuid import UUID

from litestar import get
from msgspec import UNSET, Meta, Struct, UnsetType

from api.openapi import answers
from api.problems import InvalidRequest
from api.queries.answering import (
    QUERY,
    Listed,
    ListedOfTicket,
    Moment,
    NoQuery,
    Number,
    PageSize,
    ThenQuery,
    document,
    encode,
    growing,
    lived,
    page,
    version_then,
    visible,
    visible_ticket,
)
from api.requests import Answer, ApiRequest, installation, not_modified, query
from projections import counts, history, lists, past, periods, tickets
from projections.counts import Counts
from projections.history import Action, Entry
from projections.lists import Filter, Sort
from projections.tickets import TicketView
from tickets.commands import steps
from tickets.errors import NotFound
from tickets.lifecycle import Status
from tickets.permissions import Actor
from tickets.sla import Priority
from tickets.values import Category, Environment

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
_AS_OF: Final = "The tickets as they were at this moment, which must not be to come; not together with `q`."


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
    as_of: Annotated[datetime, Meta(tz=True, description=_AS_OF)] | None = None
    sort: (
        Annotated[
            SortBy, Meta(description="By default -created_at, with `q` by relevance, which is best first either way.")
        ]
        | None
    ) = None
    page: Number | None = None
    page_size: PageSize = 20
    cursor: Text | None = None


class CountQuery(Struct, frozen=True, kw_only=True):
    """As of which moment, which must not be to come; without it, now."""

    as_of: Moment | None = None


class TicketQuery(Struct, frozen=True, kw_only=True):
    """Which moment of a ticket's life; without either, now."""

    version: Number | None = None
    as_of: Moment | None = None


class HistoryQuery(ThenQuery, frozen=True, kw_only=True):
    """Which entries of an audit trail, and up to which moment of the ticket's life."""

    action: tuple[Action, ...] = ()


TICKET_QUERIES: Final[dict[str, type[Struct]]] = {
    "listTickets": ListQuery,
    "countTickets": CountQuery,
    "getTicket": TicketQuery,
    "getHistory": HistoryQuery,
    "getTransitions": NoQuery,
}
"""The parameters of each operation here."""


class ListedTicket(TicketView, frozen=True):
    """A ticket in a list; with `q`, the places that have what was searched for: HTML, the words in <mark>."""

    highlights: list[str] | UnsetType = UNSET


class TicketList(Listed):
    """A page of tickets."""

    items: list[ListedTicket]


class History(ListedOfTicket):
    """A page of a ticket's audit trail, oldest first."""

    items: list[Entry]


class Transition(Struct):
    """A step that the workflow has from here, and whether the caller may take it now."""

    to: Status
    allowed: bool
    reason: str | None


class Transitions(Struct):
    """The steps from here."""

    status: Status
    items: list[Transition]


@get(
    "/tickets",
    operation_id="listTickets",
    responses=answers(200, TicketList, "A page of the tickets that fit."),
    **QUERY,
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
    at = _past(wanted.as_of)
    if q is not None and at is not None:
        raise InvalidRequest("q", "cannot go together with as_of: only what is said now can be searched")
    served, actor = installation(request), request.user
    position = served.freshness.projected
    fitting = Filter(
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
    )
    search = partial(lists.search, served.ledger.pool, fitting)
    if at is not None:
        search = partial(periods.search, served.ledger, fitting, at)
    found = await search(
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
    return page(request, found.docs, about, position)


@get(
    "/tickets/counts",
    operation_id="countTickets",
    responses=answers(200, Counts, "The numbers."),
    **QUERY,
)
async def count_tickets(request: ApiRequest) -> Answer:
    """How many tickets the caller may see, by status, priority, category, team and assignee, and how many are late."""
    at = _past(query(request, CountQuery).as_of)
    served, actor = installation(request), request.user
    position, pool = served.freshness.projected, served.ledger.pool
    whose = None if actor.is_staff else actor.id
    found = await (counts.read(pool, visible_to=whose) if at is None else periods.count(pool, at, visible_to=whose))
    return document(encode(found), position, {})


@get(
    "/tickets/{ticket_id:uuid}",
    operation_id="getTicket",
    responses=answers(200, TicketView, "The ticket."),
    **QUERY,
)
async def get_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """A ticket as it is, or as it was: at a version, or at a time."""
    served, wanted = installation(request), query(request, TicketQuery)
    position = served.freshness.projected
    upto = await version_then(request, ticket_id, wanted.version, wanted.as_of)
    if upto is None:
        found = await visible_ticket(request, ticket_id)
        return _ticket(request, found.doc, found.version, position, stale=found.stale)
    then = visible(await served.handler.ticket(ticket_id, upto=upto), request.user)
    if then.version != upto:
        raise NotFound
    body = tickets.document(then, wanted.as_of or then.updated_at, internal=request.user.is_staff)
    return _ticket(request, body, then.version, max(position, served.ledger.newest))


@get(
    "/tickets/{ticket_id:uuid}/history",
    operation_id="getHistory",
    responses=answers(200, History, "A page of entries."),
    **QUERY,
)
async def get_history(request: ApiRequest, ticket_id: UUID) -> Answer:
    """The audit trail, up to now, a version or a time: who changed what, when, from where and why."""
    served, wanted = installation(request), query(request, HistoryQuery)
    position = served.freshness.projected
    upto = await version_then(request, ticket_id, wanted.version, wanted.as_of)
    page = history.Wanted(
        ticket_id=ticket_id,
        visible_to=None if request.user.is_staff else request.user.id,
        actions=wanted.action,
        after=wanted.after,
        page_size=wanted.page_size,
    )
    if upto is None:
        read = await served.histories(page)
        if read is None:
            raise NotFound
    else:
        position = max(position, served.ledger.newest)
        read = past.history_then(await lived(request, ticket_id, upto), page)
    entries = read.docs if request.user.is_staff else [history.without_addresses(one) for one in read.docs]
    return growing(request, entries, wanted, read, position)


@get(
    "/tickets/{ticket_id:uuid}/transitions",
    operation_id="getTransitions",
    responses=answers(200, Transitions, "The steps from here."),
    **QUERY,
)
async def get_transitions(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Each step that the workflow has from here: whether the caller may take it, and if not why."""
    query(request, NoQuery)
    served = installation(request)
    ticket = visible(await served.handler.ticket(ticket_id), request.user)
    found = steps(ticket, actor=request.user, at=datetime.now(UTC), policy=served.handler.policy)
    answer = Transitions(
        ticket.status, [Transition(to, no is None, None if no is None else str(no)) for to, no in found]
    )
    return document(encode(answer), await served.ledger.reaches(ticket_id), {"ETag": f'"{ticket.version}"'})


TICKET_QUERY_ROUTES: Final = (list_tickets, count_tickets, get_ticket, get_history, get_transitions)
"""All queries about tickets."""


def _past(at: datetime | None) -> datetime | None:
    if at is not None and at > datetime.now(UTC):
        raise InvalidRequest("as_of", "must not be to come")
    return at


def _person(assignee_id: str | None, actor: Actor) -> UUID | None:
    if assignee_id is None or assignee_id == "none":
        return None
    if assignee_id == "me":
        return actor.id
    try:
        return UUID(assignee_id)
    except ValueError:  # a line end after it, which `$` in a pattern lets through
        raise InvalidRequest("assignee_id", "must be a person's id, me or none") from None


def _ticket(request: ApiRequest, body: bytes, version: int, position: int, *, stale: bool = False) -> Answer:
    etag = f'"{version}"'
    if not stale and not_modified(request, etag):  # that it is stale is not in the ETag
        return Answer({"ETag": etag, "Ledger-Position": str(position)}, status=304)
    return document(body, position, {"ETag": etag})
