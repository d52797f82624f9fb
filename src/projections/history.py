"""The audit trail: an entry for each fact about a ticket, behind GET /tickets/{id}/history.

What an entry says changed is the difference between the ticket before and after the fact, whatever the
fact is: a field that changed cannot be missing. Deliberately absent: proofs; those come off the ledger.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, assert_never
from uuid import UUID

import msgspec
from msgspec import Struct

from projections.cursors import Stretch
from projections.projection import Envelope, Projection, Row, Step, is_parked
from tickets.batching import Batched
from tickets.connections import Pool
from tickets.events import (
    Assigned,
    AttachmentAdded,
    AttachmentDeleted,
    AttachmentFact,
    AttachmentRefused,
    AttachmentScanned,
    By,
    Closed,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
    Created,
    Deleted,
    DueDatesMoved,
    Edited,
    Escalated,
    Fact,
    Prioritized,
    Reopened,
    Resolved,
    Restored,
    StatusChanged,
)
from tickets.ticket import Ticket
from tickets.values import Scan


class Action(StrEnum):
    """What kind of change an entry is about. The contract's names; SLA_BREACH has no fact yet."""

    CREATED = "CREATED"
    STATUS_CHANGE = "STATUS_CHANGE"
    PRIORITY_CHANGE = "PRIORITY_CHANGE"
    ASSIGNMENT_CHANGE = "ASSIGNMENT_CHANGE"
    UPDATE = "UPDATE"
    COMMENT_ADDED = "COMMENT_ADDED"
    COMMENT_EDITED = "COMMENT_EDITED"
    COMMENT_DELETED = "COMMENT_DELETED"
    ATTACHMENT_ADDED = "ATTACHMENT_ADDED"
    ATTACHMENT_DELETED = "ATTACHMENT_DELETED"
    ESCALATED = "ESCALATED"
    REOPENED = "REOPENED"
    RESOLVED = "RESOLVED"
    CLOSED = "CLOSED"
    SLA_BREACH = "SLA_BREACH"
    DUE_DATE_CHANGE = "DUE_DATE_CHANGE"
    DELETED = "DELETED"
    RESTORED = "RESTORED"


ACTIONS: Final[dict[type[Fact], Action]] = {
    Created: Action.CREATED,
    Edited: Action.UPDATE,
    Prioritized: Action.PRIORITY_CHANGE,
    DueDatesMoved: Action.DUE_DATE_CHANGE,
    Assigned: Action.ASSIGNMENT_CHANGE,
    StatusChanged: Action.STATUS_CHANGE,
    Escalated: Action.ESCALATED,
    Resolved: Action.RESOLVED,
    Closed: Action.CLOSED,
    Reopened: Action.REOPENED,
    Deleted: Action.DELETED,
    Restored: Action.RESTORED,
    CommentAdded: Action.COMMENT_ADDED,
    CommentEdited: Action.COMMENT_EDITED,
    CommentDeleted: Action.COMMENT_DELETED,
    AttachmentAdded: Action.ATTACHMENT_ADDED,
    AttachmentDeleted: Action.ATTACHMENT_DELETED,
    AttachmentScanned: Action.UPDATE,
    AttachmentRefused: Action.UPDATE,
}
"""The action of each fact about a ticket."""


_ABOUT_FILES: Final = (AttachmentAdded, AttachmentDeleted, AttachmentScanned, AttachmentRefused)
_ABOUT_COMMENTS: Final = (CommentAdded, CommentEdited, CommentDeleted)
"""As tuples: asking after a union takes thrice as long, and every fact is asked."""


class Change(Struct, frozen=True, gc=False):
    """One field's difference; nested fields are written `sla.responded_at`."""

    field: str
    old: Any
    new: Any


class Entry(Struct, frozen=True, kw_only=True, gc=False):
    """One line of the audit trail, as the API shows it."""

    position: int
    version: int
    action: Action
    actor: By
    ip_address: str | None
    occurred_at: datetime
    recorded_at: datetime
    changes: list[Change]
    reason: str | None
    command_id: UUID
    metadata: dict[str, Any]


FIELDS: Final = (
    "number",
    "title",
    "description",
    "category",
    "priority",
    "status",
    "environment",
    "affected_service",
    "tags",
    "requester_id",
    "assignee_id",
    "team",
    "resolution_notes",
    "sla.response_due_at",
    "sla.resolution_due_at",
    "sla.responded_at",
    "sla.paused_since",
    "reopen_count",
    "deleted",
    "created_at",
    "resolved_at",
    "closed_at",
)
"""All that a ticket shows and that facts change, but for version and updated_at: the entry itself has those."""

shown: Final = attrgetter(*(field.removeprefix("sla.") for field in FIELDS))
"""The values of FIELDS of a ticket."""
_NOTHING: Final = (None,) * len(FIELDS)


def changes(before: Ticket | None, after: Ticket) -> list[Change]:
    """What is different. Of a ticket that was not there before: all that is not null."""
    was = _NOTHING if before is None else shown(before)
    return [
        Change(field, old, new)
        for field, old, new in zip(FIELDS, was, shown(after), strict=True)
        if old is not new and old != new
    ]


def entry(fact: Fact, envelope: Envelope, before: Ticket | None, after: Ticket) -> Entry:
    """The line of the audit trail for one fact."""
    about, different = envelope.metadata, changes(before, after)
    metadata: dict[str, Any] = {}
    if about.request_id is not None:
        metadata["request_id"] = about.request_id
    if about.source is not None:
        metadata["source"] = about.source
    reason = getattr(fact, "reason", None)
    if isinstance(fact, _ABOUT_FILES):
        metadata |= _of_attachment(fact)
        if (change := _change_of_attachment(fact)) is not None:
            different.append(change)
        if isinstance(fact, AttachmentRefused):
            reason = f"{fact.filename} was not taken: {fact.infected} is in it"
    elif isinstance(fact, _ABOUT_COMMENTS):
        metadata |= {"comment_id": fact.comment_id, "internal": fact.internal}
        old = None if isinstance(fact, CommentAdded) else fact.previous
        different.append(Change("comment", old, None if isinstance(fact, CommentDeleted) else fact.body))
    return Entry(
        position=envelope.position,
        version=fact.originator_version,
        action=ACTIONS[type(fact)],
        actor=about.actor,
        ip_address=about.ip_address,
        occurred_at=fact.timestamp,
        recorded_at=envelope.recorded_at,
        changes=different,
        reason=reason,
        command_id=about.command_id,
        metadata=metadata,
    )


def _of_attachment(fact: AttachmentFact) -> dict[str, Any]:
    """What identifies the file."""
    if isinstance(fact, AttachmentRefused):
        return {"filename": fact.filename, "sha256": fact.sha256, "infected": fact.infected}
    known = {"attachment_id": fact.attachment_id, "filename": fact.filename}
    return known | {"sha256": fact.sha256} if isinstance(fact, AttachmentAdded) else known


def _change_of_attachment(fact: AttachmentFact) -> Change | None:
    match fact:
        case AttachmentAdded():
            return Change("attachment", None, fact.filename)
        case AttachmentDeleted():
            return Change("attachment", fact.filename, None)
        case AttachmentScanned():
            found = "clean" if fact.infected is None else f"infected with {fact.infected}"
            return Change("attachment.scan", Scan.QUARANTINED, found)
        case AttachmentRefused():
            return None
        case _:
            assert_never(fact)


_encode: Final = msgspec.json.Encoder().encode


def _rows(step: Step) -> Sequence[Row]:
    if step.after is None:
        return ()
    line = entry(step.fact, step.envelope, step.before, step.after)
    internal = getattr(step.fact, "internal", False)
    return ((step.after.id, line.position, line.action, internal, _encode(line)),)


HISTORY: Final = Projection(
    name="history",
    columns=("ticket_id", "position", "action", "internal", "entry"),
    key_columns=2,
    rows=_rows,
    newest_only=False,
)


class Wanted(Struct, frozen=True, kw_only=True):
    """A page of a ticket's audit trail."""

    ticket_id: UUID
    visible_to: UUID | None = None
    """Whose ticket it has to be, who is shown nothing internal; None is staff."""
    actions: tuple[Action, ...] = ()
    """Only these; none is all."""
    after: int = 0
    """The position after which it begins."""
    page_size: int = 20


Reading = Batched[Wanted, Stretch | None]
"""The page, or None where there is no such ticket for that reader."""

_TOTAL_UPTO: Final = 10_001
_FITS: Final = """(w.visible_to is null or not h.internal)
                   and (w.actions is null or h.action = any(string_to_array(w.actions, ',')))"""
_READ: Final = f"""
select w.n, {is_parked("history", "w.ticket_id")} as stale, positions, entries,
       case when w.after = 0 and cardinality(positions) < w.size then cardinality(positions)
            else (select count(*) from (select from read_model.history h where h.ticket_id = w.ticket_id and {_FITS}
                                        limit {_TOTAL_UPTO}) all_of_it) end as total
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::int[])
       with ordinality w(ticket_id, visible_to, actions, after, size, n)
     join read_model.tickets t on t.ticket_id = w.ticket_id and (w.visible_to is null or w.visible_to = t.requester_id),
     lateral (select coalesce(array_agg(position order by position), '{{}}') as positions,
                     coalesce(array_agg(entry order by position), '{{}}') as entries
              from (select h.position, h.entry from read_model.history h
                    where h.ticket_id = w.ticket_id and h.position > w.after and {_FITS}
                    order by h.position limit w.size) of_it) page
"""


def reading(pool: Pool) -> Reading:
    """Pages of audit trails, for all who ask at the same time at once."""

    async def pages(wanted: Sequence[Wanted]) -> list[Stretch | None]:
        rows = await pool.fetch(
            _READ,
            [one.ticket_id for one in wanted],
            [one.visible_to for one in wanted],
            [",".join(one.actions) or None for one in wanted],
            [one.after for one in wanted],
            [one.page_size + 1 for one in wanted],
        )
        found: list[Stretch | None] = [None] * len(wanted)
        for n, stale, positions, entries, total in rows:
            size = wanted[n - 1].page_size
            more = len(positions) > size
            found[n - 1] = Stretch(entries[:size], total, positions[size - 1] if more else None, stale)
        return found

    return Batched(pages)


def without_addresses(document: bytes) -> bytes:
    """An entry as an end user may see it: they see no IP addresses."""
    line: dict[str, Any] = msgspec.json.decode(document)
    line["ip_address"] = None
    return _encode(line)
