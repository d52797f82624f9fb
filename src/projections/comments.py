"""What was said of tickets: the read model behind GET /tickets/{id}/comments.

Each change of status leaves a comment by the system, made here out of that fact. Deliberately absent: who
may see internal comments; the edge says that by what it asks for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from projections.cursors import Stretch
from projections.projection import Projection, Row, Step, is_parked
from tickets.comments import Comment
from tickets.connections import Pool
from tickets.events import By, CommentAdded, CommentDeleted, CommentEdited
from tickets.ticket import Ticket

_KIND: Final = 0x8 << 76 | 0x2 << 62
"""What says in a UUID that it is one that an application made up (RFC 9562, version 8)."""

_ALL_BUT_KIND: Final = ((1 << 128) - 1) & ~(0xF << 76) & ~(0x3 << 62)


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
            return (_row(step, view(fact.comment_id, ticket.id, comment, fact.body), comment.version),)
        case CommentDeleted():
            assert step.before is not None  # noqa: S101 - evolve saw it there
            version = step.before.comments[fact.comment_id].version
            return ((fact.comment_id, ticket.id, step.envelope.position, version, fact.internal, True, b""),)
        case _ if step.before is not None and step.before.status is not ticket.status:
            return (_row(step, _by_the_system(step, step.before, ticket), ticket.version),)
        case _:
            return ()


def _row(step: Step, shown: CommentView, version: int) -> Row:
    return (shown.id, shown.ticket_id, step.envelope.position, version, shown.internal, False, encode(shown))


def _by_the_system(step: Step, before: Ticket, after: Ticket) -> CommentView:
    reason = getattr(step.fact, "reason", None) or getattr(step.fact, "resolution_notes", None)
    return CommentView(
        id=_system_id(after),
        ticket_id=after.id,
        body=f"Status changed from {before.status} to {after.status}" + (f": {reason}" if reason else "."),
        internal=False,
        system=True,
        author=step.envelope.metadata.actor,
        created_at=step.fact.timestamp,
        edited_at=None,
    )


def _system_id(ticket: Ticket) -> UUID:
    """An id for what the system says at this version."""
    return UUID(int=(ticket.id.int + (ticket.version << 80)) & _ALL_BUT_KIND | _KIND)


COMMENTS: Final = Projection(
    name="comments",
    columns=("comment_id", "ticket_id", "position", "version", "internal", "deleted", "doc"),
    rows=_rows,
    newest_only=True,
    of_stream="ticket_id = $1 and not deleted",
)


async def read(pool: Pool, ticket_id: UUID, *, internal: bool, after: int = 0, page_size: int = 20) -> Stretch:
    """A page of a ticket's comments from the version `after` on, with the internal ones or without."""
    rows = await pool.fetch(
        """select doc, version from read_model.comments
           where ticket_id = $1 and not deleted and (not internal or $2) and version > $3::bigint
           order by version limit $4""",
        ticket_id,
        internal,
        after,
        page_size + 1,
    )
    total, stale = await pool.fetchrow(
        f"""select count(*), {is_parked("comments", "$1")} from (select from read_model.comments
           where ticket_id = $1 and not deleted and (not internal or $2) limit 10001) c""",
        ticket_id,
        internal,
    ) or (0, False)
    shown = rows[:page_size]
    return Stretch([row[0] for row in shown], total, shown[-1][1] if len(rows) > page_size else None, stale)


async def ticket_of(pool: Pool, comment_id: UUID) -> UUID | None:
    """The ticket that a comment is about, deleted or not; None if there is no such comment by a person."""
    found: UUID | None = await pool.fetchval(
        "select ticket_id from read_model.comments where comment_id = $1", comment_id
    )
    return found
