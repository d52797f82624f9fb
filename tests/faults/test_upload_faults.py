"""Uploads when the service is killed under them, again and again, and started again on the same data.

Clients behave as the contract tells them: every upload has an Idempotency-Key, and whatever was not answered is
sent again with the same one. In the end the ledger, the folder and what was acknowledged are held against each
other.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgspec

from api.files.housekeeping import sweep
from api.files.storage import Storage
from tests.api.test_storage import ATTACHMENTS, TICKETS, files_in, grow_old, text
from tests.conftest import NEW_TICKET, NO_CERTIFICATES, Service, eventually, token
from tests.faults.clients import Attempts, signer
from tests.projections.test_runner import compared, level
from tests.tickets.test_integrity import verified
from tickets.connections import Connection
from tickets.permissions import Role

CLIENTS, KILLS = 8, int(os.environ.get("UPLOAD_KILLS", "2"))
SIZES = (100, 30_000, 400_000, 1_500_000)
COMMON = [text(size) for size in SIZES]
"""Contents that several attach at the same time."""


class Crowd:
    """Clients that have a ticket each and attach one file after the other to it, whatever happens."""

    def __init__(self, size: int = CLIENTS) -> None:
        self._size = size
        self.url = ""
        self.acknowledged: dict[str, str] = {}
        """The SHA-256 of each attachment that was answered 201, by its id."""
        self.unanswered = self.refused = 0
        self.all_attempts = Attempts()
        self._leaving = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._size)]

    async def leave(self) -> None:
        """Each finishes what it has begun."""
        self._leaving = True
        async with asyncio.timeout(20):
            await asyncio.gather(*self._tasks)

    async def attaches(self, more: int, timeout: float = 20) -> None:
        """Wait until so many more files were attached."""
        goal = len(self.acknowledged) + more

        async def did() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return len(self.acknowledged) >= goal

        await eventually(did, timeout)

    async def _client(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
        async with httpx.AsyncClient(headers=headers, timeout=20, verify=NO_CERTIFICATES) as http:
            ticket, turn = (await self._insist(http, TICKETS, f"{number}", json=NEW_TICKET))["id"], 0
            while not self._leaving:
                common = turn % 3 == 0
                content = COMMON[turn % len(SIZES)] if common else text(SIZES[(turn + number) % len(SIZES)])
                files, key = {"file": (f"{turn}.txt", content)}, f"{number}-{turn}"
                attachment = await self._insist(http, f"{TICKETS}/{ticket}/attachments", key, files=files)
                assert (attachment["filename"], attachment["size"]) == (f"{turn}.txt", len(content))
                assert attachment["sha256"] == sha256(content).hexdigest()
                assert attachment["id"] not in self.acknowledged
                self.acknowledged[attachment["id"]] = attachment["sha256"]
                turn += 1

    async def _insist(self, http: httpx.AsyncClient, path: str, key: str, **body: Any) -> dict[str, Any]:
        while True:
            began = time.monotonic()
            try:
                answer = await http.post(self.url + path, headers={"Idempotency-Key": key}, **body)
            except httpx.TransportError:
                self.unanswered += 1
            else:
                if answer.status_code != 503:
                    assert answer.status_code == 201, answer.text
                    made: dict[str, Any] = answer.json()
                    return made
                self.refused += 1
            finally:
                self.all_attempts.over(began)
            await asyncio.sleep(0.05)


async def assert_all_files_are_there(crowd: Crowd, service: Service, owner: Connection) -> set[str]:
    """What was acknowledged is there, and each upload once, however often it was sent. The SHA-256 of each content."""
    facts = [
        msgspec.json.decode(row["state"])
        for row in await owner.fetch("select state from ledger.events where topic = 'ticket.attachment_added.v1'")
    ]
    assert {fact["attachment_id"]: fact["sha256"] for fact in facts} == crowd.acknowledged
    assert len(facts) == len(crowd.acknowledged)
    async with client(service) as http:
        for attachment_id, expected in crowd.acknowledged.items():
            answer = await http.get(f"{ATTACHMENTS}/{attachment_id}")
            assert (answer.status_code, sha256(answer.content).hexdigest()) == (200, expected)
    return {fact["sha256"] for fact in facts}


async def begin_to_upload(url: str, ticket: str, incoming: Path) -> asyncio.StreamWriter:
    """Somebody is in the middle of an upload, of which no more comes."""
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    content = text(100_000)
    writer.write(
        f"POST {TICKETS}/{ticket}/attachments HTTP/1.1\r\nHost: here\r\nContent-Length: 900000\r\n"
        f"Authorization: Bearer {token(Role.ADMIN, uuid4())}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="slow.txt"\r\n\r\n'.encode()
        + content
    )

    async def has_begun() -> bool:
        for path in files_in(incoming).values():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if file.read(1_000) == content[:1_000]:
                    return True
        return False

    await eventually(has_begun)
    return writer


async def test_killed_again_and_again_it_loses_no_file_and_names_none_that_it_does_not_have(
    own_service: Callable[..., Service], owner: Connection, dsn: str, tmp_path: Path
) -> None:
    incoming, objects = tmp_path / "uploads" / "incoming", tmp_path / "uploads" / "objects"
    crowd = Crowd()
    service = await asyncio.to_thread(own_service)
    crowd.url = service.url
    async with client(service) as http:
        ticket = (await http.post(TICKETS, json=NEW_TICKET)).json()["id"]
    crowd.start()
    left: set[str] = set()
    for kill in range(KILLS):
        await crowd.attaches(15)
        unanswered = crowd.unanswered
        slow = await begin_to_upload(service.url, ticket, incoming)
        await asyncio.sleep(0.007 * kill)  # not always at the same step
        service.process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(service.process.wait) == -signal.SIGKILL
        slow.close()
        left |= set(files_in(incoming))
        service = await asyncio.to_thread(own_service)
        crowd.url = service.url
        assert crowd.unanswered > unanswered, "it hurt"
    await crowd.attaches(15)
    await crowd.leave()
    await eventually(lambda: level(owner))

    facts = await assert_all_files_are_there(crowd, service, owner)
    assert (await verified(owner, signer(tmp_path))).finding is None
    assert all(one.clean for one in await compared(dsn))

    # No fact without its bytes, no bytes but under their own name, and none without a fact once all is settled.
    kept = files_in(objects)
    for name, path in kept.items():
        assert (sha256(path.read_bytes()).hexdigest(), path.parent.name) == (name, name[:2])
    assert set(kept) == facts

    # What the killed ones were receiving is nobody's, and goes when it is old.
    assert len(left) >= KILLS
    assert left == set(files_in(incoming))
    storage = Storage(tmp_path / "uploads")
    assert await sweep(storage, dsn, timedelta(0)) == 0
    assert left == set(files_in(incoming)), "it might still be coming"
    grow_old(*files_in(tmp_path / "uploads").values())
    assert await sweep(storage, dsn, timedelta(0)) == 0
    assert files_in(incoming) == {}
    assert files_in(objects) == kept, "all of these are named"


def client(service: Service) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
    return httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20, verify=NO_CERTIFICATES)
