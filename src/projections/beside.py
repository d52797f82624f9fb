"""Making read models' tables beside the live ones, from the ledger alone: ranges of streams, a process a core.

A range is read, folded and copied in one transaction. Deliberately absent: what the tables are for
(rebuild.py), and facts that come later (runner.py).
"""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, groupby
from multiprocessing import get_context, parent_process
from operator import attrgetter
from typing import Final
from uuid import UUID

import uvloop
from msgspec import Struct

from projections.projection import BESIDE, LIVE, Projection, Row, Step
from projections.runner import INDIGESTIBLE, PROJECTIONS, Parked, park, step_of
from tickets.connections import Connection, connect
from tickets.ledger import Raw, read_streams

_FACTS_A_RANGE: Final = 10_000
_TIMEOUT_S: Final = 30.0


class Range(Struct, frozen=True):
    """Streams that are next to each other by their ids, and how many facts they have."""

    first: UUID
    last: UUID
    facts: int


async def create_tables(connection: Connection, names: Sequence[str]) -> None:
    """Empty tables beside the live ones, without their indexes."""
    for name in names:
        await connection.execute(f"create table {BESIDE}.{name} (like {LIVE}.{name} including all excluding indexes)")


async def drop_tables(connection: Connection) -> None:
    """Remove what an earlier one left."""
    for name in (*PROJECTIONS, "parked"):
        await connection.execute(f"drop table if exists {BESIDE}.{name}")


async def fill(dsn: str, ranges: Sequence[Range], names: Sequence[str], upto: int, workers: int) -> AsyncGenerator[int]:
    """Have the tables hold what follows from the facts up to a position; yields each range's count when it is in.

    So many processes work at it; what is little is done in this one. Raises one of REFUSED where the database
    will not have a row.
    """
    if workers == 1 or len(ranges) < 2:
        for one in ranges:
            yield await _fill_range(dsn, names, upto, one)
        return
    pool = ProcessPoolExecutor(min(workers, len(ranges)), mp_context=get_context("spawn"), initializer=_begin)
    try:
        working = [pool.submit(_fill_range_here, dsn, names, upto, one) for one in ranges]
        for done in asyncio.as_completed(map(asyncio.wrap_future, working)):
            yield await done
    finally:
        await asyncio.to_thread(pool.shutdown, cancel_futures=True)


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


def _begin() -> None:
    """A worker's first act: it ends with whoever started it, also where that is killed."""
    starter = parent_process()
    assert starter is not None  # noqa: S101 - the pool starts workers, nobody else

    def watch() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _fill_range_here(dsn: str, names: Sequence[str], upto: int, wanted: Range) -> int:
    return uvloop.run(_fill_range(dsn, names, upto, wanted))


async def _fill_range(dsn: str, names: Sequence[str], upto: int, wanted: Range) -> int:
    connection = await connect(dsn, timeout=_TIMEOUT_S)
    try:
        found = await read_streams(connection, wanted.first, wanted.last, upto=upto)
        rows, given_up = _rows_of_streams(found, {name: PROJECTIONS[name] for name in names})
        async with connection.transaction():
            await connection.execute("set local synchronous_commit = off")  # lost with the server, it is made again
            for name, new in rows.items():
                if new:
                    await connection.copy_records_to_table(
                        name, schema_name=BESIDE, columns=PROJECTIONS[name].columns, records=new
                    )
            await park(connection, given_up, BESIDE)
    finally:
        await connection.close()
    return len(found)


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
        for name, one in wanted.items():
            try:
                rows[name] += _newest(one, steps)
            except Exception:  # noqa: BLE001 - the stream is gone through again, fact by fact, to park it at the one
                made, error_at = _until_error(one, steps)
                rows[name] += _standing(one, made)
                given_up.append((name, stream_id, *error_at))
    return rows, given_up


def _newest(one: Projection, steps: list[Step]) -> Sequence[Row]:
    if one.one_a_stream:
        return next((rows for step in reversed(steps) if (rows := one.rows(step))), ())
    return _standing(one, list(chain.from_iterable(map(one.rows, steps))))


def _standing(one: Projection, rows: list[Row]) -> list[Row]:
    """Those rows of a stream that no later one replaces."""
    return list({row[0]: row for row in rows}.values()) if one.newest_only else rows


def _until_error(one: Projection, steps: list[Step]) -> tuple[list[Row], tuple[int, str]]:
    made: list[Row] = []
    for step in steps:
        try:
            made += one.rows(step)
        except Exception as error:  # noqa: BLE001 - as above
            return made, (step.envelope.position, f"{step.fact.TOPIC}: {error!r}")
    raise AssertionError("a projection made rows of a stream that it had just refused")
