"""Making read models' tables beside the live ones, from the ledger alone: ranges of streams, a process a core.

A range is read, folded, copied and ticked off in one transaction, so that whoever comes after a kill goes on with
the ranges that are left. A worker is this module run as a program (tickets/workers.py). Deliberately absent: what
the tables are for (rebuild.py), and facts that come later (runner.py).
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from hashlib import sha256
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final
from uuid import UUID

import uvloop
from msgspec import Struct

import projections
import tickets
from projections.projection import BESIDE, LIVE, Projection, Row, Step, summed
from projections.runner import INDIGESTIBLE, LED_BY, PROJECTIONS, REFUSED, Parked, park, rows_of_stream, step_of
from tickets.connections import Connection, connected
from tickets.ledger import Raw, read_streams
from tickets.workers import answered, asked

_FACTS_A_RANGE: Final = 5_000
_TIMEOUT_S: Final = 30.0
_NICE: Final = 10
"""How far workers stand back: whoever waits for an answer goes first."""

_PATIENCE: Final = timedelta(milliseconds=100)
"""How long a fact may wait for the live read models before workers pause for it …"""

_PAUSE_S: Final = 0.05
_GIVEN_WAY: Final = 20
"""… so often before each range and no more: who leads may be stuck. Where nobody leads, nobody is waited for."""

_MADE_BY: Final = sha256(
    b"".join(
        path.read_bytes()
        for package in (tickets, projections)
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py"))
    )
).digest()
"""What facts mean and which rows follow, as of this code: what other code began is not gone on with."""


class Job(Struct, frozen=True):
    """The tables to make, as they follow from the facts up to a position."""

    id: UUID
    """Of which of several: workers of one that was killed must not add to the tables of the next."""
    dsn: str
    names: tuple[str, ...]
    upto: int
    templates: str = LIVE
    """The schema with the tables that they are like."""


class Range(Struct, frozen=True):
    """Streams that are next to each other by their ids, and how many facts they have."""

    first: UUID
    last: UUID
    facts: int


class _Answer(Struct, frozen=True, omit_defaults=True):
    """What a worker says of a range: how many facts are in, or why the database would not have a row of them."""

    facts: int = 0
    refused: str | None = None


class Refused(Exception):  # noqa: N818 - it says what happened
    """The database will not have one of the rows, for the reason that is given."""


async def begin(connection: Connection, job: Job, *, in_order: bool = False) -> None:
    """Note what is to be made, with empty tables for it, in one transaction: a kill leaves all of that or nothing.

    The tables are without their indexes, and left alone by autovacuum: the swap would wait for it, and it only takes
    the processors from whoever is served meanwhile. What is to be made `in_order` has no ranges of streams: it begins
    at the beginning of the ledger.
    """
    async with connection.transaction():
        await drop_tables(connection)
        for name in (*job.names, "parked"):
            await connection.execute(
                f"create table {BESIDE}.{name} (like {job.templates}.{name} including all excluding indexes) "
                "with (autovacuum_enabled = off, toast.autovacuum_enabled = off)"
            )
            row_type = PROJECTIONS[name].row_type if name in PROJECTIONS else None
            if row_type is not None:
                await connection.execute(f"create table {BESIDE}.{row_type} (like {job.templates}.{row_type})")
        await connection.execute(
            f"create table {BESIDE}.job (id uuid, names text[], templates text, made_by bytea, upto bigint, "
            "position bigint)"
        )
        await connection.execute(
            f"insert into {BESIDE}.job values ($1, $2, $3, $4, $5, $6)",
            job.id,
            job.names,
            job.templates,
            await _made_by(connection, job.templates),
            job.upto,
            0 if in_order else job.upto,
        )
        await _note_ranges(connection, [] if in_order else await _ranges_of(connection))


async def _note_ranges(connection: Connection, ranges: Sequence[Range]) -> None:
    await connection.execute(
        f"create table {BESIDE}.ranges (first uuid primary key, last uuid, facts bigint, done boolean)"
    )
    await connection.copy_records_to_table(
        "ranges", schema_name=BESIDE, records=[(one.first, one.last, one.facts, False) for one in ranges]
    )


async def unfinished(connection: Connection, dsn: str, names: Sequence[str], templates: str = LIVE) -> Job | None:
    """What one that was killed left of making just these, by just this code."""
    if await connection.fetchval(f"select to_regclass('{BESIDE}.job')") is None:
        return None
    row = await connection.fetchrow(
        f"select id, upto from {BESIDE}.job where names = $1 and templates = $2 and made_by = $3",
        names,
        templates,
        await _made_by(connection, templates),
    )
    return None if row is None else Job(row["id"], dsn, tuple(names), row["upto"], templates)


async def _made_by(connection: Connection, templates: str) -> bytes:
    """What makes the tables: this code, in the shape of that schema, which its comment tells apart from others."""
    shape = await connection.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", templates)
    return _MADE_BY + (shape or "").encode()


async def reached(connection: Connection) -> int:
    """Up to which position the tables have what follows from the facts, once `fill` is through."""
    position: int = await connection.fetchval(f"select position from {BESIDE}.job")
    return position


async def reach(connection: Connection, position: int) -> None:
    """Note how far they are, in the transaction that brought them there."""
    await connection.execute(f"update {BESIDE}.job set position = $1", position)


async def largest_first(connection: Connection) -> list[str]:
    """The tables that are being made, so that of several sessions none has a large one left in the end."""
    tables = await connection.fetch(
        f"""select relname from pg_class where relnamespace = '{BESIDE}'::regnamespace and relkind = 'r'
            and relname = any($1::text[]) order by pg_table_size(oid) desc""",
        [*PROJECTIONS, "parked"],
    )
    return [row[0] for row in tables]


async def create_indexes(connection: Connection, name: str, templates: str = LIVE) -> None:
    """The same indexes under the same names as the table's in `templates`; of sums, first one row for each key.

    Goes on where one that was killed had come to.
    """
    if name in PROJECTIONS and PROJECTIONS[name].sums:
        await _add_up(connection, PROJECTIONS[name])
    there = {
        row[0]
        for row in await connection.fetch(
            """select relname from pg_class c join pg_index i on i.indexrelid = c.oid
               where i.indrelid = $1::text::regclass""",
            f"{BESIDE}.{name}",
        )
    }
    constraints = await connection.fetch(
        """select conname, pg_get_constraintdef(oid), conindid from pg_constraint
           where conrelid = $1::text::regclass and contype in ('p', 'u')""",
        f"{templates}.{name}",
    )
    for constraint, definition, _ in constraints:
        if constraint not in there:
            await connection.execute(f"alter table {BESIDE}.{name} add constraint {constraint} {definition}")
    indexes = await connection.fetch(
        """select c.relname, pg_get_indexdef(c.oid) from pg_index i join pg_class c on c.oid = i.indexrelid
           where indrelid = $1::text::regclass and indexrelid <> all($2::oid[])""",
        f"{templates}.{name}",
        [index for _, _, index in constraints],
    )
    for index, definition in indexes:
        if index not in there:
            await give_way(connection)
            await connection.execute(definition.replace(f" ON {templates}.", f" ON {BESIDE}.", 1))
    asked_by: list[str] = await connection.fetchval(
        """select array_agg(distinct a.attname::text) from pg_index i
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey)
           where i.indrelid = $1::text::regclass""",
        f"{BESIDE}.{name}",
    )
    await connection.execute(f"analyze {BESIDE}.{name} ({', '.join(asked_by)})")


async def _add_up(connection: Connection, one: Projection) -> None:
    table, amount = f"{BESIDE}.{one.name}", one.columns[-1]
    async with connection.transaction():
        await connection.execute(
            f"""create temporary table added_up on commit drop as
                select {one.key}, sum({amount})::bigint as {amount} from {table} group by {one.key}
                having sum({amount}) <> 0;
                truncate {table};
                insert into {table} table added_up"""
        )


def replaced(name: str) -> str:
    """What a table or an index is called here that was read until another took its place."""
    return f"{name}_replaced"


async def drop_tables(connection: Connection) -> None:
    """Remove what an earlier one left."""
    types = (one.row_type for one in PROJECTIONS.values() if one.row_type is not None)
    for name in ("job", "ranges", *PROJECTIONS, *map(replaced, PROJECTIONS), *types, "parked"):
        await connection.execute(f"drop table if exists {BESIDE}.{name}")


async def fill(connection: Connection, job: Job, workers: int) -> AsyncGenerator[int]:
    """Have the tables hold what follows from the facts; yields each range's count when it is in.

    So many processes work at it; what is little is done in this one. Raises Refused, WorkerDied.
    """
    rows = await connection.fetch(f"select first, last, facts, done from {BESIDE}.ranges order by first")
    yield sum(facts for _, _, facts, done in rows if done)
    ranges = [Range(first, last, facts) for first, last, facts, done in rows if not done]
    workers = min(workers, len(ranges))
    if workers < 2:
        for one in ranges:
            yield _facts(await _fill_range(connection, job, one))
        return
    async with aclosing(answered(__name__, job, ranges, _Answer, workers)) as answers:
        async for _, answer in answers:
            yield _facts(answer)


def _facts(answer: _Answer) -> int:
    if answer.refused is not None:
        raise Refused(answer.refused)
    return answer.facts


async def _ranges_of(connection: Connection) -> list[Range]:
    """The streams of the ledger in ranges of some five thousand facts; none cuts a stream in two."""
    rows = await connection.fetch(
        """select (array_agg(stream_id order by stream_id))[1], (array_agg(stream_id order by stream_id desc))[1],
                  sum(facts)::bigint
           from (select stream_id, facts, div(sum(facts) over (order by stream_id) - facts, $1) as part
                 from (select stream_id, count(*) as facts from ledger.events group by stream_id) s) t
           group by part order by part""",
        _FACTS_A_RANGE,
    )
    return [Range(*row) for row in rows]


async def _work() -> None:
    os.nice(_NICE)
    with asked(Job, Range) as (job, wanted, tell):
        async with connected(job.dsn, timeout=_TIMEOUT_S) as connection:
            for one in wanted:
                await give_way(connection)
                tell(await _fill_range(connection, job, one))


async def give_way(connection: Connection) -> None:
    """Let whoever keeps the live read models up catch up first, if what people wrote waits for it; a while at most."""
    for _ in range(_GIVEN_WAY):
        waits = await connection.fetchval(
            f"""select clock_timestamp() - recorded_at > $1 and exists ({LED_BY}) from ledger.events
                where position = (select min(position) + 1 from {LIVE}.checkpoints)""",
            _PATIENCE,
        )
        if not waits:
            return
        await asyncio.sleep(_PAUSE_S)


async def _fill_range(connection: Connection, job: Job, wanted: Range) -> _Answer:
    found = await read_streams(connection, wanted.first, wanted.last, upto=job.upto)
    rows, given_up = rows_of_streams(found, {name: PROJECTIONS[name] for name in job.names})
    try:
        async with connection.transaction():
            await connection.execute("set local synchronous_commit = off")  # lost with the server, it is made again
            if not await _taken(connection, job, wanted):
                return _Answer(facts=wanted.facts)
            for name, new in rows.items():
                if new:
                    await connection.copy_records_to_table(
                        name, schema_name=BESIDE, columns=PROJECTIONS[name].columns, records=new
                    )
            await park(connection, given_up, BESIDE)
    except REFUSED as error:
        return _Answer(refused=repr(error))
    return _Answer(facts=len(found))


async def _taken(connection: Connection, job: Job, wanted: Range) -> bool:
    """Note that the range is in, in the transaction that brings it; False if a worker of a killed one just did."""
    done = await connection.fetchval(
        f"update {BESIDE}.ranges set done = true where first = $1 and not done "
        f"and exists (select from {BESIDE}.job where id = $2) returning true",
        wanted.first,
        job.id,
    )
    return done is not None


def rows_of_streams(chunk: list[Raw], wanted: Mapping[str, Projection]) -> tuple[dict[str, list[Row]], list[Parked]]:
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
        if steps:
            for name, one in wanted.items():
                made, error_at = rows_of_stream(one, steps)
                rows[name] += _standing(one, made)
                if error_at is not None:
                    given_up.append((name, stream_id, *error_at))
    for name, one in wanted.items():
        if one.sums:
            rows[name] = summed(rows[name])
    return rows, given_up


def _standing(one: Projection, rows: Sequence[Row]) -> Sequence[Row]:
    """Those rows of a stream that no later one replaces."""
    return list({row[0]: row for row in rows}.values()) if one.newest_only and len(rows) > 1 else rows


if __name__ == "__main__":
    uvloop.run(_work())
