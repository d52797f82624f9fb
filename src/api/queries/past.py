"""What an auditor asks of a ticket's past: what differs between two versions, and who made each field what it is.

Read off the ledger. Deliberately absent: a moment of a ticket, its history, comments and attachments, which are
asked for where they are now (tickets.py, conversation.py).
"""

from typing import Final
from uuid import UUID

from litestar import get
from msgspec import Struct

from api.openapi import answers
from api.problems import InvalidRequest
from api.queries.answering import QUERY, NoQuery, Number, document, encode, lived
from api.requests import Answer, ApiRequest, installation, query
from projections import past
from projections.past import Blame, Diff


class DiffQuery(Struct, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """Between which versions; by default the first and the newest."""

    start: Number = 1
    end: Number | None = None


PAST_QUERIES: Final[dict[str, type[Struct]]] = {"diffTicket": DiffQuery, "blameTicket": NoQuery}
"""The parameters of each operation here."""


@get(
    "/tickets/{ticket_id:uuid}/diff",
    operation_id="diffTicket",
    responses=answers(200, Diff, "What differs."),
    **QUERY,
)
async def diff_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """What differs between two versions of the ticket, how many lie between, and who was at work."""
    wanted = query(request, DiffQuery)
    if wanted.end is not None and wanted.end < wanted.start:
        raise InvalidRequest("to", "must not be before from")
    found = await lived(request, ticket_id, wanted.end)
    if len(found) < wanted.start:
        raise InvalidRequest("from", f"the newest version is {len(found)}")
    return _answer(request, past.diff(found, wanted.start, internal=request.user.is_staff))


@get(
    "/tickets/{ticket_id:uuid}/blame",
    operation_id="blameTicket",
    responses=answers(200, Blame, "Each field."),
    **QUERY,
)
async def blame_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """What each field of the ticket is, since when and since which version, by whom and by which command."""
    query(request, NoQuery)
    return _answer(request, past.blame(await lived(request, ticket_id), internal=request.user.is_staff))


PAST_QUERY_ROUTES: Final = (diff_ticket, blame_ticket)
"""All queries about the past of one ticket."""


def _answer(request: ApiRequest, found: Diff | Blame) -> Answer:
    return document(encode(found), installation(request).ledger.newest, {})
