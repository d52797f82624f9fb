"""Making read models anew from the ledger: beside the live ones, compared with them, swapped in.

Reads and writes go on all the while. `check` makes them beside and compares, and leaves it at that.
Deliberately absent: catching up (runner.py), which a rebuild uses for the last few facts.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from msgspec import Struct

from projections.beside import Job, Refused, WorkerDied, create_indexes, create_tables, drop_tables, fill
from projections.projection import BESIDE, LIVE, Projection
from projections.runner import PROJECTIONS, Fold, checkpoints_of, take_in
from tickets.connections import Connection, connected
from tickets.ledger import read

__all__ = ["AlreadyRunning", "Compared", "NotLevel", "Progress", "UnknownProjection", "WorkerDied", "rebuild"]

_CHUNK: Final = 5_000
_TURN: Final = 0x72656275696C64  # "rebuild", as the number of an advisory lock


class Progress(Struct, frozen=True):
    """How many of the facts have been taken in."""

    facts: int
    of: int


class Compared(Struct, frozen=True):
    """What a read model made anew has that the live one has not, and the other way round, at one position."""

    projection: str
    position: int
    rows: int
    missing: int
    """Rows that the live one should have and has not, or not like that."""
    unexpected: int
    """Rows that the live one has and should not have, or not like that."""

    @property
    def clean(self) -> bool:
        """Whether the live one was just as it should be."""
        return not self.missing and not self.unexpected


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
    Compared for each. Raises UnknownProjection, AlreadyRunning, NotLevel, WorkerDied.
    """
    unknown = set(names) - set(PROJECTIONS)
    if unknown:
        raise UnknownProjection(f"{', '.join(sorted(unknown))}; there are {', '.join(PROJECTIONS)}")
    wanted = {name: one for name, one in PROJECTIONS.items() if not names or name in names}
    async with connected(dsn) as connection:
        if not await connection.fetchval("select pg_try_advisory_lock($1)", _TURN):
            raise AlreadyRunning
        try:
            async for step in _rebuild(
                connection, dsn, wanted, swap=swap, workers=workers or len(os.sched_getaffinity(0))
            ):
                yield step
        finally:
            if not connection.is_closed():
                await drop_tables(connection)


async def _rebuild(
    connection: Connection, dsn: str, wanted: dict[str, Projection], *, swap: bool, workers: int
) -> AsyncGenerator[Progress | Compared]:
    await drop_tables(connection)
    positions = await _positions(connection, wanted)
    upto = min(positions.values())
    if max(positions.values()) != upto:
        raise NotLevel(positions)
    try:
        async with aclosing(_made_by_streams(connection, dsn, wanted, upto, workers)) as made:
            async for progress in made:
                yield progress
    except Refused:
        # Which of two rows is the one too many depends on which was first: in the order of the ledger, then.
        async with aclosing(_made_in_order(connection, dsn, wanted, upto)) as made:
            async for progress in made:
                yield progress
    position, compared = await _compare_all(connection, dsn, wanted, upto)
    for one in compared:
        yield one
    if swap:
        await _swap(connection, wanted, position)


async def _made_by_streams(
    connection: Connection, dsn: str, wanted: dict[str, Projection], upto: int, workers: int
) -> AsyncGenerator[Progress]:
    taken = 0
    async with aclosing(fill(connection, Job(dsn, tuple(wanted), upto), workers)) as filling:
        async for count in filling:
            taken += count
            yield Progress(facts=taken, of=upto)
    await asyncio.gather(*(_add_indexes(dsn, name) for name in (*wanted, "parked")))


async def _made_in_order(
    connection: Connection, dsn: str, wanted: dict[str, Projection], upto: int
) -> AsyncGenerator[Progress]:
    """As a runner would: slower, and whatever the database refuses is parked as a runner parks it."""
    await drop_tables(connection)
    await create_tables(connection, (*wanted, "parked"))
    for name in (*wanted, "parked"):
        await _add_indexes(dsn, name)
    position = 0
    while position < upto:
        async with connection.transaction():
            position = await _follow(connection, wanted, position, min(position + _CHUNK, upto))
        yield Progress(facts=position, of=upto)


async def _positions(connection: Connection, wanted: dict[str, Projection]) -> dict[str, int]:
    checkpoints = await checkpoints_of(connection)
    return {one.application_name: one.notification_id for one in checkpoints if one.application_name in wanted}


async def _add_indexes(dsn: str, name: str) -> None:
    """The same indexes under the same names as the live table's, made when the rows are in."""
    async with connected(dsn) as connection:
        # Each table has a session of its own: helpers of PostgreSQL's would only take turns with those.
        await connection.execute(
            "set maintenance_work_mem = '256MB'; set max_parallel_maintenance_workers = 0; set synchronous_commit = off"
        )
        await create_indexes(connection, name)


async def _compare_all(
    connection: Connection, dsn: str, wanted: dict[str, Projection], upto: int
) -> tuple[int, list[Compared]]:
    """Both at one position, seen as of one moment, a table a session; the live ones move on meanwhile."""
    async with connection.transaction():
        position = await _follow(connection, wanted, upto)
    async with connected(dsn) as other:
        holding = other.transaction()
        await holding.start()
        # Holding the checkpoints keeps the runner where it is until the last few facts are in, and seen.
        await checkpoints_of(other, lock=True)
        async with connection.transaction():
            position = await _follow(connection, wanted, position)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot: str = await connection.fetchval("select pg_export_snapshot()")
            await holding.rollback()
            compared = await asyncio.gather(*(_compare(dsn, one, position, snapshot) for one in wanted.values()))
    return position, compared


async def _compare(dsn: str, one: Projection, position: int, snapshot: str) -> Compared:
    live, beside = f"{LIVE}.{one.name}", f"{BESIDE}.{one.name}"
    async with connected(dsn) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(f"set transaction snapshot '{snapshot}'; set local enable_hashjoin = off")
        # Rows are held against each other by their key, whole row against whole row: every byte counts.
        row = await connection.fetchrow(
            f"""select (select count(*) from {beside}), count(*) filter (where made.{one.columns[0]} is not null),
                       count(*) filter (where live.{one.columns[0]} is not null)
                from {live} live full join {beside} made using ({one.key}) where live is distinct from made"""
        )
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Compared(one.name, position, *row)


async def _swap(connection: Connection, wanted: dict[str, Projection], position: int) -> None:
    """The facts since, while the runner goes on; then, in one short transaction, the last few and the swap."""
    async with connection.transaction():
        position = await _follow(connection, wanted, position)
    async with connection.transaction():
        # Holding the checkpoints keeps the runner from writing to the tables that are about to go.
        await checkpoints_of(connection, lock=True)
        await _follow(connection, wanted, position)
        for name in wanted:
            comment = await connection.fetchval(
                "select quote_literal(obj_description($1::text::regclass))", f"{LIVE}.{name}"
            )
            await connection.execute(f"drop table {LIVE}.{name}")
            await connection.execute(f"alter table {BESIDE}.{name} set schema {LIVE}")
            await connection.execute(f"comment on table {LIVE}.{name} is {comment}")
        await connection.execute(f"delete from {LIVE}.parked where projection = any($1)", list(wanted))
        await connection.execute(f"insert into {LIVE}.parked table {BESIDE}.parked")


async def _follow(connection: Connection, wanted: dict[str, Projection], position: int, upto: int | None = None) -> int:
    """Take the facts since `position` into the tables beside, `upto` some position or as far as the live ones are."""
    if upto is None:
        upto = min((await _positions(connection, wanted)).values())
    fold = Fold(connection)
    while batch := await read(connection, position, _CHUNK, upto=upto):
        await take_in(connection, batch, fold, dict.fromkeys(wanted, position), BESIDE)
        position = batch[-1].position
    return position
