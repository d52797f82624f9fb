"""The files that are attached to tickets: the read model behind lists and downloads.

It has the facts about files; their bytes are elsewhere, under their SHA-256. Rows of deleted ones stay, so
that it is known when the bytes may go. Deliberately absent: the bytes (api/files/).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from projections.cursors import Stretch
from projections.projection import Projection, Row, Step, is_parked
from tickets.connections import Connection, Pool
from tickets.events import AttachmentAdded, AttachmentDeleted, AttachmentScanned, By
from tickets.ticket import Attachment
from tickets.values import Scan


class AttachmentView(Struct, frozen=True, gc=False):
    """An attachment as the API shows it."""

    id: UUID
    ticket_id: UUID
    filename: str
    content_type: str
    size: int
    sha256: str
    scan: Scan
    uploaded_by: By
    created_at: datetime


def view(attachment_id: UUID, ticket_id: UUID, attachment: Attachment) -> AttachmentView:
    """An attachment as it is shown."""
    return AttachmentView(
        id=attachment_id,
        ticket_id=ticket_id,
        filename=attachment.filename,
        content_type=attachment.content_type,
        size=attachment.size,
        sha256=attachment.sha256,
        scan=attachment.scan,
        uploaded_by=attachment.uploaded_by,
        created_at=attachment.created_at,
    )


encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(AttachmentView).decode


def _rows(step: Step) -> Sequence[Row]:
    fact, ticket = step.fact, step.after
    if ticket is None or not isinstance(fact, AttachmentAdded | AttachmentDeleted | AttachmentScanned):
        return ()
    deleted = isinstance(fact, AttachmentDeleted)
    known = (step.before if deleted else ticket) or ticket
    attachment = known.attachments[fact.attachment_id]
    return (
        (
            fact.attachment_id,
            ticket.id,
            step.envelope.position,
            attachment.version,
            attachment.sha256,
            attachment.scan is Scan.QUARANTINED and attachment.infected is None,
            step.envelope.recorded_at if deleted else None,
            encode(view(fact.attachment_id, ticket.id, attachment)),
        ),
    )


ATTACHMENTS: Final = Projection(
    name="attachments",
    columns=("attachment_id", "ticket_id", "position", "version", "sha256", "waiting", "deleted_at", "doc"),
    rows=_rows,
    newest_only=True,
    of_stream="ticket_id = $1 and deleted_at is null",
    about=frozenset({AttachmentAdded, AttachmentDeleted, AttachmentScanned}),
)


async def read(pool: Pool, ticket_id: UUID, *, after: int = 0, page_size: int = 20) -> Stretch:
    """A page of a ticket's attachments from the version `after` on."""
    rows = await pool.fetch(
        """select doc, version from read_model.attachments
           where ticket_id = $1 and deleted_at is null and version > $2::bigint order by version limit $3""",
        ticket_id,
        after,
        page_size + 1,
    )
    total, stale = await pool.fetchrow(
        f"""select count(*), {is_parked("attachments", "$1")} from (select from read_model.attachments
           where ticket_id = $1 and deleted_at is null limit 10001) a""",
        ticket_id,
    ) or (0, False)
    shown = rows[:page_size]
    return Stretch([row[0] for row in shown], total, shown[-1][1] if len(rows) > page_size else None, stale)


async def find(pool: Pool, attachment_id: UUID) -> AttachmentView | None:
    """One attachment that is there."""
    doc: bytes | None = await pool.fetchval(
        "select doc from read_model.attachments where attachment_id = $1 and deleted_at is null", attachment_id
    )
    return None if doc is None else _decode(doc)


async def ticket_of(pool: Pool, attachment_id: UUID) -> UUID | None:
    """The ticket that an attachment belongs to, deleted or not."""
    found: UUID | None = await pool.fetchval(
        "select ticket_id from read_model.attachments where attachment_id = $1", attachment_id
    )
    return found


async def waiting(pool: Pool, limit: int, after: int = 0) -> list[tuple[int, AttachmentView]]:
    """Attachments that wait for the virus scanner, longest first, each with the position after which others come."""
    rows = await pool.fetch(
        """select position, doc from read_model.attachments
           where waiting and deleted_at is null and position > $2 order by position limit $1""",
        limit,
        after,
    )
    return [(position, _decode(doc)) for position, doc in rows]


async def named(source: Pool | Connection, sha256: Sequence[str], retention: timedelta) -> set[str]:
    """Which of these contents an attachment names, or did until so long ago."""
    rows = await source.fetch(
        """select distinct sha256 from read_model.attachments
           where sha256 = any($1) and (deleted_at is null or deleted_at > now() - $2::interval)""",
        list(sha256),
        retention,
    )
    return {row[0] for row in rows}
