"""Catching up on a real database: exactly once, whoever leads, whatever is lost, and past facts that are broken."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from msgspec.structs import replace

from projections import attachments, comments
from projections.comparison import Compared
from projections.projection import LIVE
from projections.rebuild import rebuild
from projections.runner import LEADER, PROJECTIONS, Fold, Runner, catch_up_alone
from projections.status import ProjectionStatus, read_status
from projections.tickets import document
from tests.conftest import eventually
from tests.tickets.test_ledger import NOON, SOMEBODY, assigned, created
from tickets import mapper, snapshots
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    ChangeStatus,
    Command,
    Create,
    DeleteComment,
    Detach,
    Edit,
    EditComment,
)
from tickets.connections import Connection, connect
from tickets.events import AttachmentAdded, CommentAdded, Metadata, TicketEvent
from tickets.handler import Asked, Handler
from tickets.ledger import Ledger, read
from tickets.lifecycle import Status
from tickets.people import People
from tickets.permissions import Actor, Assignee, Role
from tickets.sla import Priority
from tickets.ticket import Ticket
from tickets.values import Category, Scan

ADA = Actor(id=uuid4(), role=Role.ADMIN, username="ada", teams=("Mail",))
ASKED = Asked(actor=ADA)
LIFE: Sequence[Command] = (
    Assign(assignee_id=ADA.id, team="Mail"),
    ChangeStatus(status=Status.IN_PROGRESS),
    Edit(title="Ünïcode 🚒", priority=Priority.P1, tags=("mail", "web")),
    ChangeStatus(status=Status.PENDING_INFO, reason="Which?"),
    ChangeStatus(status=Status.IN_PROGRESS),
    ChangeStatus(status=Status.RESOLVED, reason="Turned it off and on"),
    ChangeStatus(status=Status.CLOSED),
)

CLEAN = Attach(filename="Größe.log", content_type="text/plain", size=7, sha256="11" * 32, scan=Scan.CLEAN)
WAITING = replace(CLEAN, sha256="22" * 32, scan=Scan.QUARANTINED)

TALK: Sequence[Sequence[Command]] = (
    (AddComment(body="Since the upgrade"), AddComment(body="They upgraded?", internal=True), WAITING, CLEAN),
    (EditComment(comment_id=UUID(int=0), body="Since the upgrade 🔥"), replace(CLEAN, infected="Eicar")),
    (AddComment(body="Ask them", internal=True), EditComment(comment_id=UUID(int=1), body="They did"), CLEAN),
    (AddComment(body="Which upgrade?"), DeleteComment(comment_id=UUID(int=0)), WAITING, WAITING),
    (EditComment(comment_id=UUID(int=2), body="Asked"), DeleteComment(comment_id=UUID(int=1))),
    (AddComment(body="Done"), EditComment(comment_id=UUID(int=4), body="All done")),
    (),
)
"""What is said and attached after each command of LIFE; a comment's id is the how-manieth of the ticket it is."""
SAID = {False: ["Which upgrade?", "All done"], True: ["Asked", "Which upgrade?", "All done"]}
"""What is left of it, without the internal comments and with them."""


async def _known(person_id: UUID) -> Assignee | None:
    return Assignee(id=person_id)


async def live(ledger: Ledger, tickets: int) -> list[UUID]:
    """So many tickets that are created, go through a life at the same time, and end somewhere in it."""
    handler, people = Handler(ledger, _known), People(ledger)

    async def one(number: int) -> UUID:
        await people.saw(Actor(id=uuid4(), role=Role.END_USER, teams=(f"team {number}",)))
        made = Create(title=f"Number {number}", description="…", category=Category.INCIDENT, affected_service="mail")
        ticket = (await handler.handle(made, None, ASKED)).ticket
        said, files = list[UUID](), list[UUID]()
        for command, talk in list(zip(LIFE, TALK, strict=True))[: number % (len(LIFE) + 1)]:
            await handler.handle(command, ticket.id, ASKED)
            if command is LIFE[4]:
                await look_at_files(handler, files, ticket.id)
            for words in talk:
                if isinstance(words, EditComment | DeleteComment):
                    words = replace(words, comment_id=said[words.comment_id.int])  # noqa: PLW2901 - the same, about it
                facts = (await handler.handle(words, ticket.id, ASKED)).facts
                said += [fact.comment_id for fact in facts if isinstance(fact, CommentAdded)]
                files += [fact.attachment_id for fact in facts if isinstance(fact, AttachmentAdded)]
        return ticket.id

    return await asyncio.gather(*(one(number) for number in range(tickets)))


async def look_at_files(handler: Handler, files: Sequence[UUID], ticket_id: UUID) -> None:
    """Of those that wait, one is clean, one is not, and the last is taken away, as is one that did not wait."""
    first, second, _, fourth, last = files
    await handler.note_scan(ticket_id, first, None)
    await handler.note_scan(ticket_id, fourth, "Eicar")
    for gone in (second, last):
        await handler.handle(Detach(attachment_id=gone), ticket_id, ASKED)


@asynccontextmanager
async def running(ledger: Ledger, dsn: str, *, batch_size: int = 1_000, poll: float = 0.1) -> AsyncIterator[Runner]:
    runner = Runner(ledger, lambda: connect(dsn), batch_size=batch_size, poll=poll)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await task


async def level(connection: Connection) -> bool:
    """Whether every read model is where the ledger is."""
    status = await read_status(connection)
    return all(one.position == status.ledger for one in status.projections)


async def dump(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every read model, to the byte."""
    rows = {
        name: await connection.fetch(f"table {LIVE}.{name} order by {PROJECTIONS[name].key}") for name in PROJECTIONS
    }
    parked = await connection.fetch(
        f"select projection, stream_id, position, error from {LIVE}.parked order by projection, stream_id"
    )
    return {name: [tuple(row) for row in found] for name, found in (*rows.items(), ("parked", parked))}


async def said_of(ledger: Ledger, ticket_id: UUID, *, internal: bool) -> list[str]:
    """What people said of a ticket, as the read model has it."""
    page = await comments.read(ledger.pool, ticket_id, internal=internal, page_size=100)
    found = msgspec.json.decode(b"[%b]" % b",".join(page.docs), type=list[comments.CommentView])
    return [one.body for one in found if not one.system]


async def compared(dsn: str, *, names: Sequence[str] = (), swap: bool = False) -> list[Compared]:
    """What a rebuild, or without `swap` a check, finds."""
    return [step async for step in rebuild(dsn, names, swap=swap) if isinstance(step, Compared)]


async def assert_all_is_as_it_should_be(dsn: str, owner: Connection) -> None:
    """Each fact was seen exactly once, the rows are what the facts make of a ticket, and a rebuild would agree."""
    assert await level(owner)
    facts = await owner.fetch("select position from ledger.events where topic like 'ticket.%' order by position")
    entries = await owner.fetch("select position from read_model.history order by position")
    assert [tuple(row) for row in entries] == [tuple(row) for row in facts]
    for one in await compared(dsn):
        assert one.clean, one


# ------------------------------------------------------------------------------------------------- catching up


async def test_the_runner_catches_up_with_what_is_there_and_with_what_comes(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await live(ledger, 10)
    projected: list[int] = []
    async with running(ledger, dsn, batch_size=16) as runner:
        runner.on_projected.append(projected.append)
        await eventually(lambda: level(owner))
        first = await ledger.head()
        tickets = await live(ledger, 10)
        await eventually(lambda: level(owner))
    assert projected == sorted(projected)
    assert first in projected
    assert projected[-1] == await ledger.head()
    handler = Handler(ledger, _known)
    for ticket_id in tickets:
        ticket = await handler.ticket(ticket_id)
        assert ticket is not None
        doc = await owner.fetchval("select doc from read_model.tickets where ticket_id = $1", ticket_id)
        assert doc == document(ticket)
        for internal in (False, True):
            read = await comments.read(ledger.pool, ticket_id, internal=internal, page_size=100)
            assert read.total == len(read.docs) == ticket.public_comments + ticket.internal_comments * internal
        files = sorted(ticket.attachments.items(), key=lambda item: item[1].version)
        there = await attachments.read(ledger.pool, ticket_id, page_size=100)
        assert there.docs == [attachments.encode(attachments.view(one, ticket_id, file)) for one, file in files]
    entries = await owner.fetch(
        "select entry from read_model.history where ticket_id = $1 order by position", tickets[7]
    )
    versions = [msgspec.json.decode(entry)["version"] for (entry,) in entries]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) > len(LIFE)
    for internal, texts in SAID.items():
        assert await said_of(ledger, tickets[7], internal=internal) == texts
    assert await owner.fetchval("select count(*) from read_model.people") == 20
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_it_is_woken_by_what_another_process_appends(ledger: Ledger, owner: Connection, dsn: str) -> None:
    async with Ledger.open(dsn) as other, running(other, dsn, poll=60) as runner:

        async def leads() -> bool:
            return runner.leads

        await eventually(leads)
        await live(ledger, 3)
        await eventually(lambda: level(owner), timeout=5)


async def test_a_notification_that_was_lost_costs_no_more_than_a_look(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with running(ledger, dsn, poll=0.1):
        await live(ledger, 2)
        await eventually(lambda: level(owner))
        stream = uuid4()
        await store(owner, stream, 1, created(stream))  # without telling anybody
        await eventually(lambda: level(owner), timeout=5)
    assert await owner.fetchval("select version from read_model.tickets where ticket_id = $1", stream) == 1


@pytest.mark.parametrize("name", ["people", "periods"])
async def test_a_read_model_that_is_new_begins_at_the_beginning_and_the_others_take_nothing_twice(
    ledger: Ledger, owner: Connection, dsn: str, name: str
) -> None:
    await live(ledger, 8)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    before = await dump(owner)
    assert before[name]
    await owner.execute(f"delete from read_model.checkpoints where projection = '{name}'; truncate read_model.{name}")
    async with running(ledger, dsn, batch_size=10):
        await eventually(lambda: level(owner))
    assert await dump(owner) == before


async def test_a_ticket_with_a_long_life_is_folded_on_from_its_snapshot(
    ledger: Ledger, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody waits while thousands of facts are folded for one that came."""
    monkeypatch.setattr(snapshots, "EVERY", 4)
    handler = Handler(ledger, _known)
    ticket = (
        await handler.handle(Create(title="Mail", description="…", category=Category.INCIDENT), None, ASKED)
    ).ticket
    for n in range(9):
        ticket = (await handler.handle(AddComment(body=f"{n}", internal=n % 2 == 1), ticket.id, ASKED)).ticket
    last = (await read(owner, 0, 100))[-1]

    async def before() -> Ticket | None:
        fold = Fold(owner)
        await fold.prepare([last])
        step = fold.step(last)
        assert step.after is not None
        assert step.after.comments == ticket.comments
        return step.before

    by_facts = await handler.ticket(ticket.id, upto=ticket.version - 1)
    assert by_facts is not None
    assert await before() == by_facts
    kept = await snapshots.find(snapshots.finding(ledger.pool), ticket.id)
    assert kept is not None
    await owner.execute("truncate ledger.snapshots")
    assert await before() == by_facts
    await snapshots.keep(ledger.pool, replace(kept, title="As it was kept"))
    assert await before() == replace(by_facts, title="As it was kept")
    await owner.execute("update ledger.snapshots set state = 'nonsense'")
    assert await before() == by_facts, "what cannot be read is as good as none"


async def test_catching_up_alone_is_left_to_a_runner_that_leads(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await live(ledger, 3)
    connection = await connect(dsn)
    try:
        await owner.execute("select pg_advisory_lock($1)", LEADER)
        await catch_up_alone(connection)
        assert not await level(owner)
        await owner.execute("select pg_advisory_unlock($1)", LEADER)
        told: list[int] = []
        await catch_up_alone(connection, batch_size=4, projected=told.append)
        assert told[-1] == await ledger.head()
        assert not (await read_status(owner)).led, "and it gives the lead back"
    finally:
        await connection.close()
    await assert_all_is_as_it_should_be(dsn, owner)


# ------------------------------------------------------------------------------------------------- who leads


async def test_one_leads_and_when_it_goes_the_other_takes_over_where_it_was(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with Ledger.open(dsn) as second, running(ledger, dsn, batch_size=5) as one:
        async with running(second, dsn, batch_size=5) as other:

            async def exactly_one_leads() -> bool:
                return one.leads != other.leads and (await read_status(owner)).led

            async with asyncio.timeout(30):
                for _ in range(3):
                    await eventually(exactly_one_leads)
                    leader = one if one.leads else other
                    writing = asyncio.create_task(live(ledger, 6))
                    killed = await owner.fetchval(
                        """select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted
                           and database = (select oid from pg_database where datname = current_database())"""
                    )
                    assert killed

                    async def gone(leader: Runner = leader) -> bool:
                        return not leader.leads or await level(owner)

                    await eventually(gone)
                    await writing
                await eventually(lambda: level(owner))
                await eventually(exactly_one_leads)

        async def the_first_leads() -> bool:
            return one.leads

        await live(ledger, 2)
        await eventually(the_first_leads)
        assert not other.leads
        await eventually(lambda: level(owner))
    assert not (await read_status(owner)).led
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_whoever_stands_by_leaves_the_database_alone(ledger: Ledger, owner: Connection, dsn: str) -> None:
    """However much is appended: it looks now and then whether the one that leads is still there."""
    asked: list[str] = []

    async def counting() -> Connection:
        connection = await connect(dsn)
        connection.add_query_logger(lambda query: asked.append(query.query))
        return connection

    async with running(ledger, dsn) as leader, Ledger.open(dsn) as other:
        await live(ledger, 1)
        await eventually(lambda: level(owner))
        standing_by = Runner(other, counting, poll=0.2)
        await other.head()
        task = asyncio.create_task(standing_by.run())
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            await live(ledger, 1)
            await other.head()
        assert leader.leads
        assert not standing_by.leads
        assert 1 <= len(asked) <= 8
        standing_by.stop()
        async with asyncio.timeout(1):
            await task


async def test_a_batch_that_takes_longer_than_it_may_is_taken_in_smaller_ones(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await live(ledger, 6)
    head = await ledger.head()
    await owner.execute(
        """create function read_model.slowly() returns trigger language plpgsql as
           $$ begin perform pg_sleep(0.02); return new; end $$;
           create trigger slowly before insert on read_model.history
           for each row execute function read_model.slowly()"""
    )
    runner = Runner(ledger, lambda: connect(dsn, statement_timeout=0.5), poll=0.1)
    assert head * 0.02 > 0.5, "all of it at once takes longer"
    task = asyncio.create_task(runner.run())
    await eventually(lambda: level(owner), timeout=30)
    runner.stop()
    await task
    await owner.execute("drop function read_model.slowly cascade")
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_killed_again_and_again_it_has_seen_each_fact_once_in_the_end(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await live(ledger, 30)
    head = await ledger.head()
    reached = [0]
    for step in (1, 17, 4, 9, 30, 2, 13, 8):
        runner = Runner(ledger, lambda: connect(dsn), batch_size=3)
        task = asyncio.create_task(runner.run())
        goal = min(reached[-1] + step, head)

        async def got_somewhere(goal: int = goal) -> bool:
            return min(one.position for one in (await read_status(owner)).projections) >= goal

        await eventually(got_somewhere)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        reached.append(min(one.position for one in (await read_status(owner)).projections))
    assert reached[1] < head, "it was killed before it was done"
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await assert_all_is_as_it_should_be(dsn, owner)


# ------------------------------------------------------------------------------- facts that cannot be digested


async def store(
    owner: Connection,
    stream: UUID,
    version: int,
    fact: TicketEvent | None = None,
    *,
    topic: str | None = None,
    state: bytes | None = None,
    metadata: bytes | None = None,
) -> int:
    """Put a fact, or what should be one, into the ledger past everything that looks at it; its position."""
    about = msgspec.json.encode(Metadata(actor=SOMEBODY, command_id=uuid4()))
    position: int = await owner.fetchval(
        """with head as (update ledger.head set position = position + 1 returning position)
           insert into ledger.events
           select position, $1, $2, $3, $4, now(), gen_random_uuid(), $5, $6, sha256('') from head
           returning position""",
        stream,
        version,
        topic or (fact.TOPIC if fact else "ticket.edited.v1"),
        NOON,
        about if metadata is None else metadata,
        mapper.encode(fact) if state is None else state,
    )
    return position


def broken(stream: UUID) -> dict[str, dict[str, Any]]:
    """What can be wrong with a ticket's second fact, and what it is stored with."""
    fine = assigned(stream, 2)
    good = mapper.encode(fine)
    return {
        "a topic that nobody knows": {"topic": "ticket.teleported.v1", "state": good},
        "a state that is no JSON": {"state": b"{"},
        "a state that is no text": {"topic": fine.TOPIC, "state": good.replace(b"team 2", b"\xff\xfe")},
        "a state that lacks something": {"topic": "ticket.prioritized.v1", "state": good},
        "an empty state": {"state": b""},
        "metadata that are no JSON": {"fact": fine, "metadata": b"}"},
        "metadata that are no text": {
            "fact": fine,
            "metadata": b'{"actor":{"id":"%b","username":"\xff","role":null},"command_id":"%b"}'
            % (str(stream).encode(), str(stream).encode()),
        },
        "metadata that say nobody": {"fact": fine, "metadata": b"{}"},
        "a version that does not follow": {"fact": assigned(stream, 3)},
        "another stream's fact": {"fact": assigned(uuid4(), 2)},
        "a second creation": {"fact": created(stream)},
    }


@pytest.mark.parametrize("batch_size", [1, 4, 1_000])
async def test_a_fact_that_cannot_be_digested_parks_its_stream_visibly_and_the_others_go_on(
    ledger: Ledger, owner: Connection, dsn: str, batch_size: int
) -> None:
    parked: dict[UUID, tuple[int, str]] = {}
    for what in broken(uuid4()):
        stream = uuid4()
        await store(owner, stream, 1, created(stream))
        position = await store(owner, stream, 2, **broken(stream)[what])
        await store(owner, stream, 3, assigned(stream, 3))
        parked[stream] = (position, what)
    healthy = await live(ledger, 3)
    async with running(ledger, dsn, batch_size=batch_size) as runner:
        await eventually(lambda: level(owner))
        later = await live(ledger, 3)
        for stream in parked:
            await store(owner, stream, 4, assigned(stream, 4))
        await eventually(lambda: level(owner))
        assert runner.leads
    status = await read_status(owner)
    assert {one.name: one.parked for one in status.projections} == dict.fromkeys(PROJECTIONS, len(parked))
    assert {(one.projection, one.stream_id, one.position) for one in status.parked} == {
        (name, stream, position) for name in PROJECTIONS for stream, (position, _) in parked.items()
    }
    assert all(len(one.error) > 20 for one in status.parked), "and it is said why"
    for stream, (_, what) in parked.items():
        version = await owner.fetchval("select version from read_model.tickets where ticket_id = $1", stream)
        entries = await owner.fetchval("select count(*) from read_model.history where ticket_id = $1", stream)
        assert (version, entries) == (1, 1), f"left as it was before {what}"
    for ticket_id in (*healthy, *later):
        assert await owner.fetchval("select 1 from read_model.tickets where ticket_id = $1", ticket_id)
    assert all(one.clean for one in await compared(dsn)), "and a rebuild has the same to say"


def refused(stream: UUID) -> dict[str, TicketEvent]:
    """Facts that can be read, but whose rows PostgreSQL will not have."""
    return {
        "a NUL in a text": replace(created(stream), affected_service="a\0b"),
        "a NUL in a tag": replace(created(stream), tags=("fine", "\0")),
        "a number that is taken": created(stream, number="TKT-1"),
        "more than an index can hold": replace(
            created(stream), affected_service="".join(sha256(bytes([n])).hexdigest() for n in range(200))
        ),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 1_000])
async def test_a_row_that_the_database_refuses_parks_its_stream_as_well(
    ledger: Ledger, owner: Connection, dsn: str, batch_size: int
) -> None:
    first = uuid4()
    await store(owner, first, 1, created(first, number="TKT-1"))
    bad: dict[UUID, str] = {}
    for what in refused(first):
        stream = uuid4()
        await store(owner, stream, 1, refused(stream)[what])
        await live(ledger, 2)
        await store(owner, stream, 2, assigned(stream, 2))
        bad[stream] = what
    async with running(ledger, dsn, batch_size=batch_size):
        await eventually(lambda: level(owner))
        await live(ledger, 2)
        await eventually(lambda: level(owner))
    status = await read_status(owner)
    assert {(one.projection, bad[one.stream_id]) for one in status.parked} == {
        ("tickets", what) for what in bad.values()
    }
    rows = await owner.fetch("select ticket_id from read_model.tickets")
    assert len(rows) == 1 + 2 * len(bad) + 2
    assert not {row[0] for row in rows} & set(bad)
    entries = await owner.fetchval("select count(*) from read_model.history where ticket_id = any($1)", list(bad))
    assert entries == 2 * len(bad), "the history can follow"


async def test_the_state_of_things_says_how_far_behind_each_read_model_is(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    empty = await read_status(owner)
    assert (empty.ledger, empty.led, empty.parked) == (0, False, [])
    assert [(one.name, one.position, one.behind) for one in empty.projections] == [(name, 0, 0) for name in PROJECTIONS]
    await live(ledger, 2)
    head = await ledger.head()
    assert [one.behind for one in (await read_status(owner)).projections] == [head] * len(PROJECTIONS)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
        seen: ProjectionStatus = await read_status(owner)
        assert seen.led
        assert [(one.position, one.behind, one.parked) for one in seen.projections] == [(head, 0, 0)] * len(PROJECTIONS)
        assert all(one.updated_at is not None for one in seen.projections)
