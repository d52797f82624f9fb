"""The event feed: what is in it, for whom, waited for and as a stream, and that readers who are killed miss nothing."""

import asyncio
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from api.auth import make_token
from api.queries.events import CloudEvent, _more
from api.settings import Settings
from projections.feed import TOPICS, Tail, Wanted
from projections.freshness import Freshness
from tests.conftest import KEY, NEW_TICKET, NO_CERTIFICATES, Service, token
from tickets.connections import Connection
from tickets.ledger import Ledger
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
EVENTS = "/api/v1/events"


@pytest.fixture
def staff(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.ADMIN) as client:
        yield client


@pytest.fixture
def requester(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.END_USER) as client:
        yield client


def made(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post(TICKETS, json=NEW_TICKET | fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def did(client: httpx.Client, method: str, path: str, **body: Any) -> int:
    """Do it; the ledger's position after it."""
    answer = client.request(method, f"{TICKETS}/{path}", json=body or None)
    assert answer.is_success, answer.text
    return int(answer.headers["Ledger-Position"])


def life(requester: httpx.Client, staff: httpx.Client) -> str:
    """A ticket to which happens a bit of everything."""
    ticket: str = made(requester)["id"]
    did(staff, "PATCH", f"{ticket}/status", status="OPEN")
    did(staff, "POST", f"{ticket}/comments", body="Between us", internal=True)
    did(staff, "POST", f"{ticket}/comments", body="To all")
    did(requester, "PATCH", ticket, title="Another title")
    did(staff, "DELETE", ticket)
    return ticket


def batch(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    answer = client.get(EVENTS, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Vary"] == "Accept"
    return found


def all_of(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    found, after = list[dict[str, Any]](), parameters.pop("after", 0)
    while True:
        one = batch(client, after=after, **parameters)
        found += one["items"]
        assert one["next_after"] > after or one["end_of_stream"]
        after = one["next_after"]
        if one["end_of_stream"]:
            return found


def history(client: httpx.Client, ticket: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"{TICKETS}/{ticket}/history", params={"page_size": 100}).json()["items"]
    return found


# What is in it


def test_staff_see_every_fact_of_a_ticket_as_its_history_has_it(staff: httpx.Client, requester: httpx.Client) -> None:
    ticket = life(requester, staff)
    number = staff.get(f"{TICKETS}/{ticket}").json()["number"]
    events, lines = all_of(staff, ticket_id=ticket), history(staff, ticket)
    assert [one["data"] for one in events] == lines
    assert len({one["type"] for one in events}) >= 5
    for one, line in zip(events, lines, strict=True):
        assert msgspec.to_builtins(msgspec.convert(one, CloudEvent)) == one
        assert one | {"data": None, "type": ""} == {
            "specversion": "1.0",
            "id": str(line["position"]),
            "source": EVENTS,
            "type": "",
            "subject": ticket,
            "time": line["occurred_at"],
            "datacontenttype": "application/json",
            "sequence": f"{line['position']:019d}",
            "ticketversion": line["version"],
            "ticketnumber": number,
            "data": None,
        }
        assert one["type"] in TOPICS


def test_the_whole_feed_is_the_ledger_in_order_whatever_the_size_of_its_batches(
    staff: httpx.Client, requester: httpx.Client
) -> None:
    ticket = life(requester, staff)
    assert int(batch(staff, limit=1)["items"][0]["id"]) >= 1
    start = int(all_of(staff, ticket_id=ticket)[0]["id"]) - 1
    whole = all_of(staff, after=start)
    ids = [int(one["id"]) for one in whole]
    assert ids == sorted(set(ids))
    assert {one["id"] for one in all_of(staff, ticket_id=ticket)} <= {one["id"] for one in whole}
    for limit in (1, 3, 1_000):
        assert all_of(staff, after=start, limit=limit)[: len(whole)] == whole


def test_a_requester_sees_the_public_facts_of_their_own_tickets_and_no_address(
    service: Service, staff: httpx.Client, requester: httpx.Client
) -> None:
    mine = [life(requester, staff) for _ in range(2)]
    with service.client(Role.END_USER) as somebody:
        theirs = life(somebody, staff)
        assert {one["subject"] for one in all_of(somebody)} == {theirs}
        assert somebody.get(EVENTS, params={"ticket_id": mine[0]}).status_code == 404
        assert somebody.get(EVENTS, params={"ticket_id": str(uuid4())}).status_code == 404
    events = all_of(requester)
    for limit in (1, 2, 100):
        assert events == all_of(requester, limit=limit)
        assert [int(one["id"]) for one in events] == sorted(
            line["position"] for ticket in mine for line in history(requester, ticket)
        )
    assert {one["data"]["ip_address"] for one in events} == {None}
    assert "Between us" not in json.dumps(events)
    assert "ticket.deleted.v1" in {one["type"] for one in events}
    assert "Between us" in json.dumps(all_of(staff, ticket_id=mine[0]))
    for ticket in mine:
        assert [one["data"] for one in all_of(requester, ticket_id=ticket)] == history(requester, ticket)


def test_the_kinds_can_be_chosen_by_topic_or_by_how_it_begins(staff: httpx.Client, requester: httpx.Client) -> None:
    ticket = life(requester, staff)
    everything = all_of(staff, ticket_id=ticket)
    for wanted in (
        ["ticket.comment_added"],
        ["ticket.comment_added.v1", "ticket.created"],
        ["ticket"],
        ["ticket.closed"],
    ):
        fitting = [one for one in everything if any(f"{one['type']}.".startswith(f"{name}.") for name in wanted)]
        for client in (staff, requester):
            found = all_of(client, ticket_id=ticket, type=wanted)
            assert [one["id"] for one in found] == [
                one["id"] for one in fitting if client is staff or not one["data"]["metadata"].get("internal")
            ]
        start = int(everything[0]["id"]) - 1
        assert [one for one in all_of(staff, after=start, type=wanted) if one["subject"] == ticket] == fitting
        assert all_of(requester, type=wanted) == all_of(requester, ticket_id=ticket, type=wanted)


def test_nobody_appears_in_it(service: Service, staff: httpx.Client) -> None:
    start = batch(staff, after=0, limit=1_000)
    while not start["end_of_stream"]:
        start = batch(staff, after=start["next_after"], limit=1_000)
    with service.client(Role.MANAGER, username="somebody new") as new:
        new.get(TICKETS)
    position = made(staff)["version"]
    after = batch(staff, after=start["next_after"])
    assert {one["type"] for one in after["items"]} <= set(TOPICS)
    assert position == 1
    assert not [topic for topic in TOPICS if not topic.startswith("ticket.")]


# What it is asked


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"after": "-1"}, "after"),
        ({"after": "x"}, "after"),
        ({"after": "1e3"}, "after"),
        ({"after": str(2**63)}, "after"),
        ({"after": str(2**62)}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"type": "person.seen.v1"}, "type"),
        ({"type": "ticket.comment"}, "type"),
        ({"type": ""}, "type"),
        ({"type": ["ticket.closed", "nope"]}, "type"),
        ({"ticket_id": "7"}, "ticket_id"),
        ({"wait": "3"}, "wait"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(staff: httpx.Client, parameters: dict[str, Any], field: str) -> None:
    answer = staff.get(EVENTS, params=parameters)
    for accept in ("application/json", "text/event-stream"):
        answer = staff.get(EVENTS, params=parameters, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
        assert answer.json()["errors"][0]["field"] == field
    if field == "type":
        assert "ticket.comment_added.v1" in answer.json()["detail"]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", str(10**18), str(10**19), "\u0661".encode().decode("latin-1")])
def test_an_id_that_no_event_has_is_refused_by_name(staff: httpx.Client, last: str) -> None:
    headers = [(b"Accept", b"text/event-stream"), (b"Last-Event-ID", last.encode("latin-1"))]
    answer = staff.get(EVENTS, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "Last-Event-ID")
    assert staff.get(EVENTS, headers=headers[1:]).status_code == 200, "which a batch has no use for"


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("*/*", False),
        ("", False),
        ("text/event-stream", True),
        ("TEXT/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream", False),
        ("application/json;q=0.5, text/event-stream", True),
        ("text/event-stream;q=0", False),
        ("text/*", False),
    ],
)
def test_a_stream_is_for_who_would_rather_have_one(staff: httpx.Client, accept: str, streamed: bool) -> None:  # noqa: FBT001
    with staff.stream("GET", EVENTS, headers={"Accept": accept}) as answer:
        assert answer.status_code == 200
        assert (answer.headers["Content-Type"] == "text/event-stream") == streamed
    head = staff.head(EVENTS, headers={"Accept": accept})
    assert (head.status_code, head.content) == (200, b"")


def test_without_a_token_there_is_nothing(service: Service) -> None:
    for accept in ("application/json", "text/event-stream"):
        answer = httpx.get(service.url + EVENTS, headers={"Accept": accept}, verify=NO_CERTIFICATES)
        assert answer.status_code == 401


# Waiting for more


def end(client: httpx.Client) -> int:
    position: int = made(client)["version"]
    assert position == 1
    found = batch(client, limit=1_000)
    while not found["end_of_stream"]:
        found = batch(client, after=found["next_after"], limit=1_000)
    after: int = found["next_after"]
    return after


def waited(client: httpx.Client, after: int, seconds: int, **parameters: Any) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    answer = client.get(EVENTS, params={"after": after, **parameters}, headers={"Prefer": f"wait={seconds}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Preference-Applied"] == f"wait={seconds}"
    found: dict[str, Any] = answer.json()
    return found, time.monotonic() - began


def test_who_waits_is_answered_as_soon_as_there_is_something_for_them(
    service: Service, staff: httpx.Client, requester: httpx.Client
) -> None:
    after = end(requester)
    ticket = made(requester)["id"]
    after = int(all_of(requester, after=after)[-1]["id"])
    with ThreadPoolExecutor() as pool, service.client(Role.ADMIN) as other, service.client(Role.END_USER) as stranger:
        mine = pool.submit(waited, requester, after, 20)
        of_a_kind = pool.submit(waited, other, after, 20, type="ticket.comment_added", ticket_id=ticket)
        not_theirs = pool.submit(waited, stranger, after, 2)
        time.sleep(0.3)
        did(staff, "POST", f"{ticket}/comments", body="Between us", internal=True)
        did(staff, "PATCH", f"{ticket}/status", status="OPEN")
        told, took = mine.result()
        assert took < 5
        assert [one["type"] for one in told["items"]] == ["ticket.status_changed.v1"]
        assert [one["data"]["metadata"]["internal"] for one in of_a_kind.result()[0]["items"]] == [True]
        nothing, took = not_theirs.result()
        assert (nothing["items"], nothing["end_of_stream"]) == ([], True)
        assert took >= 2
        assert nothing["next_after"] >= int(told["items"][0]["id"]), "and they need not look there again"


def test_where_there_is_something_already_nobody_waits(staff: httpx.Client) -> None:
    made(staff)
    found, took = waited(staff, 0, 20)
    assert found["items"]
    assert took < 5


@pytest.mark.parametrize("prefer", ["wait", "wait=x", "wait=-1", "respond-async", "", "await=5", "wait=1.5"])
def test_a_preference_that_is_none_is_left_alone(staff: httpx.Client, prefer: str) -> None:
    after = end(staff)
    answer = staff.get(EVENTS, params={"after": after}, headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert "Preference-Applied" not in answer.headers


# Streams


def lines_of(answer: httpx.Response) -> Iterator[tuple[str | None, dict[str, Any] | None]]:
    """What comes: the id and the event; an id alone has no event, and a comment neither."""
    id_, data, comment = None, None, False
    for line in answer.iter_lines():
        if line.startswith("id: "):
            id_ = line.removeprefix("id: ")
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
        elif line.startswith(":"):
            comment = True
        elif line == "" and (id_ or data or comment):
            yield id_, data
            id_, data, comment = None, None, False


def stream(client: httpx.Client, last: int | None = None, **parameters: Any) -> Any:
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": str(last)})
    return client.stream("GET", EVENTS, params=parameters, headers=headers)


def test_a_stream_has_what_was_and_what_comes_and_goes_on_where_one_ended(
    service: Service, staff: httpx.Client, requester: httpx.Client
) -> None:
    ticket = life(requester, staff)
    other = made(requester)["id"]
    with service.client(Role.END_USER, requester_id(requester)) as reader:
        before = all_of(requester)
        with stream(reader) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
            coming = lines_of(answer)
            told = [next(coming) for _ in before]
            assert [one for _, one in told] == before
            assert [id_ for id_, _ in told] == [one["id"] for one in before]
            did(staff, "PATCH", f"{other}/status", status="OPEN")
            id_, event = next(coming)
            assert event == all_of(requester)[-1]
        did(staff, "POST", f"{other}/comments", body="Later")
        with stream(reader, int(id_ or 0), after=3) as answer:
            _, event = next(lines_of(answer))
            assert event is not None
            assert event["data"]["changes"][-1:] == [{"field": "comment", "old": None, "new": "Later"}]
    assert {one["subject"] for one in before} == {ticket, other}


def requester_id(client: httpx.Client) -> UUID:
    return UUID(client.get(TICKETS).json()["items"][0]["requester_id"])


def test_an_end_user_who_is_told_nothing_still_moves_on_and_a_stream_says_that_it_is_there(
    own_service: Callable[..., Service],
) -> None:
    service = own_service(FEED_HEARTBEAT_SECONDS="0.3")
    with service.client(Role.ADMIN) as staff, service.client(Role.END_USER) as nobody:
        made(staff)
        with stream(nobody) as answer:
            coming = lines_of(answer)
            last = did(staff, "PATCH", f"{made(staff)['id']}", title="Another title")
            seen = [next(coming) for _ in range(6)]
        assert {event for _, event in seen} == {None}
        ids = [int(id_) for id_, _ in seen if id_ is not None]
        assert ids == sorted(set(ids))
        assert ids[-1] >= last
        assert None in {id_ for id_, _ in seen}, "and comments where there is nothing to say"


def test_a_stream_ends_when_its_token_does(own_service: Callable[..., Service]) -> None:
    service = own_service(FEED_HEARTBEAT_SECONDS="60")
    short = make_token(Settings(jwt_secret_key=KEY), role=Role.ADMIN, sub=uuid4(), valid=timedelta(seconds=3))
    headers = {"Authorization": f"Bearer {short}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30, verify=NO_CERTIFICATES) as client:
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(client.get, EVENTS, headers={"Prefer": "wait=20"})
            with stream(client) as answer:
                assert list(lines_of(answer)) == []
            assert waiting.result().json()["items"] == []
        assert 1 < time.monotonic() - began < 10
        assert client.get(EVENTS).status_code == 401


def test_so_many_may_wait_and_no_more_and_places_are_free_again(own_service: Callable[..., Service]) -> None:
    service = own_service(FEED_STREAMS="2", FEED_POLLS="1", FEED_WAIT_SECONDS="2", FEED_HEARTBEAT_SECONDS="0.2")
    with service.client(Role.ADMIN) as one, service.client(Role.ADMIN) as two, service.client(Role.ADMIN) as three:
        with stream(one), stream(two):
            refused = three.get(EVENTS, headers={"Accept": "text/event-stream"})
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert refused.json()["type"] == "/problems/overloaded"
            assert three.get(EVENTS).status_code == 200
            assert "feed_streams 2.0" in three.get("/metrics").text

        def open_again() -> int:
            with stream(three) as answer:
                return int(answer.status_code)

        deadline = time.monotonic() + 5
        while open_again() != 200:
            assert time.monotonic() < deadline
        after = batch(three)["next_after"]
        with ThreadPoolExecutor() as pool:
            waiting = [
                pool.submit(client.get, EVENTS, params={"after": after}, headers={"Prefer": "wait=100"})
                for client in (one, two)
            ]
            answers = [one.result() for one in waiting]
        assert sorted(answer.status_code for answer in answers) == [200, 503]
        (bounded,) = (answer for answer in answers if answer.status_code == 200)
        assert bounded.headers["Preference-Applied"] == "wait=2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_told_to_stop_keeps_nobody_waiting(
    own_service: Callable[..., Service], number: signal.Signals
) -> None:
    service = own_service(FEED_HEARTBEAT_SECONDS="60")
    with ThreadPoolExecutor() as pool, service.client(Role.ADMIN) as one, service.client(Role.ADMIN) as two:
        after = batch(one)["next_after"]
        waiting = pool.submit(one.get, EVENTS, params={"after": after}, headers={"Prefer": "wait=30"})
        with stream(two) as answer:
            reading = pool.submit(lambda: list(lines_of(answer)))
            time.sleep(0.5)
            began = time.monotonic()
            assert service.stop(number) == 0
            assert time.monotonic() - began < 5
            assert waiting.result().status_code == 200
            assert waiting.result().json()["items"] == []
            assert reading.result() == []
    assert "Traceback" not in service.log.read_text()


async def test_whoever_is_not_served_any_more_is_not_waited_for_either(ledger: Ledger) -> None:
    tail, over = Tail(ledger.pool, Freshness(ledger)), asyncio.create_task(asyncio.sleep(60))
    others = asyncio.all_tasks()
    served = asyncio.create_task(_more(tail, Wanted(), 0, 60, over))
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - others) == 2, "the request, and what it waits for"
    served.cancel()
    await asyncio.wait([served])
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == others
    over.cancel()


def test_who_takes_nothing_is_cut_off_and_who_leaves_is_forgotten(own_service: Callable[..., Service]) -> None:
    service = own_service(FEED_HEARTBEAT_SECONDS="0.5")
    large = {"description": "x" * 20_000}
    with service.client(Role.ADMIN) as staff:
        ticket = made(staff, **large)["id"]
        for number in range(150):
            did(staff, "PATCH", ticket, description=f"{number} " + "x" * 19_000)
        host, port = service.url.removeprefix("http://").split(":")
        bearer = token(Role.ADMIN, uuid4())
        head = (
            f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nAccept: text/event-stream\r\n\r\n"
        )
        readers = [socket.create_connection((host, int(port))) for _ in range(4)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            reader.sendall(head.encode())
        readers[0].close()
        wait_for_streams(staff, 3, most=4)
        wait_for_streams(staff, 0)
        for reader in readers[1:]:
            reader.close()
        assert len(all_of(staff, ticket_id=ticket, limit=1_000)) == 151, "in more than one answer, by their size"
        assert len(batch(staff, ticket_id=ticket, limit=1_000)["items"]) < 120
    service.stop()
    assert "Traceback" not in service.log.read_text()


def wait_for_streams(client: httpx.Client, count: int, *, most: int | None = None) -> None:
    deadline = time.monotonic() + 10
    while True:
        found = float(re.findall(r"^feed_streams ([\d.]+)", client.get("/metrics").text, re.MULTILINE)[0])
        if count <= found <= (count if most is None else most):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


# Readers who are killed

READER_KILLS = int(os.environ.get("READER_KILLS", "12"))
"""How often one of them is killed, or the service; in `make faults` more often."""

READER = """
import json, sys, time
from http.client import HTTPConnection, HTTPException
host, token, how, where = sys.argv[1:]
asking = {"Authorization": "Bearer " + token}

def ask(path, headers):
    http = HTTPConnection(host, timeout=10)
    http.request("GET", "/api/v1/events" + path, headers=asking | headers)
    answer = http.getresponse()
    if answer.status != 200:
        raise HTTPException(answer.status)
    return answer

with open(where, "a+b", buffering=0) as kept:
    kept.seek(0)
    whole = kept.read()
    kept.truncate(whole.rfind(b"\\n") + 1)  # a line that was cut off was not taken
    lines = whole[: whole.rfind(b"\\n") + 1].split()
    last = int(lines[-1]) if lines else 0
    while True:
        try:
            if how == "poll":
                found = json.load(ask(f"?after={last}&limit=7", {"Prefer": "wait=2"}))
                for one in found["items"]:
                    kept.write(one["id"].encode() + b"\\n")
                last = max(last, found["next_after"])
            else:
                for line in ask("", {"Accept": "text/event-stream", "Last-Event-ID": str(last)}):
                    if line.startswith(b"data: "):
                        last = int(json.loads(line[6:])["id"])
                        kept.write(b"%d\\n" % last)
        except (HTTPException, OSError, ValueError):  # the last: of what was cut off
            time.sleep(0.05)
"""


class Reader:
    """A process that follows the feed and writes down what it was told, and is killed."""

    def __init__(self, service: Service, folder: Path, role: Role, sub: UUID, how: str) -> None:
        self.arguments = [token(role, sub), how, str(folder / f"{role}-{how}")]
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        self.start(service)

    def start(self, service: Service) -> None:
        program = [sys.executable, "-c", READER, service.url.removeprefix("http://"), *self.arguments]
        self.process = subprocess.Popen(program)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1

    @property
    def told(self) -> list[int]:
        path = Path(self.arguments[2])
        return [int(line) for line in path.read_text().split()] if path.exists() else []


async def test_readers_who_are_killed_and_come_again_are_told_every_fact_once_and_in_order(
    own_service: Callable[..., Service], owner: Connection, tmp_path: Path
) -> None:
    service = await asyncio.to_thread(own_service)
    requester, chance = uuid4(), random.Random(4)  # noqa: S311 - when whom is killed
    readers = [
        Reader(service, tmp_path, Role.ADMIN, uuid4(), "poll"),
        Reader(service, tmp_path, Role.SENIOR_ENGINEER, uuid4(), "stream"),
        Reader(service, tmp_path, Role.END_USER, requester, "stream"),
        Reader(service, tmp_path, Role.END_USER, requester, "poll"),
    ]
    turns = itertools.cycle(readers)
    writing = asyncio.create_task(_busy(lambda: service, requester))
    try:
        for round_ in range(READER_KILLS):
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            if round_ in {READER_KILLS // 3, 2 * READER_KILLS // 3}:
                successor = asyncio.create_task(asyncio.to_thread(own_service))
                service.process.kill()
                await asyncio.to_thread(service.process.wait)
                service = await successor
                for reader in readers:  # its port is another one
                    reader.kill()
                    reader.start(service)
            else:
                reader = next(turns)
                reader.kill()
                await asyncio.sleep(chance.uniform(0, 0.2))
                reader.start(service)
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        deadline = time.monotonic() + 30
        while True:  # what was asked last may come to be in the ledger, and then in the read models, a little later
            everything = await positions(
                owner, "select position from ledger.events where topic like 'ticket.%' order by position"
            )
            theirs = await positions(
                owner,
                """select h.position from read_model.history h join read_model.tickets t using (ticket_id)
                   where t.requester_id = $1 and not h.internal order by h.position""",
                requester,
            )
            if [reader.told[-1:] for reader in readers] == [everything[-1:]] * 2 + [theirs[-1:]] * 2:
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert len(everything) > len(theirs) + 20
        assert len(theirs) > 20
        assert readers[0].told == everything
        assert readers[1].told == everything
        assert readers[2].told == theirs
        assert readers[3].told == theirs
        assert all(reader.kills > 3 for reader in readers)
    finally:
        writing.cancel()
        for reader in readers:
            reader.kill()


async def positions(owner: Connection, query: str, *arguments: Any) -> list[int]:
    return [row[0] for row in await owner.fetch(query, *arguments)]


async def _busy(service: Callable[[], Service], requester: UUID) -> None:
    """Somebody asks for things, and staff do this and that about them, whether the service is there or not."""
    theirs = {"Authorization": f"Bearer {token(Role.END_USER, requester)}"}
    staff = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
    async with httpx.AsyncClient(timeout=5, verify=NO_CERTIFICATES) as http:
        while True:
            try:
                for headers in (theirs, staff):
                    answer = await http.post(service().url + TICKETS, json=NEW_TICKET, headers=headers)
                    url = f"{service().url}{TICKETS}/{answer.json()['id']}"
                    await asyncio.gather(
                        http.post(f"{url}/comments", json={"body": "Between us", "internal": True}, headers=staff),
                        http.post(f"{url}/comments", json={"body": "To all"}, headers=staff),
                        http.patch(url, json={"title": "Another title"}, headers=staff),
                    )
            except (httpx.HTTPError, KeyError):
                await asyncio.sleep(0.05)
