"""Making read models anew from the ledger: beside the live ones, compared with them, swapped in.

Reads and writes go on all the while. `check` makes them beside and compares, and leaves it at that.
Deliberately absent: catching up (runner.py), which a rebuild uses for the last few facts.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from itertools import chain, groupby
from operator import attrgetter
from typing import Final

from msgspec import Struct

from projections.projection import BESIDE, LIVE, Projection, Row, Step, write
from projections.runner import INDIGESTIBLE, PROJECTIONS, Fold, Parked, checkpoints_of, park, rows_of, step_of
from tickets.connections import Connection
from tickets.ledger import Raw

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
    connection: Connection, reader: Connection, names: Sequence[str] = (), *, swap: bool = True
) -> AsyncGenerator[Progress | Compared, None]:
    """Make the named read models (none: all) anew; with `swap`, put them in place of the live ones.

    Yields Progress, and at the end a Compared for each. Raises UnknownProjection, AlreadyRunning, NotLevel.
    """
    unknown = set(names) - set(PROJECTIONS)
    if unknown:
        raise UnknownProjection(f"{', '.join(sorted(unknown))}; there are {', '.join(PROJECTIONS)}")
    wanted = {name: one for name, one in PROJECTIONS.items() if not names or name in names}
    if not await connection.fetchval("select pg_try_advisory_lock($1)", _TURN):
        raise AlreadyRunning
    try:
        await _clear(connection)
        position = 0
        async with aclosing(_make_beside(connection, reader, wanted)) as made:
            async for progress in made:
                yield progress
                if isinstance(progress, Compared):
                    position = progress.position
        if swap:
            await _swap(connection, wanted, position)
    finally:
        if not connection.is_closed():
            await _clear(connection)
            await connection.execute("select pg_advisory_unlock($1)", _TURN)


async def _clear(connection: Connection) -> None:
    for name in (*PROJECTIONS, "parked"):
        await connection.execute(f"drop table if exists {BESIDE}.{name}")


async def _make_beside(
    connection: Connection, reader: Connection, wanted: dict[str, Projection]
) -> AsyncGenerator[Progress | Compared, None]:
    """One snapshot: the live rows and their checkpoints are seen as of one moment, while they move on."""
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute("set local maintenance_work_mem = '256MB'; set local work_mem = '64MB'")
        positions = await _positions(connection, wanted)
        upto = max(positions.values())
        if min(positions.values()) != upto:
            raise NotLevel(positions)
        for name in (*wanted, "parked"):
            await connection.execute(
                f"create table {BESIDE}.{name} (like {LIVE}.{name} including all excluding indexes)"
            )
        taken = 0
        writing: asyncio.Task[None] | None = None
        try:
            async with reader.transaction(readonly=True):
                async for chunk in _streams(reader, upto):
                    rows, given_up = _rows_of_streams(chunk, wanted)
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(_copy(connection, wanted, rows, given_up))
                    taken += len(chunk)
                    yield Progress(facts=taken, of=upto)
        finally:
            if writing is not None:  # also where this is given up: nobody can use the connection before
                await asyncio.wait({writing})
        if writing is not None:
            await writing
        for name in (*wanted, "parked"):
            await _add_indexes(connection, name)
        for name, one in wanted.items():
            yield await _compare(connection, one, positions[name])


async def _positions(connection: Connection, wanted: dict[str, Projection]) -> dict[str, int]:
    checkpoints = await checkpoints_of(connection)
    return {one.application_name: one.notification_id for one in checkpoints if one.application_name in wanted}


async def _streams(reader: Connection, upto: int) -> AsyncIterator[list[Raw]]:
    """The facts stream by stream, in chunks that never cut a stream in two."""
    chunk: list[Raw] = []
    cursor = reader.cursor(
        """select position, stream_id, version, topic, recorded_at, metadata, state from ledger.events
           where position <= $1 order by stream_id, version""",
        upto,
        prefetch=_CHUNK,
    )
    async for row in cursor:
        raw = Raw(*row)
        if len(chunk) >= _CHUNK and raw.stream_id != chunk[-1].stream_id:
            yield chunk
            chunk = []
        chunk.append(raw)
    if chunk:
        yield chunk


def _rows_of_streams(chunk: list[Raw], wanted: dict[str, Projection]) -> tuple[dict[str, list[Row]], list[Parked]]:
    """The rows that whole streams make; of each stream only the newest row where only that one stands."""
    rows: dict[str, list[Row]] = {name: [] for name in wanted}
    given_up: list[Parked] = []
    for stream_id, facts in groupby(chunk, key=attrgetter("stream_id")):
        steps: list[Step] = []
        for raw in facts:
            try:
                steps.append(step_of(raw, steps[-1].after if steps else None))
            except INDIGESTIBLE as error:
                given_up += [(name, stream_id, raw.position, f"{raw.topic}: {error!r}") for name in wanted]
                break
        for name, one in wanted.items():
            try:
                rows[name] += _newest(one, steps) if one.newest_only else chain.from_iterable(map(one.rows, steps))
            except Exception:  # noqa: BLE001 - the stream is gone through again, fact by fact, to park it at the one
                made, error_at = _until_error(one, steps)
                rows[name] += made[-1:] if one.newest_only else made
                given_up.append((name, stream_id, *error_at))
    return rows, given_up


def _newest(one: Projection, steps: list[Step]) -> Sequence[Row]:
    return next((rows for step in reversed(steps) if (rows := one.rows(step))), ())


def _until_error(one: Projection, steps: list[Step]) -> tuple[list[Row], tuple[int, str]]:
    made: list[Row] = []
    for step in steps:
        try:
            made += one.rows(step)
        except Exception as error:  # noqa: BLE001 - as above
            return made, (step.envelope.position, f"{step.fact.TOPIC}: {error!r}")
    raise AssertionError("a projection made rows of a stream that it had just refused")


async def _copy(
    connection: Connection, wanted: dict[str, Projection], rows: dict[str, list[Row]], given_up: list[Parked]
) -> None:
    for name, new in rows.items():
        if new:
            await connection.copy_records_to_table(name, schema_name=BESIDE, columns=wanted[name].columns, records=new)
    await park(connection, given_up, BESIDE)


async def _add_indexes(connection: Connection, name: str) -> None:
    """The same indexes under the same names as the live table's, made when the rows are in."""
    constraints = await connection.fetch(
        """select conname, pg_get_constraintdef(oid), conindid from pg_constraint
           where conrelid = $1::text::regclass and contype in ('p', 'u')""",
        f"{LIVE}.{name}",
    )
    for constraint, definition, _ in constraints:
        await connection.execute(f"alter table {BESIDE}.{name} add constraint {constraint} {definition}")
    indexes = await connection.fetch(
        """select pg_get_indexdef(indexrelid) from pg_index
           where indrelid = $1::text::regclass and indexrelid <> all($2::oid[])""",
        f"{LIVE}.{name}",
        [index for _, _, index in constraints],
    )
    for (definition,) in indexes:
        await connection.execute(definition.replace(f" ON {LIVE}.", f" ON {BESIDE}.", 1))
    await connection.execute(f"analyze {BESIDE}.{name}")


async def _compare(connection: Connection, one: Projection, position: int) -> Compared:
    live, beside = f"{LIVE}.{one.name}", f"{BESIDE}.{one.name}"
    # Rows are held against each other by their key, whole row against whole row: every byte counts.
    row = await connection.fetchrow(
        f"""select (select count(*) from {beside}), count(*) filter (where made.{one.key} is not null),
                   count(*) filter (where live.{one.key} is not null)
            from {live} live full join {beside} made on live.{one.key} = made.{one.key}
            where live is distinct from made"""
    )
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return Compared(one.name, position, *row)


async def _swap(connection: Connection, wanted: dict[str, Projection], position: int) -> None:
    """The facts since, while the runner goes on; then, in one short transaction, the last few and the swap."""
    while True:
        async with connection.transaction():
            upto = min((await _positions(connection, wanted)).values())
            position, left = await _follow(connection, wanted, position, upto)
        if not left:
            break
    async with connection.transaction():
        # Holding the checkpoints keeps the runner from writing to the tables that are about to go.
        await checkpoints_of(connection, lock=True)
        upto, left = min((await _positions(connection, wanted)).values()), True
        while left:
            position, left = await _follow(connection, wanted, position, upto)
        for name in wanted:
            comment = await connection.fetchval(
                "select quote_literal(obj_description($1::text::regclass))", f"{LIVE}.{name}"
            )
            await connection.execute(f"drop table {LIVE}.{name}")
            await connection.execute(f"alter table {BESIDE}.{name} set schema {LIVE}")
            await connection.execute(f"comment on table {LIVE}.{name} is {comment}")
        await connection.execute(f"delete from {LIVE}.parked where projection = any($1)", list(wanted))
        await connection.execute(f"insert into {LIVE}.parked table {BESIDE}.parked")


async def _follow(connection: Connection, wanted: dict[str, Projection], position: int, upto: int) -> tuple[int, bool]:
    """Take the next facts into the tables beside; how far they are then, and whether there are more."""
    found = await connection.fetch(
        """select position, stream_id, version, topic, recorded_at, metadata, state from ledger.events
           where position > $1 and position <= $2 order by position limit $3""",
        position,
        upto,
        _CHUNK,
    )
    if not found:
        return upto, False
    batch = [Raw(*row) for row in found]
    fold = Fold(connection)
    await fold.prepare(batch)
    parked = {(row[0], row[1]) for row in await connection.fetch(f"select projection, stream_id from {BESIDE}.parked")}
    rows, given_up = rows_of(batch, fold, dict.fromkeys(wanted, position), parked)
    for name, new in rows.items():
        await write(connection, wanted[name], new, BESIDE)
    await park(connection, given_up, BESIDE)
    return batch[-1].position, len(batch) == _CHUNK
