"""Durable commands a second: our ledger beside the eventsourcing library's own recorder, on the same server.

Both sides make the same facts and encode them to the same bytes within the measured time, one fact a
command, and count only what was acknowledged, which is what a commit on disk stands behind. Ours is one
process with so many appends in flight; the library's is as many threads with a connection each, with its
recorder set both ways that it can be (a pipelined transaction, which is how it comes, or a database
function), and the ratio to each is told. Ours does more for each: it seals and hashes, keeps metadata,
and remembers the command. Beside them is what PostgreSQL does with the same rows, a transaction each, where
nobody but pgbench asks for it. The sides alternate within a round, each begins after a checkpoint, and
afterwards the rows must be as many as were acknowledged, without a gap in ours.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from time import monotonic, sleep
from typing import Final

from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict

from benchmarks import pgbench
from benchmarks.lives import START, USERS, appending, asked_for, created, seeded
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target
from tickets.connections import connect
from tickets.events import Created
from tickets.ledger import Ledger
from tickets.mapper import FactMapper

_IN_FLIGHT: Final = 64
_THREADS: Final = 16
_WARM_UP_S: Final = 1.0
_SIDES: Final = f"ledger ({_IN_FLIGHT} in flight) / library's recorder ({_THREADS} threads)"
_TARGET: Final = Target(">=", 12)

_luck: Final = seeded(3)
_ASKED: Final = [asked_for(_luck) for _ in range(1_000)]


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    seconds = 1.5 if bench.quick else 4.0
    async with bench.server.fresh() as dsn:
        acknowledged, recorded = 0, 0

        async def ours(in_flight: int) -> float:
            nonlocal acknowledged
            await bench.server.settle()
            rate, count = await _ours(dsn, in_flight, seconds)
            acknowledged += count
            return rate

        async def theirs(threads: int, *, function: bool) -> float:
            nonlocal recorded
            await bench.server.settle()
            rate, count = await asyncio.to_thread(_theirs, dsn, threads, seconds, function=function)
            recorded += count
            return rate

        for _ in range(bench.rounds):
            pipelined = await theirs(_THREADS, function=False)
            many = await ours(_IN_FLIGHT)
            function = await theirs(_THREADS, function=True)
            one = await ours(1)
            their_one = max([await theirs(1, function=False), await theirs(1, function=True)])
            await bench.server.settle()
            floor = await pgbench.transactions(dsn, bench.folder, connections=_IN_FLIGHT, seconds=seconds)
            yield {
                "ours": many,
                "pipelined": pipelined,
                "function": function,
                "ratio-as-it-comes": many / pipelined,
                "ratio": many / max(pipelined, function),
                "ours-alone": one,
                "theirs-alone": their_one,
                "floor": floor,
                "floor-ratio": many / floor,
            }
        await _check(dsn, acknowledged, recorded)


async def _ours(dsn: str, in_flight: int, seconds: float) -> tuple[float, int]:
    """Acknowledged commands a second, and how many in all."""
    acknowledged, going = 0, True
    async with Ledger.open(dsn) as ledger:

        async def client() -> None:
            nonlocal acknowledged
            while going:
                outcome = await ledger.append(appending((_fact(),), USERS[0]))
                assert outcome.verdict == "appended", outcome
                acknowledged += 1

        clients = [asyncio.create_task(client()) for _ in range(in_flight)]
        await asyncio.sleep(_WARM_UP_S)
        before, started = acknowledged, monotonic()
        await asyncio.sleep(seconds)
        rate = (acknowledged - before) / (monotonic() - started)
        going = False
        await asyncio.gather(*clients)
    return rate, acknowledged


def _theirs(dsn: str, threads: int, seconds: float, *, function: bool) -> tuple[float, int]:
    """As `_ours`, by the library's recorder."""
    with datastore(dsn, threads, function=function) as opened:
        recorder = PostgresApplicationRecorder(opened)
        recorder.create_table()
        mapper = FactMapper()
        counts = [0] * threads
        stopping = threading.Event()
        failed: list[Exception] = []

        def client(number: int) -> None:
            try:
                while not stopping.is_set():
                    ids = recorder.insert_events([mapper.to_stored_event(_fact())])
                    assert ids is not None
                    assert len(ids) == 1
                    counts[number] += 1
            except Exception as error:  # noqa: BLE001 - raised again below, by whoever waits for the threads
                failed.append(error)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
        rate = _rate_while(clients, lambda: sum(counts), stopping, seconds)
        if failed:
            raise failed[0]
    return rate, sum(counts)


def _rate_while(
    clients: list[threading.Thread], acknowledged: Callable[[], int], stopping: threading.Event, seconds: float
) -> float:
    for one in clients:
        one.start()
    sleep(_WARM_UP_S)
    before, started = acknowledged(), monotonic()
    sleep(seconds)
    rate = (acknowledged() - before) / (monotonic() - started)
    stopping.set()
    for one in clients:
        one.join()
    return rate


def datastore(dsn: str, pool_size: int, *, function: bool) -> PostgresDatastore:
    """The library's connections to this database, with its function for inserting or without."""
    of = parts(dsn)
    return PostgresDatastore(
        dbname=of["dbname"],
        host=of.get("host", ""),
        port=of.get("port", "5432"),
        user=of.get("user", ""),
        password=of.get("password", ""),
        pool_size=pool_size,
        enable_db_functions=function,
    )


def parts(dsn: str) -> dict[str, str]:
    """What a URL of a database says, by the names that libpq has for it."""
    return {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}


def _fact() -> Created:
    return created(_luck.choice(_ASKED), USERS[0], START)


async def _check(dsn: str, acknowledged: int, recorded: int) -> None:
    connection = await connect(dsn, role=None)
    try:
        facts, first, last, commands = await connection.fetchrow(
            """select count(*), min(position), max(position), (select count(*) from ledger.commands)
               from ledger.events"""
        ) or (0, 0, 0, 0)
        assert (facts, commands) == (acknowledged, acknowledged), f"{acknowledged} acknowledged, {facts} recorded"
        assert (first, last) == (1, facts), "positions are not gapless"
        theirs = await connection.fetchval("select count(*) from stored_events")
        assert theirs == recorded, f"the library acknowledged {recorded} and recorded {theirs}"
    finally:
        await connection.close()


APPEND: Final = Benchmark(
    "append",
    (
        Figure("ratio-as-it-comes", f"{_SIDES}, as it comes", "x", _TARGET),
        Figure("ratio", f"{_SIDES}, the faster way", "x", _TARGET),
        Figure("ours", f"ledger, {_IN_FLIGHT} in flight", "commands/s"),
        Figure("floor", f"pgbench, the same rows one at a time, {_IN_FLIGHT} connections", "commands/s"),
        Figure("floor-ratio", "ledger / pgbench", "x"),
        Figure("pipelined", f"library's recorder, {_THREADS} threads, as it comes", "commands/s"),
        Figure("function", f"library's recorder, {_THREADS} threads, database function", "commands/s"),
        Figure("ours-alone", "ledger, 1 in flight", "commands/s"),
        Figure("theirs-alone", "library's recorder, 1 thread, the faster way", "commands/s"),
    ),
    _measure,
)
