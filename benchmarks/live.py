"""The whole service under a steady load: commands over HTTP, and how far the read models are behind.

`tickets serve` runs as compose.yaml has it, the API and the read models in a process each; the generator is
another. Everything in one process is measured as well, in a closed loop, and two of the API, which can be
faster where there are cores for them. Commands come in an open loop a little faster than the target rate, so
that rounding cannot miss it: create, assign to an engineer, begin work, by 14 people over 64 connections. The
lag of a command is from `recorded_at` of its facts, by the database's clock, until an observer that listens
as any client can has been told that all read models have them: after the commit of their checkpoint. The
clocks are one machine's, so the database must be on this one. Latency counts from when a command was due.
Generator, services and database share the machine. All answers must be good, and at the end the read models
must have every ticket, and the ledger no gap.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import time
from typing import Final

from msgspec.structs import replace

from benchmarks.load import Answered, Load, elsewhere, work_on_tickets
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target, percentile
from benchmarks.serving import everybody, running_service
from projections.runner import CHANNEL
from tickets.connections import Connection, connect

_RATE: Final = 2_000
_OFFERED: Final = 2_050
_CONNECTIONS: Final = 64

Told = tuple[int, float]
"""A position that all read models have reached, and when the observer was told."""


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    async with (
        bench.server.fresh() as dsn,
        running_service(dsn, bench.folder, "commands", "queries") as port,
        running_service(dsn, bench.folder, "commands", "queries") as second,
        running_service(dsn, bench.folder, "projections"),
        bench.server.fresh() as dsn_alone,
        running_service(dsn_alone, bench.folder) as alone,
    ):
        tokens = await everybody(port)
        tokens_alone = await everybody(alone)
        connection = await connect(dsn, role=None, timeout=10)
        told: list[Told] = []
        await connection.add_listener(CHANNEL, lambda _c, _p, _n, at: told.append((int(str(at)), time())))
        created = 0
        try:
            for _ in range(bench.rounds):
                await bench.server.settle()
                told.clear()
                steady = Load(
                    ports=(port,),
                    connections=_CONNECTIONS,
                    rate=_OFFERED,
                    warm_up_s=2,
                    seconds=4 if bench.quick else 10,
                )
                answered = await elsewhere(work_on_tickets, steady, tokens)
                lags = await _lags(connection, answered, told)
                fastest = Load(
                    ports=(port,),
                    connections=_CONNECTIONS,
                    rate=None,
                    warm_up_s=1,
                    seconds=2 if bench.quick else 5,
                )
                most = await elsewhere(work_on_tickets, fastest, tokens)
                two = await elsewhere(work_on_tickets, replace(fastest, ports=(port, second)), tokens)
                together = await elsewhere(work_on_tickets, replace(fastest, ports=(alone,)), tokens_alone)
                created += _created(answered) + _created(most) + _created(two)
                await _check(connection, created, told)
                yield {
                    "rate": answered.rate,
                    "lag-p50": percentile(lags, 50),
                    "lag-p99": percentile(lags, 99),
                    "lag-max": max(lags),
                    "latency-p50": percentile(answered.latencies_ms, 50),
                    "latency-p99": percentile(answered.latencies_ms, 99),
                    "most": most.rate,
                    "most-p99": percentile(most.latencies_ms, 99),
                    "two": two.rate,
                    "two-ratio": two.rate / most.rate,
                    "alone": together.rate,
                    "alone-p99": percentile(together.latencies_ms, 99),
                }
        finally:
            await connection.close()


async def _lags(connection: Connection, answered: Answered, told: list[Told]) -> list[float]:
    """For each command of the measured time, how many milliseconds the read models were behind it."""
    rows = await connection.fetch(
        """select position, recorded_at from ledger.commands
           where recorded_at >= $1 and recorded_at < $2 order by position""",
        datetime.fromtimestamp(answered.began, UTC),
        datetime.fromtimestamp(answered.ended, UTC),
    )
    await _projected(rows[-1][0], told)
    lags: list[float] = []
    following = iter(sorted(told))
    reached, at = next(following)
    for position, recorded_at in rows:
        while reached < position:
            reached, at = next(following)
        lags.append((at - recorded_at.timestamp()) * 1_000)
    assert min(lags) > 0, "the clocks of this machine and the database differ"
    return lags


async def _projected(position: int, told: list[Told]) -> None:
    async with asyncio.timeout(60):
        while not told or told[-1][0] < position:  # noqa: ASYNC110 - the observer only notes, to be as quick as it can
            await asyncio.sleep(0.05)


def _created(answered: Answered) -> int:
    assert set(answered.statuses) == {200, 201}, answered.statuses
    return answered.statuses[201]


async def _check(connection: Connection, created: int, told: list[Told]) -> None:
    head: int = await connection.fetchval("select position from ledger.head")
    await _projected(head, told)
    facts, last, tickets, shown, history, parked = (
        await connection.fetchrow(
            """select (select count(*) from ledger.events), (select max(position) from ledger.events),
                  (select count(*) from ledger.events where topic = 'ticket.created.v1'),
                  (select count(*) from read_model.tickets),
                  (select count(*) from read_model.history)
                    - (select count(*) from ledger.events where topic like 'ticket.%'),
                  (select count(*) from read_model.parked)"""
        )
        or (0,) * 6
    )
    assert facts == last == head, "positions are not gapless"
    assert tickets == shown == created, f"{created} created, {tickets} recorded, {shown} shown"
    assert (history, parked) == (0, 0), f"history differs by {history}, {parked} parked"


LIVE: Final = Benchmark(
    "live",
    (
        Figure("rate", f"commands over HTTP, {_OFFERED:,}/s offered", "commands/s", Target(">=", _RATE)),
        Figure("lag-p99", "projection lag meanwhile, p99", "ms", Target("<", 250)),
        Figure("lag-p50", "projection lag meanwhile, p50", "ms"),
        Figure("lag-max", "projection lag meanwhile, worst", "ms"),
        Figure("latency-p50", "command latency meanwhile, p50", "ms"),
        Figure("latency-p99", "command latency meanwhile, p99", "ms"),
        Figure("most", f"commands over HTTP, {_CONNECTIONS} connections, closed loop", "commands/s"),
        Figure("most-p99", "command latency then, p99", "ms"),
        Figure("two", "the same, two processes of the API", "commands/s"),
        Figure("two-ratio", "two processes of the API / one", "x", Target(">=", 1.6)),
        Figure("alone", "the same with one, everything in one process", "commands/s"),
        Figure("alone-p99", "command latency then, p99", "ms"),
    ),
    _measure,
)
