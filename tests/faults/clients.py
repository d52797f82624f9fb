"""Clients that go on whatever happens, and note what became of each operation.

They behave as the contract tells them: every command has an Idempotency-Key, and what was not answered, or answered
with 503, is asked again with the same key. In the end the ledger is held against what was acknowledged. Deliberately
absent: faults, and judging whether a history is linearizable (linearizability.py).
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx
import msgspec

from api.checkpointing import trusted_key
from api.settings import Settings
from tests.conftest import NEW_TICKET, NO_CERTIFICATES, eventually, token
from tests.faults.linearizability import Operation, violations
from tests.projections.test_runner import compared, level
from tests.tickets.test_integrity import verified
from tickets.checkpoints import VerifierKey
from tickets.connections import Connection
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
KEYS = uuid5(NAMESPACE_URL, "urn:ticket-service:idempotency-key")


@dataclass
class Person:
    """Who a client is, and the newest version that it has seen of each ticket."""

    number: int
    sub: UUID
    http: httpx.AsyncClient
    seen: dict[str, int]


class Attempts:
    """How long attempts took, whatever came of them."""

    def __init__(self) -> None:
        self._over: list[tuple[float, float]] = []

    def over(self, began: float) -> None:
        """One that began at that moment is over."""
        self._over.append((now := time.monotonic(), now - began))

    def slowest(self, since: float) -> float:
        """The longest that one took that was over after that moment, whenever it began."""
        return max((took for over, took in self._over if over > since), default=0.0)


class Crowd:
    """Clients that edit tickets one command after the other, whatever happens.

    Each has a ticket of its own that nobody else edits; with `shared`, all of them edit and read that many, and some
    of their commands are for one version alone.
    """

    def __init__(self, size: int, *, shared: int = 0, chance: random.Random | None = None) -> None:
        self.urls = [""]
        """The services; each client talks to one of them."""
        self.acknowledged: dict[UUID, tuple[str, int]] = {}
        """The id of each command that was answered, with the title that it set and the version that it made."""
        self.titles: dict[str, dict[int, str]] = {}
        self.history: list[Operation] = []
        self.attempts: Counter[str] = Counter()
        """How many times something was acknowledged, refused, or got no answer that says which (`unknown`)."""
        self.replayed = 0
        self.refusals: list[tuple[float, float]] = []
        """When what was answered 503 was asked, and how long that took."""
        self.answered: list[tuple[float, float]] = []
        """When what was acknowledged was asked for the last time, and when it was answered."""
        self.all_attempts = Attempts()
        self.patience = 20.0
        """How long each waits for an answer."""
        self.pause = 0.0
        """How long each takes a breath between two commands."""
        self.position = 0
        """The newest position that any of them was told."""
        self._size, self._shared, self._leaving = size, shared, False
        self._chance = chance or random.Random(0)  # noqa: S311 - nothing is kept secret with it
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Where the service is that all of them talk to."""
        return self.urls[0]

    @url.setter
    def url(self, url: str) -> None:
        self.urls = [url]

    @property
    def unanswered(self) -> int:
        """How many attempts got no answer at all, or one that says that the outcome is not known."""
        return self.attempts["unknown"]

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._size)]

    async def leave(self, timeout: float = 30) -> None:
        """Each finishes what it has begun."""
        self._leaving = True
        async with asyncio.timeout(timeout):
            await asyncio.gather(*self._tasks)

    async def acknowledges(self, more: int, timeout: float = 20) -> None:
        """Wait until so many more commands were answered."""
        goal = len(self.acknowledged) + more
        await self.until(lambda: len(self.acknowledged) >= goal, timeout)

    async def notes(self, more: int, timeout: float = 60) -> None:
        """Wait until so many more operations are over."""
        goal = len(self.history) + more
        await self.until(lambda: len(self.history) >= goal, timeout)

    async def answers(self, since: float, timeout: float) -> float:
        """Wait until something is answered that was asked after that moment; how long after it that was."""
        await self.until(lambda: any(began > since for began, _ in reversed(self.answered)), timeout)
        return next(answered for began, answered in self.answered if began > since) - since

    async def reads(self, since: float, timeout: float) -> None:
        """Wait until something is read that was asked for after that moment, as new as it was to be."""
        await self.until(lambda: any(one.kind == "read" and one.invoked > since for one in self.history), timeout)

    async def until(self, check: Callable[[], bool], timeout: float = 20) -> None:
        """Wait until it holds, and be told at once where one of the clients saw something wrong."""

        async def did() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return check()

        await eventually(did, timeout)

    async def _client(self, number: int) -> None:
        sub = uuid4()
        headers = {"Authorization": f"Bearer {token(Role.ADMIN, sub)}"}
        async with httpx.AsyncClient(headers=headers, verify=NO_CERTIFICATES) as http:
            person = Person(number, sub, http, {})
            if not self._shared or number < self._shared:
                await self._write(person, None, turn=0)
            turn = 1
            while not self._leaving:
                await asyncio.sleep(self.pause)
                await (self._one_of_many(person, turn) if self._shared else self._own(person, turn))
                turn += 1

    async def _own(self, person: Person, turn: int) -> None:
        (ticket,) = person.seen
        await self._write(person, ticket, turn=turn)
        assert person.seen[ticket] == turn + 1, "the answer to this, and to this alone"

    async def _one_of_many(self, person: Person, turn: int) -> None:
        if not self.titles:
            await asyncio.sleep(0.01)
            return
        ticket = self._chance.choice(sorted(self.titles))
        what = self._chance.random()
        if what < 0.4:
            await self._read(person, ticket)
        else:
            await self._write(person, ticket, turn=turn, expected=person.seen.get(ticket) if what < 0.6 else None)

    async def _read(self, person: Person, ticket: str) -> None:
        wanted, invoked = self.position, time.monotonic()
        answer = await self._insist(person, "GET", f"{TICKETS}/{ticket}", {"Ledger-Position": str(wanted)})
        assert answer.status_code == 200, answer.text
        told, reached = answer.json(), int(answer.headers["Ledger-Position"])
        self._saw(person, ticket, told["version"], reached)
        self.history.append(
            Operation(
                "read", ticket, told["title"], invoked, time.monotonic(), "acknowledged", told["version"],
                positions=(wanted, reached),
            )
        )  # fmt: skip

    async def _write(self, person: Person, ticket: str | None, *, turn: int, expected: int | None = None) -> None:
        key, title = f"{person.number}-{turn}", f"Client {person.number}, turn {turn}"
        headers, invoked = {"Idempotency-Key": key}, time.monotonic()
        if expected is not None:
            headers["If-Match"] = f'"{expected}"'
        answer = (
            await self._insist(person, "POST", TICKETS, headers, {**NEW_TICKET, "title": title})
            if ticket is None
            else await self._insist(person, "PATCH", f"{TICKETS}/{ticket}", headers, {"title": title})
        )
        told, returned = answer.json(), time.monotonic()
        if answer.status_code == 412 and expected is not None and ticket is not None:
            current = told["current_version"]
            self._saw(person, ticket, current, int(answer.headers["Ledger-Position"]))
            self.history.append(Operation("write", ticket, title, invoked, returned, "refused", current, expected))
            return
        assert answer.status_code == (201 if ticket is None else 200), answer.text
        assert told["title"] == title, "the answer to this, and to this alone"
        command = uuid5(KEYS, f"{person.sub}:{key}")
        assert command not in self.acknowledged
        self.acknowledged[command] = (title, told["version"])
        self.titles.setdefault(told["id"], {})[told["version"]] = title
        self.replayed += answer.headers.get("Idempotency-Replayed") == "true"
        self._saw(person, told["id"], told["version"], int(answer.headers["Ledger-Position"]))
        self.history.append(
            Operation(
                "write", told["id"], title, invoked, returned, "acknowledged", told["version"],
                expected,
            )
        )  # fmt: skip

    def _saw(self, person: Person, ticket: str, version: int, position: int) -> None:
        person.seen[ticket] = version
        self.position = max(self.position, position)

    async def _insist(
        self, person: Person, method: str, path: str, headers: dict[str, str], body: dict[str, str] | None = None
    ) -> httpx.Response:
        while True:
            began = time.monotonic()
            url = self.urls[person.number % len(self.urls)]
            try:
                answer = await person.http.request(
                    method, url + path, json=body, headers=headers, timeout=self.patience
                )
            except httpx.TransportError:
                self.attempts["unknown"] += 1
            else:
                if answer.status_code != 503:
                    self.answered.append((began, time.monotonic()))
                    self.attempts["acknowledged" if answer.is_success else "refused"] += 1
                    return answer
                assert int(answer.headers["Retry-After"]) >= 0
                assert answer.headers["Content-Type"] == "application/problem+json"
                self.attempts["unknown" if "outcome-unknown" in answer.text else "refused"] += 1
                self.refusals.append((began, time.monotonic() - began))
            finally:
                self.all_attempts.over(began)
            await asyncio.sleep(0.05)


def signer(folder: Path) -> VerifierKey:
    """Who signs the checkpoints of the services that have this folder."""
    key = trusted_key(Settings(data_dir=folder))
    assert key is not None, "it was made at the first start"
    return key


async def assert_that_is_what_happened(
    crowd: Crowd, owner: Connection, dsn: str, folder: Path, *, alone: bool = True
) -> None:
    """Every acknowledged command is in the ledger, once; nothing else is; and nothing is broken.

    Where the crowd was not `alone`, there may be other facts, but not about its tickets, nor any more like them.
    """
    commands = await owner.fetch("select command_id, version from ledger.commands")
    versions = {row["command_id"]: row["version"] for row in commands}
    assert {one: version for one, (_, version) in crowd.acknowledged.items()}.items() <= versions.items()
    facts = await owner.fetch(
        "select stream_id, version, topic, state, command_id from ledger.events order by stream_id, version"
    )
    done = [
        row for row in facts if row["topic"].startswith("ticket.") and (alone or str(row["stream_id"]) in crowd.titles)
    ]
    assert Counter(row["command_id"] for row in done) == dict.fromkeys(crowd.acknowledged, 1)
    if alone:
        assert len(done) + sum(row["topic"] == "person.seen.v1" for row in facts) == len(facts) == len(commands)
    first = [(str(row["stream_id"]), msgspec.json.decode(row["state"])) for row in facts if row["version"] == 1]
    assert {one for one, fact in first if fact.get("title", "").startswith("Client ")} == crowd.titles.keys()
    titles: dict[str, list[str]] = {}
    for row in done:
        titles.setdefault(str(row["stream_id"]), []).append(msgspec.json.decode(row["state"])["title"])
    assert titles == {ticket: [title for _, title in sorted(made.items())] for ticket, made in crowd.titles.items()}
    wrong = violations(crowd.history, titles)
    assert not wrong, "\n".join(wrong[:20])
    assert (await verified(owner, signer(folder))).finding is None
    await eventually(lambda: level(owner), timeout=30)
    assert all(one.clean for one in await compared(dsn))
