"""Handling commands on a real ledger: If-Match, idempotency keys, stale caches, and many at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from msgspec.structs import replace

from tests.conftest import eventually, fresh_database
from tests.tickets.test_ledger import appending, created
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    Change,
    ChangeStatus,
    Command,
    Create,
    Delete,
    DeleteComment,
    Detach,
    Edit,
    EditComment,
    Restore,
)
from tickets.connections import Connection
from tickets.errors import (
    Forbidden,
    IdempotencyKeyReused,
    IllegalTransition,
    NotFound,
    Refusal,
    TicketClosed,
    TicketDeleted,
    TooContended,
    UnknownAssignee,
    VersionMismatch,
)
from tickets.events import (
    AttachmentAdded,
    AttachmentDeleted,
    AttachmentScanned,
    By,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
    Metadata,
    StatusChanged,
    TicketEvent,
)
from tickets.handler import Answer, Asked, Handler
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.permissions import Actor, Assignee, Role
from tickets.sla import Priority
from tickets.values import Category, Scan

ADA = Actor(id=uuid4(), role=Role.ADMIN, username="ada")
BEA = Actor(id=uuid4(), role=Role.MANAGER, username="bea")
CREATE = Create(title="Mail is down", description="Nobody gets any", category=Category.INCIDENT)


@pytest.fixture(scope="module")
def dsn(server: str, template: str) -> Iterator[str]:
    """One database for all of these: each test looks at its own tickets only."""
    with fresh_database(server, template) as url:
        yield url


async def known_to_all(person_id: UUID) -> Assignee | None:
    return Assignee(id=person_id)


async def nobody(_: UUID) -> Assignee | None:
    return None


@pytest.fixture
def handler(ledger: Ledger) -> Handler:
    return Handler(ledger, known_to_all)


@pytest.fixture
async def two(dsn: str) -> AsyncIterator[tuple[Handler, Handler]]:
    """Two processes' handlers, as it were: each with a ledger and a cache of its own."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(Ledger.open(dsn)) for _ in range(2)]
        yield Handler(first, known_to_all), Handler(second, known_to_all)


def by(actor: Actor = ADA, *, key: str | None = None, if_match: set[int] | None = None) -> Asked:
    return Asked(actor=actor, key=key, if_match=None if if_match is None else frozenset(if_match))


def move(status: Status, reason: str | None = None) -> ChangeStatus:
    return ChangeStatus(status=status, reason=reason)


async def create(handler: Handler, *moves: Status, actor: Actor = ADA) -> UUID:
    """A ticket that was moved so far."""
    ticket = (await handler.handle(CREATE, None, by(actor))).ticket
    for status in moves:
        await handler.handle(move(status, "because"), ticket.id, by())
    return ticket.id


def replayed(first: Answer) -> Answer:
    """The same answer, given again."""
    return replace(first, replayed=True)


async def version(handler: Handler, ticket_id: UUID) -> int:
    ticket = await handler.ticket(ticket_id)
    return 0 if ticket is None else ticket.version


# ------------------------------------------------------------------------------------------------- the answer


async def test_the_answer_is_the_ticket_after_the_command_and_its_position(handler: Handler, ledger: Ledger) -> None:
    asked = Asked(actor=ADA, ip_address="192.0.2.7", request_id="r-7")
    answer = await handler.handle(CREATE, None, asked)
    assert answer.ticket == await handler.ticket(answer.ticket.id)
    assert not answer.replayed
    moved = await handler.handle(Assign(assignee_id=BEA.id), answer.ticket.id, asked)
    assert (moved.ticket.status, moved.ticket.version) == (Status.OPEN, 3), "two facts followed"
    recorded = await ledger.load(answer.ticket.id)
    assert [one.position for one in recorded] == [answer.position, moved.position - 1, moved.position]
    about = msgspec.json.decode(recorded[-1].metadata, type=Metadata)
    assert (about.actor.id, about.actor.username, about.actor.role) == (ADA.id, "ada", Role.ADMIN)
    assert (about.ip_address, about.request_id) == ("192.0.2.7", "r-7")
    outcome = await ledger.outcome(about.command_id)
    assert outcome is not None
    assert (outcome.version, outcome.position) == (3, moved.position)
    assert (await handler.ticket(answer.ticket.id, upto=1)) == answer.ticket


async def test_what_is_not_there_is_not_found(handler: Handler) -> None:
    for command in (Edit(title="Anything"), Delete(), Restore(), move(Status.OPEN), Assign(team="Mail")):
        with pytest.raises(NotFound):
            await handler.handle(command, uuid4(), by())
    assert await handler.ticket(uuid4()) is None


async def test_a_command_that_changes_nothing_appends_nothing(handler: Handler, ledger: Ledger) -> None:
    ticket_id = await create(handler)
    head = await ledger.head()
    answer = await handler.handle(Edit(title=CREATE.title), ticket_id, by())
    assert (answer.ticket.version, answer.replayed) == (1, False)
    assert answer.position >= head
    assert await ledger.head() == head


async def test_whom_nobody_knows_cannot_be_assigned_but_oneself_can(ledger: Ledger) -> None:
    handler = Handler(ledger, nobody)
    ticket_id = await create(handler)
    with pytest.raises(UnknownAssignee):
        await handler.handle(Assign(assignee_id=BEA.id), ticket_id, by())
    assert (await handler.handle(Assign(assignee_id=ADA.id), ticket_id, by())).ticket.assignee_id == ADA.id


async def test_a_streams_time_never_runs_backwards(handler: Handler, ledger: Ledger) -> None:
    ticket_id, ahead = uuid4(), datetime.now(UTC) + timedelta(hours=1)
    await ledger.append(appending(ticket_id, 0, created(ticket_id, at=ahead)))
    answer = await handler.handle(Edit(title="By a clock that is late"), ticket_id, by())
    assert answer.ticket.updated_at == ahead


# ---------------------------------------------------------------------------------------------------- If-Match


async def test_a_command_for_the_present_version_is_done(handler: Handler) -> None:
    ticket_id = await create(handler)
    assert (await handler.handle(Edit(title="One"), ticket_id, by(if_match={1}))).ticket.version == 2
    assert (await handler.handle(Edit(title="Two"), ticket_id, by(if_match={1, 2, 9}))).ticket.version == 3
    assert (await handler.handle(Edit(title="Three"), ticket_id, by())).ticket.version == 4


async def test_a_command_for_another_version_is_told_what_happened_since(handler: Handler, ledger: Ledger) -> None:
    ticket_id = await create(handler, Status.OPEN, Status.IN_PROGRESS)
    topics = ["ticket.created.v1", "ticket.status_changed.v1", "ticket.status_changed.v1"]
    times = [fact.timestamp for fact in await ledger.facts(ticket_id)]
    for if_match, expected, since in (
        ({1}, "1", [2, 3]),
        ({2, 1}, "1, 2", [2, 3]),
        ({2}, "2", [3]),
        ({4}, "4", []),
        (set[int](), "that", [1, 2, 3]),
    ):
        with pytest.raises(VersionMismatch, match=f"at version 3, not at {expected}") as refused:
            await handler.handle(Edit(title="Too late"), ticket_id, by(if_match=if_match))
        assert refused.value.details["current_version"] == 3
        assert refused.value.details["events"] == [
            {"version": number, "topic": topics[number - 1], "occurred_at": times[number - 1]} for number in since
        ]
    assert await version(handler, ticket_id) == 3


async def test_a_command_that_would_change_nothing_is_refused_for_another_version_all_the_same(
    handler: Handler,
) -> None:
    ticket_id = await create(handler)
    with pytest.raises(VersionMismatch):
        await handler.handle(Edit(title=CREATE.title), ticket_id, by(if_match={2}))
    assert (await handler.handle(Edit(title=CREATE.title), ticket_id, by(if_match={1}))).ticket.version == 1


async def test_who_may_not_is_not_told_the_version(handler: Handler) -> None:
    ticket_id = await create(handler)
    stranger = Actor(id=uuid4(), role=Role.END_USER)
    engineer = Actor(id=uuid4(), role=Role.DEVOPS_ENGINEER)
    with pytest.raises(NotFound):
        await handler.handle(Edit(title="Mine now"), ticket_id, by(stranger, if_match={7}))
    with pytest.raises(Forbidden):
        await handler.handle(Edit(title="Mine now"), ticket_id, by(engineer, if_match={7}))


# -------------------------------------------------------------------------------------------- Idempotency-Key


async def test_the_same_key_gives_the_first_answer_again_whatever_happened_since(
    handler: Handler, ledger: Ledger
) -> None:
    first = await handler.handle(CREATE, None, by(key="create"))
    ticket_id = first.ticket.id
    opened = await handler.handle(move(Status.OPEN), ticket_id, by(key="open", if_match={1}))
    await handler.handle(Edit(title="Changed since"), ticket_id, by())
    head = await ledger.head()
    assert await handler.handle(CREATE, None, by(key="create")) == replayed(first)
    again = await handler.handle(move(Status.OPEN), ticket_id, by(key="open", if_match={1}))
    assert again == replayed(opened), "If-Match was right when it was done"
    assert await ledger.head() == head


async def test_another_process_gives_the_first_answer_as_well(two: tuple[Handler, Handler]) -> None:
    here, there = two
    key = str(uuid4())
    first = await here.handle(CREATE, None, by(key=key))
    assert await there.handle(CREATE, None, by(key=key)) == replayed(first)


async def test_a_key_that_was_used_for_something_else_is_refused(handler: Handler, ledger: Ledger) -> None:
    ticket_id, other = await create(handler), await create(handler)
    key = str(uuid4())
    await handler.handle(Edit(title="First"), ticket_id, by(key=key))
    head = await ledger.head()
    others: list[tuple[Command, UUID | None]] = [
        (Edit(title="Second"), ticket_id),
        (Edit(title="First"), other),
        (Delete(), ticket_id),
        (Restore(), ticket_id),
        (CREATE, None),
        (Edit(title="First"), uuid4()),
    ]
    for command, which in others:
        with pytest.raises(IdempotencyKeyReused):
            await handler.handle(command, which, by(key=key))
    assert await ledger.head() == head


async def test_delete_and_restore_are_not_taken_for_the_same_body(handler: Handler) -> None:
    ticket_id, key = await create(handler), str(uuid4())
    await handler.handle(Delete(), ticket_id, by(key=key))
    with pytest.raises(IdempotencyKeyReused):
        await handler.handle(Restore(), ticket_id, by(key=key))


async def test_keys_belong_to_their_sender(handler: Handler) -> None:
    key = str(uuid4())
    first = await handler.handle(CREATE, None, by(ADA, key=key))
    second = await handler.handle(CREATE, None, by(BEA, key=key))
    assert not second.replayed
    assert first.ticket.id != second.ticket.id


async def test_a_command_that_changed_nothing_is_remembered_under_its_key(handler: Handler, ledger: Ledger) -> None:
    ticket_id, key = await create(handler), str(uuid4())
    nothing = await handler.handle(Edit(title=CREATE.title), ticket_id, by(key=key))
    assert (nothing.ticket.version, nothing.replayed) == (1, False)
    await handler.handle(Edit(title="Now it would"), ticket_id, by())
    head = await ledger.head()
    again = await handler.handle(Edit(title=CREATE.title), ticket_id, by(key=key))
    assert again == replayed(nothing)
    assert await ledger.head() == head


async def test_a_refusal_is_not_remembered(handler: Handler) -> None:
    ticket_id, key = await create(handler), str(uuid4())
    with pytest.raises(IllegalTransition):
        await handler.handle(move(Status.IN_PROGRESS), ticket_id, by(key=key))
    await handler.handle(move(Status.OPEN), ticket_id, by())
    answer = await handler.handle(move(Status.IN_PROGRESS), ticket_id, by(key=key))
    assert (answer.ticket.status, answer.replayed) == (Status.IN_PROGRESS, False)


@pytest.mark.parametrize(
    ("command", "if_match"),
    [(Edit(title="Once"), None), (Edit(title="Once"), {1}), (Delete(), None), (move(Status.OPEN), {1})],
    ids=str,
)
async def test_of_many_who_send_one_key_at_once_all_get_the_first_answer(
    two: tuple[Handler, Handler], command: Command, if_match: set[int] | None
) -> None:
    """Also where the command, done once, can by now not be done again."""
    ticket_id, key = await create(two[0]), str(uuid4())
    answers = await asyncio.gather(
        *(two[turn % 2].handle(command, ticket_id, by(key=key, if_match=if_match)) for turn in range(40))
    )
    assert Counter(answer.replayed for answer in answers) == {False: 1, True: 39}
    assert len({(answer.ticket.version, answer.position) for answer in answers}) == 1
    assert await version(two[0], ticket_id) == 2


async def test_of_many_who_create_with_one_key_at_once_one_creates(two: tuple[Handler, Handler]) -> None:
    key = str(uuid4())
    answers = await asyncio.gather(*(two[turn % 2].handle(CREATE, None, by(key=key)) for turn in range(40)))
    assert Counter(answer.replayed for answer in answers) == {False: 1, True: 39}
    assert len({answer.ticket.id for answer in answers}) == 1


# ----------------------------------------------------------------------------------------------- stale caches


async def test_a_refusal_is_decided_again_on_what_is_really_there(two: tuple[Handler, Handler]) -> None:
    here, there = two
    ticket_id = await create(there)  # there it is known as NEW, and stays so
    await here.handle(move(Status.OPEN), ticket_id, by())
    await here.handle(move(Status.IN_PROGRESS), ticket_id, by())
    answer = await there.handle(move(Status.RESOLVED, "Done"), ticket_id, by())
    assert (answer.ticket.status, answer.ticket.version) == (Status.RESOLVED, 4)

    await there.handle(Delete(), ticket_id, by())
    with pytest.raises(TicketDeleted):
        await there.handle(Edit(title="Gone"), ticket_id, by())
    await here.handle(Restore(), ticket_id, by())
    assert (await there.handle(move(Status.CLOSED), ticket_id, by())).ticket.version == 7


async def test_what_was_allowed_before_is_refused_now(two: tuple[Handler, Handler]) -> None:
    here, there = two
    engineer = Actor(id=uuid4(), role=Role.DEVOPS_ENGINEER)
    ticket_id = await create(there)
    await there.handle(Assign(assignee_id=engineer.id), ticket_id, by())
    await there.handle(Edit(title="Mine"), ticket_id, by(engineer))
    await here.handle(Assign(assignee_id=BEA.id), ticket_id, by())
    with pytest.raises(Forbidden):
        await there.handle(Edit(title="Still mine?"), ticket_id, by(engineer))
    assert await version(here, ticket_id) == 5


async def test_what_changed_nothing_before_changes_something_now(two: tuple[Handler, Handler]) -> None:
    here, there = two
    ticket_id = await create(there)
    await here.handle(Edit(priority=Priority.P1), ticket_id, by())
    answer = await there.handle(Edit(priority=CREATE.priority), ticket_id, by())
    assert (answer.ticket.priority, answer.ticket.version) == (CREATE.priority, 5), "priority and due dates, twice"


async def test_if_match_is_held_against_what_is_really_there(two: tuple[Handler, Handler], ledger: Ledger) -> None:
    here, there = two
    ticket_id = await create(there)
    await here.handle(Edit(title="Meanwhile"), ticket_id, by())
    with pytest.raises(VersionMismatch) as refused:
        await there.handle(Edit(title="On the old one"), ticket_id, by(if_match={1}))
    assert refused.value.details["current_version"] == 2
    assert refused.value.position == await ledger.head(), "that of what another process has added"
    await here.handle(Edit(title="Once more"), ticket_id, by())
    answer = await there.handle(Edit(title="On the new one"), ticket_id, by(if_match={3}))
    assert answer.ticket.version == 4


async def test_a_cache_that_is_far_too_small_only_costs_time(ledger: Ledger) -> None:
    handler = Handler(ledger, known_to_all, cache_size=2)
    tickets = [await create(handler) for _ in range(5)]
    for turn in range(3):
        answers = [await handler.handle(Edit(title=f"Round {turn}"), ticket_id, by()) for ticket_id in tickets]
        assert [answer.ticket.version for answer in answers] == [turn + 2] * 5


# --------------------------------------------------------------------------------------------------- comments


async def said(
    handler: Handler, ticket_id: UUID, body: str, asked: Asked | None = None, *, internal: bool = False
) -> tuple[Answer, UUID]:
    """The answer to a new comment, and the comment's id."""
    answer = await handler.handle(AddComment(body=body, internal=internal), ticket_id, asked or by())
    added = answer.facts[0]
    assert isinstance(added, CommentAdded)
    return answer, added.comment_id


async def test_a_comments_id_is_new_and_its_author_is_whoever_asks(handler: Handler) -> None:
    ticket_id = await create(handler)
    answers = [await said(handler, ticket_id, "Again and again", by(who)) for who in (ADA, BEA, ADA)]
    ids = [comment_id for _, comment_id in answers]
    assert len(set(ids)) == 3
    assert {one.version for one in ids} == {7}
    ticket = answers[-1][0].ticket
    assert {one: ticket.comments[one].author for one in ids} == {
        ids[0]: By(ADA.id, "ada", Role.ADMIN),
        ids[1]: By(BEA.id, "bea", Role.MANAGER),
        ids[2]: By(ADA.id, "ada", Role.ADMIN),
    }
    assert await handler.ticket(ticket_id) == ticket


async def test_facts_keep_what_stood_there_though_the_ticket_does_not(two: tuple[Handler, Handler]) -> None:
    """Also where another process, which has never seen the text, is asked."""
    ticket_id = await create(two[0])
    _, comment_id = await said(two[0], ticket_id, "One")
    facts: list[TicketEvent] = []
    commands: list[Command] = [
        EditComment(comment_id=comment_id, body="Two"),
        EditComment(comment_id=comment_id, body="Three"),
        DeleteComment(comment_id=comment_id),
    ]
    for turn, command in enumerate(commands):
        facts += (await two[(turn + 1) % 2].handle(command, ticket_id, by())).facts
    assert [
        (type(fact), fact.previous)
        for fact in facts
        if isinstance(fact, CommentEdited | CommentDeleted) and fact.comment_id == comment_id
    ] == [(CommentEdited, "One"), (CommentEdited, "Two"), (CommentDeleted, "Three")]


async def test_an_edit_that_says_the_same_appends_nothing(handler: Handler, ledger: Ledger) -> None:
    ticket_id = await create(handler)
    _, comment_id = await said(handler, ticket_id, "One")
    await handler.handle(EditComment(comment_id=comment_id, body="Two"), ticket_id, by())
    head = await ledger.head()
    answer = await handler.handle(EditComment(comment_id=comment_id, body="Two"), ticket_id, by())
    assert (answer.facts, answer.ticket.version) == ((), 3)
    assert await ledger.head() == head


async def test_of_many_edits_at_once_each_knows_what_the_one_before_it_said(
    two: tuple[Handler, Handler], ledger: Ledger
) -> None:
    ticket_id = await create(two[0])
    _, comment_id = await said(two[0], ticket_id, "The first")
    edits = [EditComment(comment_id=comment_id, body=f"Editor {n}") for n in range(16)]
    await asyncio.gather(*(two[n % 2].handle(edit, ticket_id, by()) for n, edit in enumerate(edits)))
    chain = ["The first"]
    for fact in (await ledger.facts(ticket_id))[2:]:
        assert isinstance(fact, CommentEdited)
        assert fact.previous == chain[-1]
        chain.append(fact.body)
    assert sorted(chain[1:]) == sorted(edit.body for edit in edits)


async def test_a_comment_that_is_not_this_tickets_is_not_found(handler: Handler) -> None:
    ticket_id, other = await create(handler), await create(handler)
    _, comment_id = await said(handler, ticket_id, "Here")
    for which, one in ((other, comment_id), (ticket_id, uuid4()), (ticket_id, ticket_id)):
        for command in (EditComment(comment_id=one, body="There"), DeleteComment(comment_id=one)):
            with pytest.raises(NotFound):
                await handler.handle(command, which, by())


async def test_the_same_key_comments_once_and_gives_the_same_comment(two: tuple[Handler, Handler]) -> None:
    here, there = two
    requester = Actor(id=uuid4(), role=Role.END_USER)
    ticket_id = await create(here, Status.OPEN, Status.PENDING_INFO, actor=requester)
    asked = by(requester, key=str(uuid4()))
    first, comment_id = await said(here, ticket_id, "It is the second one", asked)
    assert [type(fact) for fact in first.facts[:2]] == [CommentAdded, StatusChanged]
    await here.handle(EditComment(comment_id=comment_id, body="No, the first"), ticket_id, by(requester))
    again, same_id = await said(there, ticket_id, "It is the second one", asked)
    assert (again, same_id) == (replayed(first), comment_id)
    for other in (AddComment(body="It is the third"), AddComment(body="It is the second one", internal=True)):
        with pytest.raises(IdempotencyKeyReused):
            await there.handle(other, ticket_id, asked)


async def test_of_many_comments_with_one_key_at_once_one_is_made(two: tuple[Handler, Handler]) -> None:
    ticket_id, key = await create(two[0]), str(uuid4())
    answers = await asyncio.gather(*(said(two[n % 2], ticket_id, "Once", by(key=key)) for n in range(40)))
    assert Counter(answer.replayed for answer, _ in answers) == {False: 1, True: 39}
    assert len({comment_id for _, comment_id in answers}) == 1
    assert await version(two[0], ticket_id) == 2


async def test_of_many_comments_at_once_none_is_lost(two: tuple[Handler, Handler]) -> None:
    ticket_id = await create(two[0])
    answers = await asyncio.gather(*(said(two[n % 2], ticket_id, f"Speaker {n}") for n in range(32)))
    found = await two[1].ticket(ticket_id)
    assert found is not None
    assert set(found.comments) == {comment_id for _, comment_id in answers}
    assert len(found.comments) == 32


async def test_a_412_tells_whoever_may_not_know_of_internal_comments_nothing_about_them(handler: Handler) -> None:
    requester = Actor(id=uuid4(), role=Role.END_USER)
    ticket_id = await create(handler, actor=requester)
    _, internal = await said(handler, ticket_id, "Who is that?", internal=True)
    await said(handler, ticket_id, "On it")
    await handler.handle(EditComment(comment_id=internal, body="Oh, them"), ticket_id, by())
    await handler.handle(DeleteComment(comment_id=internal), ticket_id, by())
    told: dict[Role, list[int]] = {}
    for who in (requester, ADA):
        with pytest.raises(VersionMismatch) as refused:
            await handler.handle(Edit(title="Too late"), ticket_id, by(who, if_match={1}))
        events: Any = refused.value.details["events"]
        told[who.role] = [event["version"] for event in events]
    assert told == {Role.END_USER: [3], Role.ADMIN: [2, 3, 4, 5]}


async def test_time_does_not_run_backwards_after_an_internal_comment_either(handler: Handler, ledger: Ledger) -> None:
    ticket_id, ahead = uuid4(), datetime.now(UTC) + timedelta(hours=1)
    internal = CommentAdded(
        originator_id=ticket_id,
        originator_version=2,
        timestamp=ahead,
        comment_id=uuid4(),
        author=By(ADA.id, "ada", Role.ADMIN),
        body="From a clock that is early",
        internal=True,
    )
    await ledger.append(appending(ticket_id, 0, created(ticket_id, at=ahead - timedelta(hours=2)), internal))
    answer = await handler.handle(Edit(title="By a clock that is late"), ticket_id, by())
    assert answer.ticket.updated_at == ahead


# ------------------------------------------------------------------------------------------------------ files

CLEAN = Attach(filename="proxy.log", content_type="text/plain", size=7, sha256="11" * 32, scan=Scan.CLEAN)
OUTCOMES = {
    "clean": CLEAN,
    "waiting": replace(CLEAN, scan=Scan.QUARANTINED),
    "not scanned": replace(CLEAN, scan=Scan.UNSCANNED),
    "infected": replace(CLEAN, infected="Eicar"),
}
"""One file, and what there is to say of it."""


async def attached(handler: Handler, ticket_id: UUID, outcome: str = "clean") -> UUID:
    (added,) = (await handler.handle(OUTCOMES[outcome], ticket_id, by())).facts
    assert isinstance(added, AttachmentAdded)
    return added.attachment_id


@pytest.mark.parametrize(("first", "second"), list(permutations(OUTCOMES, 2)))
async def test_a_file_sent_again_with_its_key_gets_the_first_answer_whatever_is_known_of_it_by_now(
    two: tuple[Handler, Handler], ledger: Ledger, first: str, second: str
) -> None:
    here, there = two
    ticket_id, asked = await create(here), by(key=str(uuid4()))
    answer = await here.handle(OUTCOMES[first], ticket_id, asked)
    for file in answer.ticket.attachments:
        await here.handle(Detach(attachment_id=file), ticket_id, by())
    head = await ledger.head()
    assert await there.handle(OUTCOMES[second], ticket_id, asked) == replayed(answer)
    assert await ledger.head() == head


@pytest.mark.parametrize(
    "other",
    [{"filename": "proxy.txt"}, {"content_type": "text/csv"}, {"size": 8}, {"sha256": "22" * 32}],
    ids=str,
)
async def test_another_file_is_another_command(handler: Handler, other: dict[str, Any]) -> None:
    ticket_id, asked = await create(handler), by(key=str(uuid4()))
    await handler.handle(CLEAN, ticket_id, asked)
    with pytest.raises(IdempotencyKeyReused):
        await handler.handle(replace(CLEAN, **other), ticket_id, asked)


async def test_of_many_who_send_one_file_with_one_key_at_once_all_get_the_first_answer(
    two: tuple[Handler, Handler],
) -> None:
    ticket_id, asked, outcomes = await create(two[0]), by(key=str(uuid4())), list(OUTCOMES.values())
    answers = await asyncio.gather(*(two[n % 2].handle(outcomes[n % 4], ticket_id, asked) for n in range(40)))
    assert Counter(answer.replayed for answer in answers) == {False: 1, True: 39}
    assert all(replayed(answer) == replayed(answers[0]) for answer in answers)
    assert await version(two[0], ticket_id) == 2


CONSIDERED: dict[str, tuple[Change, type[Refusal] | None]] = {
    "a ticket": (CLEAN, None),
    "a ticket at another version": (CLEAN, VersionMismatch),
    "a ticket that is not there": (CLEAN, NotFound),
    "somebody else's ticket": (CLEAN, NotFound),
    "a closed ticket": (CLEAN, TicketClosed),
    "a deleted ticket": (CLEAN, TicketDeleted),
    "a ticket without that file": (Detach(attachment_id=uuid4()), NotFound),
    "a ticket that is not theirs to change": (Edit(title="Anything"), Forbidden),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("what", CONSIDERED)
async def test_what_is_considered_is_refused_as_it_would_be_if_it_were_done_and_nothing_is_written(
    two: tuple[Handler, Handler], ledger: Ledger, what: str, *, whole: bool
) -> None:
    """Also where what is at hand is old, and where it would not be refused."""
    here, there = two
    requester, stranger = (Actor(id=uuid4(), role=Role.END_USER) for _ in range(2))
    ticket_id = await create(here, actor=requester)
    over = (Status.OPEN, Status.IN_PROGRESS, Status.RESOLVED, Status.CLOSED) if what == "a closed ticket" else ()
    for status in over:
        await there.handle(move(status, "because"), ticket_id, by())
    if what == "a deleted ticket":
        await there.handle(Delete(), ticket_id, by())
    whom = {
        "somebody else's ticket": stranger,
        "a ticket that is not theirs to change": Actor(id=uuid4(), role=Role.DEVOPS_ENGINEER),
    }
    which = uuid4() if what == "a ticket that is not there" else ticket_id
    asked = by(whom.get(what, requester), if_match={7} if what == "a ticket at another version" else None)
    (command, refusal), head = CONSIDERED[what], await ledger.head()
    if refusal is None:
        await here.consider(command, which, replace(asked, key=str(ticket_id)), whole=whole)
        assert await ledger.head() == head
        assert not (await here.handle(command, which, replace(asked, key=str(ticket_id)))).replayed
        return
    with pytest.raises(refusal) as considered:
        await here.consider(command, which, asked, whole=whole)
    with pytest.raises(refusal) as done:
        await here.handle(command, which, asked)
    assert (str(considered.value), considered.value.details) == (str(done.value), done.value.details)
    assert await ledger.head() == head


@pytest.mark.parametrize("infected", [None, "Eicar"])
async def test_a_verdict_on_a_file_that_does_not_wait_for_it_is_not_noted(
    handler: Handler, ledger: Ledger, infected: str | None
) -> None:
    ticket_id = await create(handler)
    files = [await attached(handler, ticket_id, outcome) for outcome in ("clean", "not scanned", "waiting")]
    await handler.handle(Detach(attachment_id=files[-1]), ticket_id, by())
    head = await ledger.head()
    for file in files:
        await handler.note_scan(ticket_id, file, infected)
    assert await ledger.head() == head


async def test_of_many_verdicts_at_once_one_is_noted(two: tuple[Handler, Handler], ledger: Ledger) -> None:
    ticket_id = await create(two[0])
    file = await attached(two[0], ticket_id, "waiting")
    await asyncio.gather(*(two[n % 2].note_scan(ticket_id, file, "Eicar" if n % 3 else None) for n in range(24)))
    (noted,) = (await ledger.facts(ticket_id))[2:]
    assert isinstance(noted, AttachmentScanned)


async def test_a_file_that_is_taken_away_while_it_is_looked_at_stays_away(
    two: tuple[Handler, Handler], ledger: Ledger
) -> None:
    here, there = two
    for _ in range(10):
        ticket_id = await create(here)
        file = await attached(here, ticket_id, "waiting")
        await asyncio.gather(
            there.note_scan(ticket_id, file, None), here.handle(Detach(attachment_id=file), ticket_id, by())
        )
        facts = [type(fact) for fact in (await ledger.facts(ticket_id))[2:]]
        assert facts in ([AttachmentDeleted], [AttachmentScanned, AttachmentDeleted])


async def test_a_verdict_is_not_of_before_what_it_is_about(handler: Handler, ledger: Ledger) -> None:
    ticket_id, file, ahead = uuid4(), uuid4(), datetime.now(UTC) + timedelta(hours=1)
    waiting = AttachmentAdded(
        originator_id=ticket_id,
        originator_version=2,
        timestamp=ahead,
        attachment_id=file,
        uploaded_by=By(ADA.id, "ada", Role.ADMIN),
        filename="from a clock that is early.log",
        content_type="text/plain",
        size=7,
        sha256="11" * 32,
        scan=Scan.QUARANTINED,
    )
    await ledger.append(appending(ticket_id, 0, created(ticket_id), waiting))
    await handler.note_scan(ticket_id, file, None)
    assert [fact.timestamp for fact in (await ledger.facts(ticket_id))[1:]] == [ahead, ahead]


# ------------------------------------------------------------------------------------------------ many at once


async def test_of_64_commands_for_one_version_exactly_one_is_done(two: tuple[Handler, Handler]) -> None:
    ticket_id = await create(two[0])
    results = await asyncio.gather(
        *(two[n % 2].handle(Edit(title=f"Writer {n}"), ticket_id, by(if_match={1})) for n in range(64)),
        return_exceptions=True,
    )
    (won,) = [one for one in results if isinstance(one, Answer)]
    lost = [one for one in results if isinstance(one, VersionMismatch)]
    assert len(lost) == 63
    assert won.ticket.version == await version(two[0], ticket_id) == 2
    for refusal in lost:
        events: Any = refusal.details["events"]
        assert refusal.details["current_version"] == 2
        assert [(event["version"], event["topic"]) for event in events] == [(2, "ticket.edited.v1")]


async def test_without_if_match_all_of_them_are_decided_again_until_each_is_done(
    two: tuple[Handler, Handler], ledger: Ledger
) -> None:
    ticket_id = await create(two[0])
    answers = await asyncio.gather(*(two[n % 2].handle(Edit(title=f"Writer {n}"), ticket_id, by()) for n in range(64)))
    assert sorted(answer.ticket.version for answer in answers) == list(range(2, 66))
    told = {answer.ticket.version: answer.ticket.title for answer in answers}
    for fact in (await ledger.facts(ticket_id))[1:]:
        assert told[fact.originator_version] == getattr(fact, "title", None), "each was told what it had done"


async def test_of_64_who_take_the_same_step_one_does_and_the_rest_find_it_done(two: tuple[Handler, Handler]) -> None:
    ticket_id = await create(two[0])
    answers = await asyncio.gather(*(two[n % 2].handle(move(Status.OPEN), ticket_id, by()) for n in range(64)))
    assert {answer.ticket.version for answer in answers} == {2}
    assert await version(two[0], ticket_id) == 2


async def test_who_loses_more_often_than_is_bearable_is_told_so(ledger: Ledger) -> None:
    handler = Handler(ledger, known_to_all, attempts=1)
    ticket_id = await create(handler)
    results = await asyncio.gather(
        *(handler.handle(Edit(title=f"Writer {n}"), ticket_id, by()) for n in range(4)), return_exceptions=True
    )
    assert Counter(type(one) for one in results) == {Answer: 1, TooContended: 3}
    assert await version(handler, ticket_id) == 2


async def test_a_ticket_that_another_server_does_not_have_so_far_is_read_anew(handler: Handler) -> None:
    """After a failover that lost what had been committed: what is at hand is ahead of the ledger then."""
    ticket_id = await create(handler, Status.OPEN)
    known = handler._cache[ticket_id]
    handler._cache[ticket_id] = replace(known, version=known.version + 2, title="Never written")
    answer = await handler.handle(Edit(description="Goes on from what is there"), ticket_id, by())
    assert (answer.ticket.version, answer.ticket.title) == (known.version + 1, CREATE.title)
    assert await handler.ticket(ticket_id) == answer.ticket


async def test_after_a_connection_to_what_may_be_another_server_nothing_is_taken_from_memory(
    handler: Handler, ledger: Ledger, owner: Connection
) -> None:
    ticket_id = await create(handler, Status.OPEN)
    handler._cache[ticket_id] = replace(handler._cache[ticket_id], title="Never written")
    await owner.execute(
        """select pg_terminate_backend(pid) from pg_stat_activity
           where datname = current_database() and application_name like 'tickets writer%'"""
    )

    async def forgotten() -> bool:
        return ticket_id not in handler._cache

    await eventually(forgotten)

    async def is_back() -> bool:
        return ledger.connected

    await eventually(is_back)
    answer = await handler.handle(Edit(description="Another text"), ticket_id, by())
    assert answer.ticket.title == CREATE.title


async def test_a_command_that_changes_nothing_tells_a_position_that_has_all_that_it_saw(
    two: tuple[Handler, Handler],
) -> None:
    """Also what came through another process, of which this one has not heard."""
    ticket_id = await create(two[0])
    for _ in range(3):
        there = await two[1].handle(Edit(title=f"Another title {uuid4()}"), ticket_id, by())
        answer = await two[0].handle(Edit(title=there.ticket.title), ticket_id, by())
        assert answer.ticket.version == there.ticket.version
        assert answer.position >= there.position


async def test_ticket_numbers_are_unique_and_a_refused_creation_leaves_no_gap(
    two: tuple[Handler, Handler], ledger: Ledger
) -> None:
    (before,) = await ledger.ticket_numbers(1)
    for_another = msgspec.structs.replace(CREATE, requester_id=uuid4())
    user = Actor(id=uuid4(), role=Role.END_USER)

    async def refused() -> None:
        with pytest.raises(Forbidden):
            await two[0].handle(for_another, None, by(user))

    refusals = asyncio.gather(*(refused() for _ in range(10)))
    answers = await asyncio.gather(*(two[n % 2].handle(CREATE, None, by()) for n in range(60)))
    await refusals
    numbers = sorted(answer.ticket.number for answer in answers)
    year = datetime.now(UTC).year
    assert numbers == [f"TKT-{year}-{number:06d}" for number in range(before + 1, before + 61)]
