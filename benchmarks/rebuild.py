"""Read models from the ledger: catching up, rebuilding all, checking all; and verifying the ledger itself.

The ledger has the lives of thousands of tickets, appended through the write side with 256 going on at a
time, so that streams are interleaved as they are in service. Catching up is a Runner that finds empty read
models; a rebuild is everything that `tickets projections rebuild` does: making the tables beside the live
ones, indexes, comparing them row by row, and the swap. For comparison asyncpg reads the same rows with the
same cursor and does nothing with them. Every rebuild and check must find the read models as they should
be, every verification the ledger; and there must be a ticket and a line of history for each that there
should be.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.lives import fill
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target
from projections.comparison import Compared
from projections.rebuild import rebuild
from projections.runner import PROJECTIONS, Runner
from tickets import proofs
from tickets.checkpoints import VerifierKey, sign, verifier
from tickets.connections import Connection, connect, connected
from tickets.ledger import Ledger
from tickets.verification import Trust, Verified, verify


async def filled(bench: Bench) -> str:
    """The URL of the database with those lives in its ledger; queries.py asks the same one."""
    tickets = 3_000 if bench.quick else 25_000
    bench.say(f"a ledger with {tickets:,} tickets …")
    return await bench.server.filled(f"{tickets} lives", partial(fill, tickets=tickets))


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    dsn = await filled(bench)
    connection, reader = await connect(dsn), await connect(dsn)
    try:
        await _execute_as_owner(dsn, "vacuum analyze ledger.events")
        facts: int = await connection.fetchval("select position from ledger.head")
        keys = await _signed(dsn, facts)
        for _ in range(bench.rounds):
            await connection.execute(
                f"truncate read_model.checkpoints, {', '.join(f'read_model.{n}' for n in PROJECTIONS)}"
            )
            await bench.server.settle()
            caught_up = await catch_up(dsn, facts)
            await _check(connection)
            await connection.execute("vacuum analyze")  # as autovacuum does within a minute
            await bench.server.settle()
            scanned = await scan(reader, facts)
            rebuilt = await _rebuild(dsn, swap=True)
            await _check(connection)
            await bench.server.settle()
            checked = await _rebuild(dsn, swap=False)
            verified = await _verify(connection, dsn, facts, keys)
            yield {
                "facts": facts,
                "catch-up": facts / caught_up,
                "rebuild": facts / rebuilt,
                "check": facts / checked,
                "verify": facts / verified,
                "scan": facts / scanned,
                "ratio": scanned / rebuilt,
            }
    finally:
        await connection.close()
        await reader.close()


async def project(dsn: str) -> None:
    """Have the read models that there are not yet, the quick way: as if they were empty and level."""
    async with connected(dsn, role=None, timeout=600) as owner:
        await owner.execute(
            """insert into read_model.checkpoints
               select name, position, now(), version
               from ledger.head, unnest($1::text[], $2::int[]) n(name, version)""",
            list(PROJECTIONS),
            [one.version for one in PROJECTIONS.values()],
        )
        await owner.execute("select setval('ledger.ticket_numbers', 10000000)")  # beyond those that were made up
        async for _ in rebuild(dsn):
            pass
        await owner.execute("vacuum analyze")


async def catch_up(dsn: str, facts: int) -> float:
    """How long a Runner takes that finds empty read models, in seconds."""
    async with Ledger.open(dsn) as ledger:
        runner, done = Runner(ledger, lambda: connect(dsn)), asyncio.Event()
        runner.on_projected.append(lambda position: done.set() if position >= facts else None)
        started = perf_counter()
        running = asyncio.create_task(runner.run())
        await done.wait()
        took = perf_counter() - started
        runner.stop()
        await running
    return took


async def _rebuild(dsn: str, *, swap: bool) -> float:
    started = perf_counter()
    compared = [step async for step in rebuild(dsn, swap=swap) if isinstance(step, Compared)]
    took = perf_counter() - started
    assert [one.projection for one in compared] == list(PROJECTIONS)
    assert all(one.clean for one in compared), compared
    return took


async def scan(reader: Connection, facts: int) -> float:
    """How long asyncpg takes to read all facts in the order of their streams, in seconds."""
    seen = 0
    started = perf_counter()
    async with reader.transaction(readonly=True):
        async for _ in reader.cursor(
            """select position, stream_id, version, topic, recorded_at, metadata, state from ledger.events
               order by stream_id, version""",
            prefetch=5_000,
        ):
            seen += 1
    took = perf_counter() - started
    assert seen == facts
    return took


async def _signed(dsn: str, facts: int) -> list[VerifierKey]:
    """Checkpoints as the service makes them, one in 10,000 facts; returns whose they are."""
    key, previous = Ed25519PrivateKey.generate(), None
    async with connected(dsn) as connection:
        for size in range(10_000, facts, 10_000):
            await proofs.extend(connection, size)
            root = await proofs.root_at(connection, size)
            one = sign(key, "benchmarks", size=size, root=root, time=datetime.now(UTC), previous=previous)
            previous = one.digest
            await connection.execute(
                "insert into ledger.checkpoints values ($1, $2, $3, $4)", size, one.root, one.time, one.note
            )
    return [verifier(key, "benchmarks")]


async def _verify(connection: Connection, dsn: str, facts: int, keys: list[VerifierKey]) -> float:
    seen = None
    started = perf_counter()
    async for step in verify(connection, dsn=dsn, workers=os.cpu_count() or 1, trust=Trust(keys=keys)):
        if isinstance(step, Verified):
            seen = step
    took = perf_counter() - started
    assert seen is not None
    assert (seen.finding, seen.facts) == (None, facts), seen
    return took


async def _check(connection: Connection) -> None:
    created, about_tickets, tickets, history, people, parked = (
        await connection.fetchrow(
            """select (select count(*) from ledger.events where topic = 'ticket.created.v1'),
                  (select count(*) from ledger.events where topic like 'ticket.%'),
                  (select count(*) from read_model.tickets), (select count(*) from read_model.history),
                  (select count(*) from read_model.people), (select count(*) from read_model.parked)"""
        )
        or (0,) * 6
    )
    assert (tickets, history, parked) == (created, about_tickets, 0)
    assert people > 0


async def _execute_as_owner(dsn: str, statement: str) -> None:
    connection = await connect(dsn, role=None)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


REBUILD: Final = Benchmark(
    "rebuild",
    (
        Figure("rebuild", "rebuilding all read models, compared and swapped in", "facts/s", Target(">=", 30_000)),
        Figure("catch-up", "a runner catching up from nothing", "facts/s"),
        Figure("check", "checking all read models against the ledger", "facts/s"),
        Figure(
            "verify", "verifying every hash, seal and checkpoint, a worker a core", "facts/s", Target(">=", 150_000)
        ),
        Figure("scan", "asyncpg reading the same rows", "facts/s"),
        Figure("ratio", "rebuilding / reading", "x", Target(">=", 0.25)),
        Figure("facts", "facts in the ledger", "facts"),
    ),
    _measure,
)
