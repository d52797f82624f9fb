"""What a client can get wrong: each is refused by name, says nothing of our insides, and writes nothing."""

import base64
import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import KEY, NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|asyncpg|litestar|psycopg|(?i:\b(?:select|insert|update) .* (?:from|into|set)\b)"
)


class Bad(NamedTuple):
    """A request that is refused, and how."""

    method: str
    path: str
    """After /api/v1; {id} is a ticket that is there."""
    body: bytes | None = None
    field: str | None = "body"
    status: int = 400
    slug: str = "invalid-request"
    headers: tuple[tuple[str, str | bytes], ...] = (("Content-Type", "application/json"),)


NO_HEADERS: tuple[tuple[str, str | bytes], ...] = ()


def with_fields(**fields: Any) -> bytes:
    return json.dumps(NEW_TICKET | fields).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in NEW_TICKET.items() if key != name}).encode()


def raw(title: bytes) -> bytes:
    """A body whose title is these bytes, as they are."""
    return b'{"title": "' + title + b'", "description": "x", "category": "INCIDENT"}'


def nested(depth: int) -> bytes:
    return b'{"title": ' + b"[" * depth + b"]" * depth + b"}"


CREATE = ("POST", "/tickets")

NOT_JSON = {
    "no body": b"",
    "white space": b" \r\n\t ",
    "null": b"null",
    "an array": b"[]",
    "an array of tickets": b"[" + with_fields() + b"]",
    "a string": b'"ticket"',
    "a number": b"1",
    "a truth": b"true",
    "cut off": with_fields()[:-1],
    "two of them": with_fields() * 2,
    "something after it": with_fields() + b"x",
    "a trailing comma": with_fields()[:-1] + b",}",
    "single quotes": b"{'title': 'abc'}",
    "keys without quotes": b'{title: "abc"}',
    "a comment": b"/* hello */" + with_fields(),
    "a byte order mark": b"\xef\xbb\xbf" + with_fields(),
    "a form": b"title=abc&description=x&category=INCIDENT",
    "UTF-16": with_fields().decode().encode("utf-16"),
    "compressed": gzip.compress(with_fields()),
    "a raw NUL": raw(b"ab\0c"),
    "a NUL after it": with_fields() + b"\0",
    "an escaped NUL": raw(b"ab\\u0000c"),
    "an escaped NUL after a backslash": raw(b"ab\\\\\\u0000c"),
    "an escaped NUL in a key": b'{"ti\\u0000tle": "abc"}',
    "a raw line end in a string": raw(b"ab\nc"),
    "a lone surrogate": raw(b"ab\\ud800c"),
    "surrogates in the wrong order": raw(b"\\udc00\\ud800"),
    "half an escape": raw(b"ab\\u12"),
    "an unknown escape": raw(b"ab\\x41"),
    "an unclosed string": b'{"title": "abc',
    "invalid UTF-8": raw(b"abc\xff"),
    "overlong UTF-8": raw(b"abc\xc0\x80"),
    "a surrogate in UTF-8": raw(b"abc\xed\xa0\x80"),
    "UTF-8 that is cut off": raw(b"abc\xf0\x9f\x8e"),
    "65 deep": nested(64),
    "5,000 deep": nested(5_000),
    "5,000 objects deep": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "100,000 deep and unclosed": b"[" * 100_000,
}

BAD_FIELDS: dict[str, tuple[str, bytes]] = {
    **{f"no {name}": (name, without(name)) for name in ("title", "description", "category")},
    **{
        f"{name}: {text if len(text := json.dumps(value)) < 30 else text[:27] + '...'}": (
            "tags[0]" if name == "tags" and type(value) is list and len(value) == 1 else name,
            with_fields(**{name: value}),
        )
        for name, values in {
            "title": (None, 1, 1.5, True, [], ["abc"], {}, "", "ab", "x" * 256, 2**31, 2**63, -(2**70), 10**300),
            "description": (None, 5, [], {}, "", "x" * 20_001),
            "category": (None, 1, "", "incident", "NOPE", " INCIDENT", ["INCIDENT"]),
            "priority": (None, 1, 1.0, "", "P5", "p1", "P1 ", 2**64),
            "environment": ("", "PROD", 1, ["PRODUCTION"], False),
            "affected_service": ("", "x" * 256, 7, {}),
            "tags": (None, "web", {}, [1], [None], [""], ["x" * 51], [["web"]], [str(n) for n in range(21)]),
            "team": ("", "x" * 101, 5, ["Network"]),
            "requester_id": ("", "me", 1, 1.5, str(UUID(int=7))[:-1], "0" * 40, [], {"id": 1}),
        }.items()
        for value in values
    },
    **{
        f"unknown: {name}": (name, with_fields(**{name: "x"}))
        for name in (
            "status",
            "id",
            "version",
            "number",
            "assignee_id",
            "deleted",
            "sla",
            "Title",
            "__class__",
            "x" * 300,
        )
    },
}

BAD_COMMANDS: dict[str, tuple[str, str, Any, str]] = {
    "put: nothing": ("PUT", "", {}, "title"),
    "put: no priority": ("PUT", "", {"title": "abc", "description": "x", "category": "QUESTION"}, "priority"),
    "put: team": ("PUT", "", NEW_TICKET | {"team": "Network"}, "team"),
    "put: requester": ("PUT", "", NEW_TICKET | {"requester_id": str(uuid4())}, "requester_id"),
    "put: tags null": ("PUT", "", NEW_TICKET | {"tags": None}, "tags"),
    "patch: title null": ("PATCH", "", {"title": None}, "title"),
    "patch: description null": ("PATCH", "", {"description": None}, "description"),
    "patch: category null": ("PATCH", "", {"category": None}, "category"),
    "patch: priority null": ("PATCH", "", {"priority": None}, "priority"),
    "patch: status": ("PATCH", "", {"status": "OPEN"}, "status"),
    "patch: team": ("PATCH", "", {"team": "Network"}, "team"),
    "patch: a JSON patch": ("PATCH", "", [{"op": "replace", "path": "/title", "value": "abc"}], "body"),
    "patch: one of two is bad": ("PATCH", "", {"title": "abc", "priority": "P0"}, "priority"),
    "assign: nothing": ("PUT", "/assign", {}, "assignee_id"),
    "assign: only a reason": ("PUT", "/assign", {"reason": "because"}, "assignee_id"),
    "assign: to me by that name": ("PUT", "/assign", {"assignee_id": "me"}, "assignee_id"),
    "assign: to a number": ("PUT", "/assign", {"assignee_id": 7}, "assignee_id"),
    "assign: team empty": ("PUT", "/assign", {"team": ""}, "team"),
    "assign: team too long": ("PUT", "/assign", {"team": "x" * 101}, "team"),
    "assign: reason empty": ("PUT", "/assign", {"team": "Network", "reason": ""}, "reason"),
    "assign: reason too long": ("PUT", "/assign", {"team": "Network", "reason": "x" * 20_001}, "reason"),
    "assign: unknown field": ("PUT", "/assign", {"team": "Network", "assignee": "me"}, "assignee"),
    "status: nothing": ("PATCH", "/status", {}, "status"),
    "status: null": ("PATCH", "/status", {"status": None}, "status"),
    "status: unknown": ("PATCH", "/status", {"status": "DONE"}, "status"),
    "status: lower case": ("PATCH", "/status", {"status": "open"}, "status"),
    "status: resolved without a reason": ("PATCH", "/status", {"status": "RESOLVED"}, "reason"),
    "status: reason empty": ("PATCH", "/status", {"status": "OPEN", "reason": ""}, "reason"),
    "status: unknown field": ("PATCH", "/status", {"status": "OPEN", "force": True}, "force"),
    "resolve: nothing": ("POST", "/resolve", {}, "resolution_notes"),
    "resolve: null": ("POST", "/resolve", {"resolution_notes": None}, "resolution_notes"),
    "resolve: empty": ("POST", "/resolve", {"resolution_notes": ""}, "resolution_notes"),
    "resolve: too long": ("POST", "/resolve", {"resolution_notes": "x" * 20_001}, "resolution_notes"),
    "resolve: by reason": ("POST", "/resolve", {"resolution_notes": "Done", "reason": "Done"}, "reason"),
    "close: reason empty": ("POST", "/close", {"reason": ""}, "reason"),
    "close: reason a number": ("POST", "/close", {"reason": 1}, "reason"),
    "close: unknown field": ("POST", "/close", {"notes": "x"}, "notes"),
    "close: an array": ("POST", "/close", [], "body"),
    "reopen: nothing": ("POST", "/reopen", {}, "reason"),
    "reopen: null": ("POST", "/reopen", {"reason": None}, "reason"),
    "restore: with a body": ("POST", "/restore", {}, "body"),
    "delete: with a body": ("DELETE", "", {"reason": "x"}, "body"),
}

WRONG_KINDS = {
    "none": None,
    "empty": "",
    "text/plain": "text/plain",
    "text/json": "text/json",
    "json": "json",
    "a form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data; boundary=x",
    "XML": "application/xml",
    "JSON lines": "application/jsonl",
    "another +json": "application/vnd.api+json",
    "two kinds": "text/plain, application/json",
    "a merge patch": "application/merge-patch+json",
    "MessagePack": "application/x-msgpack",
    "absurd": "application/json" * 500,
}


def cursor(*value: Any, descending: bool = False) -> str:
    """A forged one: the sort, the value, the id."""
    forged = [*value[:1], descending, *value[1:]]
    return base64.urlsafe_b64encode(json.dumps(forged).encode()).decode().rstrip("=")


BAD_QUERIES: dict[str, tuple[str, str]] = {
    "unknown parameter": ("?nope=1", "nope"),
    "a parameter of another case": ("?Status=OPEN", "Status"),
    "a parameter without a name": ("?=1", ""),
    "a parameter in brackets": ("?status[]=OPEN", "status[]"),
    "status unknown": ("?status=DONE", "status"),
    "status lower case": ("?status=open", "status"),
    "status empty": ("?status=", "status"),
    "status, one of two": ("?status=OPEN&status=DONE", "status"),
    "status by commas": ("?status=OPEN,NEW", "status"),
    "priority unknown": ("?priority=P0", "priority"),
    "category unknown": ("?category=BUG", "category"),
    "environment unknown": ("?environment=PROD", "environment"),
    "assignee a name": ("?assignee_id=alice", "assignee_id"),
    "assignee Me": ("?assignee_id=Me", "assignee_id"),
    "assignee me and a line end": ("?assignee_id=me%0A", "assignee_id"),
    "assignee none and a line end": ("?assignee_id=none%0A", "assignee_id"),
    "assignee twice": ("?assignee_id=me&assignee_id=none", "assignee_id"),
    "requester a name": ("?requester_id=alice", "requester_id"),
    "requester me": ("?requester_id=me", "requester_id"),
    "requester twice": (f"?requester_id={uuid4()}&requester_id={uuid4()}", "requester_id"),
    "breached maybe": ("?breached=maybe", "breached"),
    "breached empty": ("?breached=", "breached"),
    "breached 2": ("?breached=2", "breached"),
    "breached twice": ("?breached=true&breached=false", "breached"),
    "sort by title": ("?sort=title", "sort"),
    "sort both ways": ("?sort=--created_at", "sort"),
    "sort empty": ("?sort=", "sort"),
    "sort by two": ("?sort=created_at,priority", "sort"),
    "sort by SQL": ("?sort=created_at;drop+table+tickets", "sort"),
    "page 0": ("?page=0", "page"),
    "page -1": ("?page=-1", "page"),
    "page 1.5": ("?page=1.5", "page"),
    "page a word": ("?page=first", "page"),
    "page empty": ("?page=", "page"),
    "page Arabic": ("?page=%D9%A1", "page"),
    "page 2^31": ("?page=2147483648", "page"),
    "page 2^63": ("?page=9223372036854775808", "page"),
    "page huge": ("?page=1" + "0" * 4_000, "page"),
    "page infinite": ("?page=1e400", "page"),
    "page with an exponent": ("?page=1e3", "page"),
    "page with a sign": ("?page=%2B1", "page"),
    "page twice": ("?page=1&page=2", "page"),
    "page size 0": ("?page_size=0", "page_size"),
    "page size 101": ("?page_size=101", "page_size"),
    "page size -1": ("?page_size=-1", "page_size"),
    "page size a word": ("?page_size=all", "page_size"),
    "page size twice": ("?page_size=1&page_size=1", "page_size"),
    "cursor empty": ("?cursor=", "cursor"),
    "cursor a word": ("?cursor=next", "cursor"),
    "cursor not base64": ("?cursor=%21%21", "cursor"),
    "cursor of one letter": ("?cursor=a", "cursor"),
    "cursor not JSON": ("?cursor=AAAA", "cursor"),
    "cursor not only ASCII": ("?cursor=%C3%A9", "cursor"),
    "cursor null": (f"?cursor={cursor()}", "cursor"),
    "cursor too short": (f"?cursor={cursor('created_at', '2026-01-01T00:00:00Z', descending=True)}", "cursor"),
    "cursor without an id": (f"?cursor={cursor('created_at', '2026-01-01T00:00:00Z', 'x', descending=True)}", "cursor"),
    "cursor of no time": (f"?cursor={cursor('created_at', 'yesterday', str(uuid4()), descending=True)}", "cursor"),
    "cursor of another sort": (
        f"?cursor={cursor('updated_at', '2026-01-01T00:00:00Z', str(uuid4()), descending=True)}",
        "cursor",
    ),
    "cursor of no sort": (f"?cursor={cursor('title', 'x', str(uuid4()))}", "cursor"),
    "cursor of no priority": (f"?sort=priority&cursor={cursor('priority', 'P9', str(uuid4()))}", "cursor"),
    "cursor too long": ("?cursor=" + "a" * 1_001, "cursor"),
    "cursor and page": ("?page=1&cursor=AAAA", "cursor"),
    "cursor twice": ("?cursor=AAAA&cursor=AAAA", "cursor"),
    "a time without a zone": ("?created_from=2026-01-01T00:00:00", "created_from"),
    "a time with a bare plus": ("?created_to=2026-01-01T00:00:00+01:00", "created_to"),
    "a day": ("?updated_from=2026-01-01", "updated_from"),
    "a word for a time": ("?updated_to=yesterday", "updated_to"),
    "an empty time": ("?created_from=", "created_from"),
    "seconds since 1970": ("?created_from=1700000000", "created_from"),
    "a month 13": ("?created_from=2026-13-01T00:00:00Z", "created_from"),
    "a 30th of February": ("?created_to=2026-02-30T00:00:00Z", "created_to"),
    "an hour 24": ("?updated_from=2026-01-01T24:00:00Z", "updated_from"),
    "a year 10000": ("?updated_to=10000-01-01T00:00:00Z", "updated_to"),
    "a year that is 10000 in UTC": ("?updated_to=9999-12-31T23:59:59-23:00", "updated_to"),
    "a year that is 0 in UTC": ("?created_from=0001-01-01T00:00:00%2B23:00", "created_from"),
    "a time twice": ("?created_from=2026-01-01T00:00:00Z&created_from=2026-01-01T00:00:00Z", "created_from"),
    "team too long": ("?team=" + "x" * 1_001, "team"),
    "team twice": ("?team=a&team=b", "team"),
    "tag twice": ("?tag=a&tag=b", "tag"),
    "service twice": ("?affected_service=a&affected_service=b", "affected_service"),
    "NUL": ("?team=a%00b", "query"),
    "NUL in a name": ("?te%00am=a", "query"),
    "not UTF-8": ("?team=%ff", "query"),
    "overlong UTF-8": ("?team=%c0%80", "query"),
    "one ticket: version 0": ("/{id}?version=0", "version"),
    "one ticket: version -1": ("/{id}?version=-1", "version"),
    "one ticket: version 1.5": ("/{id}?version=1.5", "version"),
    "one ticket: version latest": ("/{id}?version=latest", "version"),
    "one ticket: version empty": ("/{id}?version=", "version"),
    "one ticket: version 2^31": ("/{id}?version=2147483648", "version"),
    "one ticket: version 2^63": ("/{id}?version=9223372036854775808", "version"),
    "one ticket: version twice": ("/{id}?version=1&version=1", "version"),
    "one ticket: as of no zone": ("/{id}?as_of=2026-01-01T00:00:00", "as_of"),
    "one ticket: as of a day": ("/{id}?as_of=2026-01-01", "as_of"),
    "one ticket: as of now": ("/{id}?as_of=now", "as_of"),
    "one ticket: as of seconds": ("/{id}?as_of=1700000000", "as_of"),
    "one ticket: as of the year 10000 in UTC": ("/{id}?as_of=9999-12-31T23:59:59-23:00", "as_of"),
    "one ticket: as of the year 0 in UTC": ("/{id}?as_of=0001-01-01T00:00:00%2B23:00", "as_of"),
    "one ticket: version and as of": ("/{id}?version=1&as_of=2026-01-01T00:00:00Z", "as_of"),
    "one ticket: unknown parameter": ("/{id}?fields=title", "fields"),
    "one ticket: NUL": ("/{id}?version=%00", "query"),
    "history: unknown action": ("/{id}/history?action=RENAMED", "action"),
    "history: action lower case": ("/{id}/history?action=created", "action"),
    "history: cursor a word": ("/{id}/history?cursor=x", "cursor"),
    "history: cursor -1": ("/{id}/history?cursor=-1", "cursor"),
    "history: cursor 2^63": ("/{id}/history?cursor=9223372036854775808", "cursor"),
    "history: cursor Arabic": ("/{id}/history?cursor=%D9%A1", "cursor"),
    "history: page size 0": ("/{id}/history?page_size=0", "page_size"),
    "history: page size 101": ("/{id}/history?page_size=101", "page_size"),
    "history: page": ("/{id}/history?page=1", "page"),
    "transitions: any parameter": ("/{id}/transitions?to=OPEN", "to"),
}

CURSORS_OF_THE_WRONG_KIND = {
    "a number for a time": ("created_at", cursor("created_at", 5, str(uuid4()))),
    "a huge number for a time": ("updated_at", cursor("updated_at", 10**30, str(uuid4()))),
    "a year that is 10000 in UTC": (
        "created_at",
        cursor("created_at", "9999-12-31T23:59:59-23:00", str(uuid4())),
    ),
    "a time for a status": ("status", cursor("status", "2026-01-01T00:00:00Z", str(uuid4()))),
    "a huge number for a status": ("status", cursor("status", 99_999_999_999, str(uuid4()))),
}

BAD_HEADERS: dict[str, tuple[str, str, str | bytes]] = {
    **{
        f"Ledger-Position: {value!r}": ("GET", "Ledger-Position", value)
        for value in ("", "x", "-1", "+1", "1.5", "1e3", "0x10", "1,2", '"1"', "9" * 19, b"\xb2", b"\xd9\xa1", b"\xff")
    },
    **{
        f"Idempotency-Key: {value[:20]!r}": ("POST", "Idempotency-Key", value)
        for value in (
            "",
            '""',
            "x" * 256,
            '"unclosed',
            'un"quoted',
            "two words",
            b"caf\xe9",
            b"caf\xc3\xa9",
            "x" * 60_000,
        )
    },
}

NOT_THERE = [
    *("/", "/api", "/api/v1", "/api/v2/tickets", "/api/v1/ticket", "/API/v1/tickets", "/favicon.ico", "/.env"),
    *("/problems/nope", "/problems", "/docs/assets/nope.js", "/docs/assets/../../settings.py", "/docs/assets/%2e%2e/x"),
    *(f"{TICKETS}/not-an-id", f"{TICKETS}/42", f"{TICKETS}/{{id}}0", f"{TICKETS}/{{id}}/nothing"),
    *(f"{TICKETS}/{{id}}/close/now", f"{TICKETS}/%00", f"{TICKETS}/{{id}}%00", f"{TICKETS}/%ff", f"{TICKETS}/%2e%2e"),
    *(f"{TICKETS}/{'9' * 5_000}", f"{TICKETS}/{UUID(int=7)}", f"{TICKETS}/{UUID(int=7)}/history", f"{TICKETS}/-1"),
]

NOT_A_METHOD = [
    *(("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/{id}"), ("GET", "/{id}/status"), ("PUT", "/{id}/status")),
    *(("GET", "/{id}/assign"), ("POST", "/{id}/assign"), ("GET", "/{id}/resolve"), ("PATCH", "/{id}/close")),
    *(("GET", "/{id}/reopen"), ("DELETE", "/{id}/restore"), ("POST", "/{id}/history"), ("DELETE", "/{id}/history")),
    *(("PUT", "/{id}/transitions"), ("TRACE", ""), ("PROPFIND", "/{id}"), ("get", "")),
]

TABLE: dict[str, Bad] = {
    **{f"body: {name}": Bad(*CREATE, body) for name, body in NOT_JSON.items()},
    **{f"field: {name}": Bad(*CREATE, body, field) for name, (field, body) in BAD_FIELDS.items()},
    **{
        f"command: {name}": Bad(method, f"/tickets/{{id}}{path}", json.dumps(body).encode(), field)
        for name, (method, path, body, field) in BAD_COMMANDS.items()
    },
    **{
        f"content type: {name}": Bad(
            *CREATE,
            with_fields(),
            None,
            415,
            "unsupported-media-type",
            NO_HEADERS if kind is None else (("Content-Type", kind),),
        )
        for name, kind in WRONG_KINDS.items()
    },
    **{
        f"content type: {kind} on {method}": Bad(
            method,
            f"/tickets/{{id}}{path}",
            b'{"title": "abc"}',
            None,
            415,
            "unsupported-media-type",
            (("Content-Type", kind),),
        )
        for method, path, kind in (
            ("PUT", "", "application/merge-patch+json"),
            ("PATCH", "", "text/plain"),
            ("PATCH", "", "application/json-patch+json"),
            ("PATCH", "/status", "application/x-www-form-urlencoded"),
            ("POST", "/close", "text/plain"),
        )
    },
    **{
        f"query: {name}": Bad("GET", f"/tickets{path}", None, field, headers=NO_HEADERS)
        for name, (path, field) in BAD_QUERIES.items()
    },
    **{
        name: Bad(
            method,
            "/tickets",
            with_fields() if method == "POST" else None,
            header,
            headers=((header, value), *((("Content-Type", "application/json"),) if method == "POST" else ())),
        )
        for name, (method, header, value) in BAD_HEADERS.items()
    },
}


class Room(NamedTuple):
    """Somebody who was seen before, and a ticket that nobody changes."""

    client: httpx.Client
    token: str
    ticket: str

    def send(self, method: str, url: str, **more: Any) -> httpx.Response:
        headers = [("Authorization", f"Bearer {self.token}"), *more.pop("headers", ())]
        return self.client.request(method, url.replace("{id}", self.ticket), headers=headers, **more)

    def position(self) -> int:
        position: int = self.client.get("/health").json()["ledger"]["position"]
        return position


@pytest.fixture(scope="module")
def room(service: Service) -> Iterator[Room]:
    bearer = token(Role.ADMIN, uuid4())
    with httpx.Client(base_url=service.url, timeout=30) as client:
        answer = client.post(TICKETS, json=NEW_TICKET, headers={"Authorization": f"Bearer {bearer}"})
        assert answer.status_code == 201
        yield Room(client, bearer, answer.json()["id"])


def assert_refused(room: Room, answer: httpx.Response, status: int, slug: str, field: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    problem = answer.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"].startswith("/")
    assert [one["field"] for one in problem.get("errors", [])] == ([] if field is None else [field])
    assert all(set(one) == {"field", "message"} and one["message"] for one in problem.get("errors", []))
    said = re.sub(r'"instance":"[^"]*"', "", answer.text)
    assert not LEAKS.search(said), said
    assert room.token not in said
    assert KEY not in said


def test_the_table_is_long_and_says_each_thing_once() -> None:
    assert len(TABLE) > 250
    assert len({(*bad[:3], bad.headers) for bad in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("bad", TABLE.values(), ids=TABLE)
def test_a_bad_request_is_refused_by_name_and_writes_nothing(room: Room, bad: Bad) -> None:
    position = room.position()
    answer = room.send(bad.method, f"/api/v1{bad.path}", content=bad.body, headers=bad.headers)
    assert_refused(room, answer, bad.status, bad.slug, bad.field)
    assert room.position() == position


@pytest.mark.parametrize(("sort", "forged"), CURSORS_OF_THE_WRONG_KIND.values(), ids=CURSORS_OF_THE_WRONG_KIND)
def test_a_forged_cursor_is_400(room: Room, sort: str, forged: str) -> None:
    answer = room.send("GET", TICKETS, params={"sort": sort, "cursor": forged})
    assert_refused(room, answer, 400, "invalid-request", "cursor")


@pytest.mark.parametrize("path", NOT_THERE)
def test_what_is_not_there_is_404(room: Room, path: str) -> None:
    if path == "/":
        assert room.send("GET", path).headers["Location"] == "/docs"
        return
    assert_refused(room, room.send("GET", path), 404, "not-found", None)


@pytest.mark.parametrize(("method", "path"), NOT_A_METHOD)
def test_a_method_that_a_path_does_not_have_is_405(room: Room, method: str, path: str) -> None:
    # Without httpx, which would write the method in capitals.
    answer = spoken(room, f"{method} {TICKETS}{path.replace('{id}', room.ticket)} HTTP/1.1", "Content-Length: 0")
    assert answer.status == 405
    assert answer.headers["allow"]
    assert json.loads(answer.body)["type"] == "/problems/method-not-allowed"


def test_several_things_that_are_wrong_are_at_least_refused(room: Room) -> None:
    answer = room.send("POST", f"{TICKETS}?nope=1", json={"title": 1, "nope": 2, "category": "X"})
    assert answer.status_code == 400
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", 'application/json;charset="UTF-8"'],
)
def test_a_content_type_that_is_json_is_taken(room: Room, kind: str) -> None:
    answer = room.send("POST", TICKETS, content=with_fields(), headers=[("Content-Type", kind)])
    assert answer.status_code == 201


@pytest.mark.parametrize("depth", [1, 63])
def test_nesting_up_to_64_deep_is_about_what_is_in_it(room: Room, depth: int) -> None:
    answer = room.send("POST", TICKETS, content=nested(depth), headers=[("Content-Type", "application/json")])
    assert_refused(room, answer, 400, "invalid-request", "title")


def test_brackets_in_a_text_are_no_nesting(room: Room) -> None:
    text = '[{"\\"' * 1_000
    answer = room.send("POST", TICKETS, json=NEW_TICKET | {"description": text})
    assert (answer.status_code, answer.json()["description"]) == (201, text)


# Too much


@pytest.mark.parametrize("size", [1_048_577, 2_000_000, 3_000_000, 10_000_000])
def test_a_body_over_the_limit_is_413(room: Room, size: int) -> None:
    position = room.position()
    body = with_fields(description="x")[:-2] + b"x" * size + b'"}'
    answer = room.send("POST", TICKETS, content=body, headers=[("Content-Type", "application/json")])
    assert_refused(room, answer, 413, "content-too-large", None)
    assert room.position() == position


def test_a_body_over_the_limit_that_comes_in_pieces_is_413(room: Room) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"title": "'
        for _ in range(40):
            yield b"x" * 65_536

    position = room.position()
    answer = room.send("POST", TICKETS, content=pieces(), headers=[("Content-Type", "application/json")])
    assert "Content-Length" not in answer.request.headers
    assert_refused(room, answer, 413, "content-too-large", None)
    assert room.position() == position


def test_a_body_that_comes_in_pieces_is_taken(room: Room) -> None:
    body = with_fields(title="In pieces")
    pieces = (body[at : at + 1] for at in range(len(body)))
    answer = room.send("POST", TICKETS, content=pieces, headers=[("Content-Type", "application/json")])
    assert (answer.status_code, answer.json()["title"]) == (201, "In pieces")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 65 + b'"' + b'\\"' * 500_000,
        b"[" * 65 + b'""' * 500_000,
        b"[" * 65 + b"\\" * 1_000_000,
        b'"\\u0000' * 140_000,
        b"{" * 1_000_000,
        b'{"title": 1' + b"0" * 1_000_000 + b"}",
    ],
    ids=["escaped quotes", "quotes", "backslashes", "NULs", "braces", "digits"],
)
def test_an_absurd_body_is_refused_quickly(room: Room, body: bytes) -> None:
    started = time.monotonic()
    answer = room.send("POST", TICKETS, content=body, headers=[("Content-Type", "application/json")])
    assert answer.status_code == 400
    assert answer.json()["errors"]
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "Prefer", "X-Forwarded-For", "Accept", "X-Request-ID"])
@pytest.mark.parametrize("value", ['"1"' + " " * 50_000 + "x", '"' * 50_000, 'W/"1",' * 8_000, ", " * 20_000 + "x"])
def test_an_absurd_header_is_read_quickly(room: Room, header: str, value: str) -> None:
    started = time.monotonic()
    for method, wanted in (("GET", {200, 304}), ("PATCH", {200, 412})):
        answer = room.send(
            method,
            f"{TICKETS}/{{id}}",
            content=b"{}" if method == "PATCH" else None,
            headers=[(header, value), ("Content-Type", "application/json")],
        )
        assert answer.status_code in wanted
    assert time.monotonic() - started < 3


def test_a_body_on_a_query_is_not_read(room: Room) -> None:
    for body in (b"not json", b"\0", b"{}"):
        answer = room.send("GET", f"{TICKETS}/{{id}}", content=body)
        assert (answer.status_code, answer.json()["id"]) == (200, room.ticket)


# What the server itself refuses, before there is a request


class Spoken(NamedTuple):
    """What came back over a socket; status 0 if the connection was closed without a word."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(room: Room, sent: bytes) -> Spoken:
    url = room.client.base_url
    with closing(socket.create_connection((url.host, url.port or 80), timeout=15)) as connection:
        received = b""
        try:
            connection.sendall(sent.replace(b"Bearer TOKEN", b"Bearer " + room.token.encode()))
            while piece := connection.recv(65_536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # closed on us: what came until then counts
    if not received:
        return Spoken(0, {}, b"")
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Spoken(int(first.split(" ")[1]), headers, body)


def spoken(room: Room, first: str, *headers: str, body: bytes = b"") -> Spoken:
    lines = [first, "Host: localhost", "Connection: close", f"Authorization: Bearer {room.token}", *headers, "", ""]
    return exchange(room, "\r\n".join(lines).encode("latin-1") + body)


GET = f"GET {TICKETS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
POST = (
    f"POST {TICKETS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    "Content-Type: application/json\r\nAuthorization: Bearer TOKEN\r\n"
).encode()

BROKEN: dict[str, bytes] = {
    "not HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "only NULs": b"\0" * 500,
    "no version": b"GET /health\r\n\r\n",
    "a version that there is not": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "a word for a version": b"GET /health HTTQ/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /heal th HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is no word": b"G(T /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a header without a name": GET + b": value\r\n\r\n",
    "a space before the colon": GET + b"X-A : b\r\n\r\n",
    "NUL in a header": GET + b"X-A: a\0b\r\n\r\n",
    "a line end in a header": GET + b"X-A: a\rb\r\n\r\n",
    "a folded header": GET + b"X-A: a\r\n  b\r\n\r\n",
    "headers over 64 KiB": GET + b"X-A: " + b"x" * 200_000 + b"\r\n\r\n",
    "500 headers": GET + b"".join(b"X-%d: x\r\n" % number for number in range(500)) + b"\r\n",
    "a target over 64 KiB": b"GET /health?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a negative length": POST + b"Content-Length: -5\r\n\r\n{}",
    "a length that is no number": POST + b"Content-Length: five\r\n\r\n{}",
    "a length over 2^64": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    "an unknown transfer coding": POST + b"Transfer-Encoding: nonsense\r\n\r\n{}",
    "a piece with a bad length": POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    "a piece with a huge length": POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_what_is_not_http_is_refused_by_the_server_and_it_lives_on(room: Room, sent: bytes) -> None:
    position = room.position()
    answer = exchange(room, sent)
    assert answer.status == 0 or 400 <= answer.status < 500
    assert not LEAKS.search(answer.body.decode())
    assert room.position() == position
    assert room.send("GET", f"{TICKETS}/{{id}}").status_code == 200


@pytest.mark.parametrize("what", ["headers over 64 KiB", "500 headers", "a target over 64 KiB"])
def test_what_is_too_long_for_the_server_is_refused_with_a_status_that_is_documented(room: Room, what: str) -> None:
    listing = room.client.get("/openapi.json").json()["paths"][TICKETS]["get"]
    answer = exchange(room, BROKEN[what])
    assert answer.status in (414, 431)
    assert str(answer.status) in listing["responses"]


def test_a_length_and_pieces_at_once_are_never_two_requests(room: Room) -> None:
    """The smuggler's favourite: whichever of the two is believed, the rest must not become a request."""
    smuggled = f"GET {TICKETS}/smuggled HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer = exchange(
        room,
        POST.replace(b"Connection: close\r\n", b"")
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + smuggled,
    )
    assert answer.body.count(b"HTTP/1.1 ") == 0
    assert b"smuggled" not in answer.body
    assert answer.status == 0 or 400 <= answer.status < 500


def test_a_client_that_leaves_in_the_middle_of_its_body_does_no_harm(room: Room) -> None:
    position = room.position()
    url = room.client.base_url
    for _ in range(20):
        with closing(socket.create_connection((url.host, url.port or 80), timeout=15)) as connection:
            head = POST.replace(b"TOKEN", room.token.encode()) + b"Content-Length: 500\r\n\r\n"
            connection.sendall(head + b'{"title": "half a bo')
    assert room.send("GET", f"{TICKETS}/{{id}}").status_code == 200
    assert room.position() == position


def test_http_1_0_is_answered(room: Room) -> None:
    answer = exchange(room, b"GET /health HTTP/1.0\r\n\r\n")
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "ok")
