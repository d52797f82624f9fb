"""The ledger on a real PostgreSQL: order, group commit, exactly once, conflicts, poison, and that it is immutable."""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from multiprocessing import get_context
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import EventStore, MapperDeserialisationError, StoredEvent
from eventsourcing.popo import POPOAggregateRecorder

from tests.conftest import eventually, fresh_database
from tickets.connections import Connection, connect, connected
from tickets.errors import LedgerUnavailable, Overloaded
from tickets.events import Assigned, By, Created, Metadata, PersonSeen, StatusChanged, TicketEvent
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.mapper import FactMapper
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.values import Category
from tickets.writer import Append, Outcome

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOMEBODY = By(UUID("0b8d1f0e-3a52-4f6e-9a53-0d2f7c0a3f10"), "Zoë", Role.ADMIN)


def created(stream: UUID, *, at: datetime = NOON, number: str | None = None) -> Created:
    return Created(
        originator_id=stream,
        originator_version=1,
        timestamp=at,
        number=number or f"TKT-{stream}",
        title="Prodüktion steht 🚒",
        description="Nothing goes",
        category=Category.INCIDENT,
        priority=Priority.P1,
        requester_id=SOMEBODY.id,
        response_due_at=at + timedelta(hours=1),
        resolution_due_at=at + timedelta(hours=4),
    )


def assigned(stream: UUID, version: int, *, at: datetime = NOON) -> Assigned:
    return Assigned(
        originator_id=stream, originator_version=version, timestamp=at, assignee_id=SOMEBODY.id, team=f"team {version}"
    )


def appending(
    stream: UUID, expected: int, *facts: TicketEvent, command_id: UUID | None = None, fingerprint: bytes = b"asked"
) -> Append:
    """An append of these facts, or of one fact that follows."""
    command_id = command_id or uuid4()
    about = Metadata(actor=SOMEBODY, command_id=command_id, ip_address="192.0.2.1", request_id="r-1")
    one = created(stream) if expected == 0 else assigned(stream, expected + 1)
    return Append(
        command_id=command_id,
        stream_id=stream,
        expected_version=expected,
        facts=tuple((fact, about) for fact in facts or (one,)),
        fingerprint=fingerprint,
    )


def noting(stream: UUID, expected: int, command_id: UUID) -> Append:
    """An append without facts."""
    return Append(command_id=command_id, stream_id=stream, expected_version=expected, facts=(), fingerprint=b"asked")


async def count(owner: Connection, table: str) -> int:
    found: int = await owner.fetchval(f"select count(*) from ledger.{table}")
    return found


@asynccontextmanager
async def held_up(dsn: str) -> AsyncIterator[Connection]:
    """While this lasts, nothing is appended: somebody else holds the head."""
    connection = await connect(dsn, role=None)
    try:
        async with connection.transaction():
            await connection.execute("select from ledger.head for update")
            yield connection
    finally:
        await connection.close()


async def waits_for_the_head(owner: Connection) -> bool:
    waiting: int = await owner.fetchval(
        """select count(*) from pg_stat_activity where datname = current_database()
           and wait_event_type = 'Lock' and query like '%ledger.append%'"""
    )
    return waiting > 0


# ------------------------------------------------------------------------------------------ append and read


async def test_what_was_appended_is_read_back_as_it_was_and_in_order(ledger: Ledger, owner: Connection) -> None:
    one, other = uuid4(), uuid4()
    first = appending(one, 0, created(one), assigned(one, 2, at=NOON + timedelta(hours=1)))
    assert await ledger.append(first) == Outcome("appended", one, 2, 2, b"asked")
    assert (await ledger.append(appending(other, 0))).position == 3
    last = StatusChanged(
        originator_id=one, originator_version=3, timestamp=NOON + timedelta(hours=2), status=Status.OPEN, reason="\n\\u"
    )
    third = appending(one, 2, last)
    assert await ledger.append(third) == Outcome("appended", one, 3, 4, b"asked")

    loaded = await ledger.load(one)
    facts = [fact for fact, _ in (*first.facts, *third.facts)]
    assert [each.fact for each in loaded] == await ledger.facts(one) == facts
    assert [each.position for each in loaded] == [1, 2, 4]
    assert all(each.recorded_at.tzinfo is not None for each in loaded)
    assert str(first.command_id).encode() in loaded[0].metadata
    assert [each.fact for each in await ledger.load(one, after=1, upto=2)] == [facts[1]]
    assert await ledger.facts(one, after=1, upto=2) == [facts[1]]
    assert await ledger.facts(one, upto=1) == [facts[0]]

    assert await ledger.last(one) == last
    assert await ledger.last_of([one, other, uuid4()]) == {one: last, other: created(other)}
    assert await ledger.known([first.command_id, uuid4()]) == {first.command_id}
    assert await ledger.outcome(third.command_id) == Outcome("duplicate", one, 3, 4, b"asked")
    hours = [await ledger.version_at(one, NOON + timedelta(hours=hour)) for hour in (-1, 0, 0.5, 1, 5)]
    assert hours == [0, 1, 1, 2, 3]

    raw = await ledger.read(1, 2)
    assert [(each.position, each.stream_id, each.version) for each in raw] == [(2, one, 2), (3, other, 1)]
    assert raw[0].topic == "ticket.assigned.v1"
    assert [each.position for each in await ledger.read(0, 100)] == [1, 2, 3, 4]
    assert await ledger.read(4, 100) == []
    assert await ledger.head() == ledger.newest == 4
    assert await count(owner, "commands") == 3


async def test_of_what_never_was_there_is_nothing(ledger: Ledger) -> None:
    nobody = uuid4()
    assert await ledger.load(nobody) == []
    assert await ledger.facts(nobody) == []
    assert await ledger.last(nobody) is None
    assert await ledger.last_of([nobody]) == {}
    assert await ledger.version_at(nobody, NOON) == 0
    assert await ledger.outcome(nobody) is None
    assert await ledger.known([nobody]) == set()
    assert await ledger.read(0, 10) == []
    assert await ledger.head() == 0


async def test_listeners_hear_of_every_newer_position_and_of_no_older_one(ledger: Ledger) -> None:
    heard: list[int] = []
    ledger.on_append(heard.append)
    for _ in range(3):
        await ledger.append(appending(uuid4(), 0))
    ledger.heard_of(2)
    ledger.heard_of(9)
    assert heard == [1, 2, 3, 9]


async def test_ticket_numbers_are_drawn_once(ledger: Ledger, dsn: str) -> None:
    async with Ledger.open(dsn) as other:
        drawn = await asyncio.gather(*(each.ticket_numbers(20) for each in (ledger, other) * 5))
    assert sorted(number for some in drawn for number in some) == list(range(1, 201))


# ---------------------------------------------------------------------------------------------- group commit


async def test_of_appends_that_wait_at_the_same_time_half_share_each_commit(ledger: Ledger, owner: Connection) -> None:
    outcomes = await asyncio.gather(*(ledger.append(appending(uuid4(), 0)) for _ in range(200)))
    assert {outcome.verdict for outcome in outcomes} == {"appended"}
    assert [outcome.position for outcome in outcomes] == list(range(1, 201)), "first come, first numbered"
    sizes = await owner.fetch("select last_position - first_position + 1 from ledger.seals order by last_position")
    assert [size for (size,) in sizes] == [100, 50, 32, 18]


async def test_no_more_than_the_limit_go_in_one_commit(dsn: str, owner: Connection) -> None:
    async with Ledger.open(dsn, batch_limit=10) as ledger:
        await asyncio.gather(*(ledger.append(appending(uuid4(), 0)) for _ in range(95)))
    sizes = await owner.fetch("select last_position - first_position + 1 from ledger.seals order by 1")
    assert [size for (size,) in sizes] == [5, *[10] * 9]


async def test_closing_answers_what_was_accepted_first(dsn: str, owner: Connection) -> None:
    async with Ledger.open(dsn) as ledger:
        waiting = [asyncio.create_task(ledger.append(appending(uuid4(), 0))) for _ in range(50)]
        await asyncio.sleep(0)  # so that they are accepted
        assert ledger.waiting == 50
    assert {(await one).verdict for one in waiting} == {"appended"}
    assert await count(owner, "events") == 50
    with pytest.raises(LedgerUnavailable):
        await ledger.append(appending(uuid4(), 0))


# ------------------------------------------------------------------------------------------ one order for all


async def _write_much(dsn: str, shared: list[UUID], appends: int) -> list[tuple[UUID, int, int]]:
    """Append to streams of one's own and to shared ones, through two ledgers; what was acknowledged."""

    async def write(ledger: Ledger) -> list[tuple[UUID, int, int]]:
        own, acknowledged, known = uuid4(), list[tuple[UUID, int, int]](), Counter[UUID]()
        for turn in range(appends):
            stream = shared[turn % len(shared)] if turn % 2 else own
            outcome = await ledger.append(appending(stream, known[stream]))
            while outcome.verdict == "conflict":
                outcome = await ledger.append(appending(stream, outcome.version))
            known[stream] = outcome.version
            acknowledged.append((stream, outcome.version, outcome.position))
        return acknowledged

    async with Ledger.open(dsn, pool_size=1) as one, Ledger.open(dsn, pool_size=1) as other:
        done = await asyncio.gather(*(write(ledger) for ledger in (one, other) * 4))
    return [each for some in done for each in some]


def _in_a_process(dsn: str, shared: list[UUID], appends: int) -> list[tuple[UUID, int, int]]:
    return asyncio.run(_write_much(dsn, shared, appends))


async def test_many_writers_in_many_processes_make_one_gapless_order_that_appears_in_order(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    shared = [uuid4() for _ in range(4)]
    seen: list[int] = []
    looks = 0

    async def follow(until: asyncio.Future[Any]) -> None:
        nonlocal looks
        while True:
            finished = until.done()
            found = await ledger.read(seen[-1] if seen else 0, 1_000)
            assert [raw.position for raw in found] == list(range(len(seen) + 1, len(seen) + len(found) + 1))
            seen.extend(raw.position for raw in found)
            looks += bool(found)
            if finished and not found:
                return

    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        elsewhere = [loop.run_in_executor(processes, _in_a_process, dsn, shared, 25) for _ in range(2)]
        everything = asyncio.gather(_write_much(dsn, shared, 25), *elsewhere)
        try:
            await follow(everything)
        finally:
            acknowledged = [each for some in await everything for each in some]

    assert len(acknowledged) == 3 * 8 * 25
    assert looks > 5, "the reader was there while it grew"
    rows = await owner.fetch("select stream_id, version, position, recorded_at from ledger.events order by position")
    assert seen == [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert sorted(tuple(row)[:3] for row in rows) == sorted(acknowledged), "what was acknowledged is what is there"
    assert [row["recorded_at"] for row in rows] == sorted(row["recorded_at"] for row in rows)
    versions = Counter[UUID]()
    for row in rows:
        versions[row["stream_id"]] += 1
        assert row["version"] == versions[row["stream_id"]]
    assert await count(owner, "seals") < len(rows)
    assert await ledger.head() == len(rows)


# ---------------------------------------------------------------------------------------------- exactly once


async def test_a_command_asked_again_is_a_duplicate_with_the_first_outcome(ledger: Ledger, owner: Connection) -> None:
    stream, key = uuid4(), uuid4()
    first = await ledger.append(appending(stream, 0, command_id=key))
    await ledger.append(appending(stream, 1))
    for again in (
        appending(stream, 0, command_id=key),
        appending(stream, 2, command_id=key, fingerprint=b"something else"),
        appending(uuid4(), 0, command_id=key),
    ):
        assert await ledger.append(again) == Outcome("duplicate", stream, first.version, first.position, b"asked")
    assert await count(owner, "events") == 2


async def test_the_same_command_twice_in_one_batch_is_done_once(ledger: Ledger, owner: Connection) -> None:
    stream, key = uuid4(), uuid4()
    twice = (appending(stream, 0, command_id=key), appending(stream, 0, command_id=key))
    elsewhere = appending(uuid4(), 0, command_id=key)
    verdicts = [each.verdict for each in await asyncio.gather(*(ledger.append(one) for one in (*twice, elsewhere)))]
    assert verdicts == ["appended", "conflict", "conflict"]
    assert await count(owner, "seals") == 1, "it was one batch"
    assert (await ledger.append(twice[1])).verdict == (await ledger.append(elsewhere)).verdict == "duplicate"
    assert await count(owner, "events") == 1


async def test_of_fifty_who_send_the_same_command_to_three_ledgers_one_does_it(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    stream, key = uuid4(), uuid4()

    async def ask(one: Ledger) -> Outcome:
        outcome = await one.append(appending(stream, 0, command_id=key))
        while outcome.verdict == "conflict":
            outcome = await one.append(appending(stream, 0, command_id=key))
        return outcome

    async with Ledger.open(dsn) as second, Ledger.open(dsn) as third:
        outcomes = await asyncio.gather(*(ask((ledger, second, third)[turn % 3]) for turn in range(50)))
    assert Counter(outcome.verdict for outcome in outcomes) == {"appended": 1, "duplicate": 49}
    assert {(outcome.version, outcome.position) for outcome in outcomes} == {(1, 1)}
    assert await count(owner, "events") == await count(owner, "commands") == 1


async def test_a_command_without_facts_is_noted_and_nothing_else(ledger: Ledger, owner: Connection) -> None:
    stream, key = uuid4(), uuid4()
    await ledger.append(appending(stream, 0))
    assert await ledger.append(noting(stream, 1, key)) == Outcome("appended", stream, 1, 1, b"asked")
    assert await ledger.append(noting(stream, 1, key)) == Outcome("duplicate", stream, 1, 1, b"asked")
    assert (await ledger.append(noting(stream, 7, uuid4()))).verdict == "conflict"
    assert [await count(owner, table) for table in ("events", "seals", "commands")] == [1, 1, 2]
    assert (await ledger.append(appending(stream, 1))).position == 2


class _Proxy:
    """Stands between the ledger and the server, and can lose the server's next answer, and with it the connection."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self.loses_answers = False
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._parts.username}:{self._parts.password or ''}"
        try:
            yield f"postgresql://{user}@127.0.0.1:{port}{self._parts.path}?sslmode=disable"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._between(reader, writer))
        self._tasks.add(task)

    async def _between(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        folder = parse_qs(self._parts.query).get("host", [None])[0]
        if folder is None:
            server, to_server = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
        else:
            server, to_server = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")

        async def requests() -> None:
            while data := await client.read(65_536):
                to_server.write(data)

        async def answers() -> None:
            while data := await server.read(65_536):
                if self.loses_answers:
                    self.loses_answers = False
                    self.lost += 1
                    return
                to_client.write(data)

        both = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for stream in (to_client, to_server):
                stream.close()
                with suppress(ConnectionError):
                    await stream.wait_closed()


async def test_a_commit_whose_answer_was_lost_is_settled_and_done_once(dsn: str, owner: Connection) -> None:
    proxy = _Proxy(dsn)
    async with proxy.running() as through, Ledger.open(through, pool_size=1) as ledger:
        stream = uuid4()
        await ledger.append(appending(stream, 0))
        proxy.loses_answers = True
        appends = [appending(stream, 1), *(appending(uuid4(), 0) for _ in range(9))]
        outcomes = await asyncio.gather(*(ledger.append(one) for one in appends))
        assert proxy.lost == 1
        # They had been committed, so that asking again made them duplicates of themselves.
        assert [outcome.verdict for outcome in outcomes] == ["duplicate"] * 10
        assert [outcome.position for outcome in outcomes] == list(range(2, 12))
        assert (await ledger.append(appending(stream, 2))).position == 12
    assert await count(owner, "events") == await count(owner, "commands") == 12


async def test_appends_whose_connection_went_before_the_commit_are_done_on_the_next_one(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with held_up(dsn):
        appends = [asyncio.create_task(ledger.append(appending(uuid4(), 0))) for _ in range(5)]
        await eventually(lambda: waits_for_the_head(owner))
        await owner.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock'"""
        )
    assert [(await one).verdict for one in appends] == ["appended"] * 5
    assert await count(owner, "events") == 5


async def test_where_the_database_will_not_have_it_for_a_while_the_writer_comes_again(
    server: str, owner: Connection, ledger: Ledger
) -> None:
    """Not away, but refusing: as after a change of who may connect, or in the middle of a restore."""
    name = await owner.fetchval("select current_database()")
    heard: list[str] = []
    ledger.on_reconnect(lambda: heard.append("again"))
    await ledger.append(appending(uuid4(), 0))
    async with connected(server, role=None) as elsewhere:
        await elsewhere.execute(f"alter database {name} allow_connections false")
        try:
            await elsewhere.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = $1 and application_name like 'tickets writer%'""",
                name,
            )
            async with asyncio.timeout(10):
                while True:
                    try:
                        await ledger.append(appending(uuid4(), 0))
                    except LedgerUnavailable:
                        break
            await asyncio.sleep(0.3)
            with pytest.raises(LedgerUnavailable):
                await ledger.append(appending(uuid4(), 0))
            assert not ledger.connected
            assert not heard
        finally:
            await elsewhere.execute(f"alter database {name} allow_connections true")

    async def is_back() -> bool:
        return ledger.connected

    await eventually(is_back)
    assert heard == ["again"]
    assert (await ledger.append(appending(uuid4(), 0))).verdict == "appended"


# -------------------------------------------------------------------------------------------------- conflicts


async def test_a_stream_that_is_at_another_version_is_a_conflict(ledger: Ledger, owner: Connection) -> None:
    stream = uuid4()
    facts = (created(stream), assigned(stream, 2))
    await ledger.append(appending(stream, 0, *facts))
    key = uuid4()
    for expected in (0, 1, 3, 2**31 - 1):
        followers = (assigned(stream, expected + 1),) if expected < 9 else ()
        late = appending(stream, expected, *followers, command_id=key) if followers else noting(stream, expected, key)
        outcome = await ledger.append(late)
        assert (outcome.verdict, outcome.stream_id, outcome.version) == ("conflict", stream, 2)
        assert await ledger.outcome(key) is None, "refused is not accepted: it may be asked again"
    assert await count(owner, "events") == 2
    again = appending(stream, 2, command_id=key)
    assert (await ledger.append(again)).verdict == "appended"


async def test_of_two_appends_in_one_batch_for_the_same_version_the_first_wins(
    ledger: Ledger, owner: Connection
) -> None:
    stream = uuid4()
    bystander = appending(uuid4(), 0)
    batch = [appending(stream, 0), appending(stream, 0), bystander, appending(stream, 0)]
    outcomes = await asyncio.gather(*(ledger.append(one) for one in batch))
    assert [outcome.verdict for outcome in outcomes] == ["appended", "conflict", "appended", "conflict"]
    assert await count(owner, "seals") == 1
    assert [raw.stream_id for raw in await ledger.read(0, 10)] == [stream, bystander.stream_id]


# ----------------------------------------------------------------------------------------------------- poison


class _Unspeakable(Created, frozen=True, kw_only=True):
    """A fact with a topic that PostgreSQL cannot store."""

    TOPIC: ClassVar[str] = "ticket.\0.v1"


def _unspeakable(stream: UUID) -> Append:
    fields = {name: getattr(created(stream), name) for name in Created.__struct_fields__}
    return appending(stream, 0, _Unspeakable(**fields))


POISONS: dict[str, Callable[[UUID], Append]] = {
    "a topic that PostgreSQL refuses": _unspeakable,
    "a number that asyncpg cannot send": lambda stream: noting(stream, 2**40, uuid4()),
    "a text where bytes belong": lambda stream: appending(stream, 0, fingerprint="no bytes"),  # type: ignore[arg-type]
}


async def test_a_poisoned_append_fails_alone(ledger: Ledger, owner: Connection) -> None:
    for turn, (kind, poisoned) in enumerate(POISONS.items()):
        poison = poisoned(uuid4())
        good = [appending(uuid4(), 0) for _ in range(4)]
        batch = [*good[:2], poison, *good[2:]]
        results = await asyncio.gather(*(ledger.append(one) for one in batch), return_exceptions=True)
        assert isinstance(results.pop(2), ValueError | TypeError | asyncpg.PostgresError), kind
        assert [one.verdict for one in results if isinstance(one, Outcome)] == ["appended"] * 4, kind
        assert [raw.stream_id for raw in await ledger.read(5 * turn, 10)] == [one.stream_id for one in good], kind
        assert await ledger.outcome(poison.command_id) is None, kind
        assert (await ledger.append(appending(uuid4(), 0))).position == 5 * turn + 5, f"it goes on after {kind}"
    assert await count(owner, "commands") == 5 * len(POISONS)


async def test_a_poisoned_append_fails_alone_when_the_connection_was_lost_as_well(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    poison = _unspeakable(uuid4())
    batch = [appending(uuid4(), 0), poison, appending(uuid4(), 0)]
    async with held_up(dsn):
        asked = [asyncio.create_task(ledger.append(one)) for one in batch]
        await eventually(lambda: waits_for_the_head(owner))
        await owner.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock'"""
        )
    async with asyncio.timeout(5):
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results.pop(1), asyncpg.PostgresError)
    assert [one.verdict for one in results if isinstance(one, Outcome)] == ["appended"] * 2
    assert (await ledger.append(appending(uuid4(), 0))).position == 3


async def test_facts_that_do_not_continue_their_stream_are_refused_before_they_wait(ledger: Ledger) -> None:
    stream = uuid4()
    for facts in ((created(stream), assigned(stream, 1)), (assigned(stream, 0),), (created(uuid4()),)):
        with pytest.raises(ValueError, match="is not version"):
            await ledger.append(appending(stream, 0, *facts))
    assert ledger.waiting == 0


async def test_what_cannot_be_encoded_is_refused_before_it_waits(ledger: Ledger) -> None:
    stream = uuid4()
    broken = Metadata(actor=SOMEBODY, command_id=uuid4(), request_id="\ud800")
    append = Append(command_id=uuid4(), stream_id=stream, expected_version=0, facts=((created(stream), broken),))
    with pytest.raises(UnicodeEncodeError):
        await ledger.append(append)
    assert ledger.waiting == 0
    assert (await ledger.append(appending(stream, 0))).position == 1


# ------------------------------------------------------------------------------------------------- overloaded


async def test_past_the_queue_limit_an_append_is_refused_at_once(dsn: str, owner: Connection) -> None:
    async with Ledger.open(dsn, queue_limit=10) as ledger:
        async with held_up(dsn):
            accepted = [asyncio.create_task(ledger.append(appending(uuid4(), 0)))]
            await eventually(lambda: waits_for_the_head(owner))
            accepted += [asyncio.create_task(ledger.append(appending(uuid4(), 0))) for _ in range(10)]
            await asyncio.sleep(0)
            assert ledger.waiting == 10
            began = time.monotonic()
            for _ in range(20):
                with pytest.raises(Overloaded, match="10 commands are waiting"):
                    await ledger.append(appending(uuid4(), 0))
            assert time.monotonic() - began < 0.2
            assert not any(one.done() for one in accepted)
        assert [(await one).verdict for one in accepted] == ["appended"] * 11
        assert (await ledger.append(appending(uuid4(), 0))).position == 12, "and it takes more again"
    assert await count(owner, "commands") == 12


async def test_somebody_who_went_away_while_waiting_holds_nobody_up(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with held_up(dsn):
        first = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
        await eventually(lambda: waits_for_the_head(owner))
        gone = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
        stays = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
        await asyncio.sleep(0)
        gone.cancel()
        first.cancel()
        await asyncio.gather(gone, first, return_exceptions=True)
    assert (await stays).verdict == "appended"
    assert await ledger.head() == await count(owner, "events")


# ------------------------------------------------------------------------------------------------- immutability

CHANGES = (
    "update ledger.{0} set {1} = {1}",
    "delete from ledger.{0}",
    "truncate ledger.{0}",
    "truncate ledger.{0} cascade",
)
TABLES = {"events": "state", "commands": "fingerprint", "seals": "seal", "checkpoints": "note"}


async def _append_one(dsn: str) -> None:
    async with Ledger.open(dsn) as ledger:
        await ledger.append(appending(uuid4(), 0))
        await ledger.pool.execute("insert into ledger.checkpoints values (1, sha256(''), now(), 'a note')")


@pytest.fixture(scope="module")
def written(server: str, template: str) -> Iterator[str]:
    """A database with one fact, that nobody should be able to change."""
    with fresh_database(server, template) as dsn:
        asyncio.run(_append_one(dsn))
        yield dsn


@asynccontextmanager
async def _being(dsn: str, role: str | None) -> AsyncIterator[Connection]:
    connection = await connect(dsn, role=role)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("table", TABLES)
async def test_not_even_the_owner_changes_the_ledger(written: str, table: str, change: str) -> None:
    async with _being(written, None) as owner:
        with pytest.raises(
            asyncpg.InsufficientPrivilegeError, match=f"on ledger\\.{table} refused: the ledger is append-only"
        ):
            await owner.execute(change.format(table, TABLES[table]))
        assert await count(owner, table) == 1


@pytest.mark.parametrize("change", [*CHANGES, "alter table ledger.{0} disable trigger all", "drop table ledger.{0}"])
@pytest.mark.parametrize("table", TABLES)
async def test_the_service_has_no_right_to_change_the_ledger(written: str, table: str, change: str) -> None:
    async with _being(written, "tickets_service") as service:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"permission denied|must be owner"):
            await service.execute(change.format(table, TABLES[table]))
        assert await count(service, table) == 1


@pytest.mark.parametrize(
    "change",
    [
        "delete from ledger.head",
        "truncate ledger.head",
        "update ledger.schema_applied set sha256 = ''",
        "alter function ledger.refuse_change() rename to let_change",
        "set session_replication_role = replica",
        "create table ledger.extra (one int)",
        "select setval('ledger.ticket_numbers', 1)",
    ],
)
async def test_the_service_cannot_get_around_that(written: str, change: str) -> None:
    async with _being(written, "tickets_service") as service:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(change)


# ------------------------------------------------------------------------------------------- hashes and seals


def _prefixed(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


async def test_leaves_and_seals_are_what_they_are_said_to_be(ledger: Ledger, owner: Connection) -> None:
    """Recomputed from the definition in words, and with no code of ours."""
    streams = [uuid4() for _ in range(3)]
    await asyncio.gather(*(ledger.append(appending(stream, 0)) for stream in streams))
    await ledger.append(appending(streams[0], 1, assigned(streams[0], 2, at=datetime(1961, 4, 12, 6, 7, 0, 1, UTC))))
    await ledger.append(noting(streams[1], 1, uuid4()))
    await ledger.append(appending(streams[1], 1, assigned(streams[1], 2, at=datetime(2999, 1, 1, tzinfo=UTC))))
    leaves: dict[int, bytes] = {}
    for row in await owner.fetch("select *, extract(epoch from occurred_at) * 1000000 as us from ledger.events"):
        leaves[row["position"]] = sha256(
            _prefixed(
                row["stream_id"].bytes,
                struct.pack(">I", row["version"]),
                row["topic"].encode(),
                struct.pack(">q", int(row["us"])),
                row["metadata"],
                row["state"],
            )
        ).digest()
        assert leaves[row["position"]] == row["leaf"]
    chain, seals = bytes(32), await owner.fetch("select * from ledger.seals order by last_position")
    assert [(row["first_position"], row["last_position"]) for row in seals] == [(1, 3), (4, 4), (5, 5)]
    for row in seals:
        first, last = row["first_position"], row["last_position"]
        since_2000 = (row["sealed_at"] - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        covered = b"".join(leaves[position] for position in range(first, last + 1))
        chain = sha256(chain + struct.pack(">qqq", first, last, since_2000) + covered).digest()
        assert chain == row["seal"]
    head = await owner.fetchrow("select position, seal from ledger.head")
    assert head is not None
    assert tuple(head) == (5, chain)


# ------------------------------------------------------------------------------------------------- the mapper


async def test_the_librarys_own_recorders_store_our_facts_as_the_same_bytes(ledger: Ledger) -> None:
    stream = uuid4()
    facts: list[TicketEvent] = [created(stream), assigned(stream, 2)]
    store: EventStore[UUID] = EventStore(FactMapper(), POPOAggregateRecorder())
    store.put(facts)
    assert list(store.get(stream)) == facts
    assert list(store.get(stream, gt=1)) == facts[1:]

    await ledger.append(appending(stream, 0, *facts))
    stored = [FactMapper().to_stored_event(fact) for fact in facts]
    recorded = [StoredEvent(raw.stream_id, raw.version, raw.topic, raw.state) for raw in await ledger.read(0, 10)]
    assert stored == recorded


def test_a_topic_that_nobody_knows_is_the_librarys_own_error() -> None:
    with pytest.raises(MapperDeserialisationError, match=r"ticket\.teleported\.v9"):
        FactMapper().to_domain_event(StoredEvent(uuid4(), 1, "ticket.teleported.v9", b"{}"))


def test_facts_are_what_the_library_takes_for_domain_events() -> None:
    person = PersonSeen(
        originator_id=uuid4(),
        originator_version=1,
        timestamp=NOON,
        person_id=uuid4(),
        username=None,
        role=None,
        teams=(),
    )
    for fact in (created(uuid4()), assigned(uuid4(), 2), person):
        assert isinstance(fact, DomainEventProtocol)
