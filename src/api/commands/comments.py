"""The commands about comments: bodies and paths turned into commands, outcomes into answers.

Deliberately absent: rules; they are in tickets/commands.py.
"""

from typing import Final
from uuid import UUID

from litestar import Response, delete, post, put
from msgspec import Struct

from api.commands.handling import COMMAND, about, handled, ticket_of
from api.openapi import answers
from api.requests import Answer, ApiRequest, body, no_body
from projections import comments
from projections.comments import CommentView
from tickets.commands import AddComment, DeleteComment, EditComment
from tickets.events import CommentAdded
from tickets.handler import Answer as Handled
from tickets.values import CommentBody


class NewText(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the comment should say."""

    body: CommentBody


COMMENT_BODIES: Final[dict[str, type[Struct]]] = {"addComment": AddComment, "editComment": NewText}
"""The body of each operation here that has one."""


@post(
    "/tickets/{ticket_id:uuid}/comments",
    operation_id="addComment",
    status_code=201,
    responses=answers(201, CommentView, "The new comment."),
    **COMMAND,
)
async def add_comment(request: ApiRequest, ticket_id: UUID) -> Answer:
    """Say something. The requester's public comment opens a ticket that waits for information."""
    answer = await handled(request, await body(request, AddComment), ticket_id)
    added = answer.facts[0]
    assert isinstance(added, CommentAdded)  # noqa: S101 - it is what the command adds first
    return _shown(request, answer, added.comment_id, added.body, 201)


@put(
    "/comments/{comment_id:uuid}",
    operation_id="editComment",
    responses=answers(200, CommentView, "The comment after it."),
    **COMMAND,
)
async def edit_comment(request: ApiRequest, comment_id: UUID) -> Answer:
    """Put one's own comment differently; the history keeps what stood there."""
    text = (await body(request, NewText)).body
    answer = await handled(
        request, EditComment(comment_id=comment_id, body=text), await ticket_of(request, comments.ticket_of, comment_id)
    )
    return _shown(request, answer, comment_id, text)


@delete(
    "/comments/{comment_id:uuid}",
    operation_id="deleteComment",
    status_code=204,
    responses=answers(204, None, "Deleted; the history keeps it."),
    **COMMAND,
)
async def delete_comment(request: ApiRequest, comment_id: UUID) -> Response[None]:
    """Take a comment back: one's own, or as a team lead anybody's."""
    await no_body(request)
    answer = await handled(
        request, DeleteComment(comment_id=comment_id), await ticket_of(request, comments.ticket_of, comment_id)
    )
    return Response(None, status_code=204, headers=about(request, answer))


COMMENT_ROUTES: Final = (add_comment, edit_comment, delete_comment)
"""All commands about comments."""


def _shown(request: ApiRequest, answer: Handled, comment_id: UUID, text: str, status: int = 200) -> Answer:
    headers = about(request, answer)
    if "Preference-Applied" in headers:
        return Answer(headers, status=201 if status == 201 else 204)
    view = comments.view(comment_id, answer.ticket.id, answer.ticket.comments[comment_id], text)
    return Answer(headers, comments.encode(view), status)
