"""What this service does against what a user would pick instead: benchmarks/peer, on the same PostgreSQL server.

Both have the same tickets and comments, each in a database of its own; both run as one process as they come, and
take turns under the same requests from the same generator (wrk). Writing is done to tickets that nobody wrote to
before. At each size: create; assign, change of status and comment in turn; one ticket; the list filtered and
sorted; the history; search; a mix with four of five reading; on 1 to 256 connections. What is read was read once
before, on both. Nobody is asked before the server has done what the one before left: who cannot keep up has dozens of
questions under way when time is up. Every answer must be good.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, cycle, islice
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.conversation import fill, searches
from benchmarks.lives import ENGINEERS, LEADS, USERS, asked_for, seeded
from benchmarks.load import request
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target
from benchmarks.peer.models import Base
from benchmarks.serving import everybody, for_sqlalchemy, peer, running_service, token
from benchmarks.wrk import is_there, wrk
from tickets.connections import connected

_CONNECTIONS: Final = (1, 16, 64, 256)
_SIZES: Final = {10_000: 5, 100_000: 5, 1_000_000: 0}
"""Tickets, and how many comments each has: a million is about lists that grow, not about texts."""
_WORK: Final = ("create", "change", "get", "list", "history", "search", "mix")
_READING: Final = {"get", "list", "history", "search"}
_TOLD: Final = {
    "create": "creating tickets",
    "change": "assigning, moving and commenting tickets",
    "get": "one ticket",
    "list": "a list with filters, sorted",
    "history": "a ticket's history",
    "search": "searches, ranked and filtered",
    "mix": "four of five reading",
}
_PEER: Final = "FastAPI with SQLAlchemy"
_COMPARED_ON: Final = 100_000
_COMPARED_AT: Final = 64
"""Tickets, and connections, at which the targets are meant."""
_SECONDS, _SECONDS_JUDGED = 2, 6
"""How long each asks, and where targets are meant."""
_TARGETS: Final = {
    "create": Target(">=", 10),
    "change": Target(">=", 10),
    "get": Target(">=", 8),
    "list": Target(">=", 8),
    "history": Target(">=", 8),
    "search": Target(">=", 5),
}
_READ_OF_FIVE: Final = 4
_WRITING_RUNS: Final = 25
"""At each size, at most: so many lots of tickets that nobody wrote to."""


class _Side(Struct, frozen=True):
    """One of the two that are held against each other."""

    name: str
    port: int


def _sizes(bench: Bench) -> dict[int, int]:
    return {10_000: 5} if bench.quick else _SIZES


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    assert is_there(), "wrk is not there: apt-get install wrk"
    rounds = [dict[str, float]() for _ in range(bench.rounds)]
    for size, comments in _sizes(bench).items():  # all rounds of one, so that what is read stays in memory
        ours, theirs = await both_filled(bench, size, comments)
        tickets = await _tickets(ours)
        for turn, one in enumerate(rounds):
            await bench.server.settle()
            async with running_service(ours, bench.folder) as port, peer(bench.folder, theirs) as other:
                await everybody(port)
                sides = (_Side("ours", port), _Side("peer", other.port))
                one.update(await _round(bench, sides[:: 1 if turn % 2 else -1], tickets, size, comments))
    for one in rounds:
        yield one | _ratios(one)


async def _round(
    bench: Bench, sides: Sequence[_Side], tickets: "_Tickets", size: int, comments: int
) -> dict[str, float]:
    """All work with so many tickets, on all numbers of connections, in turn."""
    one: dict[str, float] = {}
    for work in _WORK if comments else _WORK[:-2]:
        if work in _READING:  # what is asked for comes from memory then, whoever is first
            for side in sides:
                await _asked(bench, side, _requests(work, tickets), f"{work}@{size}", 16, _SECONDS)
        for count in (1, _COMPARED_AT) if bench.quick else _CONNECTIONS:
            requests = _requests(work, tickets)
            judged = (size, count) == (_COMPARED_ON, _COMPARED_AT)
            seconds = 1 if bench.quick else _SECONDS_JUDGED if judged else _SECONDS
            for side in sides:
                one |= await _asked(bench, side, requests, f"{work}@{size}x{count}", count, seconds)
    return one


async def _asked(
    bench: Bench, side: _Side, requests: Sequence[bytes], what: str, connections: int, seconds: float
) -> dict[str, float]:
    await bench.server.quiet()
    answered = await wrk(
        f"http://127.0.0.1:{side.port}", requests, bench.folder, connections=connections, seconds=seconds
    )
    bench.say(f"{what} {side.name}: {answered.rate:,.1f}/s, p99 {answered.p99_ms:,.1f} ms")
    assert not answered.refused, f"{side.name}, {what}: {answered.refused} of {answered.answered} refused"
    assert not answered.broken, f"{side.name}, {what}: {answered.broken} of {answered.answered} never came"
    # Where not even the first answer came in time, there was at most one.
    return {f"{what} {side.name}": max(answered.rate, 1 / seconds), f"{what} {side.name} p99": answered.p99_ms}


def _ratios(one: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for key in one:
        what, _, side = key.partition(" ")
        if side == "ours":
            found[f"{what} ratio"] = one[key] / one[f"{what} peer"]
            theirs = one[f"{what} peer p99"]
            found[f"{what} p99 ratio"] = one[f"{what} ours p99"] / theirs if theirs else 0.0
    small, large = (one.get(f"list@{size}x{_COMPARED_AT} ours") for size in (10_000, 1_000_000))
    return found | ({"list-growth": small / large} if small and large else {})


class _Tickets:
    """The open tickets that both have, and which of them have been written to: each writing run has its own."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._a_run = min(1_000, len(ids) // _WRITING_RUNS)
        self._ids = ids
        self._untouched = iter(ids)

    def some(self) -> list[str]:
        """The same at each run."""
        return list(self._ids[: self._a_run])

    def untouched(self) -> list[str]:
        """Others at each run."""
        found = list(islice(self._untouched, self._a_run))
        assert len(found) == self._a_run, "all tickets have been written to"
        return found


async def _tickets(dsn: str) -> _Tickets:
    async with connected(dsn) as connection:
        rows = await connection.fetch(
            "select ticket_id::text from read_model.tickets where status = 'OPEN' order by md5(number)"
        )
    return _Tickets([row[0] for row in rows])


def _requests(work: str, tickets: _Tickets) -> list[bytes]:
    """What to ask, to be repeated."""
    lead = token(LEADS[0])
    if work == "create":
        return _creations()
    if work == "search":
        # In turn, so that who is quicker is asked for the same as who is slower.
        return list(chain.from_iterable(zip(*(several for _, several in searches(lead)), strict=True)))
    if work == "list":
        return _lists(lead)
    if work == "change":
        return _changes(tickets.untouched(), lead)
    some = tickets.some()
    gets = [request("GET", f"/api/v1/tickets/{ticket}", lead) for ticket in some]
    histories = [request("GET", f"/api/v1/tickets/{ticket}/history", lead) for ticket in some]
    if work in ("get", "history"):
        return gets if work == "get" else histories
    changes = _changes(tickets.untouched(), lead)
    reads = cycle(chain.from_iterable(zip(gets, cycle(_lists(lead)), histories, strict=False)))
    return list(chain.from_iterable((*islice(reads, _READ_OF_FIVE), change) for change in changes))


def _creations() -> list[bytes]:
    luck = seeded(8)
    users = [token(one) for one in USERS]
    bodies = (msgspec.to_builtins(asked_for(luck)) for _ in range(1_000))
    wanted = ("title", "description", "category", "priority", "environment", "affected_service", "tags")
    return [
        request("POST", "/api/v1/tickets", user, {name: body[name] for name in wanted})
        for user, body in zip(cycle(users), bodies, strict=False)
    ]


def _lists(lead: str) -> list[bytes]:
    return [
        request("GET", f"/api/v1/tickets?status=OPEN&priority={priority}&category={category}", lead)
        for priority in ("P1", "P2", "P3", "P4")
        for category in ("INCIDENT", "PROBLEM", "QUESTION")
    ]


def _changes(tickets: Sequence[str], lead: str) -> list[bytes]:
    """Assign, begin, say, pass on, ask back, say: all tickets take the first step before any takes the second."""
    first, second = (str(one.id) for one in ENGINEERS[:2])
    steps: Iterator[tuple[str, str, Mapping[str, Any]]] = iter(
        (
            ("PUT", "assign", {"assignee_id": first, "team": "Web Platform", "reason": "You know that one best."}),
            ("PATCH", "status", {"status": "IN_PROGRESS"}),
            ("POST", "comments", {"body": "A restart helped for ten minutes, then it was back.", "internal": True}),
            ("PUT", "assign", {"assignee_id": second, "team": "Web Platform", "reason": "Passed on."}),
            ("PATCH", "status", {"status": "PENDING_INFO", "reason": "Which browser is it?"}),
            ("POST", "comments", {"body": "I have attached what the browser shows.", "internal": True}),
        )
    )
    return [
        request(method, f"/api/v1/tickets/{ticket}/{path}", lead, body)
        for method, path, body in steps
        for ticket in tickets
    ]


async def both_filled(bench: Bench, size: int, comments: int) -> tuple[str, str]:
    """The URLs of two databases with the same tickets, this service's and the peer's."""
    bench.say(f"{size:,} tickets, {comments} comments each …")
    what = f"{size} conversations, half assigned"
    ours = await bench.server.filled(what, partial(fill, tickets=size, comments=comments, assigned=True))
    return ours, await bench.server.filled(f"{what}, the peer's", partial(_fill_peer, ours=ours), schema=False)


async def _fill_peer(dsn: str, *, ours: str) -> None:
    """Give the peer what this service has, each row made out of what the API shows."""
    engine = create_async_engine(for_sqlalchemy(dsn))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    async with connected(ours) as source, connected(dsn, role=None, timeout=600) as target:
        for table, columns, query in _ROWS:
            async with source.transaction(readonly=True):
                rows: list[tuple[Any, ...]] = []
                async for row in source.cursor(query, prefetch=_CHUNK):
                    rows.append(tuple(row))
                    if len(rows) == _CHUNK:
                        await target.copy_records_to_table(table, columns=columns, records=rows, timeout=600)
                        rows = []
                await target.copy_records_to_table(table, columns=columns, records=rows, timeout=600)
        await target.execute("select setval('ticket_numbers', 10000000)")


_CHUNK: Final = 5_000
_ROWS: Final = (
    (
        "tickets",
        (
            "id", "number", "version", "title", "description", "category", "priority", "status", "environment",
            "affected_service", "tags", "requester_id", "assignee_id", "team", "response_due_at",
            "resolution_due_at", "comment_count", "created_at", "updated_at",
        ),
        """select t.ticket_id, d.number, d.version, title, description, d.category, d.priority, d.status,
                  d.environment, d.affected_service, d.tags, d.requester_id, d.assignee_id, d.team,
                  (sla->>'response_due_at')::timestamptz, (sla->>'resolution_due_at')::timestamptz,
                  comment_count, d.created_at, d.updated_at
           from read_model.tickets t, json_to_record(convert_from(doc, 'UTF8')::json) d(
             number text, version int, title text, description text, category text, priority text, status text,
             environment text, affected_service text, tags text[], requester_id uuid, assignee_id uuid, team text,
             sla json, comment_count int, created_at timestamptz, updated_at timestamptz)""",
    ),
    (
        "comments",
        ("id", "ticket_id", "author_id", "author_name", "author_role", "body", "internal", "created_at"),
        """select comment_id, c.ticket_id, (author->>'id')::uuid, author->>'username', author->>'role', body,
                  d.internal, created_at
           from read_model.comments c, json_to_record(convert_from(doc, 'UTF8')::json) d(
             author json, body text, internal boolean, created_at timestamptz)""",
    ),
    (
        "history",
        (
            "ticket_id", "version", "action", "actor_id", "actor_name", "actor_role", "ip_address", "changes",
            "reason", "occurred_at",
        ),
        """select ticket_id, version, d.action, (actor->>'id')::uuid, actor->>'username', actor->>'role', ip_address,
                  changes, reason, occurred_at
           from read_model.history h, json_to_record(convert_from(entry, 'UTF8')::json) d(
             version int, action text, actor json, ip_address text, changes jsonb, reason text,
             occurred_at timestamptz)
           order by position""",
    ),
)  # fmt: skip
"""The peer's tables, their columns, and what goes into them."""


def _figures() -> Iterator[Figure]:
    for size, comments in _SIZES.items():
        for work in _WORK if comments else _WORK[:-2]:
            for count in _CONNECTIONS:
                what = f"{_TOLD[work]}, {size:,} tickets, {count} connections"
                key = f"{work}@{size}x{count}"
                target = _TARGETS.get(work) if (size, count) == (_COMPARED_ON, _COMPARED_AT) else None
                yield Figure(f"{key} ours", what, "requests/s")
                yield Figure(f"{key} peer", f"the same of {_PEER}", "requests/s")
                yield Figure(f"{key} ratio", "this / that", "x", target)
                slow = Target("<=", 1) if target is not None and work in ("create", "change") else None
                yield Figure(f"{key} p99 ratio", "their p99s, this / that", "x", slow)
    yield Figure("list-growth", "time of a list page at 1,000,000 tickets / at 10,000", "x", Target("<=", 1.5))


SIDE_BY_SIDE: Final = Benchmark("side-by-side", tuple(_figures()), _measure)
