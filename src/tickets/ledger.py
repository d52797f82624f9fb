"""The ledger: append, load, read. What the rest of the house knows of the record.

Deliberately absent: how appends are committed (writer.py) and what facts mean.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Self
from uuid import UUID

from msgspec import Struct

from tickets import mapper
from tickets.batching import Batched
from tickets.connections import PATIENCE_S, Connection, Pool, connect, pooled
from tickets.events import Fact
from tickets.writer import Append, Outcome, Writer


class Recorded(Struct, frozen=True, gc=False):
    """A fact with its place in the ledger. `metadata` is as stored: the JSON of a Metadata."""

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


async def read(source: Pool | Connection, after: int, limit: int, *, upto: int = 2**63 - 1) -> list[Raw]:
    """Up to `limit` facts of all streams in the order of the ledger, from after `after` up to and including `upto`."""
    rows = await source.fetch(
        """select position, stream_id, version, topic, recorded_at, metadata, state from ledger.events
           where position > $1 and position <= $2 order by position limit $3""",
        after,
        upto,
        limit,
    )
    return [Raw(*row) for row in rows]


async def read_streams(source: Pool | Connection, first: UUID, last: UUID, *, upto: int) -> list[Raw]:
    """All facts up to the position `upto` of the streams between these two, stream by stream."""
    rows = await source.fetch(
        """select position, stream_id, version, topic, recorded_at, metadata, state from ledger.events
           where stream_id between $1 and $2 and position <= $3 order by stream_id, version""",
        first,
        last,
        upto,
    )
    return [Raw(*row) for row in rows]


class Stored(Raw, frozen=True, gc=False):
    """A stored fact with all that its leaf is of."""

    occurred_at: datetime
    leaf: bytes


async def read_whole(source: Pool | Connection, after: int, limit: int, *, upto: int) -> list[Stored]:
    """As `read`, with all that the leaves are of."""
    rows = await source.fetch(
        """select position, stream_id, version, topic, recorded_at, metadata, state, occurred_at, leaf
           from ledger.events where position > $1 and position <= $2 order by position limit $3""",
        after,
        upto,
        limit,
    )
    return [Stored(*row) for row in rows]


async def last_positions(source: Pool | Connection, stream_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Where the newest fact of each of these streams is, of those that have any."""
    rows = await source.fetch(
        """select w.stream_id, e.position from unnest($1::uuid[]) w(stream_id)
           cross join lateral (select position from ledger.events e where e.stream_id = w.stream_id
                               order by version desc limit 1) e""",
        stream_ids,
    )
    return {stream_id: position for stream_id, position in rows}  # noqa: C416 - rows are not pairs to mypy


async def recorded_before(source: Pool | Connection, moment: datetime) -> int:
    """How many facts the ledger had taken in by then. Their times are in the order of positions, which is searched."""
    least, most = 0, await source.fetchval("select position from ledger.head")
    while least < most:
        middle = (least + most + 1) // 2
        if await source.fetchval("select recorded_at < $2 from ledger.events where position = $1", middle, moment):
            least = middle
        else:
            most = middle - 1
    return least


async def streams(connection: Connection, wanted: Sequence[UUID] | None = None) -> AsyncIterator[tuple[UUID, int]]:
    """These streams, or all, in the order of their ids, each with how many facts it has. Needs a transaction."""
    rows = connection.cursor(
        """select stream_id, count(*) from ledger.events where $1::uuid[] is null or stream_id = any($1)
           group by stream_id order by stream_id""",
        wanted,
        prefetch=1_000,
    )
    async for row in rows:
        yield row[0], row[1]


async def read_these(source: Pool | Connection, stream_ids: Sequence[UUID], *, upto: int) -> list[Stored]:
    """All facts up to the position `upto` of these streams, stream by stream in the order of their ids."""
    rows = await source.fetch(
        """select position, stream_id, version, topic, recorded_at, metadata, state, occurred_at, leaf
           from ledger.events where stream_id = any($1::uuid[]) and position <= $2 order by stream_id, version""",
        stream_ids,
        upto,
    )
    return [Stored(*row) for row in rows]


_Stretch = tuple[UUID, int, int]
"""A stream, after which version it begins, and with which it ends."""


class Ledger:
    """The record. Use it as `async with Ledger.open(dsn) as ledger`."""

    def __init__(self, pool: Pool, writer: Callable[[Callable[[int], None], Callable[[], None]], Writer]) -> None:
        """Not to be called by others than `open`."""
        self.pool = pool
        self.newest = 0
        """The newest position that this process knows of."""
        self._listeners: list[Callable[[int], None]] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._writer = writer(self.heard_of, self._has_reconnected)
        self._stretch: Batched[_Stretch, list[tuple[str, bytes]]] = Batched(self._stretches)
        self._outcome: Batched[UUID, Outcome | None] = Batched(self._outcomes)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        queue_limit: int = 1024,
        batch_limit: int = 256,
        pool_size: int = 8,
        timeout: float = PATIENCE_S,
    ) -> AsyncIterator[Self]:
        """A ledger with its writer running.

        `queue_limit` appends may wait, `batch_limit` go in one commit; a statement, and the time that an
        append of unknown fate is pursued, is bounded by `timeout` seconds. On leaving, what was accepted
        is answered first.
        """
        async with pooled(dsn, size=pool_size, timeout=timeout, purpose="queries") as pool:
            reconnect = partial(connect, dsn, timeout=timeout, statement_timeout=timeout, purpose="writer")
            writer = partial(Writer, queue_limit=queue_limit, batch_limit=batch_limit, timeout=timeout)
            ledger = cls(pool, partial(writer, reconnect))
            writing = asyncio.create_task(ledger._writer.run(await reconnect()), name="ledger writer")
            try:
                yield ledger
            finally:
                ledger._writer.stop()
                await writing

    def on_append(self, listener: Callable[[int], None]) -> None:
        """Have `listener` called with the newest position whenever this process learns of one."""
        self._listeners.append(listener)

    def on_reconnect(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when the writer has a new connection: it may be to another server, that has less."""
        self._on_reconnect.append(listener)

    def _has_reconnected(self) -> None:
        for listener in self._on_reconnect:
            listener()

    async def reaches(self, stream_id: UUID) -> int:
        """A position from which on everybody sees this stream as it is, also what others have just added."""
        return max(self.newest, *(await last_positions(self.pool, [stream_id])).values(), 0)

    def heard_of(self, position: int) -> None:
        """Note that the ledger reaches this far, whoever said so."""
        if position > self.newest:
            self.newest = position
            for listener in self._listeners:
                listener(position)

    @property
    def waiting(self) -> int:
        """How many appends wait for the next commit."""
        return self._writer.waiting

    @property
    def connected(self) -> bool:
        """Whether there is a connection to commit on."""
        return self._writer.connected

    async def append(self, append: Append) -> Outcome:
        """Add the facts; returns when that is durable.

        Raises Overloaded when too many wait, LedgerUnavailable when the database is away,
        OutcomeUnknown when it went away with this append and stayed away.
        """
        return await self._writer.append(append)

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
        return mapper.decode_all(await self._stretch((stream_id, after, 2**31 - 1 if upto is None else upto)))

    async def _stretches(self, wanted: Sequence[_Stretch]) -> list[list[tuple[str, bytes]]]:
        rows = await self.pool.fetch(
            """select w.n, e.topic, e.state
               from unnest($1::uuid[], $2::int[], $3::int[]) with ordinality w(stream_id, after, upto, n)
               join ledger.events e on e.stream_id = w.stream_id and e.version > w.after and e.version <= w.upto
               order by w.n, e.version""",
            *map(list, zip(*wanted, strict=True)),
        )
        found: list[list[tuple[str, bytes]]] = [[] for _ in wanted]
        for n, topic, state in rows:
            found[n - 1].append((topic, state))
        return found

    async def facts_of(self, command_id: UUID, outcome: Outcome) -> tuple[Fact, ...]:
        """The facts that a command added, whose outcome this was."""
        rows = await self.pool.fetch(
            """select topic, state from ledger.events
               where stream_id = $1 and version between $2 - 20 and $2 and command_id = $3 order by version""",
            outcome.stream_id,
            outcome.version,
            command_id,
        )
        return tuple(mapper.decode_all(rows))

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

    async def facts_at(self, stream_ids: Sequence[UUID], at: datetime) -> dict[UUID, list[Fact]]:
        """The facts of each of these streams up to the version that it had at that time (see `version_at`)."""
        rows = await self.pool.fetch(
            """select e.stream_id, e.topic, e.state from unnest($1::uuid[]) w(stream_id)
               cross join lateral (select version from ledger.events e where e.stream_id = w.stream_id
                                   and occurred_at <= $2 order by version desc limit 1) then_
               join ledger.events e on e.stream_id = w.stream_id and e.version <= then_.version
               order by e.stream_id, e.version""",
            stream_ids,
            at,
        )
        facts: dict[UUID, list[Fact]] = {}
        for stream_id, topic, state in rows:
            facts.setdefault(stream_id, []).append(mapper.decode(topic, state))
        return facts

    async def read(self, after: int, limit: int) -> list[Raw]:
        """Up to `limit` facts of all streams in the order of the ledger, from the position `after` on."""
        return await read(self.pool, after, limit)

    async def outcome(self, command_id: UUID) -> Outcome | None:
        """What became of a command, if it was ever accepted."""
        return await self._outcome(command_id)

    async def _outcomes(self, command_ids: Sequence[UUID]) -> list[Outcome | None]:
        rows = await self.pool.fetch(
            """select command_id, stream_id, version, position, fingerprint from ledger.commands
               where command_id = any($1::uuid[])""",
            command_ids,
        )
        found = {row[0]: Outcome("duplicate", *row[1:]) for row in rows}
        return [found.get(one) for one in command_ids]

    async def head(self) -> int:
        """The newest position of all."""
        position: int = await self.pool.fetchval("select position from ledger.head")
        self.heard_of(position)
        return position

    async def newest_seal(self) -> tuple[int, bytes]:
        """The newest position, and the seal that covers it."""
        position, seal = await self.pool.fetchrow("select position, seal from ledger.head") or (0, b"")
        self.heard_of(position)
        return position, seal

    async def ticket_numbers(self, count: int) -> list[int]:
        """The next `count` running numbers for tickets."""
        rows = await self.pool.fetch("select nextval('ledger.ticket_numbers') from generate_series(1, $1::int)", count)
        return [row[0] for row in rows]
