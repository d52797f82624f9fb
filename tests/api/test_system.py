"""What operators see: health, readiness, metrics, request ids, client addresses, the parts apart, the end."""

import json
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"


@pytest.fixture(scope="module")
def admin(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.ADMIN) as client:
        yield client


def made(client: httpx.Client, **headers: str) -> dict[str, Any]:
    answer = client.post(TICKETS, json=NEW_TICKET, headers={name.replace("_", "-"): headers[name] for name in headers})
    assert answer.status_code == 201, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def first_entry(client: httpx.Client, ticket_id: str) -> dict[str, Any]:
    entry: dict[str, Any] = client.get(f"{TICKETS}/{ticket_id}/history").json()["items"][0]
    return entry


# Health


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_says_how_things_are(admin: httpx.Client, path: str) -> None:
    written = int(admin.post(TICKETS, json=NEW_TICKET).headers["Ledger-Position"])
    assert admin.get(TICKETS, params={"page_size": 1}).status_code == 200
    answer = admin.get(path, headers={"Authorization": ""})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    told = answer.json()
    projections = told.pop("projections")
    assert told.pop("checkpoints")["outside"] == "ok"
    assert told == {
        "status": "ok",
        "service": "tickets",
        "version": "0.1.0",
        "ledger": {"connected": True, "position": written, "waiting": 0},
    }
    assert (projections["position"], projections["behind"], projections["drifted"]) == (written, 0, [])


def test_a_service_says_the_name_and_version_that_it_was_given(own_service: Callable[..., Service]) -> None:
    running = own_service(SERVICE_NAME="desk", SERVICE_VERSION="9.8.7", API_V1_PREFIX="/desk/v1")
    with running.client() as admin:
        told = admin.get("/health").json()
        assert (told["service"], told["version"]) == ("desk", "9.8.7")
        document = admin.get("/openapi.json").json()
        assert document["info"]["version"] == "9.8.7"
        assert "/desk/v1/tickets" in document["paths"]
        created = admin.post("/desk/v1/tickets", json=NEW_TICKET)
        assert created.headers["Location"] == f"/desk/v1/tickets/{created.json()['id']}"
        listed = admin.get("/desk/v1/tickets")
        assert listed.headers["Link"].startswith("</desk/v1/tickets>")
        assert admin.get(TICKETS).status_code == 404


# Metrics


def samples(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/metrics", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("POST", TICKETS, "/api/v1/tickets", 201),
        ("GET", TICKETS, "/api/v1/tickets", 200),
        ("GET", f"{TICKETS}/{{id}}", "/api/v1/tickets/{ticket_id}", 404),
        ("HEAD", TICKETS, "/api/v1/tickets", 200),
        ("GET", "/nothing/{id}", "unknown", 404),
        ("BREW", "/nothing/{id}", "unknown", 404),
    ],
)
def test_requests_are_counted_by_what_they_are_not_by_what_they_name(
    admin: httpx.Client, method: str, path: str, route: str, status: int
) -> None:
    of = (("method", "other" if method == "BREW" else method), ("route", route))
    counter = ("http_requests_total", (*of, ("status", str(status))))
    before = samples(admin)
    for _ in range(3):
        body = NEW_TICKET if method == "POST" else None
        answer = admin.request(method, path.replace("{id}", str(uuid4())), json=body)
        assert answer.status_code == status
    after = samples(admin)
    counted = before.get(counter, 0.0) + 3
    assert after[counter] == counted
    assert after["http_request_seconds_count", of] >= counted
    new = [dict(labels) for name, labels in after.keys() - before.keys() if name == "http_requests_total"]
    assert {labels["route"] for labels in new} <= {route, "/metrics"}


def test_the_ledgers_position_is_a_metric(admin: httpx.Client) -> None:
    position = int(admin.post(TICKETS, json=NEW_TICKET).headers["Ledger-Position"])
    assert admin.get(TICKETS, params={"page_size": 1}).status_code == 200
    found = samples(admin)
    assert found["ledger_position", ()] == position
    assert found["projected_position", ()] == position
    assert found["ledger_waiting_commands", ()] == 0


# Request ids


@pytest.mark.parametrize("sane", ["a", "5c0de", "A-b_c.d:e/f+g=", "x" * 128, "970451bb-3b56-4ca1-84e1-ff467929e7cf"])
def test_a_sane_request_id_is_taken_over_and_kept_with_the_facts(admin: httpx.Client, sane: str) -> None:
    answer = admin.post(TICKETS, json=NEW_TICKET, headers={"X-Request-ID": sane})
    assert answer.headers.get_list("X-Request-ID") == [sane]
    assert first_entry(admin, answer.json()["id"])["metadata"] == {"request_id": sane}
    assert admin.get("/health", headers={"X-Request-ID": sane}).headers["X-Request-ID"] == sane
    refused = admin.post(TICKETS, json={}, headers={"X-Request-ID": sane})
    assert (refused.status_code, refused.headers["X-Request-ID"]) == (400, sane)


@pytest.mark.parametrize("not_sane", ["", "x" * 129, "two words", "<script>", 'a"b', "a\tb", "a;b", "a,b", "caf\xe9"])
def test_any_other_request_id_is_made_anew(admin: httpx.Client, not_sane: str) -> None:
    headers = [(b"X-Request-ID", not_sane.encode("latin-1"))]
    answers = [admin.post(TICKETS, json=NEW_TICKET, headers=headers) for _ in range(2)]
    found = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in found)
    assert found[0] != found[1]
    assert first_entry(admin, answers[0].json()["id"])["metadata"] == {"request_id": found[0]}


def test_every_answer_has_a_request_id(admin: httpx.Client) -> None:
    answers = [admin.get(path) for path in ("/health", "/metrics", "/docs", "/nothing", "/openapi.json", TICKETS)]
    found = [answer.headers["X-Request-ID"] for answer in answers]
    assert len(set(found)) == len(found)


def test_the_log_has_a_line_for_a_request_and_no_secret(service: Service, admin: httpx.Client) -> None:
    marked = uuid4().hex
    admin.get(f"{TICKETS}?page_size=1&team=a-secret-{marked}", headers={"X-Request-ID": marked})
    deadline = time.monotonic() + 5
    lines: list[str] = []
    while not lines and time.monotonic() < deadline:
        lines = [line for line in service.log.read_text().splitlines() if marked in line]
    assert len(lines) == 1
    assert f'"request_id":"{marked}"' in lines[0]
    assert '"status":200' in lines[0]
    assert f'"path":"{TICKETS}"' in lines[0]
    bearer = admin.headers["Authorization"].removeprefix("Bearer ")
    assert bearer not in service.log.read_text()
    assert f"a-secret-{marked}" not in service.log.read_text()


# Client addresses


@pytest.mark.parametrize("forwarded", ["203.0.113.9", "203.0.113.9, 127.0.0.1", "nonsense"])
def test_without_trusted_proxies_nobody_is_believed_about_where_they_are(admin: httpx.Client, forwarded: str) -> None:
    ticket = made(admin, X_Forwarded_For=forwarded, X_Real_IP=forwarded, Forwarded=f"for={forwarded}")
    assert first_entry(admin, ticket["id"])["ip_address"] == "127.0.0.1"


def test_a_trusted_proxy_is_believed_as_far_as_trust_goes(own_service: Callable[..., Service]) -> None:
    addresses = {
        None: "127.0.0.1",
        "": "127.0.0.1",
        "203.0.113.9": "203.0.113.9",
        "203.0.113.9, 10.1.2.3": "203.0.113.9",
        "198.51.100.7, 203.0.113.9": "203.0.113.9",
        "198.51.100.7,203.0.113.9 , 10.1.2.3, 10.9.9.9": "203.0.113.9",
        "10.1.2.3, 10.9.9.9": "10.1.2.3",
        "2001:db8::7": "2001:db8::7",
        "203.0.113.9, unknown": "127.0.0.1",
        "nonsense, 203.0.113.9": "203.0.113.9",
        "203.0.113.9, <script>, 10.1.2.3": "10.1.2.3",
        "203.0.113.9:5000": "127.0.0.1",
    }
    running = own_service(TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8")
    with running.client() as admin:
        for forwarded, address in addresses.items():
            headers = {} if forwarded is None else {"X_Forwarded_For": forwarded}
            assert first_entry(admin, made(admin, **headers)["id"])["ip_address"] == address, forwarded


# The parts apart, and the end


def test_the_parts_serve_their_half_and_together_they_are_the_whole(own_service: Callable[..., Service]) -> None:
    commands = own_service("--only", "commands")
    queries = own_service("--only", "queries")
    runner = own_service("--only", "projections")
    with commands.client() as writer, queries.client() as reader, runner.client() as nobody:
        created = writer.post(TICKETS, json=NEW_TICKET)
        assert created.status_code == 201
        url = f"{TICKETS}/{created.json()['id']}"
        read = reader.get(url, headers={"Ledger-Position": created.headers["Ledger-Position"]})
        assert read.json() == created.json()
        assert [one["id"] for one in reader.get(TICKETS).json()["items"]] == [created.json()["id"]]
        changed = writer.patch(url, json={"title": "Changed"})
        position = {"Ledger-Position": changed.headers["Ledger-Position"]}
        assert reader.get(url, headers=position).json() == changed.json()
        assert [writer.get(path).status_code for path in (TICKETS, url, f"{url}/history")] == [405, 405, 404]
        assert [reader.post(TICKETS, json=NEW_TICKET).status_code, reader.delete(url).status_code] == [405, 405]
        assert reader.post(f"{url}/close").status_code == 404
        assert [nobody.get(url).status_code, nobody.post(TICKETS, json=NEW_TICKET).status_code] == [404, 404]
        for client, half in ((writer, {"Commands"}), (reader, {"Queries"}), (nobody, set[str]())):
            assert client.get("/health").status_code == 200
            paths = client.get("/openapi.json").json()["paths"]
            tags = {tag for operations in paths.values() for one in operations.values() for tag in one["tags"]}
            assert tags == half | {"System"}
    assert [one.stop() for one in (commands, queries, runner)] == [0, 0, 0]


def test_a_signal_ends_it_in_order_and_the_next_one_has_it_all(own_service: Callable[..., Service]) -> None:
    first = own_service()
    with first.client() as admin:
        ticket = made(admin)
    assert_ends(first, signal.SIGTERM)
    second = own_service()
    with second.client() as admin:
        assert admin.get(f"{TICKETS}/{ticket['id']}").json() == ticket
    assert_ends(second, signal.SIGINT)


def assert_ends(running: Service, number: signal.Signals) -> None:
    started = time.monotonic()
    assert running.stop(number) == 0
    assert time.monotonic() - started < 10
    assert "Traceback" not in running.log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health")


def test_a_client_that_goes_away_leaves_no_traceback_and_the_service_goes_on(
    own_service: Callable[..., Service],
) -> None:
    service = own_service()
    host, port = service.url.removeprefix("http://").split(":")
    bearer = token(Role.ADMIN, uuid4())
    body = json.dumps(NEW_TICKET).encode()
    head = (
        f"POST /api/v1/tickets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    for sent in (head, head + body[:20], head + body) * 3:
        clients = [socket.create_connection((host, int(port))) for _ in range(100)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
            client.sendall(sent)
        for client in clients:
            client.close()
    with service.client() as admin:
        assert admin.post("/api/v1/tickets", json=NEW_TICKET).status_code == 201
    service.stop()
    assert "Traceback" not in service.log.read_text()
