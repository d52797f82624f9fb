"""The command half of the REST API."""

from typing import Final

from msgspec import Struct

from api.commands.attachments import ATTACHMENT_ROUTES
from api.commands.comments import COMMENT_BODIES, COMMENT_ROUTES
from api.commands.tickets import TICKET_BODIES, TICKET_ROUTES

COMMAND_ROUTES: Final = (*TICKET_ROUTES, *COMMENT_ROUTES, *ATTACHMENT_ROUTES)
"""All commands."""

BODIES: Final[dict[str, type[Struct]]] = {**TICKET_BODIES, **COMMENT_BODIES}
"""The body of each operation that has one."""
