"""Catching up: reads the ledger in order, folds each stream once, and writes every projection's rows.

One runner leads, by an advisory lock; others stand by and take over when it goes. It is woken by NOTIFY
and looks by itself as well, because a notification can be lost. Rows and checkpoints are written in one
transaction, so each projection has seen each fact exactly once. A stream with a fact that cannot be
digested is parked, visibly, and the rest go on.

Deliberately absent: what the rows are (the projections), and making tables anew (rebuild.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from time import monotonic
from typing import Final, cast
from uuid import UUID

import asyncpg
import structlog
from cachetools import LRUCache
from eventsourcing.persistence import Tracking
from msgspec.structs import replace

from projections.attachments import ATTACHMENTS
from projections.comments import COMMENTS
from projections.counts import COUNTS
from projections.history import HISTORY
from projections.people import PEOPLE
from projections.periods import PERIODS
from projections.projection import LIVE, Envelope, Projection, Row, Step, decode_metadata, write
from projections.texts import TEXTS
from projections.tickets import TICKETS
from tickets import mapper, snapshots
from tickets.connections import CANNOT_CONNECT, POISONED, Connection, in_transaction
from tickets.events import Fact, PersonSeen, TicketEvent
from tickets.ledger import Ledger, Raw, read
from tickets.ticket import Ticket, evolve

PROJECTIONS: Final[dict[str, Projection]] = {
    one.name: one for one in (TICKETS, HISTORY, COMMENTS, ATTACHMENTS, TEXTS, PEOPLE, COUNTS, PERIODS)
}
"""All read models, by name."""

CHANNEL: Final = "projected"
"""Where the position that all projections have reached is told."""

_BUSY: Final = 16
_GATHERING_S: Final = 0.02
"""Where so many facts came at once, more are on their way: waiting a moment makes fewer and larger batches of them,
at half the cost a fact. Where little happens, nobody waits."""

LEADER: Final = 0x70726F6A65637473  # "projects", as the number of an advisory lock
LED_BY: Final = f"""select pid from pg_locks
    where locktype = 'advisory' and objsubid = 1 and granted
      and database = (select oid from pg_database where datname = current_database())
      and (classid::bigint << 32 | objid::bigint) = {LEADER}"""
"""A query for the process of PostgreSQL that serves whoever leads; no row where nobody does."""

_log: Final = structlog.get_logger(__name__)


class OtherVersion(Exception):  # noqa: N818 - it says what is the matter
    """A read model was made by another version of its projection: only that version adds to it, or makes it anew."""


INDIGESTIBLE: Final = Exception
"""What is raised where a fact is read and folded: it cannot be read, or does not follow in its stream.

Whatever it is, one fact must not stop the rest.
"""

REFUSED: Final = (
    *POISONED,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""What is raised where the database will not have a row: a NUL in a text, a number that is taken, an index full."""


def step_of(raw: Raw, before: Ticket | None) -> Step:
    """The step that a fact is for the ticket as it was before it. Raises one of INDIGESTIBLE."""
    fact: Fact = mapper.decode(raw.topic, raw.state)
    envelope = Envelope(raw.position, raw.recorded_at, decode_metadata(raw.metadata))
    if isinstance(fact, PersonSeen):
        return Step(fact, envelope, None, None)
    return Step(fact, envelope, before, evolve(fact, before))


class Fold:
    """The streams as they are at one position, and the step that each next fact is.

    Keeps the most recently used tickets; the others are folded again from the ledger when they are needed, those with
    long lives from their snapshots on.
    """

    def __init__(self, connection: Connection, *, size: int = 20_000) -> None:
        """Nothing is folded yet."""
        self._connection = connection
        self._tickets: LRUCache[UUID, Ticket] = LRUCache(size)

    async def prepare(self, batch: Sequence[Raw]) -> None:
        """Fetch the tickets that these facts are about, as they are before them."""
        first: dict[UUID, int] = {}
        for raw in batch:
            first.setdefault(raw.stream_id, raw.version)
            if raw.version == 1:
                self._tickets.pop(raw.stream_id, None)  # where a batch is taken in again
        missing = {
            stream: version - 1
            for stream, version in first.items()
            if version > 1 and ((known := self._tickets.get(stream)) is None or known.version != version - 1)
        }
        if not missing:
            return
        folded: dict[UUID, Ticket | None] = {**await snapshots.read(self._connection, missing)}
        rows = await self._connection.fetch(
            """select e.stream_id, e.topic, e.state
               from unnest($1::uuid[], $2::int[], $3::int[]) w(stream_id, known, upto)
               join ledger.events e on e.stream_id = w.stream_id and e.version > w.known and e.version <= w.upto
               where e.topic like 'ticket.%' order by e.stream_id, e.version""",
            list(missing),
            [known.version if (known := folded.get(stream)) else 0 for stream in missing],
            list(missing.values()),
        )
        for stream, topic, state in rows:
            if stream in folded and folded[stream] is None:
                continue
            try:
                folded[stream] = evolve(cast("TicketEvent", mapper.decode(topic, state)), folded.get(stream))
            except INDIGESTIBLE:
                folded[stream] = None
        for stream in missing:
            self._tickets.pop(stream, None)
        self._tickets.update({stream: ticket for stream, ticket in folded.items() if ticket is not None})

    def forget(self) -> None:
        """Begin anew: what was folded was not written after all."""
        self._tickets.clear()

    def step(self, raw: Raw) -> Step:
        """The step that a fact is. Raises one of INDIGESTIBLE."""
        step = step_of(raw, self._tickets.get(raw.stream_id))
        if step.after is not None:
            self._tickets[raw.stream_id] = step.after
        return step


Parked = tuple[str, UUID, int, str]
"""A projection's name, the stream that it cannot follow, from which position on, and why."""


def rows_of(
    batch: Sequence[Raw], fold: Fold, positions: Mapping[str, int], parked: set[tuple[str, UUID]]
) -> tuple[dict[str, list[Row]], list[Parked]]:
    """The rows that a batch of facts makes for each of the projections in `positions`.

    A projection gets the facts after its own position. `parked` names the streams that it has given up
    on; those that it gives up on now are added, and returned with the reason.
    """
    rows: dict[str, list[Row]] = {name: [] for name in positions}
    given_up: list[Parked] = []

    def park(name: str, stream_id: UUID, position: int, reason: str) -> None:
        parked.add((name, stream_id))
        given_up.append((name, stream_id, position, reason))

    streams: dict[UUID, list[Step]] = {}
    broken: list[tuple[Raw, Exception]] = []
    for raw in batch:
        try:
            step = fold.step(raw)
        except INDIGESTIBLE as error:
            broken.append((raw, error))
        else:
            streams.setdefault(raw.stream_id, []).append(step)
    for stream_id, steps in streams.items():
        for name, position in positions.items():
            following = steps if steps[0].envelope.position > position else _after(steps, position)
            if following and (name, stream_id) not in parked:
                made, error_at = rows_of_stream(PROJECTIONS[name], following)
                rows[name] += made
                if error_at is not None:
                    park(name, stream_id, *error_at)
    for raw, why in broken:
        for name, position in positions.items():
            if raw.position > position and (name, raw.stream_id) not in parked:
                park(name, raw.stream_id, raw.position, f"{raw.topic}: {why!r}")
    return rows, given_up


def rows_of_stream(one: Projection, steps: Sequence[Step]) -> tuple[Sequence[Row], tuple[int, str] | None]:
    """The rows that stand after some steps of one stream, and where and why it came no further, if it did not."""
    if one.about is not None and one.about.isdisjoint({type(step.fact) for step in steps}):
        return (), None
    try:
        if one.one_a_stream:
            return one.rows(steps[-1]), None
        if one.sums:  # what all steps add is the difference between the first and the last
            return one.rows(replace(steps[-1], before=steps[0].before)), None
        return list(chain.from_iterable(map(one.rows, steps))), None
    except Exception:  # noqa: BLE001 - one fact must not stop the rest: they are gone through again, one by one
        return _until_error(one, steps)


def _until_error(one: Projection, steps: Sequence[Step]) -> tuple[list[Row], tuple[int, str]]:
    made: list[Row] = []
    for step in steps:
        try:
            made += one.rows(step)
        except Exception as error:  # noqa: BLE001 - it is parked at this one, and shown
            return made, (step.envelope.position, f"{step.fact.TOPIC}: {error!r}")
    raise AssertionError("a projection made rows of a stream that it had just refused")


def _after(steps: Sequence[Step], position: int) -> list[Step]:
    return [step for step in steps if step.envelope.position > position]


class Runner:
    """Keeps the read models up with the ledger, as long as it leads."""

    def __init__(
        self,
        ledger: Ledger,
        connect: Callable[[], Awaitable[Connection]],
        *,
        batch_size: int = 1_000,
        poll: float = 1.0,
    ) -> None:
        """`poll` is how many seconds pass at most before it looks for facts by itself."""
        self._ledger = ledger
        self._connect = connect
        self._batch_size = self._size = batch_size
        self._poll = poll
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.leads = False
        self.on_projected: list[Callable[[int], None]] = []
        ledger.on_append(lambda _: self._wake.set())

    def stop(self) -> None:
        """End `run` after the batch that is being written."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Lead or stand by, until stopped."""
        while not self._stopping.is_set():
            pause = 0.0
            try:
                connection = await self._connect()
            except CANNOT_CONNECT as error:
                _log.warning("runner.unreachable", error=repr(error))
                await asyncio.sleep(0.5)
                continue
            try:
                await self._lead(connection)
            except OtherVersion as error:
                _log.warning("runner.other_version", projections=str(error))
                pause = self._poll
            except CANNOT_CONNECT as error:
                if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
                    self._size = max(1, self._size // 2)  # too much for the time that there is
                _log.warning("runner.interrupted", error=repr(error), next_batch=self._size)
                pause = 0.2
            finally:
                self.leads = False
                if not connection.is_closed():
                    connection.terminate()
            await asyncio.sleep(pause)

    async def _lead(self, connection: Connection) -> None:
        while not await connection.fetchval("select pg_try_advisory_lock($1)", LEADER):
            await self._wait_for(self._stopping)  # facts are the leader's to hear of
            if self._stopping.is_set():
                return
        if others := await of_other_versions(connection):
            raise OtherVersion(", ".join(others))
        # The types of all rows at once: asyncpg would ask for each by itself, when somebody waits for the first facts.
        await connection.fetchrow(f"select {', '.join(f'null::{one.row_in(LIVE)}[]' for one in PROJECTIONS.values())}")
        self.leads = True
        _log.info("runner.leads")
        await connection.add_listener("ledger", lambda *_: self._wake.set())
        fold = Fold(connection)
        while not self._stopping.is_set():
            self._wake.clear()
            taken = await catch_up(connection, fold, self._size, self._projected)
            if not taken:
                await self._wait_for(self._wake)
            elif _BUSY <= taken < self._size:
                await asyncio.sleep(_GATHERING_S)
            self._size = min(self._batch_size, self._size * 2)

    async def _wait_for(self, event: asyncio.Event) -> None:
        """Wait for it, and no longer than until it is time to look by oneself."""
        try:
            async with asyncio.timeout(self._poll):
                await event.wait()
        except TimeoutError:
            return

    def _projected(self, position: int) -> None:
        for listener in self.on_projected:
            listener(position)


async def catch_up_alone(
    connection: Connection, batch_size: int = 2_000, projected: Callable[[int], None] = lambda _: None
) -> None:
    """Bring the read models up to the ledger, unless a runner leads that does so anyway. Raises OtherVersion."""
    if not await connection.fetchval("select pg_try_advisory_lock($1)", LEADER):
        return
    try:
        fold = Fold(connection)
        while await catch_up(connection, fold, batch_size, projected):
            pass
    finally:
        await connection.fetchval("select pg_advisory_unlock($1)", LEADER)


async def catch_up(
    connection: Connection,
    fold: Fold,
    batch_size: int,
    projected: Callable[[int], None] = lambda _: None,
) -> int:
    """Take in the next facts; returns how many there were. `projected` is told how far all have come.

    Raises OtherVersion.
    """
    async with in_transaction(connection):
        # The lock on the checkpoints is what a rebuild takes to swap its tables in.
        checkpoints = await checkpoints_of(connection, lock=True)
        if others := await of_other_versions(connection):
            raise OtherVersion(", ".join(others))
        start = min(one.notification_id for one in checkpoints)
        batch = await read(connection, start, batch_size)
        if not batch:
            projected(start)
            return 0
        began = monotonic()
        await take_in(connection, batch, fold, {one.application_name: one.notification_id for one in checkpoints})
        last = batch[-1].position
        await connection.execute(
            """update read_model.checkpoints set position = $1, updated_at = now() where position < $1
               returning pg_notify($2, $1::text)""",
            last,
            CHANNEL,
        )
    projected(last)
    _log.debug("runner.batch", facts=len(batch), position=last, seconds=round(monotonic() - began, 4))
    return len(batch)


async def take_in(
    connection: Connection, batch: Sequence[Raw], fold: Fold, positions: Mapping[str, int], schema: str = LIVE
) -> None:
    """Write what a batch of facts makes for each of the projections in `positions`, within a transaction.

    Where the database refuses a row, the stream of its fact is parked.
    """
    await fold.prepare(batch)
    parked = {(row[0], row[1]) for row in await connection.fetch(f"select projection, stream_id from {schema}.parked")}
    rows, given_up = rows_of(batch, fold, positions, parked)
    try:
        async with in_transaction(connection):
            for name, new in rows.items():
                await write(connection, PROJECTIONS[name], new, schema)
            await park(connection, given_up, schema)
    except REFUSED as error:
        fold.forget()
        await _isolate(connection, batch, fold, positions, schema, error)


async def _isolate(
    connection: Connection,
    batch: Sequence[Raw],
    fold: Fold,
    positions: Mapping[str, int],
    schema: str,
    error: Exception,
) -> None:
    """Take in by halves what was refused as a whole, until it is one fact of one projection, and park its stream."""
    if len(batch) > 1:
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            await take_in(connection, half, fold, positions, schema)
    elif len(positions) > 1:
        for name, position in positions.items():
            await take_in(connection, batch, fold, {name: position}, schema)
    else:
        (name,), (fact,) = positions, batch
        await park(connection, [(name, fact.stream_id, fact.position, f"{fact.topic}: {error!r}")], schema)


async def checkpoints_of(connection: Connection, *, lock: bool = False) -> list[Tracking]:
    """How far each projection has come; one that is new begins at the beginning."""
    query = "select projection, position from read_model.checkpoints order by projection" + " for update" * lock
    found = {name: Tracking(name, position) for name, position in await connection.fetch(query)}
    missing = [name for name in PROJECTIONS if name not in found]
    if missing:
        await connection.execute(
            """insert into read_model.checkpoints
               select name, 0, now(), version from unnest($1::text[], $2::int[]) n(name, version)
               on conflict do nothing""",
            missing,
            [PROJECTIONS[name].version for name in missing],
        )
        return await checkpoints_of(connection, lock=lock)
    return [found[name] for name in PROJECTIONS]


async def of_other_versions(connection: Connection) -> dict[str, int]:
    """The read models that another version of their projection made, and which."""
    rows = await connection.fetch("select projection, version from read_model.checkpoints")
    return {name: version for name, version in rows if name in PROJECTIONS and version != PROJECTIONS[name].version}


async def park(connection: Connection, given_up: Sequence[Parked], schema: str = LIVE) -> None:
    """Note the streams that a projection cannot follow."""
    for name, stream, position, error in given_up:
        _log.error("projection.parked", projection=name, stream_id=str(stream), position=position, error=error)
    if given_up:
        await connection.executemany(
            f"insert into {schema}.parked values ($1, $2, $3, $4, now()) on conflict do nothing",
            given_up,
        )
