"""What was said of tickets: the read model behind GET /tickets/{id}/comments.

Each change of status leaves a comment by the system, made here out of that fact. Deliberately absent: who
may see internal comments; the edge says that by what it asks for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
from msgspec import Struct

from projections.cursors import Moment, cursor_after, read_cursor
from projections.projection import Projection, Row, Step
from tickets.connections import Pool
from tickets.events import By, CommentAdded, CommentDeleted, CommentEdited
from tickets.ticket import Comment, Ticket

_CURSOR: Final = msgspec.json.Decoder(tuple[Moment, UUID])
_SYSTEM: Final = uuid5(NAMESPACE_URL, "urn:ticket-service:system-comment")


class CommentView(Struct, frozen=True, gc=False):
    """A comment as the API shows it."""

    id: UUID
    ticket_id: UUID
    body: str
    internal: bool
    system: bool
    author: By
    created_at: datetime
    edited_at: datetime | None


def view(comment_id: UUID, ticket_id: UUID, comment: Comment, body: str) -> CommentView:
    """A comment of somebody's as it is shown."""
    return CommentView(
        id=comment_id,
        ticket_id=ticket_id,
        body=body,
        internal=comment.internal,
        system=False,
        author=comment.author,
        created_at=comment.created_at,
        edited_at=comment.edited_at,
    )


encode: Final = msgspec.json.Encoder().encode


def _rows(step: Step) -> Sequence[Row]:
    fact, ticket = step.fact, step.after
    if ticket is None:
        return ()
    match fact:
        case CommentAdded() | CommentEdited():
            comment = ticket.comments[fact.comment_id]
            return (_row(step, view(fact.comment_id, ticket.id, comment, fact.body)),)
        case CommentDeleted():
            return ((fact.comment_id, ticket.id, step.envelope.position, fact.timestamp, fact.internal, True, b""),)
        case _ if step.before is not None and step.before.status is not ticket.status:
            return (_row(step, _by_the_system(step, step.before, ticket)),)
        case _:
            return ()


def _row(step: Step, shown: CommentView) -> Row:
    position = step.envelope.position
    return (shown.id, shown.ticket_id, position, shown.created_at, shown.internal, False, encode(shown))


def _by_the_system(step: Step, before: Ticket, after: Ticket) -> CommentView:
    reason = getattr(step.fact, "reason", None) or getattr(step.fact, "resolution_notes", None)
    return CommentView(
        id=uuid5(_SYSTEM, f"{after.id}:{after.version}"),
        ticket_id=after.id,
        body=f"Status changed from {before.status} to {after.status}" + (f": {reason}" if reason else "."),
        internal=False,
        system=True,
        author=step.envelope.metadata.actor,
        created_at=step.fact.timestamp,
        edited_at=None,
    )


COMMENTS: Final = Projection(
    name="comments",
    columns=("comment_id", "ticket_id", "position", "created_at", "internal", "deleted", "doc"),
    rows=_rows,
    newest_only=True,
)


class CommentPage(Struct, frozen=True):
    """Some comments, oldest first, as JSON, and where the next ones begin."""

    docs: list[bytes]
    total: int
    next_cursor: str | None


async def read(
    pool: Pool, ticket_id: UUID, *, internal: bool, cursor: str | None = None, page_size: int = 20
) -> CommentPage:
    """A page of a ticket's comments, with the internal ones or without. Raises BadCursor."""
    after = (None, None) if cursor is None else read_cursor(cursor, _CURSOR)
    rows = await pool.fetch(
        """select doc, created_at, comment_id from read_model.comments
           where ticket_id = $1 and not deleted and (not internal or $2)
             and ($3::timestamptz is null or (created_at, comment_id) > ($3, $4::uuid))
           order by created_at, comment_id limit $5""",
        ticket_id,
        internal,
        *after,
        page_size + 1,
    )
    total: int = await pool.fetchval(
        """select count(*) from (select from read_model.comments
           where ticket_id = $1 and not deleted and (not internal or $2) limit 10001) c""",
        ticket_id,
        internal,
    )
    shown = rows[:page_size]
    more = len(rows) > page_size
    return CommentPage([row[0] for row in shown], total, cursor_after(tuple(shown[-1][1:])) if more else None)


async def ticket_of(pool: Pool, comment_id: UUID) -> UUID | None:
    """The ticket that a comment is about, deleted or not; None if there is no such comment by a person."""
    found: UUID | None = await pool.fetchval(
        "select ticket_id from read_model.comments where comment_id = $1", comment_id
    )
    return found
