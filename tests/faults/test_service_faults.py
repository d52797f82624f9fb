"""The service when things go wrong: killed, told to stop, and left by its database, under load each time.

Clients behave as the contract tells them: every command has an Idempotency-Key, and whatever was not
answered, or answered with 503, is asked again with the same key. In the end the ledger is held against
what was acknowledged.
"""

import asyncio
import os
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx
import msgspec
import pytest

from api import embedded
from api.checkpointing import trusted_key
from api.database import apply_schema
from api.settings import Settings
from tests.api.test_embedded import servers
from tests.conftest import NEW_TICKET, Service, eventually, running_service, start_service, token
from tests.projections.test_runner import compared, level
from tests.tickets.test_integrity import verified
from tests.tickets.test_ledger import held_up
from tickets.checkpoints import VerifierKey
from tickets.connections import Connection, connect
from tickets.permissions import Role

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each client the reading of all certificates, which takes longer than starting the service."""

KEYS = uuid5(NAMESPACE_URL, "urn:ticket-service:idempotency-key")
KILLS = int(os.environ.get("KILLS", "6"))
"""How often the service is killed under load; `make faults` kills it 20 times."""


class Crowd:
    """Clients that create a ticket each and then edit it, one command after the other, whatever happens."""

    def __init__(self, size: int) -> None:
        self.url = ""
        self.acknowledged: dict[UUID, tuple[str, int]] = {}
        """The id of each command that was answered, with the title that it set and the version that it made."""
        self.titles: dict[str, list[str]] = {}
        self.unanswered = self.replayed = 0
        self.refusals: list[tuple[float, float]] = []
        """When a 503 came, and how long that took."""
        self.pause = 0.0
        """How long each takes a breath between two commands."""
        self._size, self._leaving = size, False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._size)]

    async def leave(self) -> None:
        """Each finishes what it has begun."""
        self._leaving = True
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)

    async def acknowledges(self, more: int, timeout: float = 20) -> None:
        """Wait until so many more commands were answered."""
        goal = len(self.acknowledged) + more

        async def did() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return len(self.acknowledged) >= goal

        await eventually(did, timeout)

    async def _client(self, number: int) -> None:
        sub = uuid4()
        headers = {"Authorization": f"Bearer {token(Role.ADMIN, sub)}"}
        async with httpx.AsyncClient(headers=headers, timeout=20, verify=NO_TLS) as http:
            path, turn = "/api/v1/tickets", 0
            while not self._leaving or turn == 0:
                key, title = f"{number}-{turn}", f"Client {number}, turn {turn}"
                body = {**NEW_TICKET, "title": title} if turn == 0 else {"title": title}
                answer = await self._insist(http, "PATCH" if turn else "POST", path, body, key)
                ticket = answer.json()
                assert (ticket["title"], ticket["version"]) == (title, turn + 1), (
                    "the answer to this, and to this alone"
                )
                assert uuid5(KEYS, f"{sub}:{key}") not in self.acknowledged
                self.acknowledged[uuid5(KEYS, f"{sub}:{key}")] = (title, ticket["version"])
                self.titles.setdefault(ticket["id"], []).append(title)
                self.replayed += answer.headers.get("Idempotency-Replayed") == "true"
                path, turn = f"/api/v1/tickets/{ticket['id']}", turn + 1
                await asyncio.sleep(self.pause)

    async def _insist(
        self, http: httpx.AsyncClient, method: str, path: str, body: dict[str, str], key: str
    ) -> httpx.Response:
        while True:
            began = time.monotonic()
            try:
                answer = await http.request(method, self.url + path, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                self.unanswered += 1
            else:
                if answer.status_code != 503:
                    assert answer.status_code in (200, 201), answer.text
                    return answer
                assert int(answer.headers["Retry-After"]) >= 0
                assert answer.headers["Content-Type"] == "application/problem+json"
                self.refusals.append((began, time.monotonic() - began))
            await asyncio.sleep(0.05)


def signer(folder: Path) -> VerifierKey:
    """Who signs the checkpoints of the services that have this folder."""
    key = trusted_key(Settings(data_dir=folder))
    assert key is not None, "it was made at the first start"
    return key


async def assert_that_is_what_happened(crowd: Crowd, owner: Connection, dsn: str, folder: Path) -> None:
    """Every acknowledged command is in the ledger, once; nothing else is; and nothing is broken."""
    commands = await owner.fetch("select command_id, version from ledger.commands")
    versions = {row["command_id"]: row["version"] for row in commands}
    assert {one: version for one, (_, version) in crowd.acknowledged.items()}.items() <= versions.items()
    facts = await owner.fetch(
        "select stream_id, version, topic, state, command_id from ledger.events order by stream_id, version"
    )
    done = [row for row in facts if row["topic"].startswith("ticket.")]
    assert Counter(row["command_id"] for row in done) == dict.fromkeys(crowd.acknowledged, 1)
    assert len(done) + sum(row["topic"] == "person.seen.v1" for row in facts) == len(facts) == len(commands)
    titles: dict[str, list[str]] = {}
    for row in done:
        titles.setdefault(str(row["stream_id"]), []).append(msgspec.json.decode(row["state"])["title"])
    assert titles == crowd.titles
    assert (await verified(owner, signer(folder))).finding is None
    await eventually(lambda: level(owner))
    assert all(one.clean for one in await compared(dsn))


# --------------------------------------------------------------------------------------------------- killed


async def test_killed_again_and_again_under_load_it_loses_no_command_and_doubles_none(
    own_service: Callable[..., Service], owner: Connection, dsn: str, tmp_path: Path
) -> None:
    crowd = Crowd(12)
    service = await asyncio.to_thread(own_service)
    crowd.url = service.url
    crowd.start()
    for _ in range(KILLS // 2):
        crowd.pause = 0.2  # while the next two start: there are but few processors
        for successor in await asyncio.gather(*(asyncio.to_thread(own_service) for _ in range(2))):
            crowd.pause = 0
            await crowd.acknowledges(30)
            service.process.send_signal(signal.SIGKILL)
            assert await asyncio.to_thread(service.process.wait) == -signal.SIGKILL
            service, crowd.url = successor, successor.url
    await crowd.acknowledges(20)
    await crowd.leave()
    assert crowd.unanswered >= KILLS, "it hurt each time"
    await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)


# --------------------------------------------------------------------------------------------- database away


async def test_while_its_database_is_away_it_says_so_at_once_and_mends_itself(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with embedded.embedded_server(data_dir) as dsn:
        sockets, cluster = Path(parse_qs(urlsplit(dsn).query)["host"][0]), data_dir / "postgres"
        await apply_schema(dsn)
        service = await asyncio.to_thread(start_service, dsn, tmp_path)
        try:
            crowd = Crowd(12)
            crowd.url = service.url
            crowd.start()
            for _ in range(2):
                await crowd.acknowledges(100)
                await asyncio.to_thread(
                    embedded._run, "pg_ctl", "stop", "--silent", "--mode=immediate", "--pgdata", str(cluster)
                )
                await _assert_that_it_says_so(service, crowd)
                await asyncio.to_thread(embedded._start, cluster, sockets, "")
                back = time.monotonic()
                await crowd.acknowledges(1, timeout=5)
                assert time.monotonic() - back < 2
                await crowd.acknowledges(100)
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
    before = len(crowd.acknowledged)

    async def often_enough() -> bool:
        return sum(began > away for began, _ in crowd.refusals) >= 60

    await eventually(often_enough)
    took = [seconds for began, seconds in crowd.refusals if began > away]
    assert median(took) < 0.3
    assert max(took) < 1
    assert len(crowd.acknowledged) == before
    headers = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=5, verify=NO_TLS) as http:

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
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20, verify=NO_TLS) as http:
        assert (await http.post("/api/v1/tickets", json=NEW_TICKET)).status_code == 201
        async with held_up(dsn):
            asked = [asyncio.create_task(http.post("/api/v1/tickets", json=NEW_TICKET)) for _ in range(32)]

            async def all_are_inside() -> bool:
                async with httpx.AsyncClient(base_url=service.url, verify=NO_TLS) as other:
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
