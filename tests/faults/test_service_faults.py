"""The service when things go wrong: killed, told to stop, and left by its database, under load each time.

Deliberately absent: the clients and what they hold against the ledger in the end (clients.py).
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest

from api import embedded
from api.database import apply_schema
from tests.api.test_embedded import ask, servers
from tests.conftest import (
    NEW_TICKET,
    NO_CERTIFICATES,
    Service,
    eventually,
    running_service,
    start_service,
    token,
)
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.clusters import Cluster, _children
from tests.faults.conftest import Tell, assert_back_in_time, percentile
from tests.tickets.test_ledger import held_up
from tickets.connections import Connection, connect
from tickets.permissions import Role

KILLS = int(os.environ.get("KILLS", "1"))
"""How often the service is killed under load."""
POSTGRES_KILLS = int(os.environ.get("POSTGRES_KILLS", "1"))
"""How often PostgreSQL is, with all of its processes."""
LONGEST_S = 30
"""No recovery may take longer; how long each took is told."""


def told(kind: str, recoveries: list[float], crowd: Crowd) -> str:
    """The figures of a run, in a line."""
    return (
        f"{kind}: {len(recoveries)} kills, recovery median {median(recoveries):.2f} s, "
        f"p95 {percentile(recoveries, 0.95):.2f} s, longest {max(recoveries):.2f} s; "
        f"{len(crowd.acknowledged)} commands acknowledged, {crowd.unanswered} attempts of unknown fate, "
        f"{crowd.replayed} of them had been done; 0 lost, 0 doubled"
    )


# --------------------------------------------------------------------------------------------------- killed


async def test_killed_again_and_again_under_load_it_loses_no_command_and_doubles_none(
    own_service: Callable[..., Service],
    owner: Connection,
    dsn: str,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    crowd, recoveries = Crowd(16, chance=chance), list[float]()
    service = await asyncio.to_thread(own_service)
    crowd.url = service.url
    crowd.start()
    for _ in range(KILLS):
        await crowd.acknowledges(20 + chance.randrange(60))
        killed, unanswered = time.monotonic(), crowd.unanswered
        service.process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(service.process.wait) == -signal.SIGKILL
        service = await asyncio.to_thread(own_service)
        crowd.url = service.url
        recoveries.append(await crowd.answers(killed, LONGEST_S))
        assert crowd.unanswered > unanswered, "it hurt"
    await crowd.acknowledges(20)
    await crowd.leave()
    assert_back_in_time(recoveries)
    await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)
    tell(told("kill -9 of the service", recoveries, crowd))


async def test_postgresql_killed_with_its_children_comes_back_and_nothing_is_lost_or_doubled(
    cluster: Cluster, chance: random.Random, tell: Tell
) -> None:
    crowd, recoveries = Crowd(16, chance=chance), list[float]()
    # It runs already, and the service takes it over: it is its own to start again.
    service = await asyncio.to_thread(start_service, "", cluster.folder, DATABASE_URL="")
    try:
        crowd.url = service.url
        crowd.start()
        for _ in range(POSTGRES_KILLS):
            await crowd.acknowledges(50 + chance.randrange(100))
            killed = time.monotonic()
            assert cluster.kill(chance) > 1, "it ran, with its children"
            recoveries.append(await crowd.answers(killed, LONGEST_S))
        await crowd.acknowledges(20)
        await crowd.leave()
        assert crowd.unanswered + len(crowd.refusals) >= POSTGRES_KILLS, "it hurt"
        assert_back_in_time(recoveries)
        owner = await connect(cluster.dsn, role=None)
        try:
            await assert_that_is_what_happened(crowd, owner, cluster.dsn, cluster.folder)
        finally:
            await owner.close()
        assert await asyncio.to_thread(service.stop) == 0
    finally:
        await asyncio.to_thread(service.stop)
    assert servers(cluster.folder) == []
    tell(told("kill -9 of PostgreSQL", recoveries, crowd))


async def test_where_the_number_of_a_killed_postgresql_is_another_process_now_it_starts_all_the_same(
    cluster: Cluster, chance: random.Random
) -> None:
    cluster.kill(chance)
    await eventually(lambda: _gone(cluster))
    left = cluster.pgdata / "postmaster.pid"
    left.write_text(f"{os.getpid()}\n{left.read_text().partition(chr(10))[2]}")
    await asyncio.to_thread(cluster.start)
    assert await ask(cluster.dsn, "select count(*) from ledger.head") == 1


async def test_while_a_process_of_a_killed_postgresql_is_still_at_work_none_is_started_beside_it(
    cluster: Cluster,
) -> None:
    """It could still write to what the next one takes for its own."""
    server = embedded._number(cluster.pgdata)
    assert server is not None
    child = _children(server)[0]
    os.kill(child, signal.SIGSTOP)
    try:
        os.kill(server, signal.SIGKILL)
        await eventually(lambda: _gone(cluster))
        starting = asyncio.create_task(asyncio.to_thread(cluster.start))
        _, waiting = await asyncio.wait({starting}, timeout=1.5)
        assert waiting
    finally:
        os.kill(child, signal.SIGKILL)
    await starting
    assert await ask(cluster.dsn, "select count(*) from ledger.head") == 1


async def _gone(cluster: Cluster) -> bool:
    return servers(cluster.folder) == []


# --------------------------------------------------------------------------------------------- database away


async def test_while_its_database_is_away_it_says_so_at_once_and_mends_itself(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with embedded.embedded_server(data_dir) as dsn:
        sockets, cluster = Path(parse_qs(urlsplit(dsn).query)["host"][0]), data_dir / "postgres"
        await apply_schema(dsn)
        service = await asyncio.to_thread(start_service, dsn, tmp_path)
        try:
            crowd = Crowd(8)
            crowd.url = service.url
            crowd.start()
            for _ in range(2):
                await crowd.acknowledges(36)
                await asyncio.to_thread(
                    embedded._run, "pg_ctl", "stop", "--silent", "--mode=immediate", "--pgdata", str(cluster)
                )
                await _assert_that_it_says_so(service, crowd)
                await asyncio.to_thread(embedded._start, cluster, sockets, "")
                back = time.monotonic()
                await crowd.acknowledges(1, timeout=5)
                assert time.monotonic() - back < 2
                await crowd.acknowledges(36)
            await crowd.leave()
            owner = await connect(dsn, role=None)
            try:
                await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)
            finally:
                await owner.close()
            assert await asyncio.to_thread(service.stop) == 0
        finally:
            await asyncio.to_thread(service.stop)


async def _assert_that_it_says_so(service: Service, crowd: Crowd) -> None:
    away = time.monotonic()

    async def often_enough() -> bool:
        return sum(began > away for began, _ in crowd.refusals) >= 40

    await eventually(often_enough)
    took = [seconds for began, seconds in crowd.refusals if began > away]
    assert median(took) < 0.3
    assert max(took) < 1
    assert not any(began > away for began, _ in crowd.answered)
    headers = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=5, verify=NO_CERTIFICATES) as http:

        async def it_is_known() -> bool:
            return bool((await http.get("/health")).json()["status"] == "degraded")

        await eventually(it_is_known, timeout=2)
        for path in ("/ready", "/api/v1/tickets", f"/api/v1/tickets/{uuid4()}"):
            answer = await http.get(path)
            assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), path


# ------------------------------------------------------------------------------------------- told to stop


async def test_told_to_stop_it_answers_what_it_has_accepted_and_goes_quietly(
    own_service: Callable[..., Service], owner: Connection, dsn: str
) -> None:
    service = await asyncio.to_thread(own_service)
    sub = uuid4()
    headers = {"Authorization": f"Bearer {token(Role.ADMIN, sub)}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20, verify=NO_CERTIFICATES) as http:
        assert (await http.post("/api/v1/tickets", json=NEW_TICKET)).status_code == 201
        async with held_up(dsn):
            asked = [asyncio.create_task(http.post("/api/v1/tickets", json=NEW_TICKET)) for _ in range(32)]

            async def all_are_inside() -> bool:
                async with httpx.AsyncClient(base_url=service.url, verify=NO_CERTIFICATES) as other:
                    told = (await other.get("/health")).json()
                drawn: int = await owner.fetchval("select last_value from ledger.ticket_numbers")
                return bool(drawn == 33 and told["ledger"]["waiting"] > 0)

            await eventually(all_are_inside)
            service.process.send_signal(signal.SIGTERM)

            async def takes_no_more() -> bool:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(service.url).port)
                except ConnectionError:
                    return True
                writer.close()
                return False

            await eventually(takes_no_more)
            assert service.process.poll() is None, "it waits for what it has accepted"
            assert not any(one.done() for one in asked)
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {201}
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    numbers = {answer.json()["number"] for answer in answers}
    assert len(numbers) == 32
    assert await owner.fetchval("select count(*) from ledger.events where topic = 'ticket.created.v1'") == 33
    assert "Traceback" not in service.log.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(service.process.pid, 0)
    left = await owner.fetchval(
        """select count(*) from pg_stat_activity where datname = current_database() and application_name like 'tickets%'
           and pid <> pg_backend_pid()"""
    )
    assert left == 0, "and no connection of it either"


def test_told_to_stop_it_takes_its_own_database_with_it(tmp_path: Path) -> None:
    with running_service("", tmp_path, DATABASE_URL="") as service, service.client() as http:
        assert http.post("/api/v1/tickets", json=NEW_TICKET).status_code == 201
        assert len(servers(tmp_path)) == 1
        assert service.stop() == 0
    assert servers(tmp_path) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(service.process.pid, 0)
