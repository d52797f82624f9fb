"""Making read models' tables beside the live ones, from the ledger alone: ranges of streams, a process a core.

A range is read, folded and copied in one transaction. A worker is this module run as a program: for each
line of JSON that names a range, one goes out when its rows are in. It ends when no more can come, also
where whoever started it was killed. Deliberately absent: what the tables are for (rebuild.py), and facts
that come later (runner.py).
"""

import asyncio
import gc
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID

import msgspec
import uvloop
from msgspec import Struct

from projections.projection import BESIDE, LIVE, Projection, Row, Step, summed
from projections.runner import INDIGESTIBLE, PROJECTIONS, REFUSED, Parked, park, rows_of_stream, step_of
from tickets.connections import Connection, connected
from tickets.ledger import Raw, read_streams

_FACTS_A_RANGE: Final = 4_000
_TIMEOUT_S: Final = 30.0


class Job(Struct, frozen=True):
    """The tables to make, as they follow from the facts up to a position."""

    dsn: str
    names: tuple[str, ...]
    upto: int


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


class WorkerDied(Exception):  # noqa: N818 - as above
    """A process that made read models ended before it was done; nothing was changed. Why is said above, if at all."""


async def create_tables(connection: Connection, names: Sequence[str]) -> None:
    """Empty tables beside the live ones, without their indexes."""
    for name in names:
        await connection.execute(f"create table {BESIDE}.{name} (like {LIVE}.{name} including all excluding indexes)")


async def create_indexes(connection: Connection, name: str) -> None:
    """The same indexes under the same names as the live table's; of sums, first one row for each key."""
    if name in PROJECTIONS and PROJECTIONS[name].sums:
        await _add_up(connection, PROJECTIONS[name])
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


async def drop_tables(connection: Connection) -> None:
    """Remove what an earlier one left."""
    for name in (*PROJECTIONS, "parked"):
        await connection.execute(f"drop table if exists {BESIDE}.{name}")


async def fill(connection: Connection, job: Job, workers: int) -> AsyncGenerator[int]:
    """Make the tables, and have them hold what follows from the facts; yields each range's count when it is in.

    So many processes work at it; what is little is done in this one. Raises Refused, WorkerDied.
    """
    workers = min(workers, job.upto // _FACTS_A_RANGE)
    async with _running(job, workers if workers > 1 else 0) as processes:
        await create_tables(connection, (*job.names, "parked"))
        remaining = iter(await ranges_of(connection))
        if not processes:
            for one in remaining:
                yield _facts(await _fill_range(connection, job, one))
        asked: dict[asyncio.Task[_Answer], Process] = {}
        try:
            for process, one in zip(processes, remaining, strict=False):
                asked[asyncio.create_task(_ask(process, one))] = process
            while asked:
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for answered in done:
                    process = asked.pop(answered)
                    if (following := next(remaining, None)) is not None:
                        asked[asyncio.create_task(_ask(process, following))] = process
                    yield _facts(answered.result())
        finally:
            for unanswered in asked:
                unanswered.cancel()


def _facts(answer: _Answer) -> int:
    if answer.refused is not None:
        raise Refused(answer.refused)
    return answer.facts


@asynccontextmanager
async def _running(job: Job, workers: int) -> AsyncIterator[list[Process]]:
    processes: list[Process] = []
    try:
        for _ in range(workers):
            processes.append(await create_subprocess_exec(sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE))
            await _tell(processes[-1], job)
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _tell(process: Process, what: Job | Range) -> None:
    assert process.stdin is not None  # noqa: S101 - it was asked for
    process.stdin.write(msgspec.json.encode(what) + b"\n")
    await process.stdin.drain()


async def _ask(process: Process, wanted: Range) -> _Answer:
    assert process.stdout is not None  # noqa: S101 - as above
    try:
        await _tell(process, wanted)
        return msgspec.json.decode(await process.stdout.readuntil(), type=_Answer)
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise WorkerDied from error


async def ranges_of(connection: Connection) -> list[Range]:
    """The streams of the ledger in ranges of some ten thousand facts; none cuts a stream in two."""
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
    """What a worker does. Only answers go to its standard output: all else that is printed, to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
        async with connected(job.dsn, timeout=_TIMEOUT_S) as connection:
            for line in iter(sys.stdin.buffer.readline, b""):
                answer = await _fill_range(connection, job, msgspec.json.decode(line, type=Range))
                answers.write(msgspec.json.encode(answer) + b"\n")


async def _fill_range(connection: Connection, job: Job, wanted: Range) -> _Answer:
    found = await read_streams(connection, wanted.first, wanted.last, upto=job.upto)
    rows, given_up = _rows_of_streams(found, {name: PROJECTIONS[name] for name in job.names})
    try:
        async with connection.transaction():
            await connection.execute("set local synchronous_commit = off")  # lost with the server, it is made again
            for name, new in rows.items():
                if new:
                    await connection.copy_records_to_table(
                        name, schema_name=BESIDE, columns=PROJECTIONS[name].columns, records=new
                    )
            await park(connection, given_up, BESIDE)
    except REFUSED as error:
        return _Answer(refused=repr(error))
    return _Answer(facts=len(found))


def _rows_of_streams(chunk: list[Raw], wanted: Mapping[str, Projection]) -> tuple[dict[str, list[Row]], list[Parked]]:
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
