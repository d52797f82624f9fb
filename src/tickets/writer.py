"""Group commit: the only code that adds to the ledger.

One writer task a process takes every append that waits and hands them to the database in one round trip
and one transaction (schema.sql, ledger.append). An append is answered when that has committed. If the
connection is lost before the answer came, the same batch is sent again on a new one: commands are accepted
once, so the second time tells what became of them the first time.

Deliberately absent: reading, and what facts mean.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
import structlog
from msgspec import Struct

from tickets import mapper
from tickets.connections import CANNOT_CONNECT, CONNECTION_LOST, OUT_OF_SERVICE, POISONED, Connection
from tickets.errors import LedgerUnavailable, OutcomeUnknown, Overloaded
from tickets.events import Fact, Metadata
from tickets.integrity import leaf

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


_HALF_ENOUGH: Final = 32
"""Of more appends than this, half are left for the next batch, so that those who were answered ask again while the
database is at work: nobody takes turns. Half as much again as in one batch of all, with 64 in flight."""


class Writer:
    """Takes appends, and commits those that wait together."""

    def __init__(
        self,
        reconnect: Callable[[], Awaitable[Connection]],
        appended: Callable[[int], None],
        reconnected: Callable[[], None],
        *,
        queue_limit: int,
        batch_limit: int,
        timeout: float,
    ) -> None:
        """`appended` is told the newest position after each commit that added facts; `reconnected` what it says."""
        self._reconnect = reconnect
        self._appended = appended
        self._reconnected = reconnected
        self._queue: list[_Prepared] = []
        self._wake = asyncio.Event()
        self._connected = True
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._timeout = timeout
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many appends wait for the next commit."""
        return len(self._queue)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to commit on."""
        return self._connected

    async def append(self, append: Append) -> Outcome:
        """Add the facts; returns when that is durable. Raises as Ledger.append."""
        if not self._connected:
            raise LedgerUnavailable
        if len(self._queue) >= self._queue_limit:
            raise Overloaded(waiting=len(self._queue))
        prepared = _prepare(append)
        self._queue.append(prepared)
        self._wake.set()
        giving_up = asyncio.get_running_loop().call_later(self._timeout, _reject, prepared, OutcomeUnknown())
        try:
            return await prepared.answer
        finally:
            giving_up.cancel()

    def stop(self) -> None:
        """End `run` once everything that waits is committed."""
        self._closing = True
        self._wake.set()

    async def run(self, connection: Connection | None) -> None:
        """Commit what comes, on this connection or the next, until stopped."""
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
                size = min(self._batch_limit, max(_HALF_ENOUGH, len(self._queue) // 2))
                batch, self._queue = self._queue[:size], self._queue[size:]
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
            except CANNOT_CONNECT as error:
                _log.warning("ledger.unreachable", error=repr(error), retry_in_s=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            else:
                self._connected = True
                self._reconnected()
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
            return await self._will_not_have(connection, batch, error)
        except CONNECTION_LOST as error:
            _log.warning("ledger.connection_lost", error=repr(error), unsettled=len(batch))
            _discard(connection)
            return await self._settle(batch)
        except asyncpg.PostgresError as error:
            return await self._will_not_have(connection, batch, error)
        else:
            self._answer(batch, outcomes)
        return connection

    async def _will_not_have(
        self, connection: Connection, batch: list[_Prepared], error: Exception
    ) -> Connection | None:
        """The database refuses this batch, or that of one append."""
        if len(batch) > 1:
            return await self._commit_apart(connection, batch)
        _log.error("ledger.append_failed", error=repr(error), command_id=str(batch[0].append.command_id))
        _reject(batch[0], error)
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
            except CANNOT_CONNECT:
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
            self._reconnected()
            self._answer(batch, outcomes)
            return connection
        self._fail(batch, OutcomeUnknown)
        return None

    async def _settle_apart(self, connection: Connection, batch: list[_Prepared]) -> Connection | None:
        """What poisons a batch now did so the first time: nothing of it was written."""
        self._connected = True
        self._reconnected()
        return await self._commit_apart(connection, batch)

    def _answer(self, batch: list[_Prepared], outcomes: Sequence[Outcome]) -> None:
        if len(outcomes) != len(batch):
            raise AssertionError(f"{len(batch)} appends were sent, {len(outcomes)} were answered")
        self._appended(max((o.position for o in outcomes if o.verdict == "appended"), default=0))
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
    for version, (fact, metadata) in enumerate(append.facts, append.expected_version + 1):
        if (fact.originator_id, fact.originator_version) != (append.stream_id, version):
            raise ValueError(f"{fact.TOPIC} is not version {version} of stream {append.stream_id}")
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
