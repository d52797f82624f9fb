"""The ledger: append, load, read. The only module that writes facts.

Group commit: one writer task a process takes every append that waits and hands them to the database in
one round trip and one transaction (schema.sql, ledger.append). An append is answered when that has
committed. If the connection is lost before the answer came, the same batch is sent again on a new one:
commands are accepted once, so the second time tells what became of them the first time.

Deliberately absent: what facts mean. Streams are bytes here, but for the typed facts that go in and out.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from uuid import UUID

import asyncpg
import structlog
from msgspec import Struct

from tickets import mapper
from tickets.errors import LedgerUnavailable, OutcomeUnknown, Overloaded
from tickets.events import Fact, Metadata
from tickets.integrity import leaf

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # generic in their stubs only
    Connection, Pool = asyncpg.Connection, asyncpg.Pool

CONNECTION_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.OperatorInterventionError,  # shutting down, crashed, cannot connect now
    asyncpg.TooManyConnectionsError,
    asyncpg.exceptions.InternalClientError,
)
"""What asyncpg raises when the database, rather than the statement, is the matter."""

OUT_OF_SERVICE: Final = (asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError)
"""The database is there and says that it cannot write: the disk is full, or it is a standby."""

POISONED: Final = (ValueError, TypeError, OverflowError)
"""What asyncpg raises when an argument cannot be sent at all (its own DataError is a ValueError)."""

_log: Final = structlog.get_logger(__name__)


class Append(Struct, frozen=True, kw_only=True):
    """One command's facts, to be added to its stream if that is still at `expected_version`.

    Without facts the command is only noted, so that asking again gives the same answer.
    """

    command_id: UUID
    stream_id: UUID
    expected_version: int
    facts: tuple[tuple[Fact, Metadata], ...]
    fingerprint: bytes = b""


class Outcome(Struct, frozen=True):
    """What became of an append.

    `version` is that of the stream after it (for a conflict: as it is), `position` that of its last fact.
    A duplicate carries the first outcome, and the fingerprint of what was asked then.
    """

    verdict: Literal["appended", "duplicate", "conflict"]
    stream_id: UUID
    version: int
    position: int
    fingerprint: bytes


class Recorded(Struct, frozen=True, gc=False):
    """A fact with its place in the ledger. `metadata` is as stored: `metadata_of` reads it."""

    position: int
    recorded_at: datetime
    fact: Fact
    metadata: bytes


class Raw(Struct, frozen=True, gc=False):
    """A stored fact, not yet read: what a reader gets that must go on where one cannot be read."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    recorded_at: datetime
    metadata: bytes
    state: bytes


class _Prepared(Struct):
    append: Append
    topics: list[str]
    times: list[datetime]
    metadatas: list[bytes]
    states: list[bytes]
    leaves: list[bytes]
    answer: "asyncio.Future[Outcome]"


_APPEND: Final = (
    "select outcome, stream_id, version, position, fingerprint "
    "from ledger.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
)


def service_settings(role: str | None = "tickets_service") -> dict[str, str]:
    """The server settings of every connection of the service; role None stays the owner."""
    settings = {"application_name": "tickets", "timezone": "UTC", "jit": "off"}
    return settings if role is None else {**settings, "role": role}


async def connect(dsn: str, *, role: str | None = "tickets_service", timeout: float = 5.0) -> Connection:
    """One connection of its own, as the role that the service works as."""
    return await asyncpg.connect(dsn, timeout=timeout, server_settings=service_settings(role))


class Ledger:
    """The record. Use it as `async with Ledger.open(dsn) as ledger`."""

    def __init__(
        self,
        pool: Pool,
        reconnect: Callable[[], Awaitable[Connection]],
        *,
        queue_limit: int,
        batch_limit: int,
        timeout: float,
    ) -> None:
        """Not to be called by others than `open`."""
        self.pool = pool
        self.newest = 0
        """The newest position that this process knows of."""
        self._reconnect = reconnect
        self._queue: list[_Prepared] = []
        self._wake = asyncio.Event()
        self._connected = True
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._timeout = timeout
        self._closing = False
        self._listeners: list[Callable[[int], None]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        queue_limit: int = 1024,
        batch_limit: int = 256,
        pool_size: int = 8,
        timeout: float = 5.0,
    ) -> AsyncIterator[Self]:
        """A ledger with its writer running.

        `queue_limit` appends may wait, `batch_limit` go in one commit; a statement, and the time that an
        append of unknown fate is pursued, is bounded by `timeout` seconds. On leaving, what was accepted
        is answered first.
        """
        async with asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=pool_size,
            timeout=timeout,
            command_timeout=timeout,
            server_settings=service_settings(),
        ) as pool:
            ledger = cls(
                pool,
                lambda: connect(dsn, timeout=timeout),
                queue_limit=queue_limit,
                batch_limit=batch_limit,
                timeout=timeout,
            )
            first = await connect(dsn, timeout=timeout)
            writer = asyncio.create_task(ledger._write(first), name="ledger writer")
            try:
                yield ledger
            finally:
                ledger._closing = True
                ledger._wake.set()
                await writer

    def on_append(self, listener: Callable[[int], None]) -> None:
        """Have `listener` called with the newest position whenever this process learns of one."""
        self._listeners.append(listener)

    def heard_of(self, position: int) -> None:
        """Note that the ledger reaches this far, whoever said so."""
        if position > self.newest:
            self.newest = position
            for listener in self._listeners:
                listener(position)

    @property
    def waiting(self) -> int:
        """How many appends wait for the next commit."""
        return len(self._queue)

    @property
    def connected(self) -> bool:
        """Whether the writer has a connection."""
        return self._connected

    async def append(self, append: Append) -> Outcome:
        """Add the facts; returns when that is durable.

        Raises Overloaded when too many wait, LedgerUnavailable when the database is away,
        OutcomeUnknown when it went away with this append and stayed away.
        """
        if not self._connected:
            raise LedgerUnavailable
        if len(self._queue) >= self._queue_limit:
            raise Overloaded(waiting=len(self._queue))
        prepared = _prepare(append)
        self._queue.append(prepared)
        self._wake.set()
        return await prepared.answer

    async def load(self, stream_id: UUID, *, after: int = 0, upto: int | None = None) -> list[Recorded]:
        """The facts of a stream in order, from the version `after` on, up to and including `upto`."""
        rows = await self.pool.fetch(
            """select position, recorded_at, topic, state, metadata from ledger.events
               where stream_id = $1 and version > $2 and version <= $3 order by version""",
            stream_id,
            after,
            2**31 - 1 if upto is None else upto,
        )
        decode = mapper.decode
        return [
            Recorded(position, recorded_at, decode(topic, state), metadata)
            for position, recorded_at, topic, state, metadata in rows
        ]

    async def facts(self, stream_id: UUID, *, after: int = 0, upto: int | None = None) -> list[Fact]:
        """As `load`, but the facts alone: what deciding and replaying need."""
        rows = await self.pool.fetch(
            """select topic, state from ledger.events
               where stream_id = $1 and version > $2 and version <= $3 order by version""",
            stream_id,
            after,
            2**31 - 1 if upto is None else upto,
        )
        return mapper.decode_all(rows)

    async def last(self, stream_id: UUID) -> Fact | None:
        """The newest fact of a stream."""
        row = await self.pool.fetchrow(
            "select topic, state from ledger.events where stream_id = $1 order by version desc limit 1",
            stream_id,
        )
        return None if row is None else mapper.decode(*row)

    async def last_of(self, stream_ids: Sequence[UUID]) -> dict[UUID, Fact]:
        """The newest fact of each of these streams that has any."""
        rows = await self.pool.fetch(
            """select w.stream_id, e.topic, e.state from unnest($1::uuid[]) w(stream_id)
               cross join lateral (select topic, state from ledger.events e where e.stream_id = w.stream_id
                                   order by version desc limit 1) e""",
            stream_ids,
        )
        return {stream_id: mapper.decode(topic, state) for stream_id, topic, state in rows}

    async def known(self, command_ids: Sequence[UUID]) -> set[UUID]:
        """Which of these commands were accepted before."""
        rows = await self.pool.fetch(
            "select command_id from ledger.commands where command_id = any($1::uuid[])", command_ids
        )
        return {row[0] for row in rows}

    async def version_at(self, stream_id: UUID, at: datetime) -> int:
        """The version that a stream had at that time, 0 if it was not there yet."""
        version: int | None = await self.pool.fetchval(
            """select version from ledger.events where stream_id = $1 and occurred_at <= $2
               order by version desc limit 1""",
            stream_id,
            at,
        )
        return version or 0

    async def read(self, after: int, limit: int) -> list[Raw]:
        """Up to `limit` facts of all streams in the order of the ledger, from the position `after` on."""
        rows = await self.pool.fetch(
            """select position, stream_id, version, topic, recorded_at, metadata, state
               from ledger.events where position > $1 order by position limit $2""",
            after,
            limit,
        )
        return [Raw(*row) for row in rows]

    async def outcome(self, command_id: UUID) -> Outcome | None:
        """What became of a command, if it was ever accepted."""
        row = await self.pool.fetchrow(
            "select stream_id, version, position, fingerprint from ledger.commands where command_id = $1",
            command_id,
        )
        return None if row is None else Outcome("duplicate", *row)

    async def head(self) -> int:
        """The newest position of all."""
        position: int = await self.pool.fetchval("select position from ledger.head")
        self.heard_of(position)
        return position

    async def ticket_numbers(self, count: int) -> list[int]:
        """The next `count` running numbers for tickets."""
        rows = await self.pool.fetch("select nextval('ledger.ticket_numbers') from generate_series(1, $1::int)", count)
        return [row[0] for row in rows]

    async def _write(self, connection: Connection | None) -> None:
        try:
            while True:
                if connection is None or connection.is_closed():
                    connection = await self._connection()
                if connection is None or (self._closing and not self._queue):
                    return
                if not self._queue:
                    self._wake.clear()
                    if await self._lost_while_idle(connection):
                        _discard(connection)
                        connection, self._connected = None, False
                    continue
                batch, self._queue = self._queue[: self._batch_limit], self._queue[self._batch_limit :]
                connection = await self._commit(connection, batch)
        finally:
            self._connected = False
            self._fail(self._queue, LedgerUnavailable)
            _discard(connection)

    async def _lost_while_idle(self, connection: Connection) -> bool:
        """Wait for work; whether the connection went meanwhile."""
        while not self._wake.is_set():
            try:
                async with asyncio.timeout(0.5):
                    await self._wake.wait()
            except TimeoutError:
                if connection.is_closed():
                    return True
        return False

    async def _connection(self) -> Connection | None:
        """A connection, or None where closing makes one needless. What is waiting meanwhile is refused."""
        self._connected = False
        self._fail(self._queue, LedgerUnavailable)
        self._queue = []
        pause = 0.05
        while not self._closing:
            try:
                connection = await self._reconnect()
            except CONNECTION_LOST as error:
                _log.warning("ledger.unreachable", error=repr(error), retry_in_s=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            else:
                self._connected = True
                return connection
        return None

    async def _commit(self, connection: Connection, batch: list[_Prepared]) -> Connection | None:
        """Commit a batch and answer its appends; returns the connection to go on with."""
        try:
            outcomes = await _send(connection, batch, self._timeout)
        except OUT_OF_SERVICE as error:
            _log.error("ledger.out_of_service", error=repr(error))
            self._fail(batch, LedgerUnavailable)
        except POISONED as error:
            if len(batch) > 1:
                return await self._commit_apart(connection, batch)
            _log.error("ledger.append_failed", error=repr(error), command_id=str(batch[0].append.command_id))
            _reject(batch[0], error)
        except CONNECTION_LOST as error:
            _log.warning("ledger.connection_lost", error=repr(error), unsettled=len(batch))
            _discard(connection)
            return await self._settle(batch)
        except asyncpg.PostgresError as error:
            if len(batch) > 1:
                return await self._commit_apart(connection, batch)
            _log.error("ledger.append_failed", error=repr(error), command_id=str(batch[0].append.command_id))
            _reject(batch[0], error)
        else:
            self._answer(batch, outcomes)
        return connection

    async def _commit_apart(self, connection: Connection | None, batch: list[_Prepared]) -> Connection | None:
        """One of them is poisoned and took the others down with it: apart, only that one fails."""
        for prepared in batch:
            if connection is None:
                self._fail([prepared], LedgerUnavailable)
            else:
                connection = await self._commit(connection, [prepared])
        return connection

    async def _settle(self, batch: list[_Prepared]) -> Connection | None:
        """Find out what became of a batch whose answer was lost, by asking again."""
        self._connected = False
        self._fail(self._queue, LedgerUnavailable)
        self._queue = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while loop.time() < deadline:
            try:
                connection = await self._reconnect()
            except CONNECTION_LOST:
                await asyncio.sleep(0.1)
                continue
            try:
                outcomes = await _send(connection, batch, self._timeout)
            except OUT_OF_SERVICE:
                _discard(connection)
                await asyncio.sleep(0.1)
                continue
            except POISONED:
                return await self._settle_apart(connection, batch)
            except CONNECTION_LOST:
                _discard(connection)
                continue
            except asyncpg.PostgresError:
                return await self._settle_apart(connection, batch)
            self._connected = True
            self._answer(batch, outcomes)
            return connection
        self._fail(batch, OutcomeUnknown)
        return None

    async def _settle_apart(self, connection: Connection, batch: list[_Prepared]) -> Connection | None:
        """What poisons a batch now did so the first time: nothing of it was written."""
        self._connected = True
        return await self._commit_apart(connection, batch)

    def _answer(self, batch: list[_Prepared], outcomes: Sequence[Outcome]) -> None:
        if len(outcomes) != len(batch):
            raise AssertionError(f"{len(batch)} appends were sent, {len(outcomes)} were answered")
        self.heard_of(max((o.position for o in outcomes if o.verdict == "appended"), default=0))
        for prepared, outcome in zip(batch, outcomes, strict=True):
            if not prepared.answer.done():  # the client may have gone
                prepared.answer.set_result(outcome)

    @staticmethod
    def _fail(batch: list[_Prepared], refusal: type[LedgerUnavailable]) -> None:
        for prepared in batch:
            _reject(prepared, refusal())


def _reject(prepared: _Prepared, error: BaseException) -> None:
    if not prepared.answer.done():
        prepared.answer.set_exception(error)


def _prepare(append: Append) -> _Prepared:
    prepared = _Prepared(append, [], [], [], [], [], asyncio.get_running_loop().create_future())
    encode = mapper.encode
    for fact, metadata in append.facts:
        state, about = encode(fact), encode(metadata)
        prepared.topics.append(fact.TOPIC)
        prepared.times.append(fact.timestamp)
        prepared.metadatas.append(about)
        prepared.states.append(state)
        prepared.leaves.append(
            leaf(fact.originator_id, fact.originator_version, fact.TOPIC, fact.timestamp, about, state)
        )
    return prepared


async def _send(connection: Connection, batch: list[_Prepared], timeout: float) -> list[Outcome]:
    appends = [prepared.append for prepared in batch]
    counts = [len(append.facts) for append in appends]
    rows = await connection.fetch(
        _APPEND,
        [append.command_id for append in appends],
        [append.stream_id for append in appends],
        [append.expected_version for append in appends],
        counts,
        [append.fingerprint for append in appends],
        [owner for owner, count in enumerate(counts, 1) for owner in repeat(owner, count)],
        [fact.originator_version for append in appends for fact, _ in append.facts],
        _flat(prepared.topics for prepared in batch),
        _flat(prepared.times for prepared in batch),
        _flat(prepared.metadatas for prepared in batch),
        _flat(prepared.states for prepared in batch),
        _flat(prepared.leaves for prepared in batch),
        timeout=timeout,
    )
    return [Outcome(*row) for row in rows]


def _flat(lists: Any) -> list[Any]:
    return [item for one in lists for item in one]


def _discard(connection: Connection | None) -> None:
    if connection is not None and not connection.is_closed():
        connection.terminate()
