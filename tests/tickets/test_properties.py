"""What holds whatever is asked by whomever: lives made of random commands, facts made of random values.

A life is a list of asks, each decided on the ticket as it then is. What is refused leaves no trace, so a
life is always one that could have been. Deliberately absent: what each command does (test_workflow.py).
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin
from uuid import UUID

import msgspec
import pytest
from eventsourcing.persistence import StoredEvent
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from projections.attachments import ATTACHMENTS
from projections.attachments import encode as encode_file
from projections.attachments import view as view_of_file
from projections.comments import COMMENTS
from projections.history import changes, entry
from projections.projection import Envelope, Step, decode_metadata
from projections.runner import PROJECTIONS
from projections.tickets import document, view
from tests.tickets.given_when_then import CAST, KNOWN, NOBODY_KNOWN, NUMBER, START, TICKET, numbered
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    Change,
    ChangeStatus,
    Create,
    Delete,
    DeleteComment,
    Detach,
    Edit,
    EditComment,
    Policy,
    Restore,
    create,
    decide,
    reschedule,
    scanned,
)
from tickets.errors import Forbidden, NotFound, Refusal, TicketClosed, TicketDeleted
from tickets.events import (
    FACTS,
    AttachmentAdded,
    AttachmentFact,
    AttachmentRefused,
    AttachmentScanned,
    By,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
    CommentFact,
    Created,
    DueDatesMoved,
    Event,
    Fact,
    Metadata,
    TicketEvent,
)
from tickets.lifecycle import TRANSITIONS, Status
from tickets.mapper import FactMapper, decode, decode_all, encode
from tickets.permissions import Actor, Role
from tickets.sla import Priority
from tickets.ticket import Ticket, evolve, fold
from tickets.values import Category, Environment, Scan

POLICY: Final = Policy()

text = st.text(st.characters(exclude_categories=["Cs"]))
instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001

# Lives


@dataclass(frozen=True)
class Walk:
    """Take one of the steps that the workflow has from wherever the ticket is, or bring it back if it is deleted.

    More telling than a random one: most lives would end with the first Delete.
    """

    number: int


@dataclass(frozen=True)
class Answer:
    """Say something as whoever requested the ticket."""

    body: str
    internal: bool


@dataclass(frozen=True)
class Rephrase:
    """Put one of the comments that there are differently, as whoever wrote it or as whoever is asked."""

    number: int
    body: str
    by_its_author: bool


@dataclass(frozen=True)
class TakeBack:
    """Delete one of the comments that there are, as whoever wrote it or as whoever is asked."""

    number: int
    by_its_author: bool


@dataclass(frozen=True)
class TakeAway:
    """Take away one of the files that there are, as whoever attached it or as whoever is asked."""

    number: int
    by_its_uploader: bool


@dataclass(frozen=True)
class LookAt:
    """Have the virus scanner look at one of the files that there are."""

    number: int
    infected: str | None


Said = AddComment | Answer | Rephrase | TakeBack
Filed = Attach | TakeAway | LookAt
Ask = Edit | Assign | ChangeStatus | Delete | Restore | Walk | Said | Filed
Asked = tuple[Ask, Actor, timedelta]
"""What is asked, by whom, and how long after what was before."""


@dataclass(frozen=True)
class Decided:
    """One ask and what came of it."""

    command: Change
    actor: Actor
    at: datetime
    before: Ticket
    facts: tuple[TicketEvent, ...]
    refusal: Refusal | None


@dataclass(repr=False)
class Life:
    """All that happened to a ticket, with the ticket after each fact."""

    facts: list[TicketEvent]
    states: list[Ticket]
    decided: list[Decided] = field(default_factory=list)

    def __repr__(self) -> str:
        """What was asked and what came of it; a failure shows it."""
        came = [
            f"{one.actor.username}: {one.command} -> {one.refusal or [type(fact).__name__ for fact in one.facts]}"
            for one in self.decided
        ]
        return "\n".join(["a life", *came])


PERSON: Final = {actor.id: actor for actor in CAST}

people = st.sampled_from(CAST)
teams = st.sampled_from([None, "web", "db", "network"])
texts = st.sampled_from(["Production server down", "Über 🜁", "line\nbreak", '"quoted"'])
reasons = st.none() | texts
tags = st.lists(st.sampled_from(["web", "db", "ü"]), max_size=3).map(tuple)
gaps = st.sampled_from(
    [timedelta(), timedelta(microseconds=1), timedelta(minutes=7), timedelta(hours=5), timedelta(days=3)]
)


def perhaps(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.just(UNSET) | values


edits = st.builds(
    Edit,
    title=perhaps(texts),
    description=perhaps(texts),
    category=perhaps(st.sampled_from(Category)),
    priority=perhaps(st.sampled_from(Priority)),
    environment=perhaps(st.none() | st.sampled_from(Environment)),
    affected_service=perhaps(st.none() | texts),
    tags=perhaps(st.none() | tags),
)
assignments = st.builds(
    Assign,
    assignee_id=perhaps(st.none() | st.sampled_from([*KNOWN, NOBODY_KNOWN])),
    team=perhaps(teams),
    reason=reasons,
)
steps: SearchStrategy[Ask] = st.builds(Walk, st.integers(0, 5))
comments: SearchStrategy[Ask] = st.builds(AddComment, body=texts, internal=st.booleans())
talk: SearchStrategy[Ask] = st.one_of(
    comments,
    comments,
    st.builds(Answer, texts, st.booleans()),
    st.builds(Rephrase, st.integers(0, 5), texts, st.booleans()),
    st.builds(TakeBack, st.integers(0, 5), st.booleans()),
)
files: SearchStrategy[Ask] = st.one_of(
    st.builds(
        Attach,
        filename=st.sampled_from(["a.txt", "Größe 7.log"]),
        content_type=st.just("text/plain"),
        size=st.integers(1, 9),
        sha256=st.sampled_from(["00" * 32, "ff" * 32]),
        scan=st.sampled_from(Scan),
        infected=st.none() | st.just("Eicar"),
    ),
    st.builds(
        Attach,
        filename=st.just("waiting.txt"),
        content_type=st.just("text/plain"),
        size=st.just(1),
        sha256=st.just("00" * 32),
        scan=st.just(Scan.QUARANTINED),
    ),
    st.builds(TakeAway, st.integers(0, 5), st.booleans()),
    st.builds(LookAt, st.integers(0, 5), st.none() | st.just("Eicar")),
)
moves = st.builds(ChangeStatus, status=st.sampled_from(Status), reason=reasons)
anything: SearchStrategy[Ask] = st.one_of(edits, assignments, moves, st.just(Delete()), st.just(Restore()))
requests = st.builds(
    Create,
    title=texts,
    description=texts,
    category=st.sampled_from(Category),
    priority=st.sampled_from(Priority),
    environment=st.none() | st.sampled_from(Environment),
    affected_service=st.none() | texts,
    tags=tags,
    team=teams,
)


def live(request: Create, asker: Actor, asks: list[Asked]) -> Life:
    """The life that comes of these asks, one after the other."""
    facts: list[TicketEvent] = list(
        create(request, ticket_id=TICKET, number=NUMBER, actor=asker, at=START, policy=POLICY)
    )
    ticket = evolve(facts[0], None)
    life, at = Life(facts, [ticket]), START
    for ask, actor, gap in asks:
        at += gap
        if isinstance(ask, LookAt):
            for seen in scanned(ticket, numbered_one(ticket.attachments, ask.number), ask.infected, at):
                ticket = evolve(seen, ticket)
                life.facts.append(seen)
                life.states.append(ticket)
            continue
        before, (command, asker) = ticket, wanted(ask, actor, ticket)
        refusal, decided = None, tuple[TicketEvent, ...]()
        try:
            decided = ask_for(life, ticket, command, asker, at)
        except Refusal as reason:
            refusal = reason
        for fact in decided:
            ticket = evolve(fact, ticket)
            life.facts.append(fact)
            life.states.append(ticket)
        life.decided.append(Decided(command, asker, at, before, decided, refusal))
    return life


def numbered_one(there: Mapping[UUID, Any], number: int) -> UUID:
    """One of what is there, or the id of nothing."""
    ids = sorted(there)
    return ids[number % len(ids)] if ids else NOBODY_KNOWN


def wanted(ask: Ask, actor: Actor, ticket: Ticket) -> tuple[Change, Actor]:
    """The command that is meant, on the ticket as it is, and who gives it."""
    match ask:
        case Walk() if ticket.deleted:
            return Restore(), actor
        case Walk():
            ways = TRANSITIONS[ticket.status]
            return ChangeStatus(status=ways[ask.number % len(ways)], reason="Done."), actor
        case Answer():
            return AddComment(body=ask.body, internal=ask.internal), PERSON[ticket.requester_id]
        case Rephrase() | TakeBack():
            comment_id = numbered_one(ticket.comments, ask.number)
            if ask.by_its_author and comment_id in ticket.comments:
                actor = PERSON[ticket.comments[comment_id].author.id]
            if isinstance(ask, TakeBack):
                return DeleteComment(comment_id=comment_id), actor
            return EditComment(comment_id=comment_id, body=ask.body), actor
        case TakeAway():
            attachment_id = numbered_one(ticket.attachments, ask.number)
            if ask.by_its_uploader and attachment_id in ticket.attachments:
                actor = PERSON[ticket.attachments[attachment_id].uploaded_by.id]
            return Detach(attachment_id=attachment_id), actor
        case LookAt():
            raise AssertionError("nobody asks for that")
        case _:
            return ask, actor


def ask_for(life: Life, ticket: Ticket, command: Change, actor: Actor, at: datetime) -> tuple[TicketEvent, ...]:
    to = command.assignee_id if isinstance(command, Assign) else None
    assignee = KNOWN.get(to) if isinstance(to, UUID) else None
    about = command.comment_id if isinstance(command, EditComment | DeleteComment) else None
    said = "" if about is None or about not in ticket.comments else text_of(life, ticket, about)
    new_id = UUID(int=(0xC0 << 64) + ticket.version + 1)
    return decide(ticket, command, actor=actor, at=at, policy=POLICY, assignee=assignee, new_id=new_id, said=said)


def text_of(life: Life, ticket: Ticket, comment_id: UUID) -> str:
    """What a comment says, found where the ticket says that it stands."""
    fact = life.facts[ticket.comments[comment_id].said_at - 1]
    assert isinstance(fact, CommentAdded | CommentEdited)
    assert fact.comment_id == comment_id
    return fact.body


def asked_again(life: Life, ticket: Ticket, decided: Decided) -> tuple[TicketEvent, ...] | Refusal:
    """What comes of the same command, by the same person at the same time."""
    try:
        return ask_for(life, ticket, decided.command, decided.actor, decided.at)
    except Refusal as refusal:
        return refusal


def is_internal(fact: Fact) -> bool:
    """Whether only staff may know of it."""
    return isinstance(fact, CommentFact) and fact.internal


who_may_most = st.sampled_from([actor for actor in CAST if actor.role in {Role.ADMIN, Role.TEAM_LEAD}])
walks = st.tuples(steps, who_may_most, gaps)
wishes = st.tuples(anything, people | who_may_most, gaps)
words = st.tuples(talk, people | who_may_most, gaps)
papers = st.tuples(files, people | who_may_most, gaps)
asks = st.lists(walks | walks | wishes | words | papers, min_size=12, max_size=40)
lives = st.builds(live, requests, people, asks)

EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
"""How many lives, or facts of a kind, each of these is held against; in `make faults` there are more."""

thoroughly = settings(max_examples=EXAMPLES)


@thoroughly
@given(lives)
def test_the_facts_of_a_life_follow_each_other_without_a_gap(life: Life) -> None:
    assert [fact.originator_version for fact in life.facts] == list(range(1, len(life.facts) + 1))
    assert {fact.originator_id for fact in life.facts} == {TICKET}
    assert [type(fact) is Created for fact in life.facts] == [True] + [False] * (len(life.facts) - 1)


@thoroughly
@given(lives)
def test_time_never_runs_backwards_and_facts_happen_when_they_are_asked_for(life: Life) -> None:
    times = [fact.timestamp for fact in life.facts]
    assert times == sorted(times)
    for decided in life.decided:
        assert {fact.timestamp for fact in decided.facts} <= {decided.at}
    updated_at = START
    for fact, state in zip(life.facts, life.states, strict=True):
        assert state.changed_at == fact.timestamp
        updated_at = updated_at if is_internal(fact) else fact.timestamp
        assert state.updated_at == updated_at
        assert state.created_at == START
        moments = (state.responded_at, state.paused_since, state.resolved_at, state.closed_at, state.cycle_started_at)
        assert all(START <= moment <= state.updated_at for moment in moments if moment is not None)


@thoroughly
@given(lives)
def test_a_status_changes_only_along_the_workflow(life: Life) -> None:
    assert life.states[0].status is Status.NEW
    for before, after in zip(life.states, life.states[1:], strict=False):
        assert after.status is before.status or after.status in TRANSITIONS[before.status]
        if before.deleted:
            assert after.status is before.status


@thoroughly
@given(lives)
def test_what_a_ticket_says_of_itself_is_of_a_piece(life: Life) -> None:
    begun = times_reopened = 0
    for fact, before, state in zip(life.facts, [None, *life.states], life.states, strict=False):
        if isinstance(fact, CommentAdded) and not fact.internal:
            begun += fact.author.role is not Role.END_USER
        moved_here = before is None or before.status is not state.status
        begun += moved_here and state.status is Status.IN_PROGRESS
        times_reopened += moved_here and state.status is Status.REOPENED
        over = state.status in {Status.RESOLVED, Status.CLOSED}
        assert (state.resolved_at is not None) is over
        assert (state.resolution_notes is not None) is over
        assert (state.closed_at is not None) is (state.status is Status.CLOSED)
        assert (state.paused_since is not None) is (state.status is Status.PENDING_INFO)
        assert (state.responded_at is not None) is (begun > 0)
        assert state.reopen_count == times_reopened
        assert (state.cycle_started_at == state.created_at) or state.reopen_count > 0
        assert state.assignee_id is None or state.assignee_id in KNOWN
        assert state.paused_for >= timedelta()
        assert state.requester_id == life.states[0].requester_id
    for decided in life.decided:
        after = fold(decided.facts, decided.before)
        assert after is not None
        assert after.status is not Status.NEW or after.assignee_id is None


@thoroughly
@given(lives)
def test_after_every_command_the_due_dates_are_what_the_ticket_says_they_are(life: Life) -> None:
    response_given_for = life.states[0].response_due_at
    resolution_given_for = life.states[0].resolution_due_at
    for decided in life.decided:
        state = fold(decided.facts, decided.before)
        assert state is not None
        target = POLICY.targets[state.priority]
        if decided.before.resolution_ended_at is None or state.reopen_count != decided.before.reopen_count:
            resolution_given_for = state.cycle_started_at + target.resolution + state.paused_for
        assert state.resolution_due_at == resolution_given_for
        if decided.before.responded_at is None:
            response_given_for = state.created_at + target.response
        assert state.response_due_at == response_given_for
        assert reschedule(state, (), decided.at, POLICY.targets) == ()
        moves = [fact for fact in decided.facts if isinstance(fact, DueDatesMoved)]
        assert moves == list(decided.facts[len(decided.facts) - len(moves) :])
        assert len(moves) <= 1


@thoroughly
@given(lives)
def test_every_fact_but_a_refused_file_changes_something_that_the_ticket_its_comments_or_its_files_show(
    life: Life,
) -> None:
    for fact, before, after in zip(life.facts[1:], life.states, life.states[1:], strict=False):
        if isinstance(fact, CommentFact):
            assert before.comments != after.comments
            assert not isinstance(fact, CommentEdited) or fact.body != fact.previous
        elif isinstance(fact, AttachmentFact):
            assert (before.attachments != after.attachments) is not isinstance(fact, AttachmentRefused)
            assert before.comments is after.comments
        else:
            assert changes(before, after)
            assert before.comments is after.comments
            assert before.attachments is after.attachments


@thoroughly
@given(lives)
def test_a_decision_is_pure_and_a_refused_command_leaves_the_ticket_as_it_was(life: Life) -> None:
    for decided in life.decided:
        was = repr(decided.before)
        again = asked_again(life, decided.before, decided)
        if isinstance(again, Refusal):
            details = None if decided.refusal is None else decided.refusal.details
            assert (type(again), again.details) == (type(decided.refusal), details)
            assert decided.facts == ()
        else:
            assert decided.refusal is None
            assert again == decided.facts
        assert repr(decided.before) == was


@thoroughly
@given(lives)
def test_asking_for_the_same_again_at_once_changes_nothing_but_for_what_is_said_twice(life: Life) -> None:
    for decided in life.decided:
        after = fold(decided.facts, decided.before)
        assert after is not None
        if decided.refusal is not None or not decided.facts:
            continue
        again = asked_again(life, after, decided)
        if isinstance(again, TicketClosed | TicketDeleted):
            assert after.status is Status.CLOSED or after.deleted
        elif isinstance(decided.command, AddComment):
            assert not isinstance(again, Refusal)
            assert [type(fact) for fact in again] == [CommentAdded], "and nothing opens twice"
        elif isinstance(decided.command, DeleteComment | Detach):
            assert isinstance(again, NotFound)
        elif isinstance(decided.command, Attach):
            assert not isinstance(again, Refusal)
            assert [type(fact) for fact in again] == [type(fact) for fact in decided.facts]
        else:
            assert again == ()


@thoroughly
@given(lives)
def test_nobody_changes_what_they_cannot_see_and_end_users_no_more_than_their_own_text(life: Life) -> None:
    for decided in life.decided:
        command, actor = decided.command, decided.actor
        about = None
        if isinstance(command, EditComment | DeleteComment):
            about = decided.before.comments.get(command.comment_id)
            hidden = about is None or (about.internal and not actor.is_staff)
        else:
            hidden = isinstance(command, Detach) and command.attachment_id not in decided.before.attachments
        if actor.role is not Role.END_USER:
            assert isinstance(decided.refusal, NotFound) is hidden
            continue
        if actor.id != decided.before.requester_id or hidden:
            assert isinstance(decided.refusal, NotFound)
        elif about is not None:
            assert isinstance(decided.refusal, Forbidden) is (about.author.id != actor.id)
        elif isinstance(command, AddComment):
            assert isinstance(decided.refusal, Forbidden) is command.internal
        elif isinstance(command, Attach | Detach):
            assert not isinstance(decided.refusal, Forbidden)
        elif not isinstance(command, Edit | ChangeStatus):
            assert isinstance(decided.refusal, Forbidden)
        elif decided.facts and isinstance(decided.command, ChangeStatus):
            assert decided.command.status is Status.REOPENED


# What is said


@thoroughly
@given(lives)
def test_a_comment_says_what_was_written_last_and_is_changed_by_nobody_who_may_not(life: Life) -> None:
    texts: dict[UUID, str] = {}
    for decided in life.decided:
        for fact in decided.facts:
            match fact:
                case CommentAdded():
                    assert fact.author == By(decided.actor.id, decided.actor.username, decided.actor.role)
                    texts[fact.comment_id] = fact.body
                case CommentEdited():
                    assert decided.before.comments[fact.comment_id].author.id == decided.actor.id
                    assert fact.previous == texts[fact.comment_id]
                    texts[fact.comment_id] = fact.body
                case CommentDeleted():
                    wrote = decided.before.comments[fact.comment_id].author.id == decided.actor.id
                    assert wrote or decided.actor.role in {Role.TEAM_LEAD, Role.MANAGER, Role.ADMIN}
                    assert fact.previous == texts.pop(fact.comment_id)
                case _:
                    pass
        after = fold(decided.facts, decided.before)
        assert after is not None
        assert {one: text_of(life, after, one) for one in after.comments} == texts
        assert after.internal_comments == sum(comment.internal for comment in after.comments.values())


@thoroughly
@given(lives)
def test_the_requesters_public_comment_and_no_other_opens_a_ticket_that_waits_for_information(life: Life) -> None:
    for decided in life.decided:
        if not isinstance(decided.command, AddComment) or decided.refusal is not None:
            continue
        after = fold(decided.facts, decided.before)
        assert after is not None
        answers = decided.actor.id == decided.before.requester_id and not decided.command.internal
        opens = answers and decided.before.status is Status.PENDING_INFO
        assert after.status is (Status.OPEN if opens else decided.before.status)


@thoroughly
@given(lives)
def test_without_its_internal_comments_a_life_shows_everybody_the_same_at_every_moment(life: Life) -> None:
    """Only the version says that something happened."""
    public = [fact for fact in life.facts if not is_internal(fact)]
    ticket, seen = None, 0
    for fact, state in zip(life.facts, life.states, strict=True):
        if not is_internal(fact):
            (again,) = numbered([public[seen]], after=seen)
            ticket, seen = evolve(again, ticket), seen + 1
        assert ticket is not None
        for at in (None, state.changed_at + timedelta(days=1)):
            assert replace(view(ticket, at), version=state.version) == view(state, at)


@thoroughly
@given(lives)
def test_a_ticket_counts_the_comments_that_the_read_model_has_for_each_reader(life: Life) -> None:
    rows: dict[UUID, dict[str, Any]] = {}
    states = zip(life.facts, [None, *life.states], life.states, strict=False)
    for position, (fact, before, after) in enumerate(states, 1):
        envelope = Envelope(position, fact.timestamp, ABOUT)
        for row in COMMENTS.rows(Step(fact, envelope, before, after)):
            named = dict(zip(COMMENTS.columns, row, strict=True))
            rows[named["comment_id"]] = named
        there = [row for row in rows.values() if not row["deleted"]]
        assert view(after, internal=True).comment_count == len(there)
        assert view(after).comment_count == sum(not row["internal"] for row in there)
        docs = {row["comment_id"]: msgspec.json.decode(row["doc"]) for row in there}
        people_said = {one: doc["body"] for one, doc in docs.items() if not doc["system"]}
        assert people_said == {one: text_of(life, after, one) for one in after.comments}
        assert not any(row["doc"] for row in rows.values() if row["deleted"]), "a text that was taken back is nowhere"


@thoroughly
@given(lives)
def test_the_read_model_of_files_has_those_that_the_ticket_has_and_remembers_the_others(life: Life) -> None:
    rows: dict[UUID, dict[str, Any]] = {}
    states = zip(life.facts, [None, *life.states], life.states, strict=False)
    for position, (fact, before, after) in enumerate(states, 1):
        for row in ATTACHMENTS.rows(Step(fact, Envelope(position, fact.timestamp, ABOUT), before, after)):
            named = dict(zip(ATTACHMENTS.columns, row, strict=True))
            rows[named["attachment_id"]] = named
        there = {one: row for one, row in rows.items() if row["deleted_at"] is None}
        assert view(after).attachment_count == len(there)
        assert {one: row["doc"] for one, row in there.items()} == {
            one: encode_file(view_of_file(one, TICKET, file)) for one, file in after.attachments.items()
        }
        assert {one for one, row in there.items() if row["waiting"]} == {
            one for one in after.attachments if scanned(after, one, None, fact.timestamp)
        }
    added = {fact.attachment_id: fact.sha256 for fact in life.facts if isinstance(fact, AttachmentAdded)}
    assert {one: row["sha256"] for one, row in rows.items()} == added


@thoroughly
@given(lives)
def test_a_projection_makes_rows_of_no_fact_but_those_that_it_says_it_is_about(life: Life) -> None:
    states = zip(life.facts, [None, *life.states], life.states, strict=False)
    for position, (fact, before, after) in enumerate(states, 1):
        step = Step(fact, Envelope(position, fact.timestamp, ABOUT), before, after)
        for one in PROJECTIONS.values():
            assert one.about is None or type(fact) in one.about or not one.rows(step), one.name


# Replay


@thoroughly
@given(lives)
def test_replaying_any_beginning_gives_the_ticket_as_it_then_was(life: Life) -> None:
    for length in range(1, len(life.facts) + 1):
        assert fold(life.facts[:length]) == life.states[length - 1]
        assert fold(life.facts[length:], life.states[length - 1]) == life.states[-1]


@thoroughly
@given(lives)
def test_replaying_what_was_stored_gives_the_same_ticket(life: Life) -> None:
    stored = [(fact.TOPIC, encode(fact)) for fact in life.facts]
    assert decode_all(stored) == life.facts
    ticket = None
    for (topic, state), then in zip(stored, life.states, strict=True):
        fact = decode(topic, state)
        assert isinstance(fact, TicketEvent)
        ticket = evolve(fact, ticket)
        assert ticket == then


# The audit trail

ABOUT: Final = Metadata(actor=By(CAST[0].id, "alice", Role.END_USER), command_id=UUID(int=77))


@pytest.mark.parametrize("reader", ["staff", "everybody"])
@thoroughly
@given(life=lives)
def test_the_history_applied_in_order_rebuilds_what_the_ticket_showed_at_every_version(reader: str, life: Life) -> None:
    staff = reader == "staff"
    shown: dict[str, Any] = {}
    texts: dict[str, str] = {}
    files: dict[str, str] = {}
    before: Ticket | None = None
    for position, (fact, after) in enumerate(zip(life.facts, life.states, strict=True), 1):
        envelope = Envelope(position, fact.timestamp, ABOUT)
        line = msgspec.json.decode(msgspec.json.encode(entry(fact, envelope, before, after)))
        now = msgspec.json.decode(document(after, internal=staff))
        if before is None:
            shown = _with_nothing_in_it(now)
        internal = line["metadata"].get("internal", False)
        for change in line["changes"] if staff or not internal else []:
            assert change["new"] != change["old"]
            if change["field"] == "comment":
                _say(texts, line["metadata"]["comment_id"], change)
                shown["comment_count"] += (change["old"] is None) - (change["new"] is None)
                continue
            if change["field"] == "attachment":
                _say(files, line["metadata"]["attachment_id"], change)
                shown["attachment_count"] += (change["old"] is None) - (change["new"] is None)
                continue
            if change["field"] == "attachment.scan":
                assert files[line["metadata"]["attachment_id"]] == line["metadata"]["filename"]
                continue
            holder, name = _place(shown, change["field"])
            assert holder[name] == change["old"]
            holder[name] = change["new"]
            shown["comment_count"] += name == "status" and change["old"] is not None
        shown["version"] = line["version"]
        shown["updated_at"] = shown["updated_at"] if internal else line["occurred_at"]
        assert shown == now
        seen = {one: text_of(life, after, one) for one, it in after.comments.items() if staff or not it.internal}
        assert texts == {str(one): text for one, text in seen.items()}
        assert files == {str(one): file.filename for one, file in after.attachments.items()}
        before = after


def _say(texts: dict[str, str], comment_id: str, change: dict[str, Any]) -> None:
    assert texts.get(comment_id) == change["old"]
    if change["new"] is None:
        del texts[comment_id]
    else:
        texts[comment_id] = change["new"]


def _with_nothing_in_it(shown: dict[str, Any]) -> dict[str, Any]:
    """The same shape, all null, but for what no fact of a ticket's own says: the id, counts and breaches."""
    never_in_a_change = {"id", "comment_count", "attachment_count", "response_breached", "resolution_breached"}
    return {
        name: _with_nothing_in_it(value) if name == "sla" else value if name in never_in_a_change else None
        for name, value in shown.items()
    }


def _place(shown: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *path, last = name.split(".")
    for part in path:
        shown = shown[part]
    assert last in shown, f"{name} is nothing that a ticket shows"
    return shown, last


@thoroughly
@given(lives)
def test_nothing_that_is_shown_differs_where_the_history_says_nothing_changed(life: Life) -> None:
    for before, after in zip([None, *life.states], life.states, strict=False):
        assert changes(after, after) == []
        if before is not None:
            named = {change.field.split(".")[0] for change in changes(before, after)}
            old, new = msgspec.to_builtins(view(before)), msgspec.to_builtins(view(after))
            different = {name for name in new if old[name] != new[name]}
            assert different - {"version", "updated_at", "comment_count", "attachment_count"} == named


# Stored bytes


def values_of(kind: Any) -> SearchStrategy[Any]:
    """Any value of the type of a field."""
    if get_origin(kind) in {Union, UnionType}:
        return st.one_of([values_of(one) for one in get_args(kind)])
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0]), max_size=5).map(tuple)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return st.builds(kind, **{one.name: values_of(one.type) for one in msgspec.structs.fields(kind)})
    simple: dict[Any, SearchStrategy[Any]] = {
        str: text,
        int: st.integers(1, 2**31),
        bool: st.booleans(),
        UUID: st.uuids(),
        datetime: instants,
        type(None): st.none(),
        UnsetType: st.just(UNSET),
    }
    return simple[kind]


def facts_of(kind: type[Event]) -> SearchStrategy[Any]:
    """Any fact of this topic, its optional fields there or not."""
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{one.name: values_of(one.type) for one in fields})


any_topic = pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.TOPIC)


@any_topic
@thoroughly
@given(data=st.data())
def test_a_stored_fact_is_read_as_it_was_written(kind: type[Fact], data: st.DataObject) -> None:
    fact: Fact = data.draw(facts_of(kind))
    state = encode(fact)
    read = decode(fact.TOPIC, state)
    assert type(read) is kind
    assert read == fact
    assert encode(read) == state
    assert decode_all([(fact.TOPIC, state)]) == [fact]


@any_topic
@thoroughly
@given(data=st.data())
def test_a_fact_passes_through_the_librarys_mapper_unharmed(kind: type[Fact], data: st.DataObject) -> None:
    fact: Fact = data.draw(facts_of(kind))
    mapper = FactMapper()
    stored = mapper.to_stored_event(fact)
    assert stored == StoredEvent(fact.originator_id, fact.originator_version, fact.TOPIC, encode(fact))
    read = mapper.to_domain_event(stored)
    assert type(read) is kind
    assert read == fact


metadata = st.builds(
    Metadata,
    actor=st.builds(By, st.uuids(), st.none() | text, st.none() | st.sampled_from(Role)),
    command_id=st.uuids(),
    ip_address=st.none() | text,
    request_id=st.none() | text,
    source=st.none() | st.dictionaries(text, text, max_size=3),
)


@settings(max_examples=100)
@given(metadata)
@example(Metadata(actor=By(UUID(int=1), None, None), command_id=UUID(int=2), source={}))
def test_who_did_it_and_from_where_is_read_as_it_was_written(about: Metadata) -> None:
    assert decode_metadata(encode(about)) == about


# The search itself


def _met(life: Life) -> set[str]:
    """What the properties are about, and a random life could pass by."""
    met = {f"{'internal' if is_internal(fact) else 'public'}: {type(fact).__name__}" for fact in life.facts}
    for decided in life.decided:
        if isinstance(decided.command, AddComment) and len(decided.facts) > 1:
            met.add("a comment that opens")
    for fact, before, after in zip(life.facts[1:], life.states, life.states[1:], strict=False):
        if isinstance(fact, CommentAdded) and before.responded_at is not after.responded_at:
            met.add("a comment that is the response")
        if isinstance(fact, AttachmentScanned):
            met.add("a file found clean" if fact.infected is None else "a file found infected")
    return met


def test_random_lives_meet_every_fact_about_tickets_and_all_that_is_special_about_comments_and_files() -> None:
    special = {
        *(f"{kind}: {fact.__name__}" for kind in ("internal", "public") for fact in get_args(CommentFact)),
        "a comment that opens",
        "a comment that is the response",
        "a file found clean",
        "a file found infected",
    }
    unmet: set[Any] = {*special, *get_args(TicketEvent)}

    def all_is_met(met: set[Any]) -> bool:
        unmet.difference_update(met)
        return not unmet

    everything = lives.map(lambda life: _met(life) | {type(fact) for fact in life.facts})
    with suppress(NoSuchExample):
        find(everything, all_is_met, settings=settings(max_examples=300, phases=[Phase.generate], database=None))
    assert not unmet
