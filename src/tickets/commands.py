"""What can be asked of a ticket, and what follows from it.

`decide` is pure: a ticket, a command, an actor and a time give the facts that follow, or a Refusal. All
the time and luck that a decision needs (the clock, new ids and numbers, who the assignee is) comes in as
an argument. Deliberately absent: how facts change a ticket (ticket.py) and where they go (ledger.py).
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TypedDict, TypeVar, assert_never
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType, field

from tickets.errors import (
    Forbidden,
    IllegalTransition,
    InvalidCommand,
    NotFound,
    Refusal,
    ReopenWindowOver,
    TicketClosed,
    TicketDeleted,
    UnknownAssignee,
    VersionMismatch,
)
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
from tickets.lifecycle import TRANSITIONS, Status
from tickets.permissions import GRANTS, Actor, Assignee, Permission, Role, covers, may_change_comment, may_pass_to
from tickets.sla import TARGETS, Priority, Target, due
from tickets.ticket import Ticket, fold
from tickets.values import (
    Category,
    CommentBody,
    Description,
    Environment,
    Reason,
    Scan,
    ServiceName,
    Tags,
    TeamName,
    Title,
)

T = TypeVar("T")


class Policy(Struct, frozen=True):
    """The rules that an installation sets for itself."""

    targets: Mapping[Priority, Target] = field(default_factory=lambda: TARGETS)
    reopen_window: timedelta = timedelta(days=7)


class Create(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask for something. Staff may ask on somebody's behalf, by `requester_id`."""

    title: Title
    description: Description
    category: Category
    priority: Priority = Priority.P3
    environment: Environment | None = None
    affected_service: ServiceName | None = None
    tags: Tags = ()
    team: TeamName | None = None
    requester_id: UUID | None = None


class Edit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put it differently, or make it more or less urgent. What is UNSET stays."""

    title: Title | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    environment: Environment | None | UnsetType = UNSET
    affected_service: ServiceName | None | UnsetType = UNSET
    tags: Tags | None | UnsetType = UNSET


class Assign(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pass responsibility to a person, a team or both; None takes it away, UNSET leaves it."""

    assignee_id: UUID | None | UnsetType = UNSET
    team: TeamName | None | UnsetType = UNSET
    reason: Reason | None = None


class ChangeStatus(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a step of the workflow. To RESOLVED, `reason` is the resolution and required."""

    status: Status
    reason: Reason | None = None


class AddComment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say something; internally, only staff will know."""

    body: CommentBody
    internal: bool = False


class EditComment(Struct, frozen=True, kw_only=True):
    """Put a comment differently."""

    comment_id: UUID
    body: CommentBody


class DeleteComment(Struct, frozen=True, kw_only=True):
    """Take a comment back."""

    comment_id: UUID


class Attach(Struct, frozen=True, kw_only=True):
    """Attach a file that was received and looked at; one in which a virus was found is only noted."""

    filename: str
    content_type: str
    size: int
    sha256: str
    scan: Scan = Scan.UNSCANNED
    infected: str | None = None


class Detach(Struct, frozen=True, kw_only=True):
    """Take a file away: one's own, or of a ticket that one may update."""

    attachment_id: UUID


class Delete(Struct, frozen=True):
    """Take the ticket out of sight."""


class Restore(Struct, frozen=True):
    """Bring a deleted ticket back."""


Change = Edit | Assign | ChangeStatus | Delete | Restore | AddComment | EditComment | DeleteComment | Attach | Detach
"""Everything that can be asked of a ticket that is there."""

Command = Create | Change
"""Everything that can be asked."""


def create(
    command: Create, *, ticket_id: UUID, number: str, actor: Actor, at: datetime, policy: Policy
) -> tuple[Created]:
    """The first fact of a new ticket. Raises Forbidden."""
    requester_id = command.requester_id or actor.id
    scope = GRANTS[actor.role].get(Permission.CREATE)
    if not covers(scope, actor, requester_id=requester_id, assignee_id=None):
        raise Forbidden(role=actor.role, permission="create", what="tickets for somebody else")
    target = policy.targets[command.priority]
    return (
        Created(
            originator_id=ticket_id,
            originator_version=1,
            timestamp=at,
            number=number,
            title=command.title,
            description=command.description,
            category=command.category,
            priority=command.priority,
            requester_id=requester_id,
            response_due_at=due(at, target.response),
            resolution_due_at=due(at, target.resolution),
            environment=command.environment,
            affected_service=command.affected_service,
            tags=command.tags,
            team=command.team,
        ),
    )


def decide(
    ticket: Ticket | None,
    command: Change,
    *,
    actor: Actor,
    at: datetime,
    policy: Policy,
    assignee: Assignee | None = None,
    new_id: UUID | None = None,
    said: str = "",
    if_match: frozenset[int] | None = None,
) -> tuple[TicketEvent, ...]:
    """The facts that follow from the command; none if it changes nothing.

    `assignee` is whoever has the `assignee_id` of an Assign, None if nobody is known to. `new_id` is
    the id of a comment or file that is added, `said` what one that is edited or deleted says now. `if_match` are the
    versions that the command is meant for, None if for any. Raises NotFound, Forbidden,
    VersionMismatch, TicketDeleted, TicketClosed, IllegalTransition, ReopenWindowOver, UnknownAssignee,
    InvalidCommand.
    """
    if ticket is None or not may(Permission.VIEW, ticket, actor):
        raise NotFound
    permission = permission_for(command)
    if not may(permission, ticket, actor):
        raise Forbidden(role=actor.role, permission=permission, what="this ticket")
    if isinstance(command, Assign):
        _refuse_passing_beyond(actor, command, assignee)
    if isinstance(command, EditComment | DeleteComment):
        _refuse_others_comments(ticket, command, actor, permission)
    if isinstance(command, Detach):
        _refuse_others_attachments(ticket, command, actor)
    if if_match is not None and ticket.version not in if_match:
        expected = ", ".join(map(str, sorted(if_match))) or "that"
        raise VersionMismatch(current_version=ticket.version, expected_version=expected)
    _refuse_if_over(ticket, command)
    match command:
        case ChangeStatus():
            facts = tuple(_move(ticket, command, at, policy))
        case Edit():
            facts = tuple(_edit(ticket, command, at))
        case Assign():
            facts = tuple(_assign(ticket, command, at, assignee))
        case Delete():
            facts = (Deleted(**_next(ticket, at)),)
        case Restore():
            facts = (Restored(**_next(ticket, at)),) if ticket.deleted else ()
        case AddComment():
            assert new_id is not None  # noqa: S101 - whoever asks for a comment brings the id for it
            facts = tuple(_comment(ticket, command, at, actor, new_id))
        case EditComment():
            facts = tuple(_edit_comment(ticket, command, at, said))
        case DeleteComment():
            internal = ticket.comments[command.comment_id].internal
            facts = (
                CommentDeleted(**_next(ticket, at), comment_id=command.comment_id, previous=said, internal=internal),
            )
        case Attach():
            assert new_id is not None  # noqa: S101 - as above
            facts = (_attach(ticket, command, at, actor, new_id),)
        case Detach():
            filename = ticket.attachments[command.attachment_id].filename
            facts = (AttachmentDeleted(**_next(ticket, at), attachment_id=command.attachment_id, filename=filename),)
        case _:
            assert_never(command)
    return facts + reschedule(ticket, facts, at, policy.targets)


def may(permission: Permission, ticket: Ticket, actor: Actor) -> bool:
    """Whether the actor's role grants this for this ticket, whatever state it is in."""
    scope = GRANTS[actor.role].get(permission)
    return covers(scope, actor, requester_id=ticket.requester_id, assignee_id=ticket.assignee_id)


def permission_for(command: Command) -> Permission:
    """The permission that a command needs."""
    match command:
        case Create():
            return Permission.CREATE
        case Edit():
            return Permission.UPDATE
        case Assign():
            return Permission.ASSIGN
        case ChangeStatus():
            return Permission.REOPEN if command.status is Status.REOPENED else Permission.MOVE
        case Delete():
            return Permission.DELETE
        case Restore():
            return Permission.RESTORE
        case AddComment():
            return Permission.COMMENT_INTERNALLY if command.internal else Permission.COMMENT
        case EditComment():
            return Permission.EDIT_COMMENT
        case DeleteComment():
            return Permission.DELETE_COMMENT
        case Attach() | Detach():
            return Permission.ATTACH
        case _:
            assert_never(command)


def scanned(ticket: Ticket, attachment_id: UUID, infected: str | None, at: datetime) -> tuple[AttachmentScanned, ...]:
    """What follows from the virus scanner's verdict on a file that waited for it: nothing, if none does any more."""
    waiting = ticket.attachments.get(attachment_id)
    if waiting is None or waiting.scan is not Scan.QUARANTINED or waiting.infected is not None:
        return ()
    return (
        AttachmentScanned(
            **_next(ticket, at), attachment_id=attachment_id, filename=waiting.filename, infected=infected
        ),
    )


def steps(ticket: Ticket, *, actor: Actor, at: datetime, policy: Policy) -> tuple[tuple[Status, Refusal | None], ...]:
    """Each step that the workflow has from here, with what speaks against the actor taking it now."""

    def objection(status: Status) -> Refusal | None:
        notes = "…" if status is Status.RESOLVED else None
        try:
            decide(ticket, ChangeStatus(status=status, reason=notes), actor=actor, at=at, policy=policy)
        except Refusal as refusal:
            return refusal
        return None

    return tuple((status, objection(status)) for status in TRANSITIONS[ticket.status])


def reschedule(
    before: Ticket, facts: tuple[TicketEvent, ...], at: datetime, targets: Mapping[Priority, Target]
) -> tuple[TicketEvent, ...]:
    """The due dates that move because of the facts: none, or one DueDatesMoved.

    A new priority counts from the creation (the resolution from the newest reopening), a pause is added
    when it ends, and a reopening starts a new resolution cycle. What was done already keeps its date.
    """
    after = fold(facts, before) or before
    response, resolution = before.response_due_at, before.resolution_due_at
    target = targets[after.priority]
    if after.priority is not before.priority and after.responded_at is None:
        response = due(after.created_at, target.response)
    reprioritized = after.priority is not before.priority and after.resolution_ended_at is None
    if reprioritized or after.reopen_count != before.reopen_count:
        resolution = due(after.cycle_started_at, target.resolution, after.paused_for)
    elif before.paused_since is not None and after.paused_since is None:
        resolution += at - before.paused_since
    if (response, resolution) == (before.response_due_at, before.resolution_due_at):
        return ()
    return (DueDatesMoved(**_next(after, at), response_due_at=response, resolution_due_at=resolution),)


class _Next(TypedDict):
    originator_id: UUID
    originator_version: int
    timestamp: datetime


def _next(ticket: Ticket, at: datetime, ahead: int = 1) -> _Next:
    return {"originator_id": ticket.id, "originator_version": ticket.version + ahead, "timestamp": at}


def _refuse_passing_beyond(actor: Actor, command: Assign, assignee: Assignee | None) -> None:
    to = command.assignee_id
    # Somebody unknown gets the benefit of the doubt here: that they are unknown is the better answer.
    who = assignee or (Assignee(id=to, teams=actor.teams) if isinstance(to, UUID) else None)
    if not may_pass_to(actor, who, None if command.team is UNSET else command.team):
        whom = (
            "anybody but yourself" if actor.role is Role.DEVOPS_ENGINEER else "others than your teams and their members"
        )
        raise Forbidden(role=actor.role, permission="assign", what=f"a ticket to {whom}")


def _refuse_others_comments(
    ticket: Ticket, command: EditComment | DeleteComment, actor: Actor, permission: Permission
) -> None:
    comment = ticket.comments.get(command.comment_id)
    if comment is None or (comment.internal and not actor.is_staff):
        raise NotFound
    if not may_change_comment(actor, permission, comment.author.id):
        raise Forbidden(role=actor.role, permission=permission, what="this ticket that somebody else wrote")


def _refuse_others_attachments(ticket: Ticket, command: Detach, actor: Actor) -> None:
    attachment = ticket.attachments.get(command.attachment_id)
    if attachment is None:
        raise NotFound
    if attachment.uploaded_by.id != actor.id and not may(Permission.UPDATE, ticket, actor):
        raise Forbidden(role=actor.role, permission="delete", what="an attachment of somebody else's to this ticket")


def _refuse_if_over(ticket: Ticket, command: Command) -> None:
    if isinstance(command, Restore):
        return
    if ticket.deleted:
        raise TicketDeleted
    reopens = isinstance(command, ChangeStatus) and command.status is Status.REOPENED
    if ticket.status is Status.CLOSED and not reopens:
        raise TicketClosed


def _move(ticket: Ticket, command: ChangeStatus, at: datetime, policy: Policy) -> Iterator[TicketEvent]:
    to, reason = command.status, command.reason
    if to is Status.RESOLVED and reason is None:
        raise InvalidCommand(field="reason", message="a resolution needs a reason: what was done")
    if to is ticket.status and (to is not Status.RESOLVED or reason == ticket.resolution_notes):
        return
    allowed = TRANSITIONS[ticket.status]
    if to not in allowed:
        raise IllegalTransition(status=ticket.status, to=to, allowed=" or ".join(allowed))
    head = _next(ticket, at)
    match to:
        case Status.RESOLVED:
            yield Resolved(**head, resolution_notes=reason)
        case Status.CLOSED:
            yield Closed(**head, reason=reason)
        case Status.ESCALATED:
            yield Escalated(**head, reason=reason)
        case Status.REOPENED:
            if ticket.closed_at is not None and at > (until := ticket.closed_at + policy.reopen_window):
                raise ReopenWindowOver(closed_at=ticket.closed_at.isoformat(), until=until.isoformat())
            yield Reopened(**head, reason=reason)
        case Status.NEW | Status.OPEN | Status.IN_PROGRESS | Status.PENDING_INFO:
            yield StatusChanged(**head, status=to, reason=reason)
        case _:
            assert_never(to)


def _edit(ticket: Ticket, command: Edit, at: datetime) -> Iterator[TicketEvent]:
    tags = () if command.tags is None else command.tags
    edited = Edited(
        **_next(ticket, at),
        title=_changed(ticket.title, command.title),
        description=_changed(ticket.description, command.description),
        category=_changed(ticket.category, command.category),
        environment=_changed(ticket.environment, command.environment),
        affected_service=_changed(ticket.affected_service, command.affected_service),
        tags=_changed(ticket.tags, tags),
    )
    ahead = 1
    if edited != Edited(**_next(ticket, at)):
        yield edited
        ahead = 2
    if command.priority is not UNSET and command.priority is not ticket.priority:
        yield Prioritized(**_next(ticket, at, ahead), priority=command.priority)


def _changed(old: T, new: T | UnsetType) -> T | UnsetType:
    return UNSET if new == old else new


def _assign(ticket: Ticket, command: Assign, at: datetime, assignee: Assignee | None) -> Iterator[TicketEvent]:
    if command.assignee_id is UNSET and command.team is UNSET:
        raise InvalidCommand(
            field="assignee_id", message="say whom to assign: assignee_id, team or both; null for nobody"
        )
    assignee_id = ticket.assignee_id if command.assignee_id is UNSET else command.assignee_id
    team = ticket.team if command.team is UNSET else command.team
    if assignee_id is not None and assignee_id != ticket.assignee_id and assignee is None:
        raise UnknownAssignee(assignee_id=assignee_id)
    ahead = 1
    if (assignee_id, team) != (ticket.assignee_id, ticket.team):
        yield Assigned(**_next(ticket, at), assignee_id=assignee_id, team=team, reason=command.reason)
        ahead = 2
    if ticket.status is Status.NEW and (assignee_id is not None or team is not None):
        yield StatusChanged(**_next(ticket, at, ahead), status=Status.OPEN)


def _comment(
    ticket: Ticket, command: AddComment, at: datetime, actor: Actor, comment_id: UUID
) -> Iterator[TicketEvent]:
    yield CommentAdded(
        **_next(ticket, at),
        comment_id=comment_id,
        author=By(actor.id, actor.username, actor.role),
        body=command.body,
        internal=command.internal,
    )
    answers = actor.id == ticket.requester_id and not command.internal
    if answers and ticket.status is Status.PENDING_INFO:
        yield StatusChanged(**_next(ticket, at, 2), status=Status.OPEN)


def _edit_comment(ticket: Ticket, command: EditComment, at: datetime, said: str) -> Iterator[TicketEvent]:
    if command.body != said:
        yield CommentEdited(
            **_next(ticket, at),
            comment_id=command.comment_id,
            body=command.body,
            previous=said,
            internal=ticket.comments[command.comment_id].internal,
        )


def _attach(
    ticket: Ticket, command: Attach, at: datetime, actor: Actor, attachment_id: UUID
) -> AttachmentAdded | AttachmentRefused:
    if command.infected is not None:
        return AttachmentRefused(
            **_next(ticket, at),
            filename=command.filename,
            size=command.size,
            sha256=command.sha256,
            infected=command.infected,
        )
    return AttachmentAdded(
        **_next(ticket, at),
        attachment_id=attachment_id,
        uploaded_by=By(actor.id, actor.username, actor.role),
        filename=command.filename,
        content_type=command.content_type,
        size=command.size,
        sha256=command.sha256,
        scan=command.scan,
    )
