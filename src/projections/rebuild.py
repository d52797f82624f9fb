"""Making read models anew from the ledger: beside the live ones, compared with them, swapped in.

Reads and writes go on all the while. `check` makes them beside and compares, and leaves it at that. Each step holds
the turn, an advisory lock, so that there is one rebuild at a time; what else it holds, and what is where:

    step      where the tables are                   held besides                       what a kill leaves
    made      rebuild: without indexes; job, ranges  nothing                            what was made, gone on with
    compared  rebuild: with indexes, like the live   nothing                            the same
    followed  rebuild: as far as the live ones       nothing                            the same
    swapped   read_model: the new ones               the live tables against vacuum,    nothing, or all of it: it is
              rebuild: the old ones, as *_replaced   then the checkpoints, then all of  one transaction
                                                     the live tables, for 20 ms
    dropped   read_model alone                       nothing                            the old ones, for the next

Where read models get another shape (`reshape`), they are made like empty ones in the schema upcoming. That becomes
read_model in the end, and read_model becomes outgoing, until it is dropped.

Deliberately absent: catching up (runner.py), which a rebuild uses for the last few facts.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final, TypeVar
from uuid import uuid4

import asyncpg
import structlog
from msgspec import Struct

from projections.beside import (
    Job,
    Refused,
    begin,
    create_indexes,
    drop_tables,
    fill,
    largest_first,
    reach,
    reached,
    replaced,
    unfinished,
)
from projections.comparison import Compared, compare
from projections.projection import BESIDE, LIVE, Projection
from projections.runner import PROJECTIONS, Fold, checkpoints_of, of_other_versions, take_in
from tickets.connections import Connection, connected
from tickets.ledger import read

T = TypeVar("T")

_CHUNK: Final = 5_000
_READERS_WAIT_MS: Final = 200
"""How long everybody who reads may have to wait behind the swap, where it has to wait itself …"""
_GIVING_WAY_S, _GIVING_WAY_AT_MOST_S = 0.5, 10.0
"""… before it lets them, and tries again later: after so long at first, and then twice as long each time."""
_log: Final = structlog.get_logger(__name__)
_TURN: Final = 0x72656275696C64  # "rebuild", as the number of an advisory lock


class Progress(Struct, frozen=True):
    """How many of the facts have been taken in."""

    facts: int
    of: int


class UnknownProjection(Exception):  # noqa: N818 - it says what is unknown
    """There is no read model of that name."""


class AlreadyRunning(Exception):  # noqa: N818 - it says what is the matter
    """Another rebuild or check is running; let it finish."""


class NotLevel(Exception):  # noqa: N818 - as above
    """A read model is new and has not caught up with the others yet; let the service run until it has."""


async def rebuild(
    dsn: str, names: Sequence[str] = (), *, swap: bool = True, workers: int | None = None
) -> AsyncGenerator[Progress | Compared, None]:
    """Make the named read models (none: all) anew; with `swap`, put them in place of the live ones.

    `workers` is how many processes make them, by default one a core. Yields Progress, and at the end a
    Compared for each. What one that was killed had made is gone on with. Raises UnknownProjection,
    AlreadyRunning, NotLevel, WorkerDied.
    """
    unknown = set(names) - set(PROJECTIONS)
    if unknown:
        raise UnknownProjection(f"{', '.join(sorted(unknown))}; there are {', '.join(PROJECTIONS)}")
    wanted = {name: one for name, one in PROJECTIONS.items() if not names or name in names}
    async with connected(dsn) as connection, _alone(connection):
        job = await unfinished(connection, dsn, tuple(wanted)) or await _begun(connection, dsn, wanted)
        workers = workers or len(os.sched_getaffinity(0))
        async with aclosing(_made(connection, job, workers)) as made:
            async for progress in made:
                yield progress
        for one in await _compare_all(connection, job, workers):
            yield one
        if swap:
            await _swap(connection, job)


async def reshape(
    dsn: str, templates: str, put_in_place: Callable[[Connection], Awaitable[None]]
) -> AsyncGenerator[Progress]:
    """Make all read models anew in the shape that the empty ones in the schema `templates` have.

    Those that are read stay as they are meanwhile, and whoever leads goes on adding to them. In the end, in one short
    transaction, the new ones are in `templates`, and `put_in_place` is asked to put that schema in place. What one that
    was killed had made is gone on with. Raises AlreadyRunning, WorkerDied.
    """
    async with connected(dsn) as connection, _alone(connection):
        job = await unfinished(connection, dsn, tuple(PROJECTIONS), templates)
        if job is None:
            job = Job(uuid4(), dsn, tuple(PROJECTIONS), await _head(connection), templates)
            await begin(connection, job)
        async with aclosing(_made(connection, job, len(os.sched_getaffinity(0)))) as made:
            async for progress in made:
                yield progress
        async with connection.transaction():
            # A runner that waits for these rows must find none, and look again: in the tables that are in place then.
            await checkpoints_of(connection, lock=True)
            await connection.execute(f"delete from {LIVE}.checkpoints")
            position = await _follow_all(connection, job)
            await _swap_tables(connection, job)
            await connection.execute(
                f"""insert into {templates}.checkpoints
                    select name, $1, now(), version from unnest($2::text[], $3::int[]) n(name, version)""",
                position,
                list(PROJECTIONS),
                [one.version for one in PROJECTIONS.values()],
            )
            await put_in_place(connection)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """While this is the only one; in the end nothing is left beside. A kill leaves it, to be gone on with."""
    if not await connection.fetchval("select pg_try_advisory_lock($1)", _TURN):
        raise AlreadyRunning
    try:
        yield
    finally:
        if not connection.is_closed():
            await drop_tables(connection)


async def _begun(connection: Connection, dsn: str, wanted: dict[str, Projection]) -> Job:
    positions = await _positions(connection, wanted)
    if len(set(positions.values())) > 1:
        raise NotLevel(positions)
    job = Job(uuid4(), dsn, tuple(wanted), min(positions.values()))
    await begin(connection, job)
    return job


async def _made(connection: Connection, job: Job, workers: int) -> AsyncGenerator[Progress]:
    """The tables beside, with indexes, nearly as far as they are to be."""
    taken = 0
    try:
        async with aclosing(fill(connection, job, workers)) as filling:
            async for count in filling:
                taken += count
                yield Progress(facts=taken, of=job.upto)
    except Refused:
        # Which of two rows is the one too many depends on which was first: in the order of the ledger, then.
        await begin(connection, job, in_order=True)
    await _in_turns(job.dsn, workers, [partial(_add_indexes, job, name) for name in await largest_first(connection)])
    more = True
    while more:
        async with connection.transaction():
            position, more = await _follow(connection, job)
        yield Progress(facts=position, of=max(position, job.upto))


async def _in_turns(dsn: str, many: int, jobs: Sequence[Callable[[Connection], Awaitable[T]]]) -> list[T]:
    """Do them in so many sessions: more at once would only take the processors from whoever is served meanwhile."""
    waiting, done = iter(enumerate(jobs)), dict[int, T]()

    async def session() -> None:
        async with connected(dsn) as connection:
            for n, job in waiting:
                done[n] = await job(connection)

    await asyncio.gather(*(session() for _ in range(min(many, len(jobs)))))
    return [done[n] for n in range(len(jobs))]


async def _head(connection: Connection) -> int:
    position: int = await connection.fetchval("select position from ledger.head")
    return position


async def _positions(connection: Connection, wanted: dict[str, Projection]) -> dict[str, int]:
    checkpoints = await checkpoints_of(connection)
    return {one.application_name: one.notification_id for one in checkpoints if one.application_name in wanted}


async def _add_indexes(job: Job, name: str, connection: Connection) -> None:
    """The same indexes under the same names as the live table's, made when the rows are in."""
    # Several tables are at it at once: helpers of PostgreSQL's would only take turns with those.
    await connection.execute(
        "set maintenance_work_mem = '256MB'; set max_parallel_maintenance_workers = 0; set synchronous_commit = off"
    )
    await create_indexes(connection, name, job.templates)


async def _compare_all(connection: Connection, job: Job, workers: int) -> list[Compared]:
    """Both at one position, seen as of one moment, a table a session; the live ones move on meanwhile."""
    async with connected(job.dsn) as other:
        holding = other.transaction()
        await holding.start()
        # Holding the checkpoints keeps the runner where it is until the last few facts are in, and seen.
        await checkpoints_of(other, lock=True)
        async with connection.transaction():
            position = await _follow_all(connection, job)
        versions = await of_other_versions(other)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot: str = await connection.fetchval("select pg_export_snapshot()")
            await holding.rollback()
            comparing = [
                partial(compare, PROJECTIONS[name], position, snapshot, versions.get(name)) for name in job.names
            ]
            return await _in_turns(job.dsn, workers, comparing)


async def _swap(connection: Connection, job: Job) -> None:
    """The facts since, while the runner goes on; then, with it held where it is, the last few and the swap.

    Where somebody reads for long, it gives way to everybody else and tries again.
    """
    pause = _GIVING_WAY_S
    while not await _swapped(connection, job):
        _log.warning("rebuild.waits_for_readers", tables=job.names, retry_in_s=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _GIVING_WAY_AT_MOST_S)


async def _swapped(connection: Connection, job: Job) -> bool:
    """Whether the tables could be had for a moment, and the new ones are in their place."""
    async with connection.transaction():
        await _follow_all(connection, job)
    try:
        async with connection.transaction():
            await _hold_off_vacuum(connection, job.names)
            # Holding the checkpoints keeps the runner from writing to the tables that are about to go.
            await checkpoints_of(connection, lock=True)
            await _follow_all(connection, job)
            await _shut_out_readers(connection, job.names)
            await _swap_tables(connection, job)
            for name in job.names:
                await connection.execute(
                    f"update {LIVE}.checkpoints set version = $2 where projection = $1", name, PROJECTIONS[name].version
                )
    except asyncpg.LockNotAvailableError:
        return False
    return True


async def _shut_out_readers(connection: Connection, names: Sequence[str]) -> None:
    """Have the tables that are read now to ourselves, until the end of the transaction.

    Whoever wants to read waits behind this, also where it is only somebody else's long reading that it waits for: so it
    does not wait for long. Raises asyncpg.LockNotAvailableError.
    """
    tables = ", ".join(f"{LIVE}.{name}" for name in names)
    await connection.execute(f"set local lock_timeout = '{_READERS_WAIT_MS}ms'")
    await connection.execute(f"lock table {tables} in access exclusive mode")


async def _hold_off_vacuum(connection: Connection, names: Sequence[str]) -> None:
    """Have the tables that are read now to ourselves, but for reading and writing, until the end of the transaction.

    PostgreSQL's own vacuuming gives way after a second. Were that waited for when the tables are swapped, everybody who
    reads them would wait behind.
    """
    tables = ", ".join(f"{LIVE}.{name}" for name in names)
    await connection.execute(f"lock table {tables} in share update exclusive mode")


async def _swap_tables(connection: Connection, job: Job) -> None:
    """Put the tables beside in the place of those that they are like, within a transaction.

    Those go where they came from, under other names, and are dropped afterwards: with a gigabyte in them that takes a
    second, in which nobody could read.
    """
    schema = job.templates
    for name in job.names:
        comment = await connection.fetchval(
            "select quote_literal(obj_description($1::text::regclass))", f"{schema}.{name}"
        )
        indexes = await connection.fetch(
            "select relname from pg_index join pg_class on oid = indexrelid where indrelid = $1::text::regclass",
            f"{schema}.{name}",
        )
        for (index,) in indexes:
            await connection.execute(f"alter index {schema}.{index} rename to {replaced(index)}")
        await connection.execute(f"alter table {schema}.{name} rename to {replaced(name)}")
        await connection.execute(f"alter table {schema}.{replaced(name)} set schema {BESIDE}")
        await connection.execute(f"alter table {BESIDE}.{name} reset (autovacuum_enabled, toast.autovacuum_enabled)")
        await connection.execute(f"alter table {BESIDE}.{name} set schema {schema}")
        await connection.execute(f"comment on table {schema}.{name} is {comment}")
    await connection.execute(f"delete from {schema}.parked where projection = any($1)", job.names)
    await connection.execute(f"insert into {schema}.parked table {BESIDE}.parked")
    await connection.execute(f"drop table {BESIDE}.job")  # it is done: after a kill there is nothing to go on with


async def _follow_all(connection: Connection, job: Job) -> int:
    """Take the facts since into the tables beside, as far as they are to be, within a transaction."""
    while True:
        position, more = await _follow(connection, job)
        if not more:
            return position


async def _follow(connection: Connection, job: Job) -> tuple[int, bool]:
    """The next of them; returns how far the tables beside are then, and whether there are many more.

    They go as far as the live ones; where they are to have another shape than those, as far as the ledger.
    """
    position = await reached(connection)
    wanted = {name: PROJECTIONS[name] for name in job.names}
    live = job.templates == LIVE
    upto = min((await _positions(connection, wanted)).values()) if live else await _head(connection)
    batch = await read(connection, position, _CHUNK, upto=upto)
    if batch:
        await take_in(connection, batch, Fold(connection), dict.fromkeys(wanted, position), BESIDE)
        position = batch[-1].position
        await reach(connection, position)
    return position, len(batch) == _CHUNK
