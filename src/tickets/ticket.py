"""The aggregate: a ticket's state, and how each fact changes it.

eventsourcing's functional style: Ticket is an ImmutableAggregateProtocol and `evolve` its mutator
function. `evolve` never refuses, has no clock and no I/O: an old fact must be as readable as on the day it
was recorded, whatever today's rules are. Deliberately absent: what may happen next (commands.py).
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

from immutables import Map
from msgspec import UNSET, Struct
from msgspec.structs import replace

from tickets.comments import Comment, Comments
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
    CommentFact,
    Created,
    Deleted,
    DueDatesMoved,
    Edited,
    Escalated,
    Prioritized,
    Reopened,
    Resolved,
    Restored,
    StatusChanged,
    TicketEvent,
)
from tickets.lifecycle import Status
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.values import Category, Environment, Scan


class Attachment(Struct, frozen=True, gc=False, array_like=True):
    """What is known of a file that is attached; `version` is that of the fact that added it."""

    filename: str
    content_type: str
    size: int
    sha256: str
    scan: Scan
    infected: str | None
    uploaded_by: By
    created_at: datetime
    version: int


class Ticket(Struct, frozen=True, kw_only=True, gc=False):
    """A ticket as it was at one version of its stream."""

    id: UUID
    version: int
    number: str
    title: str
    description: str
    category: Category
    priority: Priority
    status: Status
    environment: Environment | None
    affected_service: str | None
    tags: tuple[str, ...]
    requester_id: UUID
    assignee_id: UUID | None
    team: str | None
    resolution_notes: str | None
    response_due_at: datetime
    resolution_due_at: datetime
    responded_at: datetime | None
    paused_since: datetime | None
    cycle_started_at: datetime
    """When the resolution clock started: the creation, or the newest reopening."""
    paused_for: timedelta
    """How long the resolution clock has stood still in this cycle, the present pause not included."""
    reopen_count: int
    deleted: bool
    created_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    closed_at: datetime | None
    comments: Comments
    """Those that are there; what was deleted is not."""
    status_changes: int
    """Each leaves a comment by the system."""
    internal_comments: int
    """How many of the comments only staff may see."""
    attachments: Map[UUID, Attachment]
    """Those that are there; what was deleted is not."""
    unseen_at: datetime | None
    """When an internal comment last changed something that only staff may know of."""

    @property
    def changed_at(self) -> datetime:
        """When the newest fact happened."""
        return self.updated_at if self.unseen_at is None else max(self.updated_at, self.unseen_at)

    @property
    def public_comments(self) -> int:
        """How many comments everybody can see who can see the ticket, the system's included."""
        return len(self.comments) - self.internal_comments + self.status_changes

    @property
    def resolution_ended_at(self) -> datetime | None:
        """When it was resolved, or closed without that."""
        return self.resolved_at or self.closed_at

    @property
    def resolution_stopped_at(self) -> datetime | None:
        """When the resolution clock stopped: the end, or the beginning of the present pause."""
        return self.resolution_ended_at or self.paused_since


class BrokenStream(Exception):  # noqa: N818 - it says what is broken
    """A stream of facts that cannot be one ticket's life."""


def evolve(fact: TicketEvent, ticket: Ticket | None) -> Ticket:
    """The ticket after the fact. None is the ticket before its first one.

    Raises BrokenStream where the fact does not follow: that is a damaged ledger, never a refused change.
    """
    if isinstance(fact, Created):
        return _created(fact, ticket)
    if ticket is None or fact.originator_version != ticket.version + 1 or fact.originator_id != ticket.id:
        raise BrokenStream(
            f"{fact.TOPIC} of {fact.originator_id} at version {fact.originator_version} follows "
            f"{'nothing' if ticket is None else f'version {ticket.version} of {ticket.id}'}"
        )
    version, at = fact.originator_version, fact.timestamp
    match fact:
        case StatusChanged():
            return _moved(ticket, version, at, fact.status)
        case Assigned():
            return replace(ticket, version=version, updated_at=at, assignee_id=fact.assignee_id, team=fact.team)
        case Resolved():
            moved = _moved(ticket, version, at, Status.RESOLVED)
            return replace(moved, resolution_notes=fact.resolution_notes, resolved_at=at)
        case Closed():
            return replace(_moved(ticket, version, at, Status.CLOSED), closed_at=at)
        case Edited():
            return _edited(ticket, version, at, fact)
        case Prioritized():
            return replace(ticket, version=version, updated_at=at, priority=fact.priority)
        case DueDatesMoved():
            return replace(
                ticket,
                version=version,
                updated_at=at,
                response_due_at=fact.response_due_at,
                resolution_due_at=fact.resolution_due_at,
            )
        case Escalated():
            return _moved(ticket, version, at, Status.ESCALATED)
        case Reopened():
            return replace(
                _moved(ticket, version, at, Status.REOPENED),
                reopen_count=ticket.reopen_count + 1,
                resolution_notes=None,
                resolved_at=None,
                closed_at=None,
                cycle_started_at=at,
                paused_for=timedelta(),
            )
        case CommentAdded() | CommentEdited() | CommentDeleted():
            return _discussed(ticket, version, at, fact)
        case AttachmentAdded() | AttachmentDeleted() | AttachmentScanned() | AttachmentRefused():
            attachments = _attached(ticket, version, at, fact)
            return replace(ticket, version=version, updated_at=at, attachments=attachments)
        case Deleted():
            return replace(ticket, version=version, updated_at=at, deleted=True)
        case Restored():
            return replace(ticket, version=version, updated_at=at, deleted=False)
        case _:
            assert_never(fact)


def fold(facts: Iterable[TicketEvent], ticket: Ticket | None = None) -> Ticket | None:
    """The ticket after all the facts, starting from `ticket`; None if there were none."""
    for fact in facts:
        ticket = evolve(fact, ticket)
    return ticket


def _created(fact: Created, ticket: Ticket | None) -> Ticket:
    if ticket is not None or fact.originator_version != 1:
        raise BrokenStream(f"{fact.originator_id} is created at version {fact.originator_version}, not once at 1")
    return Ticket(
        id=fact.originator_id,
        version=1,
        number=fact.number,
        title=fact.title,
        description=fact.description,
        category=fact.category,
        priority=fact.priority,
        status=Status.NEW,
        environment=fact.environment,
        affected_service=fact.affected_service,
        tags=fact.tags,
        requester_id=fact.requester_id,
        assignee_id=None,
        team=fact.team,
        resolution_notes=None,
        response_due_at=fact.response_due_at,
        resolution_due_at=fact.resolution_due_at,
        responded_at=None,
        paused_since=None,
        cycle_started_at=fact.timestamp,
        paused_for=timedelta(),
        reopen_count=0,
        deleted=False,
        created_at=fact.timestamp,
        updated_at=fact.timestamp,
        resolved_at=None,
        closed_at=None,
        comments=Comments(),
        status_changes=0,
        internal_comments=0,
        attachments=Map(),
        unseen_at=None,
    )


def _moved(ticket: Ticket, version: int, at: datetime, status: Status) -> Ticket:
    """Every change of status: the pause that PENDING_INFO is, and the response that work is."""
    paused_since, paused_for = ticket.paused_since, ticket.paused_for
    if status is Status.PENDING_INFO:
        paused_since = paused_since or at
    elif paused_since is not None:
        paused_for += at - paused_since
        paused_since = None
    responded_at = ticket.responded_at
    if responded_at is None and status is Status.IN_PROGRESS:
        responded_at = at
    return replace(
        ticket,
        version=version,
        updated_at=at,
        status=status,
        paused_since=paused_since,
        paused_for=paused_for,
        responded_at=responded_at,
        status_changes=ticket.status_changes + (status is not ticket.status),
    )


def _discussed(ticket: Ticket, version: int, at: datetime, fact: CommentFact) -> Ticket:
    """Of internal comments nothing shows but to staff; the first public one by staff is the response."""
    known = ticket.comments.get(fact.comment_id)
    if (known is None) is not isinstance(fact, CommentAdded):
        raise BrokenStream(f"{fact.TOPIC} is about comment {fact.comment_id}, which is {known or 'not there'}")
    responded_at, internal = ticket.responded_at, ticket.internal_comments
    match fact:
        case CommentAdded():
            comments = ticket.comments.set(
                fact.comment_id, Comment(fact.author, fact.internal, at, None, version, version)
            )
            internal += fact.internal
            if responded_at is None and not fact.internal and fact.author.role not in (None, Role.END_USER):
                responded_at = at
        case CommentEdited():
            assert known is not None  # noqa: S101 - for the type checker; it was looked for above
            edited = replace(known, edited_at=at, said_at=version)
            comments = ticket.comments.set(fact.comment_id, edited)
        case CommentDeleted():
            comments = ticket.comments.delete(fact.comment_id)
            internal -= fact.internal
        case _:
            assert_never(fact)
    return replace(
        ticket,
        version=version,
        updated_at=ticket.updated_at if fact.internal else at,
        unseen_at=at if fact.internal else ticket.unseen_at,
        responded_at=responded_at,
        comments=comments,
        internal_comments=internal,
    )


def _attached(ticket: Ticket, version: int, at: datetime, fact: AttachmentFact) -> Map[UUID, Attachment]:
    """The attachments after a fact about one."""
    if isinstance(fact, AttachmentRefused):
        return ticket.attachments
    known = ticket.attachments.get(fact.attachment_id)
    if (known is None) is not isinstance(fact, AttachmentAdded):
        raise BrokenStream(f"{fact.TOPIC} is about attachment {fact.attachment_id}, which is {known or 'not there'}")
    match fact:
        case AttachmentAdded():
            added = Attachment(
                filename=fact.filename,
                content_type=fact.content_type,
                size=fact.size,
                sha256=fact.sha256,
                scan=fact.scan,
                infected=None,
                uploaded_by=fact.uploaded_by,
                created_at=at,
                version=version,
            )
            return ticket.attachments.set(fact.attachment_id, added)
        case AttachmentDeleted():
            return ticket.attachments.delete(fact.attachment_id)
        case AttachmentScanned():
            assert known is not None  # noqa: S101 - for the type checker; it was looked for above
            scan = Scan.CLEAN if fact.infected is None else Scan.QUARANTINED
            return ticket.attachments.set(fact.attachment_id, replace(known, scan=scan, infected=fact.infected))
        case _:
            assert_never(fact)


def _edited(ticket: Ticket, version: int, at: datetime, fact: Edited) -> Ticket:
    return replace(
        ticket,
        version=version,
        updated_at=at,
        title=ticket.title if fact.title is UNSET else fact.title,
        description=ticket.description if fact.description is UNSET else fact.description,
        category=ticket.category if fact.category is UNSET else fact.category,
        environment=ticket.environment if fact.environment is UNSET else fact.environment,
        affected_service=ticket.affected_service if fact.affected_service is UNSET else fact.affected_service,
        tags=ticket.tags if fact.tags is UNSET else fact.tags,
    )
