"""What all commands have in common: how they are handed over, and what the headers say of the outcome.

Deliberately absent: any one command.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from api.deadlines import answered_in_time
from api.requests import ApiRequest, asked, before_command, header, installation
from tickets.commands import Command
from tickets.connections import Pool
from tickets.errors import NotFound, OutcomeUnknown
from tickets.handler import Answer

UPLOAD: Final[dict[str, Any]] = {
    "before_request": before_command,
    "security": [{"bearer": []}],
    "tags": ["Commands"],
}
"""What the route of a command has that takes as long as its file does."""

COMMAND: Final[dict[str, Any]] = {**UPLOAD, "middleware": [answered_in_time(OutcomeUnknown)]}
"""What every other command's route has."""


async def handled(request: ApiRequest, command: Command, ticket_id: UUID | None) -> Answer:
    """Have the command handled, under the circumstances that the request brings."""
    return await installation(request).handler.handle(command, ticket_id, asked(request))


async def ticket_of(request: ApiRequest, find: Callable[[Pool, UUID], Awaitable[UUID | None]], one: UUID) -> UUID:
    """The ticket that a comment or file belongs to; what is new has a moment to be seen. Raises NotFound."""
    served = installation(request)
    found = await find(served.ledger.pool, one)
    if found is None:
        await served.freshness.wait_for(served.ledger.newest, served.settings.freshness_timeout_ms / 1000)
        found = await find(served.ledger.pool, one)
    if found is None:
        raise NotFound
    return found


def about(request: ApiRequest, answer: Answer) -> dict[str, str]:
    """What the headers say: the version and position after it, and how it was answered."""
    headers = {"ETag": f'"{answer.ticket.version}"', "Ledger-Position": str(answer.position)}
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    if "return=minimal" in (header(request, b"prefer") or "").replace(" ", "").lower():
        headers["Preference-Applied"] = "return=minimal"
    return headers
