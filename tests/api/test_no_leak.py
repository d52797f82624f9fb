"""Of internal comments an END_USER finds no trace: in no GET that the application has, in no refusal, in no count.

Two requesters have a ticket each, with the same life to them; of one of the two, staff talked internally in
between, and that talk has words, people, ids and times that are nowhere else. Whatever an END_USER can look at
must then be the same for both, but for what differs between any two tickets. A route that nobody thought of
here is a failure. Deliberately absent: what staff see (test_comments.py).
"""

import base64
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import pytest
from litestar import Litestar

from api import app
from api.settings import PARTS, Settings
from projections.history import Action
from tests.conftest import KEY, NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS: Final = "/api/v1/tickets"
COMMENTS: Final = "/api/v1/comments"
SECRET: Final = "xyzzyplugh"
"""In every internal comment, in every version of it, and nowhere else."""
SPOKEN: Final = "turbopump"
"""In what everybody may read."""

OF_A_TICKET: Final[dict[str, list[str]]] = {
    "/api/v1/tickets": [
        "",
        "page_size=1",
        "page=1",
        "sort=updated_at",
        "sort=-updated_at",
        "sort=status",
        "status=OPEN",
        "breached=false",
        "breached=true",
        f"q={SPOKEN}",
        f"q={SPOKEN}&sort=created_at",
        f"q={SECRET}",
        f"q={SPOKEN}+{SECRET}",
        f"q={SPOKEN}+or+{SECRET}",
        f"q={SPOKEN}+-{SECRET}",
        f"q=-{SECRET}",
        "updated_from={after_the_last_public}",
        "updated_to={after_the_last_public}",
        "as_of={after_the_last_public}",
        "as_of={after_the_last_public}&sort=updated_at&breached=false",
        "as_of={after_the_last_public}&updated_from={after_the_last_public}",
    ],
    "/api/v1/tickets/counts": ["", "as_of={after_the_last_public}"],
    "/api/v1/tickets/{ticket_id:uuid}": ["", "version=1", "as_of={after_the_last_public}"],
    "/api/v1/tickets/{ticket_id:uuid}/history": [
        "",
        "page_size=1",
        "page_size=2",
        *(f"action={action}" for action in Action),
        "action=COMMENT_ADDED&action=COMMENT_EDITED&action=COMMENT_DELETED&page_size=1",
        "version=1",
        "as_of={after_the_last_public}",
        "as_of={after_the_last_public}&page_size=1",
    ],
    "/api/v1/tickets/{ticket_id:uuid}/transitions": [""],
    "/api/v1/tickets/{ticket_id:uuid}/comments": [
        *("", "page_size=1", "page_size=2", "page_size=100", "version=1"),
        *("as_of={after_the_last_public}", "as_of={after_the_last_public}&page_size=1"),
    ],
    "/api/v1/tickets/{ticket_id:uuid}/attachments": ["", "page_size=1", "version=1", "as_of={after_the_last_public}"],
    "/api/v1/tickets/{ticket_id:uuid}/diff": ["from=1", "from=1&to=1"],
    "/api/v1/tickets/{ticket_id:uuid}/blame": [""],
    "/api/v1/attachments/{attachment_id:uuid}": [""],
    "/api/v1/events": [
        "",
        "limit=1",
        "limit=2",
        "ticket_id={ticket}",
        "limit=1&ticket_id={ticket}",
        "type=ticket.comment_added",
        "limit=1&type=ticket.comment_added&type=ticket.comment_edited&type=ticket.comment_deleted",
    ],
}
"""Every route about tickets, and what it is asked for here."""

FOR_STAFF: Final = {"/api/v1/tickets/{ticket_id:uuid}/proof": ["", "version=1"]}
"""Routes that only staff may ask, about tickets of others or their own, and what they are asked for here."""

OF_THE_SERVICE: Final = {
    "/": "/",
    "/health": "/health",
    "/ready": "/ready",
    "/metrics": "/metrics",
    "/problems/{slug:str}": "/problems/not-found",
    "/openapi.json": "/openapi.json",
    "/docs": "/docs",
    "/redoc": "/redoc",
    "/api/v1/ledger": "/api/v1/ledger",
    "/api/v1/ledger/checkpoints": "/api/v1/ledger/checkpoints",
    "/api/v1/ledger/consistency": "/api/v1/ledger/consistency",
    "/docs/assets/{file_path:path}": "/docs/assets/swagger-ui-dist/swagger-ui.css",
}
"""Every other route, and one of its paths: these know of no ticket."""

LOOKS: Final = [(path, query) for path, queries in OF_A_TICKET.items() for query in queries]
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_NUMBER: Final = re.compile(r"TKT-\d{4}-\d+")


class Desk:
    """Somebody's ticket and all that happened to it; `internal` is whether staff talked about them."""

    def __init__(self, service: Service, *, internal: bool) -> None:
        self.http = httpx.Client(base_url=service.url, timeout=30)
        self.requester = self._signed(Role.END_USER, uuid4(), "requester")
        self.engineer = self._signed(Role.DEVOPS_ENGINEER, uuid4(), "engineer")
        self.whisperer_id = uuid4()
        self.whisperer = self._signed(Role.TEAM_LEAD, self.whisperer_id, f"whisperer-{SECRET}")
        self.internal = internal
        self.whispered: list[str] = []
        self.ticket_id: str = self._did("POST", TICKETS, self.requester, **NEW_TICKET)["id"]
        self.url = f"{TICKETS}/{self.ticket_id}"
        self._live()
        self.secrets: set[str] = {SECRET, str(self.whisperer_id), *self.whispered}
        if internal:
            for line in self.history(self.whisperer):
                if line["metadata"].get("internal"):
                    self.secrets |= {line["occurred_at"], line["recorded_at"], line["command_id"]}
        self.last_public = max(line["occurred_at"] for line in self.history(self.requester))

    def _signed(self, role: Role, sub: UUID, username: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(role, sub, username=username)}"}

    def _did(self, method: str, url: str, who: dict[str, str], **body: Any) -> dict[str, Any]:
        answer = self.http.request(method, url, headers=who, json=body or None)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def _whisper(self, *further: str) -> None:
        """Say something internally, then put it differently, or take it back."""
        if not self.internal:
            return
        said = self._did("POST", f"{self.url}/comments", self.whisperer, body=f"{SECRET}, they", internal=True)
        for step in further:
            if step == "edit":
                self._did("PUT", f"{COMMENTS}/{said['id']}", self.whisperer, body=f"Not so: {SECRET}")
            else:
                self._did("DELETE", f"{COMMENTS}/{said['id']}", self.whisperer)
        self.whispered.append(said["id"])

    def _say(self, who: dict[str, str], body: str) -> str:
        comment_id: str = self._did("POST", f"{self.url}/comments", who, body=body)["id"]
        return comment_id

    def _live(self) -> None:
        self._whisper()  # before anybody has answered: it is no response
        self._say(self.requester, f"Something about the {SPOKEN}")
        self._whisper("edit")
        first = self._say(self.engineer, "On it")
        self._whisper("edit", "edit", "delete")
        for status in ("OPEN", "PENDING_INFO"):
            self._did("PATCH", f"{self.url}/status", self.whisperer_in_public, status=status, reason="because")
            self._whisper()
        self._did("PUT", f"{COMMENTS}/{first}", self.engineer, body=f"Which {SPOKEN}?")
        self._whisper("delete")
        second = self._say(self.requester, "The second one")
        self._did("DELETE", f"{COMMENTS}/{second}", self.requester)
        self._did("PATCH", self.url, self.requester, title=f"The second {SPOKEN} is down")
        self._whisper("edit")
        self.attachment_id = self._attached("pump.json", b'{"pressure": 7}')["id"]
        self._attached("again.txt", b"as above")
        self._whisper("edit")  # the newest of all

    def _attached(self, name: str, content: bytes) -> dict[str, Any]:
        answer = self.http.post(f"{self.url}/attachments", headers=self.requester, files={"file": (name, content)})
        assert answer.is_success, answer.text
        attached: dict[str, Any] = answer.json()
        return attached

    @property
    def whisperer_in_public(self) -> dict[str, str]:
        """Another lead, so that the one who whispers is nowhere else."""
        return self._signed(Role.TEAM_LEAD, UUID(int=0x1EAD), "lead")

    def history(self, who: dict[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._did("GET", f"{self.url}/history?page_size=100", who)["items"]
        return found

    def looked(self, path: str, query: str, who: dict[str, str] | None = None) -> list[httpx.Response]:
        """All pages of what somebody, by default the requester, sees there."""
        url = path.replace("{ticket_id:uuid}", self.ticket_id).replace("{attachment_id:uuid}", self.attachment_id)
        query = query.replace("{after_the_last_public}", _a_moment_after(self.last_public))
        query = query.replace("{ticket}", self.ticket_id)
        pages: list[httpx.Response] = []
        cursor = ""
        while len(pages) < 100:
            name = "after" if path.endswith("/events") else "cursor"
            parts = [part for part in (query, cursor and f"{name}={cursor}") if part]
            pages.append(self.http.get(f"{url}?{'&'.join(parts)}", headers=who or self.requester))
            assert pages[-1].status_code == 200, pages[-1].text
            told = pages[-1].json()
            cursor = told.get("next_cursor") or (told.get("end_of_stream") is False and told["next_after"]) or ""
            if not cursor:
                return pages
        raise AssertionError(f"{url}?{query} has no end")


def _a_moment_after(time: str) -> str:
    """The next microsecond."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return f"{whole}.{int(fraction.ljust(6, '0')) + 1:06d}Z"


@pytest.fixture(scope="module")
def discussed(service: Service) -> Iterator[Desk]:
    desk = Desk(service, internal=True)
    yield desk
    desk.http.close()


@pytest.fixture(scope="module")
def plain(service: Service) -> Iterator[Desk]:
    desk = Desk(service, internal=False)
    yield desk
    desk.http.close()


def shape(pages: list[httpx.Response]) -> list[Any]:
    """What an answer says but for what differs between any two tickets: ids, times, numbers, places in the ledger.

    Each id and each time is the how-manieth one met, so that which is whose, and which moments are the same,
    are compared as well.
    """
    met: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        return met.setdefault(found[0], f"<{len(met)}>")

    def mask(value: Any, key: str = "") -> Any:
        places = {"version", "position", "ticketversion", "id", "sequence", "next_after", "versions"}
        if (key in places or (key == "to" and isinstance(value, int))) and not _UUID.search(str(value)):
            return "n"  # a place in the ledger
        if key in {"next_cursor", "request_id"}:
            return value is not None
        match value:
            case dict():
                return {name: mask(inner, name) for name, inner in value.items()}
            case list():
                return [mask(inner) for inner in value]
            case str():
                return _NUMBER.sub("TKT", _TIME.sub(named, _UUID.sub(named, value)))
            case _:
                return value

    changing = {"date", "etag", "ledger-position", "x-request-id", "content-length", "link"}
    return [
        (
            mask(page.json()),
            {name: value for name, value in page.headers.items() if name not in changing},
            re.findall(r'rel="(\w+)"', page.headers.get("link", "")),
        )
        for page in pages
    ]


def everything_in(answer: httpx.Response) -> str:
    """Its headers and body, and what cursors in them hold; but for Link, which repeats what was asked for."""
    headers = {name: value for name, value in answer.headers.items() if name != "link"}
    text = f"{headers}\n{answer.text}"
    for one in re.findall(r"[\w-]{16,}", text):
        with suppress(ValueError):
            text += base64.urlsafe_b64decode(one + "=" * (-len(one) % 4)).decode("latin-1")
    return text


def traces(answer: httpx.Response, desk: Desk) -> set[str]:
    text = everything_in(answer)
    return {secret for secret in desk.secrets if secret in text}


# Every route


@pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
def test_every_get_of_the_application_is_looked_at_here() -> None:
    """A route that is missing: think about what an END_USER may learn there, then add it above."""
    application: Any = app._litestar(Settings(jwt_secret_key=KEY), PARTS)  # every route there is, documented or not
    assert isinstance(application, Litestar)
    gets = {route.path for route in application.routes if "GET" in getattr(route, "methods", ())}
    assert gets == {*OF_A_TICKET, *FOR_STAFF, *OF_THE_SERVICE}


@pytest.mark.parametrize(("path", "query"), LOOKS, ids=[f"{path}?{query}" for path, query in LOOKS])
def test_an_end_user_finds_no_trace_of_internal_comments(discussed: Desk, plain: Desk, path: str, query: str) -> None:
    found = discussed.looked(path, query)
    for page in found:
        assert traces(page, discussed) == set()
    assert shape(found) == shape(plain.looked(path, query))


@pytest.mark.parametrize(("path", "query"), [(path, query) for path, some in FOR_STAFF.items() for query in some])
def test_what_is_for_staff_alone_tells_others_nothing(discussed: Desk, plain: Desk, path: str, query: str) -> None:
    def told(ticket_id: str) -> tuple[int, Any]:
        url = f"{path.replace('{ticket_id:uuid}', ticket_id)}?{query}"
        answer = discussed.http.get(url, headers=discussed.requester)
        assert traces(answer, discussed) == set()
        return answer.status_code, {name: one for name, one in answer.json().items() if name != "instance"}

    assert told(discussed.ticket_id)[0] == 403
    assert told(plain.ticket_id) == told(str(uuid4()))
    assert told(plain.ticket_id)[0] == 404


@pytest.mark.parametrize("path", OF_THE_SERVICE)
def test_what_is_about_no_ticket_says_nothing_of_one(discussed: Desk, path: str) -> None:
    deadline = time.monotonic() + 10  # the first checkpoint comes within seconds
    while (answer := discussed.http.get(OF_THE_SERVICE[path], headers=discussed.requester)).status_code == 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.status_code in {200, 303}
    assert traces(answer, discussed) == set()


def test_the_looks_above_would_find_it_if_it_were_shown(discussed: Desk, plain: Desk) -> None:
    """Staff, who see it all, are shown something else for the one ticket than for the other."""
    for path in ("", "/history", "/comments"):
        pages = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}{path}", "", discussed.engineer)
        assert shape(pages) != shape(plain.looked(f"{TICKETS}/{{ticket_id:uuid}}{path}", "", plain.engineer))
        assert bool(traces(pages[0], discussed)) is (path != "")
    (whole,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}/diff", "from=1", discussed.engineer)
    assert traces(whole, discussed) == {SECRET, str(discussed.whisperer_id)}, "who was at work"
    (found,) = discussed.looked(TICKETS, f"q={SECRET}&requester_id={_id_of(discussed)}", discussed.engineer)
    assert found.json()["total"] == 1
    assert traces(found, discussed) != set()


def _id_of(desk: Desk) -> str:
    requester: str = desk.looked(f"{TICKETS}/{{ticket_id:uuid}}", "")[0].json()["requester_id"]
    return requester


# The past


def test_no_version_shows_more_than_that_something_happened(discussed: Desk) -> None:
    lines = discussed.history(discussed.whisperer)
    internal = {line["version"] for line in lines if line["metadata"].get("internal")}
    assert len(internal) > 5
    before: dict[str, Any] = {}
    for version in range(1, len(lines) + 1):
        (answer,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}", f"version={version}")
        assert traces(answer, discussed) == set()
        now = answer.json()
        assert now["version"] == version
        if version in internal:
            assert now == {**before, "version": version}
        before = now


def test_no_moment_shows_more_than_that_something_happened(discussed: Desk) -> None:
    lines = discussed.history(discussed.whisperer)
    before: dict[str, Any] = {}
    for line in lines:
        (answer,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}", f"as_of={line['occurred_at']}")
        assert traces(answer, discussed) == set()
        now = answer.json()
        if line["metadata"].get("internal"):
            assert now == {**before, "version": now["version"]}
        else:
            assert now["updated_at"] == line["occurred_at"]
        before = now


@pytest.mark.parametrize("part", ["history", "comments", "attachments"])
def test_no_version_of_its_parts_shows_what_happened_internally(discussed: Desk, part: str) -> None:
    lines = discussed.history(discussed.whisperer)
    before: list[Any] = []
    changed = 0
    for line in lines:
        version, at = line["version"], line["occurred_at"]
        answers = [
            discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}/{part}", f"{query}&page_size=100")[0]
            for query in (f"version={version}", f"as_of={at}")
        ]
        for answer in answers:
            assert traces(answer, discussed) == set()
        items = answers[0].json()["items"]
        assert answers[0].json()["total"] == len(items)
        if line["metadata"].get("internal"):
            assert items == before
        changed += items != before
        before = items
    assert changed > 1


def test_what_is_between_versions_says_that_something_happened_and_never_what_or_by_whom(discussed: Desk) -> None:
    lines = discussed.history(discussed.whisperer)
    for line in lines[1:]:
        version = line["version"]
        (answer,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}/diff", f"from={version - 1}&to={version}")
        assert traces(answer, discussed) == set()
        found = answer.json()
        assert found["versions"] == 1
        if line["metadata"].get("internal"):
            assert (found["changes"], found["actors"]) == ([], [])
        else:
            assert found["actors"] == [line["actor"]]


def test_a_ticket_was_last_changed_when_something_happened_that_its_requester_may_know(discussed: Desk) -> None:
    (answer,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}", "")
    assert answer.json()["updated_at"] == discussed.last_public
    (listed,) = discussed.looked(TICKETS, f"updated_from={discussed.last_public}")
    assert [one["id"] for one in listed.json()["items"]] == [discussed.ticket_id]
    (later,) = discussed.looked(TICKETS, "updated_from={after_the_last_public}")
    assert later.json()["total"] == 0


def test_an_internal_comment_is_no_response_and_the_first_public_one_is(discussed: Desk) -> None:
    (ticket,) = discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}", "")
    first = next(one for one in discussed.looked(f"{TICKETS}/{{ticket_id:uuid}}/comments", "")[0].json()["items"][1:])
    assert first["author"]["username"] == "engineer"
    assert ticket.json()["sla"]["responded_at"] == first["created_at"]


# Commands


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_internal_comment_is_to_an_end_user_like_one_that_is_not_there_to_the_byte(
    discussed: Desk, method: str
) -> None:
    body = {"body": "Mine now"} if method == "PUT" else None

    def told(comment_id: str, **headers: str) -> bytes:
        url = f"{COMMENTS}/{comment_id}"
        answer = discussed.http.request(method, url, headers={**discussed.requester, **headers}, json=body)
        assert answer.status_code == 404, answer.text
        changing = {"date", "x-request-id"}
        headers = {name: value for name, value in answer.headers.items() if name not in changing}
        return repr(headers).encode() + answer.content.replace(comment_id.encode(), b"<id>")

    for headers in ({}, {"If-Match": '"1"'}, {"Idempotency-Key": str(uuid4())}, {"Prefer": "return=minimal"}):
        unknown = told(str(uuid4()), **headers)
        assert {told(comment_id, **headers) for comment_id in discussed.whispered} == {unknown}


def test_a_412_tells_an_end_user_of_no_internal_comment(discussed: Desk) -> None:
    answer = discussed.http.patch(
        discussed.url, json={"title": "Too late"}, headers={**discussed.requester, "If-Match": '"1"'}
    )
    assert answer.status_code == 412
    assert traces(answer, discussed) == set()
    public = [line["version"] for line in discussed.history(discussed.requester)]
    events = answer.json()["events"]
    assert [event["version"] for event in events] == public[1:]
    staff = discussed.http.patch(
        discussed.url, json={"title": "Too late"}, headers={**discussed.whisperer, "If-Match": '"1"'}
    )
    assert len(staff.json()["events"]) > len(events)


def test_an_end_user_may_not_ask_for_what_they_may_not_know(discussed: Desk) -> None:
    answer = discussed.http.post(
        f"{discussed.url}/comments", json={"body": "Among us", "internal": True}, headers=discussed.requester
    )
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    assert traces(answer, discussed) == set()


def test_the_answer_to_a_command_counts_what_its_sender_may_see(service: Service) -> None:
    desk = Desk(service, internal=True)
    for who, role in ((desk.requester, "END_USER"), (desk.whisperer, "TEAM_LEAD")):
        key = {"Idempotency-Key": str(uuid4())}
        first = desk.http.patch(desk.url, json={"title": f"By somebody who is {role}"}, headers={**who, **key})
        again = desk.http.patch(desk.url, json={"title": f"By somebody who is {role}"}, headers={**who, **key})
        assert first.status_code == 200
        assert first.content == again.content
        assert "Idempotency-Replayed" in again.headers
        seen = desk.http.get(f"{desk.url}/comments?page_size=100", headers=who).json()
        assert first.json()["comment_count"] == seen["total"] == len(seen["items"])
        if who is desk.requester:
            assert traces(first, desk) == set()
    desk.http.close()
