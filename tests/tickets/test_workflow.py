"""Every status with every command, cell by cell, and the rules of the workflow as sentences.

What is expected is worked out from WORKFLOW, a copy of the contract's table, never from TRANSITIONS.
Deliberately absent: who may do it; here an administrator asks (test_permissions.py).
"""

from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import get_args

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from tests.tickets.given_when_then import (
    ADMIN,
    ALICE,
    BOB,
    CAST,
    COMMENT,
    DEV,
    FILE,
    LATER,
    MOMENT,
    NEW_COMMENT,
    NOBODY_KNOWN,
    NOTES,
    SENIOR,
    SHA256,
    START,
    TICKET,
    WEB_DEV,
    WORDS,
    a_ticket,
    assigned,
    attached,
    closed,
    comment_deleted,
    comment_edited,
    commented,
    created,
    deleted,
    detached,
    due_dates_moved,
    edited,
    escalated,
    given,
    moved,
    numbered,
    prioritized,
    refused_file,
    reopened,
    resolved,
    restored,
    scanned,
    told,
    way_to,
)
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    Change,
    ChangeStatus,
    Command,
    Delete,
    DeleteComment,
    Detach,
    Edit,
    EditComment,
    Policy,
    Restore,
    steps,
)
from tickets.commands import scanned as verdict
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
    By,
    Closed,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
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
from tickets.permissions import Actor
from tickets.sla import Priority
from tickets.ticket import BrokenStream, fold
from tickets.values import Category, Environment, Scan

NEW, OPEN, IN_PROGRESS, PENDING_INFO = Status.NEW, Status.OPEN, Status.IN_PROGRESS, Status.PENDING_INFO
ESCALATED, RESOLVED, CLOSED, REOPENED = Status.ESCALATED, Status.RESOLVED, Status.CLOSED, Status.REOPENED

WORKFLOW = """
| NEW | OPEN |
| OPEN | IN_PROGRESS, PENDING_INFO |
| IN_PROGRESS | RESOLVED, ESCALATED, PENDING_INFO |
| PENDING_INFO | OPEN, IN_PROGRESS |
| ESCALATED | IN_PROGRESS, RESOLVED |
| RESOLVED | CLOSED, REOPENED |
| CLOSED | REOPENED |
| REOPENED | OPEN, IN_PROGRESS, PENDING_INFO |
"""
"""The contract's table, row by row as it stands there."""

STEPS = {
    Status(start.strip()): tuple(Status(end.strip()) for end in ends.split(","))
    for start, ends in (row.strip("| ").split("|") for row in WORKFLOW.strip().splitlines())
}

COMMANDS: dict[str, Command] = {
    "edit": Edit(title="Another title"),
    "assign": Assign(assignee_id=DEV.id),
    **{f"to {status}": ChangeStatus(status=status, reason=NOTES) for status in Status},
    "delete": Delete(),
    "restore": Restore(),
    "comment": AddComment(body="Any news?"),
    "comment internally": AddComment(body="Any news?", internal=True),
    "edit a comment": EditComment(comment_id=COMMENT, body="Another text"),
    "delete a comment": DeleteComment(comment_id=COMMENT),
    "attach": Attach(filename="shot.png", content_type="image/png", size=9, sha256=SHA256, scan=Scan.CLEAN),
    "detach": Detach(attachment_id=FILE),
}
"""Every command; none of them asks for what is so already, but for the step to where a ticket is."""

FACT_ABOUT_TALK: dict[str, type[TicketEvent]] = {
    "comment": CommentAdded,
    "comment internally": CommentAdded,
    "edit a comment": CommentEdited,
    "delete a comment": CommentDeleted,
    "attach": AttachmentAdded,
    "detach": AttachmentDeleted,
}

FACT_OF_STEP: dict[Status, type[TicketEvent]] = {
    NEW: StatusChanged,
    OPEN: StatusChanged,
    IN_PROGRESS: StatusChanged,
    PENDING_INFO: StatusChanged,
    ESCALATED: Escalated,
    RESOLVED: Resolved,
    CLOSED: Closed,
    REOPENED: Reopened,
}


@dataclass(frozen=True)
class Cell:
    """A ticket with a status, deleted or not, with a comment and a file of an administrator's, and a command."""

    status: Status
    deleted: bool
    name: str

    def __str__(self) -> str:
        return f"{self.status}{' and deleted' if self.deleted else ''}: {self.name}"

    @property
    def command(self) -> Command:
        return COMMANDS[self.name]

    @property
    def expected(self) -> type[Refusal] | tuple[type[TicketEvent], ...]:
        """What the contract says comes of it."""
        to = Status(self.name.removeprefix("to ")) if self.name.startswith("to ") else None
        if self.name == "restore":
            return (Restored,) if self.deleted else ()
        if self.deleted:
            return TicketDeleted
        if self.status is CLOSED and to is not REOPENED:
            return TicketClosed
        if self.name in FACT_ABOUT_TALK:
            return (FACT_ABOUT_TALK[self.name],)
        if self.name == "edit":
            return (Edited,)
        if self.name == "assign":
            return (Assigned, StatusChanged) if self.status is NEW else (Assigned,)
        if to is None:
            return (Deleted,)
        if to is self.status:
            return ()
        if to not in STEPS[self.status]:
            return IllegalTransition
        the_clock_is_set_anew = to is REOPENED or self.status is PENDING_INFO
        return (FACT_OF_STEP[to], DueDatesMoved) if the_clock_is_set_anew else (FACT_OF_STEP[to],)

    @property
    def status_after(self) -> Status:
        if isinstance(self.expected, type) or not self.expected:
            return self.status
        if self.name == "assign" and self.status is NEW:
            return OPEN
        return Status(self.name.removeprefix("to ")) if self.name.startswith("to ") else self.status


CELLS = [Cell(status, deleted, name) for deleted in (False, True) for status in Status for name in COMMANDS]


def test_the_cells_are_all_there_are() -> None:
    assert len(CELLS) == 8 * 2 * 18
    assert {type(command) for command in COMMANDS.values()} == set(get_args(Change))
    assert set(STEPS) == set(Status)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_on_a_ticket_in_each_state_does_what_the_contract_says(command: str) -> None:
    for cell in (one for one in CELLS if one.name == command):
        with told(cell):
            _assert_that_it_does(cell)


def _assert_that_it_does(cell: Cell) -> None:
    story = a_ticket(cell.status, commented(ADMIN), attached(ADMIN), *([deleted()] if cell.deleted else []))
    assert (story.ticket.status, story.ticket.deleted) == (cell.status, cell.deleted)

    decision = story.when(cell.command)

    if isinstance(cell.expected, type):
        decision.then_refused(cell.expected)
        return
    decision.then(*cell.expected)
    assert decision.ticket.status is cell.status_after
    assert decision.ticket.deleted is (cell.name == "delete")


def test_the_workflow_is_the_contracts_table() -> None:
    assert TRANSITIONS == STEPS


def test_what_the_transitions_query_lists_is_the_contracts_row() -> None:
    for status in Status:
        found = steps(a_ticket(status).ticket, actor=ADMIN, at=LATER, policy=Policy())
        assert [step for step, _ in found] == list(STEPS[status])
        assert [objection for _, objection in found] == [None] * len(STEPS[status])


# Steps


def test_a_step_that_does_not_exist_is_refused_with_those_that_do() -> None:
    refusal = a_ticket(IN_PROGRESS).when(ChangeStatus(status=CLOSED)).then_refused(IllegalTransition)
    assert str(refusal) == (
        "A ticket that is IN_PROGRESS cannot become CLOSED; "
        "from here it can become RESOLVED or ESCALATED or PENDING_INFO."
    )


def test_a_step_keeps_its_reason() -> None:
    for status, to, fact in (
        (OPEN, IN_PROGRESS, moved(IN_PROGRESS, reason="mine")),
        (OPEN, PENDING_INFO, moved(PENDING_INFO, reason="mine")),
        (IN_PROGRESS, ESCALATED, escalated(reason="mine")),
        (RESOLVED, CLOSED, closed(reason="mine")),
    ):
        a_ticket(status).when(ChangeStatus(status=to, reason="mine")).then(fact)
    a_ticket(RESOLVED).when(ChangeStatus(status=REOPENED, reason="mine")).then(reopened(reason="mine"), DueDatesMoved)


def test_a_step_needs_no_reason_but_to_resolved() -> None:
    for status, ends in STEPS.items():
        for to in ends:
            decision = a_ticket(status).when(ChangeStatus(status=to))
            if to is RESOLVED:
                decision.then_refused(InvalidCommand, field="reason")
            else:
                assert decision.refusal is None


def test_a_resolution_without_a_reason_is_invalid_wherever_the_ticket_is() -> None:
    for status in Status:
        if status is not CLOSED:
            a_ticket(status).when(ChangeStatus(status=RESOLVED)).then_refused(InvalidCommand, field="reason")
    a_ticket(CLOSED).when(ChangeStatus(status=RESOLVED)).then_refused(TicketClosed)


def test_the_reason_of_a_resolution_becomes_the_resolution_notes() -> None:
    decision = a_ticket(IN_PROGRESS).when(ChangeStatus(status=RESOLVED, reason="Cable was loose."))
    decision.then(resolved("Cable was loose."))
    assert decision.ticket.resolution_notes == "Cable was loose."
    assert decision.ticket.resolved_at == LATER


def test_resolving_again_with_the_same_notes_changes_nothing() -> None:
    a_ticket(RESOLVED).when(ChangeStatus(status=RESOLVED, reason=NOTES)).then_nothing()


def test_resolving_again_with_other_notes_is_no_step_of_the_workflow() -> None:
    decision = a_ticket(RESOLVED).when(ChangeStatus(status=RESOLVED, reason="Something else."))
    decision.then_refused(IllegalTransition, status=RESOLVED, to=RESOLVED)


def test_a_step_to_where_the_ticket_is_changes_nothing_whatever_the_reason() -> None:
    for status in set(Status) - {CLOSED, RESOLVED}:
        a_ticket(status).when(ChangeStatus(status=status, reason="again")).then_nothing()


def test_closing_notes_when_and_keeps_the_resolution() -> None:
    ticket = a_ticket(RESOLVED).when(ChangeStatus(status=CLOSED)).then(closed()).ticket
    assert (ticket.closed_at, ticket.resolved_at, ticket.resolution_notes) == (LATER, START, NOTES)


def test_a_reopened_ticket_has_no_resolution_any_more_and_counts_how_often() -> None:
    for status in (RESOLVED, CLOSED):
        ticket = a_ticket(status).when(ChangeStatus(status=REOPENED)).ticket
        assert (ticket.resolution_notes, ticket.resolved_at, ticket.closed_at) == (None, None, None)
        assert ticket.reopen_count == 1
    again = a_ticket(REOPENED, moved(IN_PROGRESS), resolved()).when(ChangeStatus(status=REOPENED))
    assert again.ticket.reopen_count == 2


# The reopen window


@pytest.mark.parametrize("days", [1, 7, 30])
def test_a_closed_ticket_reopens_until_the_window_is_over_and_no_longer(days: int) -> None:
    story, policy = a_ticket(CLOSED), Policy(reopen_window=timedelta(days=days))
    end = START + timedelta(days=days)
    reopen = ChangeStatus(status=REOPENED)

    story.when(reopen, at=end - MOMENT, policy=policy).then(Reopened, DueDatesMoved)
    story.when(reopen, at=end, policy=policy).then(Reopened, DueDatesMoved)
    story.when(reopen, at=end + MOMENT, policy=policy).then_refused(
        ReopenWindowOver, closed_at=START.isoformat(), until=end.isoformat()
    )


def test_the_reopen_window_is_seven_days_unless_the_installation_says_otherwise() -> None:
    reopen = ChangeStatus(status=REOPENED)
    a_ticket(CLOSED).when(reopen, at=START + timedelta(days=7)).then(Reopened, DueDatesMoved)
    a_ticket(CLOSED).when(reopen, at=START + timedelta(days=7) + MOMENT).then_refused(ReopenWindowOver)


def test_a_resolved_ticket_has_no_reopen_window() -> None:
    a_ticket(RESOLVED).when(ChangeStatus(status=REOPENED), at=START + timedelta(days=365)).then(Reopened, DueDatesMoved)


def test_the_reopen_window_counts_from_the_newest_closing() -> None:
    second = START + timedelta(days=5)
    life = (reopened(at=second), moved(IN_PROGRESS, at=second), resolved(at=second), closed(at=second))
    story = a_ticket(CLOSED, *life)
    story.when(ChangeStatus(status=REOPENED), at=second + timedelta(days=7)).then(Reopened, DueDatesMoved)
    story.when(ChangeStatus(status=REOPENED), at=second + timedelta(days=7) + MOMENT).then_refused(ReopenWindowOver)


def test_the_transitions_query_says_why_a_ticket_cannot_be_reopened_any_more() -> None:
    late = START + timedelta(days=8)
    ((step, objection),) = steps(a_ticket(CLOSED).ticket, actor=ADMIN, at=late, policy=Policy())
    assert step is REOPENED
    assert isinstance(objection, ReopenWindowOver)


# Closed and deleted tickets


def test_a_closed_ticket_cannot_be_assigned() -> None:
    given(created(), *way_to(CLOSED)).when(Assign(assignee_id=DEV.id), by=ADMIN).then_refused(TicketClosed)


def test_a_closed_ticket_refuses_even_what_would_change_nothing() -> None:
    story = a_ticket(CLOSED)
    story.when(Edit()).then_refused(TicketClosed)
    story.when(Edit(title=story.ticket.title)).then_refused(TicketClosed)
    story.when(Assign(assignee_id=None)).then_refused(TicketClosed)
    story.when(ChangeStatus(status=CLOSED)).then_refused(TicketClosed)


def test_a_deleted_closed_ticket_is_refused_as_deleted_and_not_reopened() -> None:
    a_ticket(CLOSED, deleted()).when(ChangeStatus(status=REOPENED)).then_refused(TicketDeleted)


def test_a_deleted_ticket_keeps_everything_but_being_there() -> None:
    for status in set(Status) - {CLOSED}:
        story = a_ticket(status)
        after = story.when(Delete()).then(deleted()).ticket
        assert after == replace(story.ticket, deleted=True, version=after.version, updated_at=LATER)


def test_a_restored_ticket_goes_on_where_it_was() -> None:
    for status in Status:
        story = a_ticket(status)
        after = a_ticket(status, deleted()).when(Restore()).then(restored()).ticket
        assert after == replace(story.ticket, version=after.version, updated_at=LATER)
    a_ticket(IN_PROGRESS, deleted(), restored()).when(ChangeStatus(status=ESCALATED)).then(Escalated)


def test_a_ticket_is_deleted_once_and_restored_once() -> None:
    a_ticket(OPEN, deleted()).when(Delete()).then_refused(TicketDeleted)
    a_ticket(OPEN, deleted(), restored()).when(Restore()).then_nothing()
    a_ticket(OPEN, deleted(), restored()).when(Delete()).then(Deleted)


def test_the_transitions_query_says_of_a_deleted_ticket_that_it_is_deleted() -> None:
    found = steps(a_ticket(OPEN, deleted()).ticket, actor=ADMIN, at=LATER, policy=Policy())
    assert [(step, type(objection)) for step, objection in found] == [
        (IN_PROGRESS, TicketDeleted),
        (PENDING_INFO, TicketDeleted),
    ]


# Assigning


def test_assigning_a_new_ticket_opens_it() -> None:
    decision = a_ticket(NEW).when(Assign(assignee_id=DEV.id, team="web", reason="yours"))
    decision.then(assigned(DEV, team="web", reason="yours"), moved(OPEN))
    assert (decision.ticket.status, decision.ticket.assignee_id, decision.ticket.team) == (OPEN, DEV.id, "web")


def test_assigning_a_new_ticket_to_a_team_alone_opens_it_too() -> None:
    a_ticket(NEW).when(Assign(team="web")).then(assigned(team="web"), moved(OPEN))


def test_taking_a_new_ticket_from_its_team_does_not_open_it() -> None:
    given(created(team="web")).when(Assign(team=None)).then(assigned())


def test_assigning_an_open_ticket_leaves_its_status() -> None:
    for status in set(Status) - {NEW, CLOSED}:
        assert a_ticket(status).when(Assign(assignee_id=DEV.id)).then(assigned(DEV)).ticket.status is status


def test_what_an_assignment_does_not_name_stays() -> None:
    story = a_ticket(OPEN, assigned(DEV, team="web"))
    story.when(Assign(team="db")).then(assigned(DEV, team="db"))
    story.when(Assign(assignee_id=SENIOR.id)).then(assigned(SENIOR, team="web"))


def test_null_takes_an_assignment_away() -> None:
    story = a_ticket(OPEN, assigned(DEV, team="web"))
    story.when(Assign(assignee_id=None)).then(assigned(team="web"))
    story.when(Assign(team=None)).then(assigned(DEV))
    story.when(Assign(assignee_id=None, team=None)).then(assigned())


def test_an_assignment_to_whoever_has_the_ticket_changes_nothing() -> None:
    story = a_ticket(OPEN, assigned(DEV, team="web"))
    for command in (
        Assign(assignee_id=DEV.id),
        Assign(team="web"),
        Assign(assignee_id=DEV.id, team="web", reason="again"),
    ):
        story.when(command).then_nothing()
    a_ticket(OPEN).when(Assign(assignee_id=None, team=None)).then_nothing()


def test_an_assignment_must_say_whom() -> None:
    for status in (NEW, OPEN):
        a_ticket(status).when(Assign()).then_refused(InvalidCommand, field="assignee_id")
        a_ticket(status).when(Assign(reason="because")).then_refused(InvalidCommand, field="assignee_id")


def test_a_ticket_cannot_be_assigned_to_somebody_unknown() -> None:
    for status in (NEW, OPEN):
        a_ticket(status).when(Assign(assignee_id=NOBODY_KNOWN)).then_refused(UnknownAssignee, assignee_id=NOBODY_KNOWN)


def test_a_ticket_that_somebody_unknown_has_can_be_given_to_a_team() -> None:
    stranger = Actor(id=NOBODY_KNOWN, role=ADMIN.role)
    a_ticket(OPEN, assigned(stranger)).when(Assign(team="web")).then(assigned(stranger, team="web"))


# Editing


def test_an_edit_is_recorded_with_what_changed_alone() -> None:
    story = given(created(tags=("a",), environment=Environment.STAGING, affected_service="web-app-01"))
    ticket = story.ticket
    decision = story.when(
        Edit(
            title=ticket.title,
            description="It is back.",
            category=Category.PROBLEM,
            environment=Environment.STAGING,
            affected_service="web-app-01",
            tags=("a",),
        )
    )
    decision.then(edited(description="It is back.", category=Category.PROBLEM))
    (fact,) = decision.facts
    assert isinstance(fact, Edited)
    assert (fact.title, fact.environment, fact.affected_service, fact.tags) == (UNSET, UNSET, UNSET, UNSET)


@pytest.mark.parametrize(
    ("command", "fact"),
    [
        (Edit(title="Another"), edited(title="Another")),
        (Edit(description="Another"), edited(description="Another")),
        (Edit(category=Category.QUESTION), edited(category=Category.QUESTION)),
        (Edit(environment=Environment.TESTING), edited(environment=Environment.TESTING)),
        (Edit(affected_service="db-01"), edited(affected_service="db-01")),
        (Edit(tags=("b", "a")), edited(tags=("b", "a"))),
        (Edit(environment=None), edited(environment=None)),
        (Edit(affected_service=None), edited(affected_service=None)),
        (Edit(tags=None), edited(tags=())),
        (Edit(tags=()), edited(tags=())),
    ],
    ids=lambda value: repr(value) if isinstance(value, Edit) else "",
)
def test_each_field_can_be_edited_and_the_optional_ones_cleared(command: Edit, fact: Edited) -> None:
    story = given(created(tags=("a", "b"), environment=Environment.STAGING, affected_service="web-app-01"))
    after = story.when(command).then(fact).ticket
    named = {name: value for name in Edit.__struct_fields__ if (value := getattr(fact, name, UNSET)) is not UNSET}
    assert len(named) == 1
    assert after == replace(story.ticket, version=2, updated_at=LATER, **named)


def test_an_edit_that_changes_nothing_appends_nothing() -> None:
    story = given(created(tags=("a",)))
    ticket = story.ticket
    for command in (
        Edit(),
        Edit(
            title=ticket.title,
            description=ticket.description,
            category=ticket.category,
            priority=ticket.priority,
            environment=None,
            affected_service=None,
            tags=("a",),
        ),
        Edit(priority=Priority.P3),
    ):
        story.when(command).then_nothing()
    given(created()).when(Edit(tags=None)).then_nothing()


def test_the_order_of_tags_is_a_change() -> None:
    given(created(tags=("a", "b"))).when(Edit(tags=("b", "a"))).then(edited(tags=("b", "a")))


def test_a_new_text_and_a_new_priority_are_facts_of_their_own() -> None:
    decision = given(created()).when(Edit(title="Much worse", priority=Priority.P1))
    decision.then(
        edited(title="Much worse"),
        prioritized(Priority.P1),
        due_dates_moved(START + timedelta(hours=1), START + timedelta(hours=4)),
    )


def test_a_new_priority_alone_is_no_edit() -> None:
    given(created()).when(Edit(priority=Priority.P4)).then(Prioritized, DueDatesMoved)


# Comments


def test_a_comment_is_its_authors_as_they_were_when_they_wrote_it() -> None:
    for who in CAST[2:]:
        a_ticket(OPEN).when(AddComment(body="Any news?"), by=who).then(
            commented(who, "Any news?", comment_id=NEW_COMMENT)
        )
    a_ticket(OPEN).when(AddComment(body="Any news?", internal=True), by=DEV).then(
        commented(DEV, "Any news?", internal=True, comment_id=NEW_COMMENT)
    )


def test_a_closed_ticket_takes_no_comment() -> None:
    for who in (ALICE, DEV, ADMIN):
        a_ticket(CLOSED).when(AddComment(body="One more thing"), by=who).then_refused(TicketClosed)
    story = a_ticket(CLOSED, commented(ADMIN))
    story.when(EditComment(comment_id=COMMENT, body="Another")).then_refused(TicketClosed)
    story.when(EditComment(comment_id=COMMENT, body=WORDS)).then_refused(TicketClosed)
    story.when(DeleteComment(comment_id=COMMENT)).then_refused(TicketClosed)


def test_a_deleted_ticket_takes_no_comment() -> None:
    for status in Status:
        for who in (ALICE, DEV, ADMIN):
            a_ticket(status, deleted()).when(AddComment(body="Hello?"), by=who).then_refused(TicketDeleted)


@pytest.mark.parametrize("who", CAST, ids=lambda who: who.username)
def test_the_requesters_public_comment_opens_a_ticket_that_waits_for_information_and_nothing_else_does(
    who: Actor,
) -> None:
    """Whoever it is that requested it; `who` requested one ticket, and of another they only speak."""
    for status, internal in product(Status, (False, True)):
        with told((status, internal)):
            _assert_what_a_comment_does(who, status, internal=internal)


def _assert_what_a_comment_does(who: Actor, status: Status, *, internal: bool) -> None:
    for story, is_requester in ((given(created(by=who), *way_to(status)), True), (a_ticket(status), who is ALICE)):
        decision = story.when(AddComment(body="It is the second one", internal=internal), by=who)
        if decision.refusal is not None:
            over = status is CLOSED
            hidden = who is BOB and not is_requester
            assert over or hidden or (internal and not who.is_staff)
            continue
        said = commented(who, "It is the second one", internal=internal, comment_id=NEW_COMMENT)
        if status is PENDING_INFO and is_requester and not internal:
            decision.then(said, moved(OPEN), DueDatesMoved)
            assert (decision.ticket.status, decision.ticket.paused_since) == (OPEN, None)
        else:
            decision.then(said)
            assert decision.ticket.status is status


def test_the_pause_that_a_comment_ends_is_added_to_the_resolution() -> None:
    story = a_ticket(PENDING_INFO)
    decision = story.when(AddComment(body="It is the second one"), by=ALICE, at=LATER)
    decision.then(
        CommentAdded,
        StatusChanged,
        due_dates_moved(story.ticket.response_due_at, story.ticket.resolution_due_at + (LATER - START)),
    )
    assert decision.ticket.paused_for == LATER - START


@pytest.mark.parametrize("who", [DEV, SENIOR, ADMIN], ids=lambda who: who.username)
def test_the_first_public_comment_by_staff_is_the_response(who: Actor) -> None:
    for status in (NEW, OPEN, PENDING_INFO):
        first = a_ticket(status).when(AddComment(body="On it"), by=who, at=LATER)
        assert first.ticket.responded_at == LATER
        second = a_ticket(status, commented(who, at=LATER)).when(AddComment(body="Still"), by=who, at=LATER + MOMENT)
        assert second.ticket.responded_at == LATER
    own = given(created(by=who)).when(AddComment(body="I am staff, and asked for it"), by=who, at=LATER)
    assert own.ticket.responded_at == LATER


def test_a_comment_by_an_end_user_or_an_internal_one_is_no_response() -> None:
    for status in (NEW, OPEN, PENDING_INFO):
        story = a_ticket(status)
        assert story.when(AddComment(body="Hello?"), by=ALICE).ticket.responded_at is None
        assert story.when(AddComment(body="Who?", internal=True), by=DEV).ticket.responded_at is None
    imported = replace(commented(ADMIN), author=By(ADMIN.id, None, None))
    assert a_ticket(OPEN, imported).ticket.responded_at is None, "whose role is not known is not taken for staff"


def test_work_that_began_before_is_the_response_and_no_comment_after_it() -> None:
    ticket = a_ticket(IN_PROGRESS).when(AddComment(body="On it"), by=DEV, at=LATER).ticket
    assert ticket.responded_at == START


def test_the_response_stays_when_the_comment_that_it_was_is_taken_back() -> None:
    story = a_ticket(OPEN, commented(DEV))
    assert story.ticket.responded_at == START
    assert story.when(DeleteComment(comment_id=COMMENT), by=DEV).ticket.responded_at == START


def test_an_edit_of_a_comment_keeps_what_stood_there() -> None:
    story = a_ticket(OPEN, commented(DEV))
    once = story.when(EditComment(comment_id=COMMENT, body="Twice"), by=DEV).then(comment_edited("Twice"))
    again = once.and_then().when(EditComment(comment_id=COMMENT, body="Thrice"), by=DEV)
    again.then(comment_edited("Thrice", previous="Twice"))
    gone = again.and_then().when(DeleteComment(comment_id=COMMENT), by=DEV)
    gone.then(comment_deleted(previous="Thrice"))
    after = again.ticket.comments[COMMENT]
    assert (after.author.id, after.created_at, after.edited_at) == (DEV.id, START, LATER)


def test_what_is_said_of_an_internal_comment_is_internal_as_well() -> None:
    story = a_ticket(OPEN, commented(DEV, internal=True))
    story.when(EditComment(comment_id=COMMENT, body="Twice"), by=DEV).then(comment_edited("Twice", internal=True))
    story.when(DeleteComment(comment_id=COMMENT), by=DEV).then(comment_deleted(internal=True))


def test_an_edit_to_what_a_comment_says_changes_nothing() -> None:
    a_ticket(OPEN, commented(DEV)).when(EditComment(comment_id=COMMENT, body=WORDS), by=DEV).then_nothing()


def test_a_comment_that_was_deleted_is_not_there_any_more() -> None:
    story = a_ticket(OPEN, commented(DEV), comment_deleted())
    assert not story.ticket.comments
    for who in (DEV, ADMIN):
        story.when(EditComment(comment_id=COMMENT, body="Another"), by=who).then_refused(NotFound)
        story.when(DeleteComment(comment_id=COMMENT), by=who).then_refused(NotFound)


def test_an_internal_comment_moves_the_version_and_nothing_else_that_everybody_sees() -> None:
    story = a_ticket(PENDING_INFO)
    after = story.when(AddComment(body="Who is that?", internal=True), by=DEV, at=LATER).ticket
    (comment,) = after.comments.values()
    assert comment.internal
    assert after == replace(
        story.ticket, version=story.ticket.version + 1, comments=after.comments, internal_comments=1, unseen_at=LATER
    )
    assert after.changed_at == LATER
    assert after.public_comments == story.ticket.public_comments == 2, "two changes of status"


def test_the_system_says_something_at_each_change_of_status_and_at_nothing_else() -> None:
    story = given(created(), *way_to(CLOSED), reopened(), edited(title="Another"), assigned(DEV), deleted(), restored())
    assert story.ticket.public_comments == len(way_to(CLOSED)) + 1


# If-Match


def test_a_command_for_the_present_version_is_done() -> None:
    for versions in (frozenset({2}), frozenset({1, 2, 9})):
        a_ticket(OPEN).when(Edit(title="Another"), if_match=versions).then(Edited)


def test_a_command_for_another_version_is_refused_and_told_the_present_one() -> None:
    refusal = (
        a_ticket(OPEN)
        .when(Edit(title="Another"), if_match=frozenset({9, 1}))
        .then_refused(VersionMismatch, current_version=2)
    )
    assert str(refusal) == "The ticket is at version 2, not at 1, 9."
    a_ticket(OPEN).when(Edit(title="Another"), if_match=frozenset()).then_refused(VersionMismatch)


def test_a_stale_command_is_refused_even_if_it_would_change_nothing_or_is_too_late() -> None:
    stale = frozenset({1})
    a_ticket(OPEN).when(Edit(), if_match=stale).then_refused(VersionMismatch)
    a_ticket(CLOSED).when(Edit(title="Another"), if_match=stale).then_refused(VersionMismatch)
    a_ticket(OPEN, deleted()).when(Restore(), if_match=stale).then_refused(VersionMismatch)


def test_whoever_may_not_does_not_learn_the_version() -> None:
    a_ticket(OPEN).when(Edit(title="Another"), by=BOB, if_match=frozenset({1})).then_refused(NotFound)
    a_ticket(OPEN).when(Delete(), by=WEB_DEV, if_match=frozenset({1})).then_refused(Forbidden)
    a_ticket(OPEN).when(Delete(), by=ALICE, if_match=frozenset({1})).then_refused(Forbidden)


# What is not a ticket's life


def test_there_is_nothing_to_be_asked_of_a_ticket_that_is_not_there() -> None:
    for command in COMMANDS.values():
        given().when(command).then_refused(NotFound)


@pytest.mark.parametrize(
    "broken",
    [
        (moved(OPEN),),
        numbered([created(), created()]),
        numbered([created()], after=1),
        (*numbered([created()]), *numbered([moved(OPEN)], after=2)),
        (*numbered([created(), moved(OPEN)]), *numbered([moved(OPEN)], after=1)),
        (*numbered([created()]), replace(*numbered([moved(OPEN)], after=1), originator_id=DEV.id)),
        numbered([created(), commented(), commented()]),
        numbered([created(), comment_edited("Another")]),
        numbered([created(), comment_deleted()]),
        numbered([created(), commented(), comment_deleted(), comment_edited("Another")]),
    ],
    ids=[
        "no beginning",
        "two beginnings",
        "a late beginning",
        "a gap",
        "a version twice",
        "another ticket's",
        "a comment twice",
        "an edit of no comment",
        "a deletion of no comment",
        "an edit of a comment that is gone",
    ],
)
def test_facts_that_do_not_follow_are_a_broken_stream(broken: tuple[TicketEvent, ...]) -> None:
    with pytest.raises(BrokenStream):
        fold(broken)


def test_old_facts_are_read_whatever_todays_rules_are() -> None:
    strange = given(created(), closed(), assigned(DEV), moved(NEW), resolved(None), deleted(), edited(title="Odd"))
    assert (strange.ticket.version, strange.ticket.status, strange.ticket.title) == (7, RESOLVED, "Odd")
    assert strange.ticket.id == TICKET


# Files

A_FILE = Attach(filename="proxy.log", content_type="text/plain", size=4, sha256=SHA256, scan=Scan.CLEAN)


def test_a_file_that_is_attached_is_there_with_all_that_is_known_of_it() -> None:
    for who in (ALICE, DEV):
        decision = a_ticket(OPEN).when(A_FILE, by=who, at=LATER)
        decision.then(attached(who, attachment_id=NEW_COMMENT))
        (file,) = decision.ticket.attachments.values()
        assert (file.filename, file.size, file.sha256, file.scan, file.infected) == (
            "proxy.log",
            4,
            SHA256,
            Scan.CLEAN,
            None,
        )
        assert (file.uploaded_by, file.created_at) == (By(who.id, who.username, who.role), LATER)


def test_an_infected_file_is_noted_and_not_attached() -> None:
    decision = a_ticket(OPEN).when(replace(A_FILE, infected="Eicar"))
    decision.then(refused_file("Eicar"))
    assert not decision.ticket.attachments
    a_ticket(CLOSED).when(replace(A_FILE, infected="Eicar")).then_refused(TicketClosed)


def test_the_same_content_can_be_attached_twice() -> None:
    story = a_ticket(OPEN, attached(DEV)).when(A_FILE, by=DEV)
    assert len(story.ticket.attachments) == 2


def test_a_file_is_no_answer_and_no_response() -> None:
    after = a_ticket(PENDING_INFO).when(A_FILE, by=ALICE).ticket
    assert (after.status, after.responded_at) == (PENDING_INFO, None)
    assert a_ticket(OPEN).when(A_FILE, by=DEV).ticket.responded_at is None


def test_a_file_that_was_taken_away_is_not_there_any_more() -> None:
    decision = a_ticket(OPEN, attached(ALICE)).when(Detach(attachment_id=FILE), by=ALICE)
    decision.then(detached())
    assert not decision.ticket.attachments
    decision.and_then().when(Detach(attachment_id=FILE), by=ALICE).then_refused(NotFound)


def test_the_scanners_verdict_clears_or_condemns_a_file_that_waited() -> None:
    for status in Status:
        story = a_ticket(status, attached(ALICE, scan=Scan.QUARANTINED))
        (cleared,) = verdict(story.ticket, FILE, None, LATER)
        assert cleared == replace(scanned(at=LATER), originator_version=story.ticket.version + 1)
        after = fold([cleared], story.ticket)
        assert after is not None
        assert after.attachments[FILE].scan is Scan.CLEAN
        condemned = fold(verdict(story.ticket, FILE, "Eicar", LATER), story.ticket)
        assert condemned is not None
        assert condemned.attachments[FILE].scan is Scan.QUARANTINED
        assert condemned.attachments[FILE].infected == "Eicar"
        assert verdict(condemned, FILE, None, LATER) == (), "what was found stays found"


def test_the_scanners_verdict_on_a_file_that_does_not_wait_changes_nothing() -> None:
    for scan in (Scan.CLEAN, Scan.UNSCANNED):
        assert verdict(a_ticket(OPEN, attached(scan=scan)).ticket, FILE, "Eicar", LATER) == ()
    assert verdict(a_ticket(OPEN, attached(scan=Scan.QUARANTINED), detached()).ticket, FILE, None, LATER) == ()


@pytest.mark.parametrize("fact", [detached(), scanned(), attached()], ids=lambda fact: fact.TOPIC)
def test_a_fact_about_a_file_that_does_not_follow_breaks_the_stream(fact: TicketEvent) -> None:
    before = (attached(),) if isinstance(fact, AttachmentAdded) else ()
    with pytest.raises(BrokenStream, match="attachment"):
        fold(numbered([created(), *before, fact]))
