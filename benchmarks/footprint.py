"""What it costs to have the service: start-up, memory, open connections, bytes on disk; and the peer's beside it.

The start is `tickets serve` on a data folder that has a database, started with it. Memory is what a process has in
RAM (resident), all of it, once it has answered; then again with a thousand connections that were each answered once
and stay open. Bytes on disk are tables with their indexes, vacuumed, a fact here being a row of history there.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from benchmarks.load import request
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target
from benchmarks.serving import Served, peer, service
from benchmarks.side_by_side import both_filled
from tickets.connections import connected

_CONNECTIONS: Final = 1_000
_MB: Final = 1_000_000


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    ours, theirs = await both_filled(bench, 10_000, 5)
    own = bench.folder / "own"
    own.mkdir()
    async with service(own):
        pass  # it has made its database
    for _ in range(bench.rounds):
        one: dict[str, float] = {}
        async with service(own) as served:
            one["ready"] = served.started_s
        async with service(bench.folder, ours) as served:
            one |= await _memory(served, "")
        async with peer(bench.folder, theirs) as served:
            one |= {"peer-ready": served.started_s} | await _memory(served, "peer-")
        async with connected(ours, role=None, timeout=60) as connection:
            facts = await connection.fetchval("select position from ledger.head")
            sizes = await connection.fetch(
                """select n.nspname, sum(pg_total_relation_size(c.oid))::bigint
                   from pg_class c join pg_namespace n on n.oid = relnamespace
                   where relkind = 'r' and nspname in ('ledger', 'read_model') group by 1 order by 1"""
            )
            (_, ledger), (_, read_models) = sizes
        one |= {"ledger": ledger / facts, "read-models": read_models / facts}
        async with connected(theirs, role=None, timeout=60) as connection:
            one["peer-disk"] = await connection.fetchval(
                """select sum(pg_total_relation_size(oid))::float / (select count(*) from history)
                   from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"""
            )
        yield one


async def _memory(served: Served, prefix: str) -> dict[str, float]:
    idle = _resident(served.pid)
    writers = []
    for _ in range(_CONNECTIONS):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request("GET", "/health", ""))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], head
        writers.append(writer)
    open_ = _resident(served.pid)
    for writer in writers:
        writer.close()
    return {f"{prefix}idle": idle, f"{prefix}connections": open_ - idle}


def _resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1_024 / _MB


FOOTPRINT: Final = Benchmark(
    "footprint",
    (
        Figure("ready", "from start to ready, on a data folder that is there, with its database", "s", Target("<=", 3)),
        Figure("peer-ready", "the peer, its database running already", "s"),
        Figure("idle", "memory of a process that has nothing to do", "MB", Target("<", 120)),
        Figure("peer-idle", "the peer's", "MB"),
        Figure("connections", f"more with {_CONNECTIONS:,} open connections", "MB"),
        Figure("peer-connections", "the peer's", "MB"),
        Figure("ledger", "the ledger on disk, a fact", "bytes"),
        Figure("read-models", "the read models on disk, a fact", "bytes"),
        Figure("peer-disk", "the peer's tables on disk, a row of history", "bytes"),
    ),
    _measure,
)
