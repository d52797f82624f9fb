"""Questions over HTTP, for information: one ticket, a filtered list, a history, among thousands of tickets.

`tickets serve` as it comes, on the ledger that rebuild.py made; 16 connections that ask again as soon as
they were answered, each kind of question by itself, about 500 different tickets in turn. The generator is
a process of its own and takes its share of the machine. Every answer must be 200.
"""

from collections.abc import AsyncIterator
from typing import Final

from benchmarks.lives import LEADS
from benchmarks.load import Load, elsewhere, repeat_requests, request
from benchmarks.measurement import Bench, Benchmark, Figure, Round, percentile
from benchmarks.rebuild import filled
from benchmarks.serving import everybody, running_service, token
from projections.runner import catch_up_alone
from tickets.connections import connect

_CONNECTIONS: Final = 16
_TICKETS: Final = 500


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    dsn = await filled(bench)
    connection = await connect(dsn)
    try:
        await catch_up_alone(connection)
        tickets: int = await connection.fetchval("select count(*) from read_model.tickets")
        some = await connection.fetch(
            "select ticket_id from read_model.tickets order by md5(number) limit $1", _TICKETS
        )
    finally:
        await connection.close()
    mine = token(LEADS[0])
    questions = {
        "get": [request("GET", f"/api/v1/tickets/{row[0]}", mine) for row in some],
        "list": [
            request("GET", f"/api/v1/tickets?status=RESOLVED&priority={p}", mine) for p in ("P1", "P2", "P3", "P4")
        ],
        "history": [request("GET", f"/api/v1/tickets/{row[0]}/history", mine) for row in some],
    }
    async with running_service(dsn, bench.folder) as port:
        await everybody(port)
        load = Load(ports=(port,), connections=_CONNECTIONS, rate=None, warm_up_s=1, seconds=2 if bench.quick else 4)
        for _ in range(bench.rounds):
            one: dict[str, float] = {"tickets": tickets}
            for name, requests in questions.items():
                answered = await elsewhere(repeat_requests, load, requests)
                assert set(answered.statuses) == {200}, answered.statuses
                one[name] = answered.rate
                one[f"{name}-p99"] = percentile(answered.latencies_ms, 99)
            yield one


QUERIES: Final = Benchmark(
    "queries",
    (
        Figure("get", f"one ticket, {_CONNECTIONS} connections", "requests/s"),
        Figure("get-p99", "one ticket, p99", "ms"),
        Figure("list", "first page of those of a status and a priority", "requests/s"),
        Figure("list-p99", "first page of those of a status and a priority, p99", "ms"),
        Figure("history", "a ticket's history", "requests/s"),
        Figure("history-p99", "a ticket's history, p99", "ms"),
        Figure("tickets", "tickets in the read model", "tickets"),
    ),
    _measure,
)
