"""Queries over HTTP: filters, sorts, pages, the past, the audit trail, freshness, and who may know what is there."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
LIST_FIELDS = {"items", "page", "page_size", "total", "total_is_exact", "next_cursor"}
ENTRY_FIELDS = {
    *("position", "version", "action", "actor", "ip_address", "occurred_at", "recorded_at"),
    *("changes", "reason", "command_id", "metadata"),
}
STATUSES = ("NEW", "OPEN", "IN_PROGRESS", "PENDING_INFO", "ESCALATED", "RESOLVED", "CLOSED", "REOPENED")


@pytest.fixture(scope="module")
def admin(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.ADMIN, username="ada") as client:
        yield client


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    """Somebody without a token; `signed` makes headers for one request."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def signed(role: Role, sub: UUID, *, teams: tuple[str, ...] = ()) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(role, sub, teams=teams)}"}


def made(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post(TICKETS, json=NEW_TICKET | fields)
    assert answer.status_code == 201, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def move(client: httpx.Client, ticket: dict[str, Any], *steps: str) -> dict[str, Any]:
    for step in steps:
        answer = client.patch(f"{TICKETS}/{ticket['id']}/status", json={"status": step, "reason": f"to {step}"})
        assert answer.status_code == 200, answer.text
        ticket = answer.json()
    return ticket


def listed(client: httpx.Client, *more: tuple[str, Any], **parameters: Any) -> dict[str, Any]:
    answer = client.get(TICKETS, params=[*parameters.items(), *more])
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    assert set(page) == LIST_FIELDS
    return page


def assert_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    return problem


class Shelf:
    """Tickets of one requester, one of each kind that the filters tell apart."""

    def __init__(self, admin: httpx.Client, http: httpx.Client) -> None:
        self.requester, self.assignee = uuid4(), uuid4()
        assert http.get(TICKETS, headers=signed(Role.SENIOR_ENGINEER, self.assignee)).status_code == 200
        self.tickets: dict[str, dict[str, Any]] = {}

        def add(name: str, *steps: str, **fields: Any) -> None:
            common: dict[str, Any] = {"requester_id": str(self.requester), "priority": "P3", "category": "QUESTION"}
            self.tickets[name] = move(admin, made(admin, **(common | fields)), *steps)

        add("first")
        add("incident", category="INCIDENT", priority="P1", environment="PRODUCTION", tags=["web", "Große Tür"])
        add("problem", "OPEN", category="PROBLEM", priority="P2", environment="STAGING", affected_service="db-01")
        add("team", category="CHANGE_REQUEST", priority="P4", environment="TESTING", team="Network & Co")
        add("taken", "OPEN", category="SERVICE_REQUEST", environment="DEVELOPMENT", tags=["web"])
        add("pending", "OPEN", "PENDING_INFO")
        add("working", "OPEN", "IN_PROGRESS")
        add("escalated", "OPEN", "IN_PROGRESS", "ESCALATED")
        add("resolved", "OPEN", "IN_PROGRESS", "RESOLVED")
        add("closed", "OPEN", "IN_PROGRESS", "RESOLVED", "CLOSED")
        add("reopened", "OPEN", "IN_PROGRESS", "RESOLVED", "REOPENED")
        add("gone")
        taken = f"{TICKETS}/{self.tickets['taken']['id']}"
        answer = admin.put(f"{taken}/assign", json={"assignee_id": str(self.assignee)})
        assert answer.status_code == 200, answer.text
        self.tickets["taken"] = answer.json()
        assert admin.delete(f"{TICKETS}/{self.tickets.pop('gone')['id']}").status_code == 204
        self._names = {ticket["id"]: name for name, ticket in self.tickets.items()}

    def names(self, page: dict[str, Any]) -> list[str]:
        return [self._names[ticket["id"]] for ticket in page["items"]]


@pytest.fixture(scope="module")
def shelf(admin: httpx.Client, http: httpx.Client) -> Shelf:
    return Shelf(admin, http)


# Filters

ALL = {
    *("first", "incident", "problem", "team", "taken", "pending"),
    *("working", "escalated", "resolved", "closed", "reopened"),
}
FILTERS: dict[str, tuple[list[tuple[str, str]], set[str]]] = {
    "none": ([], ALL),
    "status": ([("status", "OPEN")], {"problem", "taken"}),
    "status, several": (
        [("status", "CLOSED"), ("status", "PENDING_INFO"), ("status", "ESCALATED")],
        {"closed", "pending", "escalated"},
    ),
    "status, twice the same": ([("status", "CLOSED"), ("status", "CLOSED")], {"closed"}),
    "priority": ([("priority", "P1")], {"incident"}),
    "priority, several": (
        [("priority", "P1"), ("priority", "P2"), ("priority", "P4")],
        {"incident", "problem", "team"},
    ),
    "category": ([("category", "PROBLEM")], {"problem"}),
    "category, several": ([("category", "INCIDENT"), ("category", "CHANGE_REQUEST")], {"incident", "team"}),
    "environment": ([("environment", "STAGING")], {"problem"}),
    "environment, several": (
        [("environment", "PRODUCTION"), ("environment", "TESTING"), ("environment", "DEVELOPMENT")],
        {"incident", "team", "taken"},
    ),
    "assignee, none": ([("assignee_id", "none")], ALL - {"taken"}),
    "assignee, me": ([("assignee_id", "me")], set()),
    "assignee, nobody": ([("assignee_id", str(uuid4()))], set()),
    "team": ([("team", "Network & Co")], {"team"}),
    "team, other case": ([("team", "network & co")], set()),
    "affected service": ([("affected_service", "db-01")], {"problem"}),
    "affected service, a part": ([("affected_service", "db")], set()),
    "tag": ([("tag", "web")], {"incident", "taken"}),
    "tag, not only ASCII": ([("tag", "Große Tür")], {"incident"}),
    "tag, SQL": ([("tag", "web' or '1'='1")], set()),
    "breached": ([("breached", "true")], set()),
    "not breached": ([("breached", "false")], ALL),
    "several kinds": ([("tag", "web"), ("status", "OPEN")], {"taken"}),
    "several kinds that exclude each other": ([("status", "NEW"), ("environment", "STAGING")], set()),
    "created since long ago": ([("created_from", "2001-01-01T00:00:00Z")], ALL),
    "created until long ago": ([("created_to", "2001-01-01T00:00:00Z")], set()),
    "created in the future": ([("created_from", "2999-01-01T00:00:00+02:00")], set()),
    "updated since long ago": ([("updated_from", "2001-01-01T00:00:00Z")], ALL),
    "updated until long ago": ([("updated_to", "2001-01-01T00:00:00Z")], set()),
}


@pytest.mark.parametrize(("wanted", "found"), FILTERS.values(), ids=FILTERS)
def test_a_list_has_the_tickets_that_fit_and_no_others(
    admin: httpx.Client, shelf: Shelf, wanted: list[tuple[str, str]], found: set[str]
) -> None:
    page = listed(admin, *wanted, requester_id=shelf.requester, page_size=100)
    names = shelf.names(page)
    assert set(names) == found
    assert len(names) == len(found)
    assert (page["total"], page["total_is_exact"], page["next_cursor"]) == (len(found), True, None)


@pytest.mark.parametrize("bound", ["from", "to"])
@pytest.mark.parametrize("which", ["created", "updated"])
def test_a_range_includes_its_bounds_to_the_microsecond(
    admin: httpx.Client, shelf: Shelf, which: str, bound: str
) -> None:
    moments = {name: datetime.fromisoformat(ticket[f"{which}_at"]) for name, ticket in shelf.tickets.items()}
    edge = moments["pending"]
    wanted = {f"{which}_{bound}": edge.isoformat()}
    expected = {name for name, at in moments.items() if (at >= edge if bound == "from" else at <= edge)}
    assert "pending" in expected
    assert 1 < len(expected) < len(moments)
    assert set(shelf.names(listed(admin, requester_id=shelf.requester, **wanted))) == expected
    outside = edge + timedelta(microseconds=1 if bound == "from" else -1)
    beyond = {f"{which}_{bound}": outside.isoformat()}
    assert set(shelf.names(listed(admin, requester_id=shelf.requester, **beyond))) == expected - {"pending"}


def test_me_is_whoever_asks(http: httpx.Client, shelf: Shelf) -> None:
    headers = signed(Role.SENIOR_ENGINEER, shelf.assignee)
    for who in ("me", str(shelf.assignee), str(shelf.assignee).upper()):
        page = http.get(TICKETS, params={"assignee_id": who}, headers=headers).json()
        assert shelf.names(page) == ["taken"]


def test_a_list_has_each_ticket_as_its_own_page_has_it(admin: httpx.Client, shelf: Shelf) -> None:
    page = listed(admin, requester_id=shelf.requester, page_size=100)
    assert {ticket["id"]: ticket for ticket in page["items"]} == {
        ticket["id"]: ticket for ticket in shelf.tickets.values()
    }
    for ticket in page["items"][:3]:
        assert admin.get(f"{TICKETS}/{ticket['id']}").json() == ticket


# Sorts and pages

SORT_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "created_at": lambda ticket: datetime.fromisoformat(ticket["created_at"]),
    "updated_at": lambda ticket: datetime.fromisoformat(ticket["updated_at"]),
    "priority": lambda ticket: ticket["priority"],
    "status": lambda ticket: STATUSES.index(ticket["status"]),
}
every_sort = pytest.mark.parametrize("sort", [sign + name for name in SORT_KEYS for sign in ("", "-")])


def in_order(shelf: Shelf, sort: str) -> list[str]:
    """The names of the shelf's tickets, sorted, ties by id in the same direction."""
    key = SORT_KEYS[sort.lstrip("-")]
    found = sorted(
        shelf.tickets,
        key=lambda name: (key(shelf.tickets[name]), UUID(shelf.tickets[name]["id"])),
        reverse=sort.startswith("-"),
    )
    assert len(found) == len(ALL)
    return found


@every_sort
def test_a_list_is_sorted_as_asked(admin: httpx.Client, shelf: Shelf, sort: str) -> None:
    page = listed(admin, requester_id=shelf.requester, sort=sort)
    assert shelf.names(page) == in_order(shelf, sort)


def test_a_list_has_the_newest_first_unless_asked_otherwise(admin: httpx.Client, shelf: Shelf) -> None:
    assert shelf.names(listed(admin, requester_id=shelf.requester)) == in_order(shelf, "-created_at")


@every_sort
@pytest.mark.parametrize("page_size", [1, 4, 11, 12])
def test_walking_by_cursor_meets_every_ticket_once(
    admin: httpx.Client, shelf: Shelf, sort: str, page_size: int
) -> None:
    seen: list[str] = []
    parameters: dict[str, Any] = {"requester_id": shelf.requester, "sort": sort, "page_size": page_size}
    for turn in range(20):
        page = listed(admin, **parameters)
        assert (page["page"], page["page_size"]) == (1 if turn == 0 else None, page_size)
        assert (page["total"], page["total_is_exact"]) == (len(ALL), True)
        assert 1 <= len(page["items"]) <= page_size
        seen += shelf.names(page)
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert seen == in_order(shelf, sort)


@every_sort
def test_walking_by_page_number_meets_every_ticket_once(admin: httpx.Client, shelf: Shelf, sort: str) -> None:
    pages = [
        listed(admin, requester_id=shelf.requester, sort=sort, page_size=4, page=number) for number in (1, 2, 3, 4)
    ]
    assert [len(page["items"]) for page in pages] == [4, 4, 3, 0]
    assert [page["page"] for page in pages] == [1, 2, 3, 4]
    assert {page["total"] for page in pages} == {len(ALL)}
    assert [page["next_cursor"] is None for page in pages] == [False, False, True, True]
    assert [name for page in pages for name in shelf.names(page)] == in_order(shelf, sort)


FILTERED = {"first", "incident", "problem", "team", "taken"}


def test_walking_by_link_keeps_every_filter(admin: httpx.Client, shelf: Shelf) -> None:
    wanted = [
        ("status", "NEW"),
        ("status", "OPEN"),
        ("requester_id", str(shelf.requester)),
        ("sort", "priority"),
        ("page_size", "2"),
    ]
    first = admin.get(f"{TICKETS}?{urlencode(wanted)}")
    answer, seen, links = first, list[str](), dict[str, str]()
    for _ in range(5):
        seen += shelf.names(answer.json())
        found = re.findall(r'<([^>]*)>; rel="(\w+)"', answer.headers["Link"])
        links = {relation: url for url, relation in found}
        assert links["first"].startswith(f"{TICKETS}?")
        assert sorted(parse_qsl(urlsplit(links["first"]).query)) == sorted(wanted)
        assert ("next" in links) == (answer.json()["next_cursor"] is not None)
        if "next" not in links:
            break
        answer = admin.get(links["next"])
        assert answer.status_code == 200
    assert seen == [name for name in in_order(shelf, "priority") if name in FILTERED]
    assert admin.get(links["first"]).json() == first.json()


def test_the_link_of_a_list_without_parameters_is_the_path(http: httpx.Client) -> None:
    answer = http.get(TICKETS, headers=signed(Role.END_USER, uuid4()))
    assert answer.headers["Link"] == f'<{TICKETS}>; rel="first"'


def test_a_cursor_holds_its_place_while_tickets_come_and_go(admin: httpx.Client) -> None:
    requester = str(uuid4())
    old = [made(admin, requester_id=requester)["id"] for _ in range(4)]
    first = listed(admin, requester_id=requester, page_size=2)
    assert [ticket["id"] for ticket in first["items"]] == [old[3], old[2]]
    made(admin, requester_id=requester)
    assert admin.delete(f"{TICKETS}/{old[2]}").status_code == 204
    second = listed(admin, requester_id=requester, page_size=2, cursor=first["next_cursor"])
    assert [ticket["id"] for ticket in second["items"]] == [old[1], old[0]]
    assert (second["total"], second["next_cursor"]) == (4, None)


def test_walking_meets_every_ticket_once_where_all_sort_alike(admin: httpx.Client) -> None:
    requester = str(uuid4())
    made_ids = {made(admin, requester_id=requester, priority="P2")["id"] for _ in range(7)}
    for sort in ("priority", "-priority", "status", "-status"):
        seen: list[str] = []
        parameters: dict[str, Any] = {"requester_id": requester, "sort": sort, "page_size": 2}
        for _ in range(4):
            page = listed(admin, **parameters)
            seen += [ticket["id"] for ticket in page["items"]]
            parameters["cursor"] = page["next_cursor"]
        assert parameters["cursor"] is None
        assert len(seen) == 7
        assert set(seen) == made_ids


@pytest.mark.parametrize("sort", ["-created_at", "updated_at", "priority", "-priority", "status"])
def test_a_cursor_of_a_list_sorted_otherwise_is_400(admin: httpx.Client, shelf: Shelf, sort: str) -> None:
    page = listed(admin, requester_id=shelf.requester, sort="created_at", page_size=1)
    answer = admin.get(TICKETS, params={"sort": sort, "cursor": page["next_cursor"]})
    assert [one["field"] for one in assert_problem(answer, 400, "invalid-request")["errors"]] == ["cursor"]


def test_a_list_says_how_far_its_data_goes(admin: httpx.Client) -> None:
    created = admin.post(TICKETS, json=NEW_TICKET)
    answer = admin.get(TICKETS, params={"page_size": 1})
    assert int(answer.headers["Ledger-Position"]) >= int(created.headers["Ledger-Position"])
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "private, no-cache"


# Who may know


def test_an_end_user_sees_only_their_own_whatever_they_ask_for(http: httpx.Client, shelf: Shelf) -> None:
    me = uuid4()
    mine = http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, me)).json()
    as_me = signed(Role.END_USER, me)
    for parameters in ({}, {"requester_id": str(me)}, {"assignee_id": "none"}, {"sort": "priority"}):
        page = http.get(TICKETS, params=parameters, headers=as_me).json()
        assert ([ticket["id"] for ticket in page["items"]], page["total"]) == ([mine["id"]], 1)
    for parameters in ({"requester_id": str(shelf.requester)}, {"assignee_id": str(shelf.assignee)}):
        page = http.get(TICKETS, params=parameters, headers=as_me).json()
        assert (page["items"], page["total"]) == ([], 0)
    theirs = http.get(TICKETS, headers=signed(Role.END_USER, shelf.requester)).json()
    assert theirs["total"] == len(ALL)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.END_USER])
def test_staff_see_all(http: httpx.Client, shelf: Shelf, role: Role) -> None:
    headers = signed(role, uuid4())
    page = http.get(TICKETS, params={"requester_id": str(shelf.requester)}, headers=headers).json()
    assert page["total"] == len(ALL)
    for path in ("", "/history", "/transitions", "?version=1"):
        assert http.get(f"{TICKETS}/{shelf.tickets['first']['id']}{path}", headers=headers).status_code == 200


LOOKS = ["", "/history", "/transitions", "?version=1", "?version=2", "?as_of=2999-01-01T00:00:00Z", "?version=99"]


@pytest.mark.parametrize("path", LOOKS)
def test_what_is_not_there_and_what_is_not_yours_are_alike_to_the_byte(
    http: httpx.Client, shelf: Shelf, path: str
) -> None:
    me, theirs, none = signed(Role.END_USER, uuid4()), shelf.tickets["closed"]["id"], str(uuid4())
    answers = [http.get(f"{TICKETS}/{one}{path}", headers=me | {"X-Request-ID": "same"}) for one in (theirs, none)]
    for answer in answers:
        assert_problem(answer, 404, "not-found")
        assert "ETag" not in answer.headers
        assert "Ledger-Position" not in answer.headers
    assert answers[0].content.replace(theirs.encode(), none.encode()) == answers[1].content
    said = [[(name, value) for name, value in answer.headers.raw if name != b"date"] for answer in answers]
    assert said[0] == said[1]


@pytest.mark.parametrize("path", LOOKS)
def test_nobody_learns_by_if_none_match_that_a_ticket_is_there(http: httpx.Client, shelf: Shelf, path: str) -> None:
    headers = signed(Role.END_USER, uuid4()) | {"If-None-Match": "*"}
    assert_problem(http.get(f"{TICKETS}/{shelf.tickets['first']['id']}{path}", headers=headers), 404, "not-found")


# Conditional


@pytest.mark.parametrize("header", ['"{0}"', 'W/"{0}"', '"77", "{0}"', 'W/"77",W/"{0}"', "*"])
def test_a_ticket_that_the_client_has_already_is_304(admin: httpx.Client, shelf: Shelf, header: str) -> None:
    ticket = shelf.tickets["working"]
    match = {"If-None-Match": header.format(ticket["version"])}
    answer = admin.get(f"{TICKETS}/{ticket['id']}", headers=match)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == f'"{ticket["version"]}"'
    assert int(answer.headers["Ledger-Position"]) > 0
    then = admin.get(f"{TICKETS}/{ticket['id']}", params={"version": ticket["version"]}, headers=match)
    assert (then.status_code, then.content) == (304, b"")


@pytest.mark.parametrize("header", ['"77"', 'W/"77"', "{0}", "garbage", '""'])
def test_a_ticket_that_the_client_does_not_have_is_sent(admin: httpx.Client, shelf: Shelf, header: str) -> None:
    ticket = shelf.tickets["working"]
    answer = admin.get(f"{TICKETS}/{ticket['id']}", headers={"If-None-Match": header.format(ticket["version"])})
    assert answer.status_code == 200
    assert answer.json() == ticket
    assert answer.headers["ETag"] == f'"{ticket["version"]}"'


# The past


def test_every_version_and_every_moment_is_as_it_was_answered_then(admin: httpx.Client) -> None:
    created = made(admin, priority="P3", tags=["a"])
    url = f"{TICKETS}/{created['id']}"
    states = [created]
    for method, path, body in (
        ("PATCH", "", {"title": "Second title", "tags": []}),
        ("PUT", "/assign", {"team": "Network"}),
        ("PATCH", "", {"priority": "P1", "description": "Worse than thought"}),
        ("PATCH", "/status", {"status": "IN_PROGRESS"}),
        ("PATCH", "/status", {"status": "PENDING_INFO"}),
        ("PATCH", "/status", {"status": "IN_PROGRESS"}),
        ("POST", "/resolve", {"resolution_notes": "Done"}),
        ("POST", "/reopen", {"reason": "Not done"}),
        ("DELETE", "", None),
        ("POST", "/restore", None),
    ):
        answer = admin.request(method, url + path, json=body)
        assert answer.is_success, answer.text
        states.append(admin.get(url).json())
    for state, following in itertools.pairwise([*states, None]):
        assert state is not None
        by_version = admin.get(url, params={"version": state["version"]})
        assert by_version.json() == state
        assert by_version.headers["ETag"] == f'"{state["version"]}"'
        assert admin.get(url, params={"as_of": state["updated_at"]}).json() == state
        if following is not None:
            just_before = datetime.fromisoformat(following["updated_at"]) - timedelta(microseconds=1)
            assert admin.get(url, params={"as_of": just_before.isoformat()}).json() == state
    assert admin.get(url, params={"as_of": datetime.now(UTC).isoformat()}).json() == states[-1]
    just_before = datetime.fromisoformat(created["created_at"]) - timedelta(microseconds=1)
    assert_problem(admin.get(url, params={"as_of": just_before.isoformat()}), 404, "not-found")
    assert_problem(admin.get(url, params={"version": states[-1]["version"] + 1}), 404, "not-found")


def test_a_moment_may_be_given_in_any_zone(admin: httpx.Client) -> None:
    first = made(admin)
    admin.patch(f"{TICKETS}/{first['id']}", json={"title": "Second"})
    moment = datetime.fromisoformat(first["updated_at"])
    for zone in (timedelta(hours=5, minutes=30), timedelta(hours=-11)):
        there = (moment + zone).replace(tzinfo=None).isoformat()
        hours, minutes = divmod(abs(int(zone.total_seconds())) // 60, 60)
        as_of = f"{there}{'-' if zone < timedelta() else '+'}{hours:02}:{minutes:02}"
        assert admin.get(f"{TICKETS}/{first['id']}", params={"as_of": as_of}).json()["title"] == first["title"]


# The audit trail


def trail(client: httpx.Client, ticket_id: str, **parameters: Any) -> dict[str, Any]:
    answer = client.get(f"{TICKETS}/{ticket_id}/history", params=parameters)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    assert set(page) == LIST_FIELDS
    return page


def test_the_first_entry_says_all_that_the_ticket_was_created_with(service: Service) -> None:
    me = uuid4()
    with service.client(Role.TEAM_LEAD, me, username="Zoë") as lead:
        answer = lead.post(TICKETS, json=NEW_TICKET | {"tags": ["web"]}, headers={"X-Request-ID": "req-1"})
        ticket = answer.json()
        (entry,) = trail(lead, ticket["id"])["items"]
    assert set(entry) == ENTRY_FIELDS
    assert entry["position"] == int(answer.headers["Ledger-Position"])
    assert (entry["version"], entry["action"], entry["reason"]) == (1, "CREATED", None)
    assert entry["actor"] == {"id": str(me), "username": "Zoë", "role": "TEAM_LEAD"}
    assert entry["ip_address"] == "127.0.0.1"
    assert entry["occurred_at"] == ticket["created_at"]
    assert entry["recorded_at"] >= entry["occurred_at"]
    assert str(UUID(entry["command_id"])) == entry["command_id"]
    assert entry["metadata"] == {"request_id": "req-1"}
    assert {change["field"]: change["new"] for change in entry["changes"]} == {
        **{name: ticket[name] for name in ("number", "title", "description", "category", "priority", "status")},
        **{name: ticket[name] for name in ("tags", "requester_id", "reopen_count", "deleted", "created_at")},
        "sla.response_due_at": ticket["sla"]["response_due_at"],
        "sla.resolution_due_at": ticket["sla"]["resolution_due_at"],
    }
    assert {change["old"] for change in entry["changes"]} == {None}
    assert all(set(change) == {"field", "old", "new"} for change in entry["changes"])


ENTRIES: dict[str, tuple[tuple[str, ...], str, str, dict[str, Any] | None, str, dict[str, tuple[Any, Any]], str | None]]
ENTRIES = {
    "update": (
        (),
        "PATCH",
        "",
        {"title": "Other title", "tags": ["x"]},
        "UPDATE",
        {"title": (NEW_TICKET["title"], "Other title"), "tags": ([], ["x"])},
        None,
    ),
    "priority": ((), "PATCH", "", {"priority": "P2"}, "PRIORITY_CHANGE", {"priority": ("P1", "P2")}, None),
    "assignment": (
        (),
        "PUT",
        "/assign",
        {"team": "Network", "reason": "theirs"},
        "ASSIGNMENT_CHANGE",
        {"team": (None, "Network")},
        "theirs",
    ),
    "status": (
        (),
        "PATCH",
        "/status",
        {"status": "OPEN", "reason": "seen"},
        "STATUS_CHANGE",
        {"status": ("NEW", "OPEN")},
        "seen",
    ),
    "escalation": (
        ("OPEN", "IN_PROGRESS"),
        "PATCH",
        "/status",
        {"status": "ESCALATED", "reason": "help"},
        "ESCALATED",
        {"status": ("IN_PROGRESS", "ESCALATED")},
        "help",
    ),
    "deletion": ((), "DELETE", "", None, "DELETED", {"deleted": (False, True)}, None),
}


@pytest.mark.parametrize(
    ("steps", "method", "path", "body", "action", "changes", "reason"), ENTRIES.values(), ids=ENTRIES
)
def test_an_entry_says_what_changed_and_why(
    admin: httpx.Client,
    steps: tuple[str, ...],
    method: str,
    path: str,
    body: dict[str, Any] | None,
    action: str,
    changes: dict[str, tuple[Any, Any]],
    reason: str | None,
) -> None:
    ticket = move(admin, made(admin), *steps)
    answer = admin.request(method, f"{TICKETS}/{ticket['id']}{path}", json=body)
    assert answer.is_success, answer.text
    entry = next(one for one in trail(admin, ticket["id"])["items"] if one["version"] == ticket["version"] + 1)
    assert set(entry) == ENTRY_FIELDS
    assert (entry["action"], entry["reason"]) == (action, reason)
    assert {change["field"]: (change["old"], change["new"]) for change in entry["changes"]} == changes
    assert entry["actor"]["username"] == "ada"


def test_resolving_closing_and_reopening_say_all_that_they_changed(admin: httpx.Client) -> None:
    ticket = move(admin, made(admin), "OPEN", "IN_PROGRESS")
    url = f"{TICKETS}/{ticket['id']}"
    resolved = admin.post(f"{url}/resolve", json={"resolution_notes": "Restarted"}).json()
    closed = admin.post(f"{url}/close", json={"reason": "confirmed"}).json()
    reopened = admin.post(f"{url}/reopen", json={"reason": "again"}).json()
    found = trail(admin, ticket["id"], page_size=100)["items"]
    changes = {
        one["action"]: {change["field"]: (change["old"], change["new"]) for change in one["changes"]} for one in found
    }
    assert changes["RESOLVED"] == {
        "status": ("IN_PROGRESS", "RESOLVED"),
        "resolution_notes": (None, "Restarted"),
        "resolved_at": (None, resolved["resolved_at"]),
    }
    assert changes["CLOSED"] == {"status": ("RESOLVED", "CLOSED"), "closed_at": (None, closed["closed_at"])}
    assert changes["REOPENED"] == {
        "status": ("CLOSED", "REOPENED"),
        "resolution_notes": ("Restarted", None),
        "resolved_at": (resolved["resolved_at"], None),
        "closed_at": (closed["closed_at"], None),
        "reopen_count": (0, 1),
    }
    assert changes["DUE_DATE_CHANGE"] == {
        "sla.resolution_due_at": (closed["sla"]["resolution_due_at"], reopened["sla"]["resolution_due_at"])
    }
    reasons = {one["action"]: one["reason"] for one in found}
    assert (reasons["CLOSED"], reasons["REOPENED"]) == ("confirmed", "again")


def test_the_audit_trail_is_gapless_and_oldest_first(admin: httpx.Client) -> None:
    ticket = move(admin, made(admin), "OPEN", "IN_PROGRESS", "PENDING_INFO", "IN_PROGRESS", "RESOLVED", "CLOSED")
    found = trail(admin, ticket["id"], page_size=100)
    assert [one["version"] for one in found["items"]] == list(range(1, ticket["version"] + 1))
    positions = [one["position"] for one in found["items"]]
    assert positions == sorted(set(positions))
    assert (found["page"], found["page_size"], found["total"]) == (1, 100, ticket["version"])
    assert (found["total_is_exact"], found["next_cursor"]) == (True, None)


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
def test_walking_the_audit_trail_meets_every_entry_once(admin: httpx.Client, shelf: Shelf, page_size: int) -> None:
    ticket = shelf.tickets["closed"]
    whole = trail(admin, ticket["id"], page_size=100)["items"]
    seen: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"page_size": page_size}
    for _ in range(30):
        page = trail(admin, ticket["id"], **parameters)
        assert page["total"] == len(whole)
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert seen == whole


@pytest.mark.parametrize(
    "wanted",
    [["CREATED"], ["RESOLVED"], ["CLOSED", "CREATED"], ["STATUS_CHANGE"], ["SLA_BREACH"], ["ATTACHMENT_ADDED"]],
)
def test_the_audit_trail_can_be_asked_for_some_actions(admin: httpx.Client, shelf: Shelf, wanted: list[str]) -> None:
    ticket = shelf.tickets["closed"]
    whole = trail(admin, ticket["id"], page_size=100)["items"]
    page = trail(admin, ticket["id"], action=wanted)
    expected = [one for one in whole if one["action"] in wanted]
    assert (page["items"], page["total"]) == (expected, len(expected))


def test_an_end_user_sees_their_audit_trail_without_addresses(http: httpx.Client, admin: httpx.Client) -> None:
    me = uuid4()
    ticket = move(admin, made(admin, requester_id=str(me), title='"ip_address":"1.2.3.4"'), "OPEN")
    as_staff = trail(admin, ticket["id"])["items"]
    answer = http.get(f"{TICKETS}/{ticket['id']}/history", headers=signed(Role.END_USER, me))
    mine = answer.json()["items"]
    assert {one["ip_address"] for one in as_staff} == {"127.0.0.1"}
    assert "127.0.0.1" not in answer.text
    assert mine == [one | {"ip_address": None} for one in as_staff]


# The steps from here


def steps(client: httpx.Client, ticket_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = client.get(f"{TICKETS}/{ticket_id}/transitions", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert int(answer.headers["Ledger-Position"]) > 0
    found: dict[str, Any] = answer.json()
    assert set(found) == {"status", "items"}
    assert all(set(one) == {"to", "allowed", "reason"} for one in found["items"])
    return found


@pytest.mark.parametrize(
    ("name", "status", "to"),
    [
        ("first", "NEW", ["OPEN"]),
        ("problem", "OPEN", ["IN_PROGRESS", "PENDING_INFO"]),
        ("working", "IN_PROGRESS", ["RESOLVED", "ESCALATED", "PENDING_INFO"]),
        ("pending", "PENDING_INFO", ["OPEN", "IN_PROGRESS"]),
        ("escalated", "ESCALATED", ["IN_PROGRESS", "RESOLVED"]),
        ("resolved", "RESOLVED", ["CLOSED", "REOPENED"]),
        ("closed", "CLOSED", ["REOPENED"]),
        ("reopened", "REOPENED", ["OPEN", "IN_PROGRESS", "PENDING_INFO"]),
    ],
)
def test_the_steps_from_here_are_those_of_the_workflow(
    admin: httpx.Client, shelf: Shelf, name: str, status: str, to: list[str]
) -> None:
    assert steps(admin, shelf.tickets[name]["id"]) == {
        "status": status,
        "items": [{"to": step, "allowed": True, "reason": None} for step in to],
    }


def test_a_step_that_the_caller_may_not_take_says_why(http: httpx.Client, shelf: Shelf) -> None:
    own = signed(Role.END_USER, shelf.requester)
    items = {one["to"]: one for one in steps(http, shelf.tickets["resolved"]["id"], own)["items"]}
    assert items["REOPENED"] == {"to": "REOPENED", "allowed": True, "reason": None}
    assert items["CLOSED"]["allowed"] is False
    assert "END_USER" in items["CLOSED"]["reason"]
    engineer = signed(Role.DEVOPS_ENGINEER, uuid4())
    for one in steps(http, shelf.tickets["working"]["id"], engineer)["items"]:
        assert one["allowed"] is False
        assert "DEVOPS_ENGINEER" in one["reason"]


def test_a_deleted_ticket_has_no_step_that_may_be_taken(admin: httpx.Client) -> None:
    ticket = made(admin)
    admin.delete(f"{TICKETS}/{ticket['id']}")
    (only,) = steps(admin, ticket["id"])["items"]
    assert (only["to"], only["allowed"]) == ("OPEN", False)
    assert "deleted" in only["reason"]


# Freshness


def test_a_client_sees_what_it_wrote(http: httpx.Client, admin: httpx.Client) -> None:
    me = uuid4()
    for number in range(1, 21):
        written = admin.post(TICKETS, json=NEW_TICKET | {"requester_id": str(me)})
        position = {"Ledger-Position": written.headers["Ledger-Position"]}
        page = http.get(TICKETS, headers=signed(Role.END_USER, me) | position)
        assert page.json()["total"] == number
        assert int(page.headers["Ledger-Position"]) >= int(position["Ledger-Position"])


def test_a_position_that_is_not_reached_in_time_is_503(own_service: Callable[..., Service]) -> None:
    with own_service(FRESHNESS_TIMEOUT_MS="150").client() as admin:
        ticket = made(admin)
        for path in ("", "/{id}", "/{id}/history", "/{id}/transitions", "/{id}?version=1"):
            url = TICKETS + path.format(id=ticket["id"])
            started = time.monotonic()
            answer = admin.get(url, headers={"Ledger-Position": "999999999999999999"})
            assert 0.15 <= time.monotonic() - started < 5
            assert_problem(answer, 503, "not-fresh-yet")
            assert int(answer.headers["Retry-After"]) >= 1
            assert admin.get(url).status_code == 200


@pytest.mark.parametrize("position", ["0", "1", "000000000000000001"])
def test_a_position_of_the_past_is_answered_at_once(admin: httpx.Client, position: str) -> None:
    assert admin.get(TICKETS, headers={"Ledger-Position": position}).status_code == 200


# Other methods


@pytest.mark.parametrize("path", ["", "/{id}", "/{id}/history", "/{id}/transitions", "/{none}", "/{id}?version=nine"])
def test_head_is_get_without_the_body(admin: httpx.Client, shelf: Shelf, path: str) -> None:
    url = TICKETS + path.format(id=shelf.tickets["first"]["id"], none=uuid4())
    same = {"X-Request-ID": "same"}
    get, head = admin.get(url, headers=same), admin.head(url, headers=same)
    assert head.content == b""
    assert head.status_code == get.status_code
    varies = ("date", "ledger-position")
    assert [(name, value) for name, value in head.headers.items() if name not in varies] == [
        (name, value) for name, value in get.headers.items() if name not in varies
    ]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/{id}", {"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}),
        ("/{id}/history", {"GET", "HEAD", "OPTIONS"}),
        ("/{id}/transitions", {"GET", "HEAD", "OPTIONS"}),
        ("/{id}/status", {"PATCH", "OPTIONS"}),
        ("/{id}/close", {"POST", "OPTIONS"}),
    ],
)
def test_options_and_405_name_the_methods_of_a_path(admin: httpx.Client, path: str, allowed: set[str]) -> None:
    url = TICKETS + path.format(id=uuid4())
    options = admin.options(url)
    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["Allow"].split(", ")) == allowed
    refused = admin.request("TRACE", url)
    assert_problem(refused, 405, "method-not-allowed")
    assert set(refused.headers["Allow"].split(", ")) == allowed


# Breaches


def test_breaches_are_set_by_the_clock(own_service: Callable[..., Service]) -> None:
    running = own_service(SLA_P1_RESPONSE_HOURS="0.00001", SLA_P1_RESOLUTION_HOURS="0.0001")
    with running.client() as admin:
        spoof = '","response_breached":false,"resolution_breached":false,"x":"'
        created = admin.post(TICKETS, json=NEW_TICKET | {"title": spoof, "description": spoof})
        urgent, calm = created.json(), made(admin, priority="P2")
        paused = move(admin, made(admin), "OPEN", "IN_PROGRESS", "PENDING_INFO")
        assert urgent["sla"]["response_breached"] is False  # as of its own time
        due = datetime.fromisoformat(urgent["sla"]["resolution_due_at"])
        assert due - datetime.fromisoformat(urgent["created_at"]) == timedelta(seconds=0.36)
        time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()) + 0.05)
        url = f"{TICKETS}/{urgent['id']}"
        now = admin.get(url).json()
        breached = urgent["sla"] | {"response_breached": True, "resolution_breached": True}
        assert now == urgent | {"sla": breached}
        assert [one for one in listed(admin)["items"] if one["id"] == urgent["id"]] == [now]
        assert calm["id"] in {one["id"] for one in listed(admin, breached="false")["items"]}
        assert urgent["id"] in {one["id"] for one in listed(admin, breached="true")["items"]}
        assert urgent["id"] not in {one["id"] for one in listed(admin, breached="false")["items"]}
        assert admin.get(f"{TICKETS}/{paused['id']}").json()["sla"]["resolution_breached"] is False
        # The past is as it was: nothing was late at its first moment.
        assert admin.get(url, params={"version": 1}).json() == urgent
        assert admin.get(url, params={"as_of": urgent["created_at"]}).json() == urgent
        assert admin.get(url, params={"as_of": due.isoformat()}).json()["sla"] == urgent["sla"] | {
            "response_breached": True
        }
        assert admin.get(url, params={"as_of": datetime.now(UTC).isoformat()}).json() == now
        working = move(admin, now, "OPEN", "IN_PROGRESS")
        assert working["sla"]["response_breached"] is True
        assert admin.get(url).json() == working
