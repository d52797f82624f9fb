"""A load generator of our own for HTTP/1.1: keep-alive connections, open or closed loop.

httpx needs more of a core for a request than the service does. This one speaks just enough HTTP for
answers with a Content-Length, and runs in a process of its own. With a rate it is an open loop: requests
have their times whether or not earlier ones were answered, and latency counts from that time, so that a
stall is seen by all who would have come meanwhile. Without one it is a closed loop: each connection asks
again as soon as it was answered.
"""

import asyncio
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from time import monotonic, time
from typing import Final, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

import msgspec
import uvloop
from msgspec import Struct

from benchmarks.lives import asked_for, seeded
from tickets.lifecycle import Status

P = ParamSpec("P")
T = TypeVar("T")

_HOST: Final = "127.0.0.1"


class Load(Struct, frozen=True, kw_only=True):
    """How to ask: `rate` None is a closed loop. What happens in the first `warm_up_s` does not count."""

    ports: tuple[int, ...]
    connections: int
    rate: float | None
    warm_up_s: float
    seconds: float


class Answered(Struct, frozen=True, kw_only=True):
    """What came of it. All but `asked` and `statuses` is about the time after the warm-up."""

    asked: int
    statuses: dict[int, int]
    began: float
    ended: float
    """By the clock on the wall, as the database has it."""
    rate: float
    latencies_ms: list[float]


class _Script(Protocol):
    """What to ask next, and what to make of the answer to it."""

    def __call__(self) -> tuple[bytes, Callable[[bytes], None]]: ...


def request(method: str, path: str, token: str, body: object = None) -> bytes:
    """A request, ready to be sent."""
    encoded = b"" if body is None else msgspec.json.encode(body)
    kind = "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(encoded)}\r\n"
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {_HOST}\r\nAuthorization: Bearer {token}\r\n{kind}\r\n".encode() + encoded
    )


async def elsewhere(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it in another process, so that it and this one do not wait for each other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))


def repeat_requests(load: Load, requests: Sequence[bytes]) -> Answered:
    """Ask these, over and over."""
    following = cycle(requests)
    return uvloop.run(_drive(load, lambda: (next(following), lambda _: None)))


class Tokens(Struct, frozen=True):
    """Whose requests they are: a token for each."""

    users: list[str]
    engineers: list[tuple[UUID, str]]
    leads: list[str]


def work_on_tickets(load: Load, tokens: Tokens) -> Answered:
    """Create tickets, assign each to an engineer, who begins to work on it: a third of the commands each."""
    return uvloop.run(_drive(load, _on_tickets(tokens)))


def _on_tickets(tokens: Tokens) -> _Script:
    luck = seeded(4)
    users, leads, engineers = cycle(tokens.users), cycle(tokens.leads), cycle(tokens.engineers)
    bodies = cycle([asked_for(luck) for _ in range(1_000)])
    new: deque[str] = deque()
    assigned: deque[tuple[str, str]] = deque()
    turn = cycle(("create", "assign", "begin"))

    def following() -> tuple[bytes, Callable[[bytes], None]]:
        match next(turn):
            case "assign" if new:
                ticket, (engineer, token) = new.popleft(), next(engineers)
                body = {"assignee_id": engineer, "reason": "You know that one best."}
                asked = request("PUT", f"/api/v1/tickets/{ticket}/assign", next(leads), body)
                return asked, lambda _: assigned.append((ticket, token))
            case "begin" if assigned:
                ticket, token = assigned.popleft()
                body = {"status": Status.IN_PROGRESS}
                return request("PATCH", f"/api/v1/tickets/{ticket}/status", token, body), lambda _: None
            case _:
                asked = request("POST", "/api/v1/tickets", next(users), next(bodies))
                return asked, lambda answer: new.append(answer[7:43].decode())  # {"id":"…

    return following


async def _drive(load: Load, script: _Script) -> Answered:
    loop = asyncio.get_running_loop()
    ports = [port for port, _ in zip(cycle(load.ports), range(load.connections), strict=False)]
    connections = [(await loop.create_connection(_Connection, _HOST, port))[1] for port in ports]
    statuses: Counter[int] = Counter()
    scheduled, answered = array("d"), array("d")
    turn, start = 0, monotonic() + 0.01
    wall = time() - monotonic()
    end = start + load.warm_up_s + load.seconds

    async def asking(connection: _Connection) -> None:
        nonlocal turn
        while True:
            if load.rate is None:
                at = monotonic()
            else:
                at = start + turn / load.rate
                turn += 1
                if (early := at - monotonic()) > 0 and at < end:
                    await asyncio.sleep(early)
            if at >= end:
                return
            message, then = script()
            status, body = await connection.ask(message)
            then(body)
            statuses[status] += 1
            scheduled.append(at)
            answered.append(monotonic())

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(asking(connection))
    for connection in connections:
        connection.close()
    begin = start + load.warm_up_s
    return Answered(
        asked=len(scheduled),
        statuses=dict(statuses),
        began=begin + wall,
        ended=end + wall,
        rate=sum(begin <= at < end for at in answered) / load.seconds,
        latencies_ms=[(done - at) * 1_000 for at, done in zip(scheduled, answered, strict=True) if at >= begin],
    )


class _Connection(asyncio.Protocol):
    """One connection with one request at a time on it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def ask(self, message: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) >= length and self._answer is not None:
            self._received = b""
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the service closed the connection"))

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()
