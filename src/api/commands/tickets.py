"""The commands about tickets: each endpoint names a command, the handler does the rest.

Most bodies are the commands themselves; the others are here. Deliberately absent: rules; they are in
tickets/commands.py.
"""

from typing import Any, Final
from uuid import UUID

from litestar import Response, delete, patch, post, put
from litestar.response.base import ASGIResponse
from msgspec import Struct

from api.openapi import answers
from api.problems import InvalidRequest
from api.requests import ApiRequest, asked, before_command, installation
from projections.tickets import TicketView, document
from tickets.commands import Assign, ChangeStatus, Command, Create, Delete, Edit, Restore
from tickets.lifecycle import Status
from tickets.sla import Priority
from tickets.ticket import Ticket
from tickets.values import Category, Description, Environment, Reason, ServiceName, Tags, Title


class WholeTicket(Struct, forbid_unknown_fields=True, kw_only=True):
    """All that can be edited. An optional field that is not there is cleared."""

    title: Title
    description: Description
    category: Category
    priority: Priority
    environment: Environment | None = None
    affected_service: ServiceName | None = None
    tags: Tags = ()


class Resolution(Struct, forbid_unknown_fields=True, kw_only=True):
    """What was done."""

    resolution_notes: Reason


class Closing(Struct, forbid_unknown_fields=True, kw_only=True):
    """Why it can be closed, if there is something to say."""

    reason: Reason | None = None


class Reopening(Struct, forbid_unknown_fields=True, kw_only=True):
    """Why it is not over."""

    reason: Reason


_COMMAND: Final[dict[str, Any]] = {
    "before_request": before_command,
    "security": [{"bearer": []}],
    "tags": ["Commands"],
}
_TICKET: Final = answers(200, TicketView, "The ticket after it.")


async def _handled(request: ApiRequest, command: Command, ticket_id: UUID | None) -> tuple[Ticket, dict[str, str]]:
    """Have the command handled: the ticket after it, and what the headers say of that."""
    answer = await installation(request).handler.handle(command, ticket_id, asked(request))
    headers = {"ETag": f'"{answer.ticket.version}"', "Ledger-Position": str(answer.position)}
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    if "return=minimal" in request.headers.get("prefer", "").replace(" ", "").lower():
        headers["Preference-Applied"] = "return=minimal"
    return answer.ticket, headers


async def _do(request: ApiRequest, command: Command, ticket_id: UUID | None, status: int = 200) -> ASGIResponse:
    """Have the command handled, and answer with the ticket after it."""
    ticket, headers = await _handled(request, command, ticket_id)
    if status == 201:
        headers["Location"] = f"{installation(request).settings.api_v1_prefix}/tickets/{ticket.id}"
    if "Preference-Applied" in headers:
        return ASGIResponse(status_code=201 if status == 201 else 204, headers=headers)
    # As of the ticket's own time, so that the same command has the same answer whenever it is asked again.
    body = document(ticket, ticket.updated_at)
    return ASGIResponse(body=body, status_code=status, media_type="application/json", headers=headers)


@post(
    "/tickets",
    operation_id="createTicket",
    status_code=201,
    responses=answers(201, TicketView, "The new ticket."),
    **_COMMAND,
)
async def create_ticket(request: ApiRequest, data: Create) -> ASGIResponse:
    """Ask for something. Staff may ask on somebody's behalf, by `requester_id`."""
    return await _do(request, data, None, 201)


@put("/tickets/{ticket_id:uuid}", operation_id="replaceTicket", responses=_TICKET, **_COMMAND)
async def replace_ticket(request: ApiRequest, ticket_id: UUID, data: WholeTicket) -> ASGIResponse:
    """Put all editable fields anew. An optional field that is not there is cleared."""
    command = Edit(
        title=data.title,
        description=data.description,
        category=data.category,
        priority=data.priority,
        environment=data.environment,
        affected_service=data.affected_service,
        tags=data.tags,
    )
    return await _do(request, command, ticket_id)


@patch("/tickets/{ticket_id:uuid}", operation_id="editTicket", responses=_TICKET, **_COMMAND)
async def edit_ticket(request: ApiRequest, ticket_id: UUID, data: Edit) -> ASGIResponse:
    """Put some editable fields anew (RFC 7396): null clears an optional one, what is not there stays."""
    return await _do(request, data, ticket_id)


@delete(
    "/tickets/{ticket_id:uuid}",
    operation_id="deleteTicket",
    status_code=204,
    responses=answers(204, None, "Deleted; its history stays."),
    **_COMMAND,
)
async def delete_ticket(request: ApiRequest, ticket_id: UUID) -> Response[None]:
    """Take a ticket out of sight."""
    _, headers = await _handled(request, Delete(), ticket_id)
    return Response(None, status_code=204, headers=headers)


@post(
    "/tickets/{ticket_id:uuid}/restore",
    operation_id="restoreTicket",
    status_code=200,
    responses=_TICKET,
    **_COMMAND,
)
async def restore_ticket(request: ApiRequest, ticket_id: UUID) -> ASGIResponse:
    """Bring a deleted ticket back."""
    return await _do(request, Restore(), ticket_id)


@put("/tickets/{ticket_id:uuid}/assign", operation_id="assignTicket", responses=_TICKET, **_COMMAND)
async def assign_ticket(request: ApiRequest, ticket_id: UUID, data: Assign) -> ASGIResponse:
    """Pass responsibility to a person, a team or both; null takes it away. Opens a NEW ticket."""
    return await _do(request, data, ticket_id)


@patch("/tickets/{ticket_id:uuid}/status", operation_id="changeStatus", responses=_TICKET, **_COMMAND)
async def change_status(request: ApiRequest, ticket_id: UUID, data: ChangeStatus) -> ASGIResponse:
    """Take a step of the workflow. To RESOLVED, `reason` is the resolution and required."""
    if data.status is Status.RESOLVED and data.reason is None:
        raise InvalidRequest("reason", "is required to resolve: it is the resolution")
    return await _do(request, data, ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/resolve",
    operation_id="resolveTicket",
    status_code=200,
    responses=_TICKET,
    **_COMMAND,
)
async def resolve_ticket(request: ApiRequest, ticket_id: UUID, data: Resolution) -> ASGIResponse:
    """Say what was done."""
    return await _do(request, ChangeStatus(status=Status.RESOLVED, reason=data.resolution_notes), ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/close",
    operation_id="closeTicket",
    status_code=200,
    responses=_TICKET,
    **_COMMAND,
)
async def close_ticket(request: ApiRequest, ticket_id: UUID, data: Closing | None = None) -> ASGIResponse:
    """End a resolved ticket. The body may be left out."""
    return await _do(request, ChangeStatus(status=Status.CLOSED, reason=data.reason if data else None), ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/reopen",
    operation_id="reopenTicket",
    status_code=200,
    responses=_TICKET,
    **_COMMAND,
)
async def reopen_ticket(request: ApiRequest, ticket_id: UUID, data: Reopening) -> ASGIResponse:
    """Say that it is not over; a closed ticket only within the reopen window."""
    return await _do(request, ChangeStatus(status=Status.REOPENED, reason=data.reason), ticket_id)


COMMAND_ROUTES: Final = (
    create_ticket,
    replace_ticket,
    edit_ticket,
    delete_ticket,
    restore_ticket,
    assign_ticket,
    change_status,
    resolve_ticket,
    close_ticket,
    reopen_ticket,
)
"""All commands."""
