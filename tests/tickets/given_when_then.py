"""Given these facts, when somebody asks for this, then that follows: how the tests speak of a decision.

The facts that the builders make are about one ticket and have no number yet; `given` numbers them in their
order. Unless a test says otherwise they all happened at START and the command comes an hour later. The
people are the cast of every story here. Deliberately absent: tests, and rules of their own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from tickets.commands import AddComment, Attach, Command, Create, Policy, create, decide
from tickets.errors import Refusal
from tickets.events import (
    Assigned,
    AttachmentAdded,
    AttachmentDeleted,
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
    Prioritized,
    Reopened,
    Resolved,
    Restored,
    StatusChanged,
    TicketEvent,
)
from tickets.lifecycle import Status
from tickets.permissions import Actor, Assignee, Role
from tickets.sla import Priority
from tickets.ticket import Ticket, fold
from tickets.values import Category, Environment, Scan

START: Final = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LATER: Final = START + timedelta(hours=1)
MOMENT: Final = timedelta(microseconds=1)
TICKET: Final = UUID("01890000-0000-7000-8000-00000000007c")
NUMBER: Final = "TKT-2026-000042"
NOTES: Final = "Restarted the worker."
COMMENT: Final = UUID("01890000-0000-7000-8000-0000000000c0")
NEW_COMMENT: Final = UUID("01890000-0000-7000-8000-0000000000c1")
"""The id of every comment or file that a command adds here."""
FILE: Final = UUID("01890000-0000-7000-8000-0000000000f0")
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
WORDS: Final = "It began after the upgrade"

ALICE: Final = Actor(id=UUID(int=1), role=Role.END_USER, username="alice")
BOB: Final = Actor(id=UUID(int=2), role=Role.END_USER, username="bob")
DEV: Final = Actor(id=UUID(int=3), role=Role.DEVOPS_ENGINEER, username="dev", teams=("web",))
SENIOR: Final = Actor(id=UUID(int=4), role=Role.SENIOR_ENGINEER, username="senior", teams=("web", "db"))
LEAD: Final = Actor(id=UUID(int=5), role=Role.TEAM_LEAD, username="lead", teams=("web",))
MANAGER: Final = Actor(id=UUID(int=6), role=Role.MANAGER, username="manager")
ADMIN: Final = Actor(id=UUID(int=7), role=Role.ADMIN, username="admin")
WEB_DEV: Final = Actor(id=UUID(int=8), role=Role.DEVOPS_ENGINEER, username="colleague", teams=("web",))
NET_DEV: Final = Actor(id=UUID(int=9), role=Role.DEVOPS_ENGINEER, username="stranger", teams=("network",))
NOBODY_KNOWN: Final = UUID(int=999)

CAST: Final = (ALICE, BOB, DEV, SENIOR, LEAD, MANAGER, ADMIN, WEB_DEV, NET_DEV)
KNOWN: Final = {person.id: Assignee(id=person.id, teams=person.teams) for person in CAST}
"""Whom the service has seen; NOBODY_KNOWN is not among them."""

A_REQUEST: Final = Create(
    title="Production server down", description="Web server not responding", category=Category.INCIDENT
)


def created(
    *,
    by: Actor = ALICE,
    priority: Priority = Priority.P3,
    team: str | None = None,
    tags: tuple[str, ...] = (),
    environment: Environment | None = None,
    affected_service: str | None = None,
    at: datetime = START,
) -> Created:
    """A ticket that `by` requested, due as the contract's table says (P3 unless told: 8 and 48 hours)."""
    response, resolution = {
        Priority.P1: (1, 4),
        Priority.P2: (4, 12),
        Priority.P3: (8, 48),
        Priority.P4: (24, 120),
    }[priority]
    return Created(
        originator_id=TICKET,
        originator_version=0,
        timestamp=at,
        number=NUMBER,
        title=A_REQUEST.title,
        description=A_REQUEST.description,
        category=A_REQUEST.category,
        priority=priority,
        requester_id=by.id,
        response_due_at=at + timedelta(hours=response),
        resolution_due_at=at + timedelta(hours=resolution),
        environment=environment,
        affected_service=affected_service,
        tags=tags,
        team=team,
    )


def edited(
    *,
    title: str | UnsetType = UNSET,
    description: str | UnsetType = UNSET,
    category: Category | UnsetType = UNSET,
    environment: Environment | None | UnsetType = UNSET,
    affected_service: str | None | UnsetType = UNSET,
    tags: tuple[str, ...] | UnsetType = UNSET,
    at: datetime = START,
) -> Edited:
    return Edited(
        **_head(at),
        title=title,
        description=description,
        category=category,
        environment=environment,
        affected_service=affected_service,
        tags=tags,
    )


def prioritized(priority: Priority, *, at: datetime = START) -> Prioritized:
    return Prioritized(**_head(at), priority=priority)


def due_dates_moved(response: datetime, resolution: datetime, *, at: datetime = START) -> DueDatesMoved:
    return DueDatesMoved(**_head(at), response_due_at=response, resolution_due_at=resolution)


def assigned(
    to: Actor | None = None, *, team: str | None = None, reason: str | None = None, at: datetime = START
) -> Assigned:
    return Assigned(**_head(at), assignee_id=None if to is None else to.id, team=team, reason=reason)


def moved(to: Status, *, reason: str | None = None, at: datetime = START) -> StatusChanged:
    return StatusChanged(**_head(at), status=to, reason=reason)


def escalated(*, reason: str | None = None, at: datetime = START) -> Escalated:
    return Escalated(**_head(at), reason=reason)


def resolved(notes: str | None = NOTES, *, at: datetime = START) -> Resolved:
    return Resolved(**_head(at), resolution_notes=notes)


def closed(*, reason: str | None = None, at: datetime = START) -> Closed:
    return Closed(**_head(at), reason=reason)


def reopened(*, reason: str | None = None, at: datetime = START) -> Reopened:
    return Reopened(**_head(at), reason=reason)


def deleted(*, at: datetime = START) -> Deleted:
    return Deleted(**_head(at))


def restored(*, at: datetime = START) -> Restored:
    return Restored(**_head(at))


def commented(
    by: Actor = ADMIN,
    body: str = WORDS,
    *,
    internal: bool = False,
    comment_id: UUID = COMMENT,
    at: datetime = START,
) -> CommentAdded:
    """A comment that `by` wrote."""
    author = By(by.id, by.username, by.role)
    return CommentAdded(**_head(at), comment_id=comment_id, author=author, body=body, internal=internal)


def comment_edited(
    body: str, *, previous: str = WORDS, internal: bool = False, comment_id: UUID = COMMENT, at: datetime = START
) -> CommentEdited:
    return CommentEdited(**_head(at), comment_id=comment_id, body=body, previous=previous, internal=internal)


def comment_deleted(
    *, previous: str = WORDS, internal: bool = False, comment_id: UUID = COMMENT, at: datetime = START
) -> CommentDeleted:
    return CommentDeleted(**_head(at), comment_id=comment_id, previous=previous, internal=internal)


def attached(
    by: Actor = ADMIN,
    filename: str = "proxy.log",
    *,
    scan: Scan = Scan.CLEAN,
    attachment_id: UUID = FILE,
    at: datetime = START,
) -> AttachmentAdded:
    """A file that `by` attached."""
    return AttachmentAdded(
        **_head(at),
        attachment_id=attachment_id,
        uploaded_by=By(by.id, by.username, by.role),
        filename=filename,
        content_type="text/plain",
        size=4,
        sha256=SHA256,
        scan=scan,
    )


def detached(filename: str = "proxy.log", *, attachment_id: UUID = FILE, at: datetime = START) -> AttachmentDeleted:
    return AttachmentDeleted(**_head(at), attachment_id=attachment_id, filename=filename)


def scanned(
    infected: str | None = None, filename: str = "proxy.log", *, attachment_id: UUID = FILE, at: datetime = START
) -> AttachmentScanned:
    return AttachmentScanned(**_head(at), attachment_id=attachment_id, filename=filename, infected=infected)


def refused_file(infected: str = "Eicar", filename: str = "proxy.log", *, at: datetime = START) -> AttachmentRefused:
    return AttachmentRefused(**_head(at), filename=filename, size=4, sha256=SHA256, infected=infected)


def way_to(status: Status, *, at: datetime = START) -> tuple[TicketEvent, ...]:
    """What happens to a new ticket until it has this status, by the shortest way."""
    opened, begun = moved(Status.OPEN, at=at), moved(Status.IN_PROGRESS, at=at)
    ways: dict[Status, tuple[TicketEvent, ...]] = {
        Status.NEW: (),
        Status.OPEN: (opened,),
        Status.IN_PROGRESS: (opened, begun),
        Status.PENDING_INFO: (opened, moved(Status.PENDING_INFO, at=at)),
        Status.ESCALATED: (opened, begun, escalated(at=at)),
        Status.RESOLVED: (opened, begun, resolved(at=at)),
        Status.CLOSED: (opened, begun, resolved(at=at), closed(at=at)),
        Status.REOPENED: (opened, begun, resolved(at=at), reopened(at=at)),
    }
    return ways[status]


def a_ticket(status: Status, *further: TicketEvent) -> "Given":
    """A ticket of Alice's with this status, and whatever else happened to it."""
    return given(created(), *way_to(status), *further)


def given(*facts: TicketEvent) -> "Given":
    """The ticket that these facts, numbered in their order, are the life of. None: no ticket."""
    return Given(numbered(facts))


def numbered(facts: Iterable[TicketEvent], after: int = 0) -> tuple[TicketEvent, ...]:
    return tuple(replace(fact, originator_version=version) for version, fact in enumerate(facts, after + 1))


@dataclass(frozen=True)
class Given:
    """What has happened so far."""

    facts: tuple[TicketEvent, ...]

    @property
    def ticket(self) -> Ticket:
        """The ticket as it is."""
        ticket = fold(self.facts)
        assert ticket is not None, "there is no ticket in this story yet"
        return ticket

    def when(
        self,
        command: Command,
        *,
        by: Actor = ADMIN,
        at: datetime = LATER,
        policy: Policy | None = None,
        if_match: frozenset[int] | None = None,
    ) -> "Decision":
        """Somebody asks for this. Create is decided without a ticket, all else on the one there is."""
        policy = policy or Policy()
        try:
            if isinstance(command, Create):
                assert not self.facts, "a ticket is created before everything else"
                facts: tuple[TicketEvent, ...] = create(
                    command, ticket_id=TICKET, number=NUMBER, actor=by, at=at, policy=policy
                )
            else:
                to = getattr(command, "assignee_id", None)
                facts = decide(
                    fold(self.facts),
                    command,
                    actor=by,
                    at=at,
                    policy=policy,
                    assignee=KNOWN.get(to) if isinstance(to, UUID) else None,
                    new_id=NEW_COMMENT if isinstance(command, AddComment | Attach) else None,
                    said=self._said(getattr(command, "comment_id", None)),
                    if_match=if_match,
                )
        except Refusal as refusal:
            return Decision(self, at, (), refusal)
        return Decision(self, at, facts, None)

    def _said(self, comment_id: UUID | None) -> str:
        """What the comment says by now, as the newest fact about it has it."""
        texts = [
            fact.body
            for fact in self.facts
            if isinstance(fact, CommentAdded | CommentEdited) and fact.comment_id == comment_id
        ]
        return texts[-1] if texts else ""


@dataclass(frozen=True)
class Decision:
    """What came of it: the facts that follow, or a refusal."""

    before: Given
    at: datetime
    facts: tuple[TicketEvent, ...]
    refusal: Refusal | None

    def then(self, *expected: type[TicketEvent] | TicketEvent) -> Self:
        """These facts follow and no others, at the time of asking.

        Of a class, any fact of it; a fact must be equal, but its number and time are filled in here.
        """
        self._must(self.refusal is None, "it to be done")
        self._must(
            [type(fact) for fact in self.facts] == [one if isinstance(one, type) else type(one) for one in expected],
            f"{[one.__name__ if isinstance(one, type) else one for one in expected]}",
        )
        for number, (fact, one) in enumerate(zip(self.facts, expected, strict=True), len(self.before.facts) + 1):
            self._must(fact.originator_version == number, f"version {number}")
            self._must(fact.originator_id == TICKET, "facts about this ticket")
            self._must(fact.timestamp == self.at, f"everything to happen at {self.at}")
            if not isinstance(one, type):
                exactly = replace(one, originator_version=number, timestamp=self.at)
                self._must(fact == exactly, repr(exactly))
        return self

    def then_nothing(self) -> Self:
        """It is granted, and nothing follows: all is already as asked."""
        self._must(self.refusal is None and self.facts == (), "nothing to follow and no refusal")
        return self

    def then_refused(self, kind: type[Refusal], **details: Any) -> Refusal:
        """It is refused, for this reason and no kind of it, with at least these details."""
        refusal = self.refusal
        self._must(type(refusal) is kind, f"{kind.__name__}")
        assert refusal is not None
        for name, value in details.items():
            self._must(refusal.details.get(name) == value, f"{name} {value!r} in {refusal.details}")
        return refusal

    @property
    def ticket(self) -> Ticket:
        """The ticket after it."""
        self._must(self.refusal is None, "it to be done")
        return Given(self.before.facts + self.facts).ticket

    def and_then(self) -> Given:
        """The story goes on from here."""
        self._must(self.refusal is None, "it to be done")
        return Given(self.before.facts + self.facts)

    def _must(self, holds: bool, what: str) -> None:  # noqa: FBT001 - a condition
        came = repr(self.refusal) if self.refusal is not None else f"{list(self.facts)}"
        assert holds, f"expected {what}; what came was {came}"


def _head(at: datetime) -> dict[str, Any]:
    return {"originator_id": TICKET, "originator_version": 0, "timestamp": at}


@contextmanager
def told(cell: object) -> Iterator[None]:
    """Where what is checked within does not hold, say of which cell of a table."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the cell {cell}")
        raise
