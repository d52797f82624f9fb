"""The facts: what happened to a ticket, in the past tense, each with a topic of its own.

A fact is a frozen Struct that satisfies eventsourcing's DomainEventProtocol, and its JSON is what is
stored, so a topic's fields are a promise for ever: golden examples in the tests hold it. New meaning gets
a new topic version and an upcaster (mapper.py). Deliberately absent: behaviour (ticket.py) and who did it
from where, which is the same for every fact (Metadata).
"""

from datetime import datetime
from typing import ClassVar, Final, get_args
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType

from tickets.lifecycle import Status
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.values import Category, Environment, Scan


class Event(
    Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    gc=False,
    rename={"originator_id": "stream", "originator_version": "version", "timestamp": "at"},
):
    """What every fact says: which stream, which place in it, when. Attribute names are eventsourcing's.

    Facts hold no references that could form a cycle, so the garbage collector need not look at them.
    """

    TOPIC: ClassVar[str]

    originator_id: UUID
    originator_version: int
    timestamp: datetime


class Created(Event, frozen=True, kw_only=True):
    """Somebody asked for something."""

    TOPIC: ClassVar[str] = "ticket.created.v1"

    number: str
    title: str
    description: str
    category: Category
    priority: Priority
    requester_id: UUID
    response_due_at: datetime
    resolution_due_at: datetime
    environment: Environment | None = None
    affected_service: str | None = None
    tags: tuple[str, ...] = ()
    team: str | None = None


class Edited(Event, frozen=True, kw_only=True):
    """What the ticket says was put differently. Fields that are not there stayed as they were."""

    TOPIC: ClassVar[str] = "ticket.edited.v1"

    title: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    environment: Environment | None | UnsetType = UNSET
    affected_service: str | None | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET


class Prioritized(Event, frozen=True, kw_only=True):
    """The ticket became more or less urgent."""

    TOPIC: ClassVar[str] = "ticket.prioritized.v1"

    priority: Priority


class DueDatesMoved(Event, frozen=True, kw_only=True):
    """The response or the resolution is due at another time than before."""

    TOPIC: ClassVar[str] = "ticket.due_dates_moved.v1"

    response_due_at: datetime
    resolution_due_at: datetime


class Assigned(Event, frozen=True, kw_only=True):
    """Responsibility passed to a person, a team, or both; None is nobody."""

    TOPIC: ClassVar[str] = "ticket.assigned.v1"

    assignee_id: UUID | None
    team: str | None
    reason: str | None = None


class StatusChanged(Event, frozen=True, kw_only=True):
    """Work went on: the ticket is open, in progress, or waits for information."""

    TOPIC: ClassVar[str] = "ticket.status_changed.v1"

    status: Status
    reason: str | None = None


class Escalated(Event, frozen=True, kw_only=True):
    """Somebody else must look at it."""

    TOPIC: ClassVar[str] = "ticket.escalated.v1"

    reason: str | None = None


class Resolved(Event, frozen=True, kw_only=True):
    """The matter was dealt with, in the way the notes say."""

    TOPIC: ClassVar[str] = "ticket.resolved.v1"

    resolution_notes: str | None


class Closed(Event, frozen=True, kw_only=True):
    """The resolution was accepted, or nobody objected."""

    TOPIC: ClassVar[str] = "ticket.closed.v1"

    reason: str | None = None


class Reopened(Event, frozen=True, kw_only=True):
    """It was not over: a new resolution cycle begins."""

    TOPIC: ClassVar[str] = "ticket.reopened.v1"

    reason: str | None = None


class Deleted(Event, frozen=True, kw_only=True):
    """The ticket was taken out of sight; its history stays."""

    TOPIC: ClassVar[str] = "ticket.deleted.v1"


class Restored(Event, frozen=True, kw_only=True):
    """A deleted ticket was brought back."""

    TOPIC: ClassVar[str] = "ticket.restored.v1"


class By(Struct, frozen=True, gc=False):
    """Who did it, as they were then. An imported person's role is not known."""

    id: UUID
    username: str | None
    role: Role | None


class CommentAdded(Event, frozen=True, kw_only=True):
    """Somebody said something. Of an internal comment only staff know."""

    TOPIC: ClassVar[str] = "ticket.comment_added.v1"

    comment_id: UUID
    author: By
    body: str
    internal: bool = False


class CommentEdited(Event, frozen=True, kw_only=True):
    """It was put differently; `previous` is what stood there."""

    TOPIC: ClassVar[str] = "ticket.comment_edited.v1"

    comment_id: UUID
    body: str
    previous: str
    internal: bool = False


class CommentDeleted(Event, frozen=True, kw_only=True):
    """It was taken back; `previous` is what stood there."""

    TOPIC: ClassVar[str] = "ticket.comment_deleted.v1"

    comment_id: UUID
    previous: str
    internal: bool = False


class AttachmentAdded(Event, frozen=True, kw_only=True):
    """A file was attached. The bytes are kept by their SHA-256 (hexadecimal), the name only as data."""

    TOPIC: ClassVar[str] = "ticket.attachment_added.v1"

    attachment_id: UUID
    uploaded_by: By
    filename: str
    content_type: str
    size: int
    sha256: str
    scan: Scan


class AttachmentDeleted(Event, frozen=True, kw_only=True):
    """A file was taken away. Its bytes go later, if nothing else names them."""

    TOPIC: ClassVar[str] = "ticket.attachment_deleted.v1"

    attachment_id: UUID
    filename: str


class AttachmentScanned(Event, frozen=True, kw_only=True):
    """A file that waited for the virus scanner was looked at: `infected` names what is in it, None is nothing."""

    TOPIC: ClassVar[str] = "ticket.attachment_scanned.v1"

    attachment_id: UUID
    filename: str
    infected: str | None


class AttachmentRefused(Event, frozen=True, kw_only=True):
    """Somebody tried to attach a file that has a virus in it, the one that `infected` names. It was not kept."""

    TOPIC: ClassVar[str] = "ticket.attachment_refused.v1"

    filename: str
    size: int
    sha256: str
    infected: str


class PersonSeen(Event, frozen=True, kw_only=True):
    """Somebody came by with a token, or is named in an import. What is not known is None.

    People have streams of their own (people.stream_of), so that no token can reach into a ticket's.
    """

    TOPIC: ClassVar[str] = "person.seen.v1"

    person_id: UUID
    username: str | None
    role: Role | None
    teams: tuple[str, ...]


TicketEvent = (
    Created
    | Edited
    | Prioritized
    | DueDatesMoved
    | Assigned
    | StatusChanged
    | Escalated
    | Resolved
    | Closed
    | Reopened
    | Deleted
    | Restored
    | CommentAdded
    | CommentEdited
    | CommentDeleted
    | AttachmentAdded
    | AttachmentDeleted
    | AttachmentScanned
    | AttachmentRefused
)
"""The facts about tickets."""

CommentFact = CommentAdded | CommentEdited | CommentDeleted
"""The facts about what was said of a ticket, each of which may be internal."""

AttachmentFact = AttachmentAdded | AttachmentDeleted | AttachmentScanned | AttachmentRefused
"""The facts about files."""

Fact = TicketEvent | PersonSeen
"""All facts there are."""

FACTS: Final[tuple[type[Fact], ...]] = get_args(Fact)
"""The class of every topic."""


class Metadata(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept with each fact: who, from where, and in answer to what."""

    actor: By
    command_id: UUID
    ip_address: str | None = None
    request_id: str | None = None
    """The X-Request-ID of the request: the correlation of everything that it caused."""
    source: dict[str, str] | None = None
    """Where an imported fact comes from."""
