"""Conversation and files over HTTP: search among 100,000 tickets with five comments each, comments, uploads.

A hundred more tickets have 5,000 comments each, which makes a million. Once the service is at work, twenty of these
get a comment each, one after another, which nobody asked for since it started, and then another one each.

The texts have a vocabulary of 20,000 made-up words, each as frequent as its rank says (Zipf), so that there
are words which a handful of texts have, hundreds, or most. Searches ask for the first page, ranked, filtered by
status and priority, each with other words, on two connections; comments go to 500 tickets on 64; files of
100 KB on 16, and of 10 MB on 4. `tickets serve` as it comes; its read models are made by a rebuild. Every answer
must be what it should be, every search must have found something, and the long ticket's commands must be taken.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import accumulate
from random import Random
from time import perf_counter
from typing import Final
from uuid import UUID, uuid4

from benchmarks.lives import LEADS, START, USERS, appending, asked_for, begun, created, seeded
from benchmarks.load import Answered, Load, elsewhere, repeat_requests, request
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target, percentile
from benchmarks.rebuild import project
from benchmarks.serving import everybody, running_service, token
from tickets.connections import connected
from tickets.events import By, CommentAdded, TicketEvent
from tickets.handler import Handler
from tickets.ledger import Ledger
from tickets.ticket import fold

_WORDS: Final = 20_000
_COMMENTS: Final = 5
_LONG: Final = 5_000
"""Comments on a ticket that everybody talks about."""
_LONG_TICKETS: Final = 100
_LONG_ASKED: Final = 20
"""How many of them are asked for in a round."""
_SEARCHED: Final = {"rare": (5_000, 20_000), "middling": (300, 1_500), "common": (3, 40)}
"""The ranks that the words of a search are from: what tens, hundreds to thousands, and most of the texts have."""


def _vocabulary() -> list[str]:
    """Words that a stemmer leaves alone, mostly: consonants and vowels in turn."""
    luck = seeded(7)
    found: dict[str, None] = {}
    while len(found) < _WORDS:
        found["".join(luck.choice("bdfgklmnprtvz") + luck.choice("aiou") for _ in range(luck.randint(2, 4))) + "k"] = (
            None
        )
    return list(found)


def _texts(luck: Random) -> Callable[[], str]:
    words = _vocabulary()
    weights = list(accumulate(1 / rank for rank in range(1, _WORDS + 1)))
    return lambda: " ".join(luck.choices(words, cum_weights=weights, k=luck.randint(12, 30)))


async def fill(
    dsn: str, *, tickets: int, comments: int = _COMMENTS, long_tickets: int = 0, assigned: bool = False
) -> None:
    """Put so many tickets into the ledger, each with so many comments, and have their read models.

    So many more have thousands, `long_tickets`. With `assigned`, every second one is open.
    """
    luck = seeded(5)
    text = _texts(luck)
    lead = By(LEADS[0].id, LEADS[0].username, LEADS[0].role)
    async with Ledger.open(dsn) as ledger:

        async def one(comments: int, *, assigned: bool = False) -> UUID:
            asked = asked_for(luck)
            first = created(asked, luck.choice(USERS), START + timedelta(seconds=luck.randint(0, 30 * 86_400)))
            said = [
                CommentAdded(
                    originator_id=first.originator_id,
                    originator_version=2 + number,
                    timestamp=first.timestamp,
                    comment_id=uuid4(),
                    author=lead,
                    body=text(),
                    internal=number % 2 == 1,
                )
                for number in range(comments)
            ]
            facts: tuple[TicketEvent, ...] = (first, *said)
            if assigned:
                facts += begun(fold(facts), first.timestamp)
            outcome = await ledger.append(appending(facts, LEADS[0]))
            assert outcome.verdict == "appended", outcome
            return first.originator_id

        at_work = Handler(ledger, _nobody)
        for _ in range(long_tickets):
            await at_work.ticket(await one(_LONG))  # so that it has the snapshot that it would have by then
        turns = iter(range(tickets))

        async def several() -> None:
            for turn in turns:
                await one(comments, assigned=assigned and turn % 2 == 1)

        await asyncio.gather(*(several() for _ in range(64)))
    await project(dsn)


async def _nobody(_person_id: UUID) -> None:
    return None


def _upload(path: str, bearer: str, size: int, mark: int) -> bytes:
    """A request with a text file, every one another."""
    line = f"{mark:012d} connection reset by peer, pool timeout after 30000 ms\n".encode()
    content = (line * (size // len(line) + 1))[:size]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="proxy.log"\r\n\r\n'
    body = head + content + b"\r\n--b--\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _asked(port: int, requests: list[bytes], connections: int, seconds: float, status: int) -> Answered:
    load = Load(ports=(port,), connections=connections, rate=None, warm_up_s=0.5, seconds=seconds)
    answered = await elsewhere(repeat_requests, load, requests)
    assert set(answered.statuses) == {status}, answered.statuses
    return answered


def searches(bearer: str) -> Iterator[tuple[str, list[bytes]]]:
    """Searches of each kind, each of other words."""
    luck, words = seeded(6), _vocabulary()
    for name, (first, last) in _SEARCHED.items():
        yield (
            name,
            [
                request("GET", f"/api/v1/tickets?q={luck.choice(words[first:last])}&priority=P2&status=NEW", bearer)
                for _ in range(300)
            ],
        )


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    tickets, long_tickets = (5_000, _LONG_ASKED) if bench.quick else (100_000, _LONG_TICKETS)
    said = tickets * _COMMENTS + long_tickets * _LONG
    bench.say(f"a ledger with {tickets:,} tickets and {said:,} comments …")
    dsn = await bench.server.filled(
        f"{tickets} conversations", partial(fill, tickets=tickets, long_tickets=long_tickets)
    )
    seconds = 2 if bench.quick else 6
    async with connected(dsn) as connection:
        long = [
            row[0]
            for row in await connection.fetch(
                "select ticket_id from read_model.comments group by ticket_id having count(*) >= $1 limit $2",
                _LONG,
                _LONG_ASKED,
            )
        ]
        rows = await connection.fetch(
            "select ticket_id from read_model.tickets where ticket_id <> all($1) order by md5(number) limit 500", long
        )
    mine = token(LEADS[0])
    for _ in range(bench.rounds):
        one: dict[str, float] = {"tickets": tickets, "comments": said}
        async with running_service(dsn, bench.folder) as port:
            await everybody(port)
            await asyncio.gather(*(_commented(port, mine, row[0]) for row in rows[:64]))
            # Nothing of these tickets is in memory yet: they are read from their snapshots and the ledger.
            cold = [await _commented(port, mine, one) for one in long]
            one["long"], one["long-worst"] = percentile(cold, 50), max(cold)
            one["long-again"] = percentile([await _commented(port, mine, one) for one in long], 50)
            for name, requests in searches(mine):
                answered = await _asked(port, requests, 2, seconds, 200)
                one[name] = percentile(answered.latencies_ms, 50)
                one[f"{name}-p95"] = percentile(answered.latencies_ms, 95)
            comments = [
                request("POST", f"/api/v1/tickets/{row[0]}/comments", mine, {"body": f"Comment {number}, {row[0]}"})
                for number, row in enumerate(rows)
            ]
            answered = await _asked(port, comments, 64, seconds, 201)
            one["commented"], one["commented-p99"] = answered.rate, percentile(answered.latencies_ms, 99)
            for name, size, connections in (("small", 100_000, 16), ("large", 10_000_000, 4)):
                files = [
                    _upload(f"/api/v1/tickets/{row[0]}/attachments", mine, size, number)
                    for number, row in enumerate(rows[: 16 if size > 1_000_000 else 200])
                ]
                answered = await _asked(port, files, connections, seconds, 201)
                one[name] = answered.rate * size / 1e6
                one[f"{name}-rate"] = answered.rate
        yield one


async def _commented(port: int, bearer: str, ticket_id: UUID) -> float:
    """How long a comment takes, connecting included, ms."""
    began = perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("POST", f"/api/v1/tickets/{ticket_id}/comments", bearer, {"body": "One more"}))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 201 " in head.partition(b"\r\n")[0], head
    writer.close()
    return (perf_counter() - began) * 1_000


CONVERSATION: Final = Benchmark(
    "conversation",
    (
        Figure("rare-p95", "search, ranked and filtered, rare words, p95", "ms", Target("<", 50)),
        Figure("middling-p95", "search, words that hundreds to thousands have, p95", "ms", Target("<", 50)),
        Figure("common-p95", "search, words that most have, p95", "ms", Target("<", 50)),
        Figure("rare", "search, rare words, median", "ms"),
        Figure("middling", "search, words that hundreds to thousands have, median", "ms"),
        Figure("common", "search, words that most have, median", "ms"),
        Figure("long", "a comment on a ticket with 5,000, nothing of it at hand, median", "ms", Target("<", 20)),
        Figure("long-worst", "the same, the slowest", "ms"),
        Figure("long-again", "another comment on it, median", "ms"),
        Figure("commented", "comments, 64 connections", "commands/s"),
        Figure("commented-p99", "comments, 64 connections, p99", "ms"),
        Figure("small-rate", "files of 100 KB, 16 connections", "uploads/s"),
        Figure("small", "the same", "MB/s"),
        Figure("large-rate", "files of 10 MB, 4 connections", "uploads/s"),
        Figure("large", "the same", "MB/s"),
        Figure("tickets", "tickets", "tickets"),
        Figure("comments", "comments", "comments"),
    ),
    _measure,
)
