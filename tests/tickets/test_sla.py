"""When a ticket is due: at its creation, with a new priority, after a pause, at a reopening.

Hours are written out as the contract has them. Deliberately absent: what is shown of a breach (the
projections); here is only from when on one counts.
"""

from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from tests.tickets.given_when_then import (
    A_REQUEST,
    ADMIN,
    DEV,
    MOMENT,
    NOTES,
    START,
    Given,
    a_ticket,
    created,
    due_dates_moved,
    given,
    moved,
    prioritized,
    reopened,
    resolved,
    way_to,
)
from tickets.commands import Assign, ChangeStatus, Delete, Edit, Policy, Restore
from tickets.events import Assigned, Closed, Created, DueDatesMoved, Edited, Escalated, Prioritized, StatusChanged
from tickets.lifecycle import Status
from tickets.sla import TARGETS, Priority, Target, breach_at, due

P1, P2, P3, P4 = Priority
OPEN, IN_PROGRESS, PENDING_INFO = Status.OPEN, Status.IN_PROGRESS, Status.PENDING_INFO
REOPEN = ChangeStatus(status=Status.REOPENED)

CONTRACT = {P1: (1, 4), P2: (4, 12), P3: (8, 48), P4: (24, 120)}
"""Hours to the response and to the resolution."""

BRISK = Policy(
    targets={
        P1: Target(timedelta(minutes=5), timedelta(minutes=30)),
        P2: Target(timedelta(minutes=10), timedelta(minutes=60)),
        P3: Target(timedelta(minutes=20), timedelta(minutes=90)),
        P4: Target(timedelta(minutes=40), timedelta(minutes=120)),
    }
)
"""An installation with targets of its own."""


def hour(number: float) -> datetime:
    """So many hours after the creation."""
    return START + timedelta(hours=number)


def dues(story: Given) -> tuple[datetime, datetime]:
    return story.ticket.response_due_at, story.ticket.resolution_due_at


# At creation


def test_the_targets_are_the_contracts() -> None:
    assert {priority: (target.response, target.resolution) for priority, target in TARGETS.items()} == {
        priority: (timedelta(hours=response), timedelta(hours=resolution))
        for priority, (response, resolution) in CONTRACT.items()
    }


@pytest.mark.parametrize("priority", Priority)
def test_a_new_ticket_is_due_as_its_priority_says(priority: Priority) -> None:
    response, resolution = CONTRACT[priority]
    decision = given().when(replace(A_REQUEST, priority=priority), at=START).then(Created)
    assert dues(decision.and_then()) == (hour(response), hour(resolution))


def test_a_ticket_has_priority_p3_unless_it_says_otherwise() -> None:
    assert given().when(A_REQUEST, at=START).then(Created).ticket.priority is P3


@pytest.mark.parametrize(
    ("priority", "response", "resolution"), [(P1, 5, 30), (P2, 10, 60), (P3, 20, 90), (P4, 40, 120)]
)
def test_an_installation_sets_its_own_targets(priority: Priority, response: int, resolution: int) -> None:
    decision = given().when(replace(A_REQUEST, priority=priority), at=START, policy=BRISK).then(Created)
    assert dues(decision.and_then()) == (
        START + timedelta(minutes=response),
        START + timedelta(minutes=resolution),
    )


# With a new priority


@pytest.mark.parametrize("priority", [P1, P2, P4])
def test_a_new_priority_counts_from_the_creation(priority: Priority) -> None:
    response, resolution = CONTRACT[priority]
    given(created()).when(Edit(priority=priority), at=hour(3)).then(
        prioritized(priority), due_dates_moved(hour(response), hour(resolution))
    )


def test_a_new_priority_follows_the_targets_of_the_installation() -> None:
    given(created()).when(Edit(priority=P1), at=hour(3), policy=BRISK).then(
        prioritized(P1), due_dates_moved(START + timedelta(minutes=5), START + timedelta(minutes=30))
    )


def test_a_response_that_was_given_keeps_its_date_when_the_priority_changes() -> None:
    a_ticket(IN_PROGRESS).when(Edit(priority=P1), at=hour(3)).then(prioritized(P1), due_dates_moved(hour(8), hour(4)))


def test_a_new_priority_with_the_same_targets_moves_nothing() -> None:
    same = Policy(targets=dict.fromkeys(Priority, Target(timedelta(hours=8), timedelta(hours=48))))
    given(created()).when(Edit(priority=P1), policy=same).then(Prioritized)


def test_a_new_priority_keeps_the_pauses_that_were() -> None:
    story = a_ticket(PENDING_INFO, moved(IN_PROGRESS, at=hour(2)), due_dates_moved(hour(8), hour(50), at=hour(2)))
    story.when(Edit(priority=P1), at=hour(3)).then(prioritized(P1), due_dates_moved(hour(8), hour(4 + 2)))


def test_a_new_priority_during_a_pause_is_followed_by_the_pause_when_it_ends() -> None:
    story = a_ticket(PENDING_INFO)
    urgent = story.when(Edit(priority=P2), at=hour(3)).then(prioritized(P2), due_dates_moved(hour(4), hour(12)))
    urgent.and_then().when(ChangeStatus(status=OPEN), at=hour(5)).then(
        moved(OPEN), due_dates_moved(hour(4), hour(12 + 5))
    )


def test_a_new_priority_after_a_reopening_counts_the_resolution_from_there() -> None:
    story = a_ticket(Status.RESOLVED, reopened(at=hour(10)), due_dates_moved(hour(8), hour(58), at=hour(10)))
    story.when(Edit(priority=P1), at=hour(11)).then(prioritized(P1), due_dates_moved(hour(8), hour(10 + 4)))


def test_a_new_priority_and_back_is_due_as_at_first() -> None:
    story = given(created())
    there = story.when(Edit(priority=P1), at=hour(1)).and_then()
    back = there.when(Edit(priority=P3), at=hour(2)).and_then()
    assert dues(there) != dues(story)
    assert dues(back) == dues(story)


def test_nothing_but_the_priority_moves_the_due_dates_of_a_ticket_that_was_edited_or_assigned_or_deleted() -> None:
    story = a_ticket(OPEN)
    story.when(Edit(title="Another"), at=hour(3)).then(Edited)
    story.when(Assign(assignee_id=DEV.id), at=hour(3)).then(Assigned)
    gone = story.when(Delete(), at=hour(3)).and_then()
    assert dues(gone.when(Restore(), at=hour(4)).and_then()) == (hour(8), hour(48))


# Pauses


def test_waiting_for_information_stops_the_resolution_clock() -> None:
    waiting = a_ticket(OPEN).when(ChangeStatus(status=PENDING_INFO), at=hour(1)).then(StatusChanged)
    assert waiting.ticket.paused_since == hour(1)
    assert waiting.ticket.resolution_stopped_at == hour(1)
    assert dues(waiting.and_then()) == (hour(8), hour(48))


@pytest.mark.parametrize("to", [OPEN, IN_PROGRESS])
def test_when_a_pause_ends_the_resolution_is_due_as_much_later(to: Status) -> None:
    waiting = a_ticket(OPEN).when(ChangeStatus(status=PENDING_INFO), at=hour(1)).and_then()
    goes_on = waiting.when(ChangeStatus(status=to), at=hour(31.5))
    goes_on.then(moved(to), due_dates_moved(hour(8), hour(48 + 30.5)))
    assert goes_on.ticket.paused_since is None
    assert goes_on.ticket.paused_for == timedelta(hours=30.5)
    assert goes_on.ticket.resolution_stopped_at is None


def test_pauses_add_up() -> None:
    story = a_ticket(OPEN)
    for start, end in ((1, 2), (5, 9), (20, 50)):
        story = story.when(ChangeStatus(status=PENDING_INFO), at=hour(start)).and_then()
        story = story.when(ChangeStatus(status=IN_PROGRESS), at=hour(end)).then(StatusChanged, DueDatesMoved).and_then()
    assert dues(story) == (hour(8), hour(48 + 1 + 4 + 30))


def test_a_pause_of_no_time_moves_nothing() -> None:
    a_ticket(PENDING_INFO).when(ChangeStatus(status=OPEN), at=START).then(StatusChanged)


def test_a_pause_counts_once_however_often_it_is_said() -> None:
    waiting = a_ticket(OPEN, moved(PENDING_INFO, at=hour(1)), moved(PENDING_INFO, at=hour(3)))
    assert waiting.ticket.paused_since == hour(1)
    waiting.when(ChangeStatus(status=OPEN), at=hour(5)).then(moved(OPEN), due_dates_moved(hour(8), hour(48 + 4)))


def test_a_pause_goes_on_while_the_ticket_is_deleted() -> None:
    gone = a_ticket(PENDING_INFO).when(Delete(), at=hour(1)).and_then()
    back = gone.when(Restore(), at=hour(2)).and_then()
    back.when(ChangeStatus(status=OPEN), at=hour(3)).then(moved(OPEN), due_dates_moved(hour(8), hour(48 + 3)))


def test_the_response_is_due_however_long_the_ticket_waits() -> None:
    waiting = a_ticket(PENDING_INFO)
    goes_on = waiting.when(ChangeStatus(status=OPEN), at=hour(100)).and_then()
    assert goes_on.ticket.response_due_at == hour(8)


def test_steps_that_are_no_pause_move_nothing() -> None:
    a_ticket(OPEN).when(ChangeStatus(status=IN_PROGRESS), at=hour(90)).then(StatusChanged)
    a_ticket(IN_PROGRESS).when(ChangeStatus(status=Status.ESCALATED), at=hour(90)).then(Escalated)
    a_ticket(IN_PROGRESS).when(ChangeStatus(status=Status.RESOLVED, reason=NOTES), at=hour(90)).then(resolved())
    a_ticket(Status.RESOLVED).when(ChangeStatus(status=Status.CLOSED), at=hour(90)).then(Closed)
    a_ticket(Status.REOPENED).when(ChangeStatus(status=OPEN), at=hour(90)).then(StatusChanged)


# Reopenings


@pytest.mark.parametrize("status", [Status.RESOLVED, Status.CLOSED])
@pytest.mark.parametrize("priority", Priority)
def test_a_reopening_starts_a_new_resolution_cycle(status: Status, priority: Priority) -> None:
    response, resolution = CONTRACT[priority]
    decision = given(created(priority=priority), *way_to(status)).when(REOPEN, at=hour(100))
    decision.then(reopened(), due_dates_moved(hour(response), hour(100 + resolution)))
    assert decision.ticket.cycle_started_at == hour(100)


def test_a_new_cycle_does_not_inherit_the_pauses_of_the_last() -> None:
    first = a_ticket(PENDING_INFO).when(ChangeStatus(status=IN_PROGRESS), at=hour(30)).and_then()
    done = first.when(ChangeStatus(status=Status.RESOLVED, reason=NOTES), at=hour(40)).and_then()
    again = done.when(REOPEN, at=hour(50)).then(reopened(), due_dates_moved(hour(8), hour(50 + 48)))
    assert again.ticket.paused_for == timedelta()
    waiting = again.and_then().when(ChangeStatus(status=PENDING_INFO), at=hour(60)).and_then()
    waiting.when(ChangeStatus(status=OPEN), at=hour(61)).then(moved(OPEN), due_dates_moved(hour(8), hour(50 + 48 + 1)))


def test_a_reopening_follows_the_targets_of_the_installation() -> None:
    a_ticket(Status.RESOLVED).when(REOPEN, at=hour(2), policy=BRISK).then(
        reopened(), due_dates_moved(hour(8), hour(2 + 1.5))
    )


# The response


def test_the_first_step_to_in_progress_is_the_response() -> None:
    story = a_ticket(OPEN)
    assert story.ticket.responded_at is None
    begun = story.when(ChangeStatus(status=IN_PROGRESS), at=hour(2)).and_then()
    assert begun.ticket.responded_at == hour(2)
    later = begun.when(ChangeStatus(status=PENDING_INFO), at=hour(3)).and_then()
    again = later.when(ChangeStatus(status=IN_PROGRESS), at=hour(4)).and_then()
    assert again.ticket.responded_at == hour(2)


def test_neither_assigning_nor_asking_back_is_a_response() -> None:
    taken = given(created()).when(Assign(assignee_id=DEV.id), at=hour(1), by=ADMIN).and_then()
    waiting = taken.when(ChangeStatus(status=PENDING_INFO), at=hour(2)).and_then()
    assert waiting.ticket.responded_at is None


def test_a_reopening_does_not_take_the_response_back() -> None:
    assert a_ticket(Status.RESOLVED).when(REOPEN, at=hour(9)).ticket.responded_at == START


# Breaches


@pytest.mark.parametrize(
    ("stopped_at", "expected"),
    [
        (None, hour(8)),
        (hour(0), None),
        (hour(8) - MOMENT, None),
        (hour(8), None),
        (hour(8) + MOMENT, hour(8)),
        (hour(99), hour(8)),
    ],
    ids=["runs", "at once", "just before", "to the moment", "just after", "long after"],
)
def test_a_deadline_is_missed_from_itself_on_unless_the_clock_stopped_in_time(
    stopped_at: datetime | None, expected: datetime | None
) -> None:
    assert breach_at(hour(8), stopped_at) == expected


def test_due_is_the_start_and_the_target_and_the_pauses() -> None:
    assert due(START, timedelta(hours=4)) == hour(4)
    assert due(START, timedelta(hours=4), timedelta(minutes=30)) == hour(4.5)


@pytest.mark.parametrize(
    ("status", "stopped"),
    [
        (Status.NEW, False),
        (OPEN, False),
        (IN_PROGRESS, False),
        (PENDING_INFO, True),
        (Status.ESCALATED, False),
        (Status.RESOLVED, True),
        (Status.CLOSED, True),
        (Status.REOPENED, False),
    ],
)
def test_the_resolution_clock_stands_still_while_waiting_and_when_it_is_done(status: Status, stopped: bool) -> None:  # noqa: FBT001
    assert (a_ticket(status).ticket.resolution_stopped_at is not None) is stopped


def test_the_resolution_clock_of_a_closed_ticket_stopped_when_it_was_resolved() -> None:
    done = a_ticket(Status.RESOLVED).when(ChangeStatus(status=Status.CLOSED), at=hour(60))
    assert done.ticket.resolution_stopped_at == START
