"""The commands about attachments: uploads and paths turned into commands, outcomes into answers.

Deliberately absent: rules (tickets/commands.py) and what becomes of the bytes (api/files/).
"""

from typing import Final
from uuid import UUID

from litestar import Response, delete, post

from api.commands.handling import COMMAND, UPLOAD, about, handled, ticket_of
from api.openapi import answers
from api.problems import Problem
from api.requests import Answer, ApiRequest, asked, installation, no_body
from projections import attachments
from projections.attachments import AttachmentView
from tickets.commands import Attach, Detach
from tickets.events import AttachmentAdded, AttachmentRefused

_SOME_FILE: Final = Attach(filename="", content_type="", size=0, sha256="")


@post(
    "/tickets/{ticket_id:uuid}/attachments",
    operation_id="addAttachment",
    status_code=201,
    responses=answers(201, AttachmentView, "The new attachment."),
    **UPLOAD,
)
async def add_attachment(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Attach a file: multipart/form-data with one part, `file`. Its content must be what its extension says."""
    served, circumstances = installation(request), asked(request)

    async def considered(attach: Attach | None) -> None:
        await served.handler.consider(attach or _SOME_FILE, ticket_id, circumstances, whole=attach is not None)

    async with served.files.taken(request, considered) as attach:
        answer = await handled(request, attach, ticket_id)
    added, headers = answer.facts[0], about(request, answer)
    if isinstance(added, AttachmentRefused):
        raise Problem("infected-file", f"{added.filename} was not taken: {added.infected} is in it.")
    assert isinstance(added, AttachmentAdded)  # noqa: S101 - the command has one of the two
    headers["Location"] = f"{served.settings.api_v1_prefix}/attachments/{added.attachment_id}"
    if "Preference-Applied" in headers:
        return Answer(headers, status=201)
    view = attachments.view(added.attachment_id, ticket_id, answer.ticket.attachments[added.attachment_id])
    return Answer(headers, attachments.encode(view), 201)


@delete(
    "/attachments/{attachment_id:uuid}",
    operation_id="deleteAttachment",
    status_code=204,
    responses=answers(204, None, "Deleted; the history keeps that it was there."),
    **COMMAND,
)
async def delete_attachment(request: ApiRequest, attachment_id: UUID) -> Response[None]:
    """Take a file away: one's own, or of a ticket that one may update."""
    await no_body(request)
    ticket_id = await ticket_of(request, attachments.ticket_of, attachment_id)
    answer = await handled(request, Detach(attachment_id=attachment_id), ticket_id)
    return Response(None, status_code=204, headers=about(request, answer))


ATTACHMENT_ROUTES: Final = (add_attachment, delete_attachment)
"""All commands about attachments."""
