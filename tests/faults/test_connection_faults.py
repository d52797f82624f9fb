"""Bad networks between the service and its database, and between clients and the service.

Whatever the network does, a request is answered within five seconds, with the truth or with 503; when the network is
good again, so is the service, within ten. Deliberately absent: full disks (test_full_disks.py), and killing.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.conftest import eventually, start_service
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.conftest import Tell, limits
from tests.faults.proxy import Proxy, Streams, proxied
from tests.projections.test_runner import level
from tickets.connections import Connection

ROUNDS = int(os.environ.get("NETWORK_ROUNDS", "1"))
"""How often the database is cut off in each way."""
LONGEST_S, HEALED_S = limits(long=ROUNDS > 1)
CLIENTS = 16 if ROUNDS > 1 else 4


def to_database(dsn: str) -> Callable[[], Awaitable[Streams]]:
    """Connects to the server that a URL names."""
    parts = urlsplit(dsn)
    folder = parse_qs(parts.query).get("host", [""])[0]
    if folder:
        return lambda: asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
    return lambda: asyncio.open_connection(parts.hostname, parts.port or 5432)


def through(dsn: str, proxy: Proxy) -> str:
    """The URL of the same database by way of a proxy."""
    parts = urlsplit(dsn)
    return f"postgresql://{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}{parts.path}?sslmode=disable"


async def _delayed(proxy: Proxy, crowd: Crowd) -> None:
    """Each piece comes late, but it comes."""
    proxy.latency = 0.03
    await crowd.acknowledges(CLIENTS)


async def _sliced(proxy: Proxy, crowd: Crowd) -> None:
    """One byte at a time."""
    proxy.slice = 1
    await crowd.acknowledges(CLIENTS // 2)


async def _reset(proxy: Proxy, crowd: Crowd) -> None:
    """Cut off in the middle, several times."""
    for _ in range(3):
        await crowd.acknowledges(3)
        proxy.reset()


async def _swallowed(proxy: Proxy, crowd: Crowd) -> None:
    """Nothing comes back, and nobody is told: until each client could have been refused."""
    proxy.swallow()
    await _refused(crowd, CLIENTS)


async def _refused_to(proxy: Proxy, crowd: Crowd) -> None:
    """Nobody listens there."""
    await proxy.refuse()
    await _refused(crowd, CLIENTS)


async def _refused(crowd: Crowd, more: int) -> None:
    goal = len(crowd.refusals) + more
    await crowd.until(lambda: len(crowd.refusals) >= goal, timeout=60)


async def _unanswered(crowd: Crowd, more: int) -> None:
    goal = crowd.unanswered + more
    await crowd.until(lambda: crowd.unanswered >= goal)


async def _to_its_database(proxy: Proxy, crowd: Crowd, tell: Tell) -> None:
    for fault in (_delayed, _sliced, _reset, _swallowed, _refused_to):
        began = time.monotonic()
        await fault(proxy, crowd)
        await proxy.heal()
        healed = time.monotonic()
        await crowd.acknowledges(CLIENTS, HEALED_S)
        await crowd.reads(healed, healed + HEALED_S - time.monotonic())
        slowest = crowd.all_attempts.slowest(began)  # one that is not over yet counts with the next fault
        tell(
            f"{fault.__name__[1:]} on the way to the database: the slowest request took {slowest:.2f} s, "
            f"healed after {time.monotonic() - healed:.2f} s"
        )
        assert slowest < LONGEST_S, fault.__doc__


async def _to_its_clients(proxy: Proxy, crowd: Crowd) -> None:
    crowd.patience = 2  # who is cut off by a network that swallows hears nothing, and gives up some time
    for fault in (_delayed, _sliced, _reset):
        await fault(proxy, crowd)
        await proxy.heal()
        await crowd.acknowledges(CLIENTS)
    for cut_off in (proxy.swallow, proxy.refuse):
        if (waiting := cut_off()) is not None:
            await waiting
        await _unanswered(crowd, CLIENTS)
        await proxy.heal()
        await crowd.acknowledges(CLIENTS)
    crowd.patience = 20


async def test_whatever_the_network_does_it_answers_in_time_and_truly_and_mends_itself(
    owner: Connection, dsn: str, tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    async with proxied(to_database(dsn)) as behind:
        service = await asyncio.to_thread(start_service, through(dsn, behind), tmp_path)
        port = urlsplit(service.url).port
        try:
            async with proxied(lambda: asyncio.open_connection("127.0.0.1", port)) as before:
                crowd = Crowd(CLIENTS, shared=6, chance=chance)
                crowd.url = f"http://127.0.0.1:{before.port}"
                crowd.start()
                await crowd.acknowledges(20)
                for _ in range(ROUNDS):
                    await _to_its_database(behind, crowd, tell)
                    await _to_its_clients(before, crowd)
                await crowd.leave()
                assert crowd.all_attempts.slowest(0) < LONGEST_S
                assert crowd.replayed, "some of what got no answer had been done"
                await eventually(lambda: level(owner), HEALED_S)
                await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)
            assert await asyncio.to_thread(service.stop) == 0
        finally:
            service.process.kill()
            service.process.wait()
    tell(f"{len(crowd.history)} operations, attempts {dict(crowd.attempts)}, {crowd.replayed} replayed: linearizable")
