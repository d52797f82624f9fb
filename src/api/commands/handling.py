"""What all commands have in common: how they are handed over, and what the headers say of the outcome.

Deliberately absent: any one command.
"""

from typing import Any, Final
from uuid import UUID

from api.requests import ApiRequest, asked, before_command, header, installation
from tickets.commands import Command
from tickets.handler import Answer

COMMAND: Final[dict[str, Any]] = {
    "before_request": before_command,
    "security": [{"bearer": []}],
    "tags": ["Commands"],
}
"""What every command's route has."""


async def handled(request: ApiRequest, command: Command, ticket_id: UUID | None) -> Answer:
    """Have the command handled, under the circumstances that the request brings."""
    return await installation(request).handler.handle(command, ticket_id, asked(request))


def about(request: ApiRequest, answer: Answer) -> dict[str, str]:
    """What the headers say: the version and position after it, and how it was answered."""
    headers = {"ETag": f'"{answer.ticket.version}"', "Ledger-Position": str(answer.position)}
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    if "return=minimal" in (header(request, b"prefer") or "").replace(" ", "").lower():
        headers["Preference-Applied"] = "return=minimal"
    return headers
