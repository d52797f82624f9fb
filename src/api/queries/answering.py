"""What all queries have in common: how they are asked, and how lists and documents are sent.

Deliberately absent: any one query.
"""

from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from api.deadlines import answered_in_time
from api.problems import InvalidRequest
from api.requests import Answer, ApiRequest, before_query, installation
from projections import past, tickets
from projections.cursors import Stretch
from projections.lists import TOTALS_EXACT_UPTO
from projections.projection import Step
from tickets.commands import may
from tickets.errors import LedgerUnavailable, NotFound
from tickets.permissions import Actor, Permission
from tickets.ticket import Ticket

Moment = Annotated[datetime, Meta(tz=True)]
Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
PageSize = Annotated[int, Meta(ge=1, le=100)]

FEED: Final[dict[str, Any]] = {
    "before_request": before_query,
    "security": [{"bearer": []}],
    "tags": ["Queries"],
}
"""What the route of a query has that may wait for what comes."""

QUERY: Final[dict[str, Any]] = {**FEED, "middleware": [answered_in_time(LedgerUnavailable)]}
"""What every other query's route has."""

encode: Final = msgspec.json.Encoder().encode


class NoQuery(Struct, frozen=True):
    """No parameters."""


class PageQuery(Struct, frozen=True, kw_only=True):
    """Which part of what only ever grows."""

    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] | None = None
    page_size: PageSize = 20

    @property
    def after(self) -> int:
        """After what it begins."""
        return int(self.cursor or 0)


class ThenQuery(PageQuery, frozen=True, kw_only=True):
    """Which part of what only ever grows, and which moment of the ticket's life; without either, now."""

    version: Number | None = None
    as_of: Moment | None = None


class Listed(Struct):
    """A page of a list."""

    page: int | None
    page_size: int
    total: int
    total_is_exact: bool
    next_cursor: str | None


class ListedOfTicket(Listed, kw_only=True):
    """A page of what there is about one ticket."""

    stale: bool | UnsetType = UNSET
    """True where there is more about the ticket that could not be digested yet; not there otherwise."""


async def visible_ticket(request: ApiRequest, ticket_id: UUID) -> tickets.Found:
    """The ticket in the read model, if the caller may see it. Raises NotFound."""
    found = await tickets.find(installation(request).tickets, ticket_id, internal=request.user.is_staff)
    if found is None or not (request.user.is_staff or found.requester_id == request.user.id):
        raise NotFound
    return found


def visible(ticket: Ticket | None, actor: Actor) -> Ticket:
    """The ticket, if the actor may see it. Raises NotFound."""
    if ticket is None or not may(Permission.VIEW, ticket, actor):
        raise NotFound
    return ticket


async def version_then(request: ApiRequest, ticket_id: UUID, version: int | None, at: datetime | None) -> int | None:
    """The version that is asked for, or that the ticket had at the time that is; None is now. Raises InvalidRequest."""
    if version is not None and at is not None:
        raise InvalidRequest("as_of", "version and as_of cannot go together")
    return version if at is None else await installation(request).ledger.version_at(ticket_id, at)


async def lived(request: ApiRequest, ticket_id: UUID, upto: int | None = None) -> list[Step]:
    """The ticket's life up to a version that it has had, if the caller may see it. Raises NotFound."""
    found = await past.steps(installation(request).ledger, ticket_id, upto=upto)
    visible(found[-1].after if found else None, request.user)
    if upto is not None and len(found) != upto:
        raise NotFound
    return found


def growing(request: ApiRequest, documents: list[bytes], wanted: PageQuery, read: Stretch, position: int) -> Answer:
    """A page of what only ever grows, oldest first: its cursor is where it ended."""
    about = {
        "page": None if wanted.cursor is not None else 1,
        "page_size": wanted.page_size,
        "total": min(read.total, TOTALS_EXACT_UPTO),
        "total_is_exact": read.total <= TOTALS_EXACT_UPTO,
        "next_cursor": None if read.next_after is None else str(read.next_after),
        **({"stale": True} if read.stale else {}),
    }
    return page(request, documents, about, position)


def page(request: ApiRequest, documents: list[bytes], about: dict[str, Any], position: int) -> Answer:
    """Documents as a list, with what there is to say of it."""
    body = b'{"items":[%b],%b' % (b",".join(documents), encode(about)[1:])
    return document(body, position, _links(request, about))


def document(body: bytes, position: int, headers: dict[str, str]) -> Answer:
    """A document, as of a position."""
    return Answer({**headers, "Ledger-Position": str(position), "Cache-Control": "private, no-cache"}, body)


def _links(request: ApiRequest, about: dict[str, Any]) -> dict[str, str]:
    """Link, RFC 8288: the first page and, if there is one, the next."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name not in ("page", "cursor")]
    path = request.url.path
    links = [f'<{path}?{urlencode(rest)}>; rel="first"' if rest else f'<{path}>; rel="first"']
    if about["next_cursor"] is not None:
        links.append(f'<{path}?{urlencode([*rest, ("cursor", about["next_cursor"])])}>; rel="next"')
    return {"Link": ", ".join(links)}
