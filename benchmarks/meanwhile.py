"""A rebuild of a million facts while people work: how fast it is, and what they notice.

`tickets serve` runs on a ledger of a million facts; commands and queries come at a steady rate, each from a
process of its own, and all read models are made anew by two workers, held against the live ones row by row,
and swapped in. For comparison asyncpg reads the same rows with the same cursor, before. Latency counts from
when a request was due; the worst of all is told, because a stall is what a swap would show as. Generators,
service, workers and database share the machine. No request may fail, and the read models must be as they
should be.

Then, under the same load, `tickets projections rebuild` is killed ten times, at any moment of its work, alone or with
its workers, and started again: it goes on where it was. In the end the read models must be as they should be.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from benchmarks.lives import LEADS, fill, seeded
from benchmarks.load import Answered, Load, elsewhere, repeat_requests, request, work_on_tickets
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target, percentile
from benchmarks.rebuild import project, scan
from benchmarks.serving import everybody, running_service, token
from projections.comparison import Compared
from projections.rebuild import AlreadyRunning, rebuild
from projections.runner import PROJECTIONS
from tickets.connections import connected

_COMMANDS_A_SECOND: Final = 50
_QUERIES_A_SECOND: Final = 100
_SLICE_S: Final = 8
_KILLS: Final = 10
_PATIENCE_S: Final = 30.0
T = TypeVar("T")


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    tickets = 6_000 if bench.quick else 156_000
    bench.say(f"a ledger with {tickets:,} tickets …")
    dsn = await bench.server.filled(f"{tickets} lives", partial(fill, tickets=tickets))
    await project(dsn)
    async with connected(dsn) as reader, running_service(dsn, bench.folder) as port:
        tokens = await everybody(port)
        for _ in range(bench.rounds):
            await bench.server.settle()
            facts: int = await reader.fetchval("select position from ledger.head")
            scanned = await scan(reader, facts)
            load = Load(ports=(port,), connections=16, rate=_COMMANDS_A_SECOND, warm_up_s=1, seconds=_SLICE_S)
            rows = await reader.fetch("select ticket_id from read_model.tickets order by md5(number) limit 200")
            lead = token(LEADS[0])
            asked = [
                request("GET", path, lead)
                for (ticket,) in rows
                for path in (f"/api/v1/tickets/{ticket}", f"/api/v1/tickets/{ticket}/history", "/api/v1/tickets")
            ]
            commanding = partial(elsewhere, work_on_tickets, load, tokens)
            querying = partial(elsewhere, repeat_requests, replace(load, rate=_QUERIES_A_SECOND), asked)
            rebuilt, commands, queries = await _meanwhile(_rebuild(dsn), commanding, querying)
            killed, commands_then, _ = await _meanwhile(_killed(dsn, bench.folder, rebuilt), commanding, querying)
            yield {
                "facts": facts,
                "rebuild": facts / rebuilt,
                "ratio": scanned / rebuilt,
                "commands-p99": percentile(commands, 99),
                "commands-max": max(commands),
                "queries-p99": percentile(queries, 99),
                "queries-max": max(queries),
                "kills": killed,
                "killed-commands-max": max(commands_then),
            }


_Asking = Callable[[], Awaitable[Answered]]


async def _meanwhile(
    work: Coroutine[Any, Any, T], commanding: _Asking, querying: _Asking
) -> tuple[T, list[float], list[float]]:
    """What comes of the work, and how long commands and queries took as long as it went on."""
    working = asyncio.create_task(work)
    commands, queries = await asyncio.gather(_as_long_as(working, commanding), _as_long_as(working, querying))
    return await working, _latencies(commands, {200, 201}), _latencies(queries, {200})


async def _as_long_as(working: "asyncio.Task[Any]", asking: _Asking) -> list[Answered]:
    """Ask, a slice of time after the other, until the work is through."""
    slices: list[Answered] = []
    while not working.done():
        slices.append(await asking())
    return slices


def _latencies(slices: Sequence[Answered], good: set[int]) -> list[float]:
    for one in slices:
        assert set(one.statuses) <= good, one.statuses
    return [latency for one in slices for latency in one.latencies_ms]


async def _rebuild(dsn: str) -> float:
    started = perf_counter()
    compared = [step async for step in rebuild(dsn, workers=2) if isinstance(step, Compared)]
    took = perf_counter() - started
    assert [one.projection for one in compared] == list(PROJECTIONS)
    assert all(one.clean for one in compared), compared
    return took


async def _killed(dsn: str, folder: Path, rebuilt_s: float) -> int:
    """Rebuild, and be killed so many times meanwhile; returns how many of them hit."""
    luck, hit = seeded(8), 0
    with (folder / "killed.log").open("wb") as output:
        for _ in range(_KILLS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "api.cli", "projections", "rebuild", "--json"),
                env=os.environ | {"DATABASE_URL": dsn},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            await asyncio.sleep(luck.uniform(0, 2 * rebuilt_s / _KILLS))
            if process.returncode is None:
                hit += 1
                os.killpg(process.pid, signal.SIGKILL) if luck.random() < 0.5 else process.kill()
            await process.wait()
    deadline = perf_counter() + _PATIENCE_S
    while True:
        try:
            await _rebuild(dsn)
        except AlreadyRunning:  # the database has not seen yet that the last one is gone
            assert perf_counter() < deadline, "the one that was killed holds its lock still"
            await asyncio.sleep(0.1)
        else:
            return hit


MEANWHILE: Final = Benchmark(
    "meanwhile",
    (
        Figure("rebuild", "rebuilding a million facts under load, two workers", "facts/s", Target(">=", 50_000)),
        Figure("ratio", "rebuilding / asyncpg reading the same rows", "x"),
        Figure("commands-max", f"{_COMMANDS_A_SECOND} commands/s meanwhile, the slowest", "ms", Target("<", 250)),
        Figure("commands-p99", "the same, p99", "ms"),
        Figure("queries-max", f"{_QUERIES_A_SECOND} queries/s meanwhile, the slowest", "ms"),
        Figure("queries-p99", "the same, p99", "ms"),
        Figure("kills", "kills of a rebuild before it was let through, all equal in the end", "kills"),
        Figure("killed-commands-max", "commands meanwhile, the slowest", "ms"),
        Figure("facts", "facts in the ledger", "facts"),
    ),
    _measure,
)
