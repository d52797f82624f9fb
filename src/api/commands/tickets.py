"""The commands about tickets: each endpoint names a command, the handler does the rest.

Most bodies are the commands themselves; the others are here. Deliberately absent: rules; they are in
tickets/commands.py.
"""

from typing import Final
from uuid import UUID

from litestar import Response, delete, patch, post, put
from msgspec import Struct

from api.commands.handling import COMMAND, about, handled
from api.openapi import answers
from api.problems import InvalidRequest
from api.requests import Answer, ApiRequest, body, installation, no_body
from projections.tickets import TicketView, document
from tickets.commands import Assign, ChangeStatus, Command, Create, Delete, Edit, Restore
from tickets.lifecycle import Status
from tickets.sla import Priority
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


TICKET_BODIES: Final[dict[str, type[Struct]]] = {
    "createTicket": Create,
    "replaceTicket": WholeTicket,
    "editTicket": Edit,
    "assignTicket": Assign,
    "changeStatus": ChangeStatus,
    "resolveTicket": Resolution,
    "closeTicket": Closing,
    "reopenTicket": Reopening,
}
"""The body of each operation here that has one."""

_TICKET: Final = answers(200, TicketView, "The ticket after it.")


async def _do(request: ApiRequest, command: Command, ticket_id: UUID | None, status: int = 200) -> Answer:
    """Have the command handled, and answer with the ticket after it."""
    answer = await handled(request, command, ticket_id)
    ticket, headers = answer.ticket, about(request, answer)
    if status == 201:
        headers["Location"] = f"{installation(request).settings.api_v1_prefix}/tickets/{ticket.id}"
    if "Preference-Applied" in headers:
        return Answer(headers, status=201 if status == 201 else 204)
    # As of the ticket's own time, so that the same command has the same answer whenever it is asked again.
    shown = document(ticket, ticket.changed_at, internal=request.user.is_staff)
    return Answer(headers, shown, status)


@post(
    "/tickets",
    operation_id="createTicket",
    status_code=201,
    responses=answers(201, TicketView, "The new ticket."),
    **COMMAND,
)
async def create_ticket(request: ApiRequest) -> Answer:
    """Ask for something. Staff may ask on somebody's behalf, by `requester_id`."""
    return await _do(request, await body(request, Create), None, 201)


@put("/tickets/{ticket_id:uuid}", operation_id="replaceTicket", responses=_TICKET, **COMMAND)
async def replace_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Put all editable fields anew. An optional field that is not there is cleared."""
    data = await body(request, WholeTicket)
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


@patch("/tickets/{ticket_id:uuid}", operation_id="editTicket", responses=_TICKET, **COMMAND)
async def edit_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Put some editable fields anew (RFC 7396): null clears an optional one, what is not there stays."""
    return await _do(request, await body(request, Edit), ticket_id)


@delete(
    "/tickets/{ticket_id:uuid}",
    operation_id="deleteTicket",
    status_code=204,
    responses=answers(204, None, "Deleted; its history stays."),
    **COMMAND,
)
async def delete_ticket(request: ApiRequest, ticket_id: UUID) -> Response[None]:
    """Take a ticket out of sight."""
    await no_body(request)
    answer = await handled(request, Delete(), ticket_id)
    return Response(None, status_code=204, headers=about(request, answer))


@post(
    "/tickets/{ticket_id:uuid}/restore",
    operation_id="restoreTicket",
    status_code=200,
    responses=_TICKET,
    **COMMAND,
)
async def restore_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Bring a deleted ticket back."""
    await no_body(request)
    return await _do(request, Restore(), ticket_id)


@put("/tickets/{ticket_id:uuid}/assign", operation_id="assignTicket", responses=_TICKET, **COMMAND)
async def assign_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Pass responsibility to a person, a team or both; null takes it away. Opens a NEW ticket."""
    return await _do(request, await body(request, Assign), ticket_id)


@patch("/tickets/{ticket_id:uuid}/status", operation_id="changeStatus", responses=_TICKET, **COMMAND)
async def change_status(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Take a step of the workflow. To RESOLVED, `reason` is the resolution and required."""
    data = await body(request, ChangeStatus)
    if data.status is Status.RESOLVED and data.reason is None:
        raise InvalidRequest("reason", "is required to resolve: it is the resolution")
    return await _do(request, data, ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/resolve",
    operation_id="resolveTicket",
    status_code=200,
    responses=_TICKET,
    **COMMAND,
)
async def resolve_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Say what was done."""
    data = await body(request, Resolution)
    return await _do(request, ChangeStatus(status=Status.RESOLVED, reason=data.resolution_notes), ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/close",
    operation_id="closeTicket",
    status_code=200,
    responses=_TICKET,
    **COMMAND,
)
async def close_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """End a resolved ticket. The body may be left out."""
    data = await body(request, Closing, default=Closing())
    return await _do(request, ChangeStatus(status=Status.CLOSED, reason=data.reason), ticket_id)


@post(
    "/tickets/{ticket_id:uuid}/reopen",
    operation_id="reopenTicket",
    status_code=200,
    responses=_TICKET,
    **COMMAND,
)
async def reopen_ticket(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Say that it is not over; a closed ticket only within the reopen window."""
    data = await body(request, Reopening)
    return await _do(request, ChangeStatus(status=Status.REOPENED, reason=data.reason), ticket_id)


TICKET_ROUTES: Final = (
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
"""All commands about tickets."""
