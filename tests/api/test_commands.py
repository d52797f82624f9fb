"""Commands over HTTP: what each answers, conditional and repeated ones, races, and text that stays as it was sent."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"

FIELDS = {
    *("id", "number", "version", "title", "description", "category", "priority", "status", "environment"),
    *("affected_service", "tags", "requester_id", "assignee_id", "team", "resolution_notes", "sla"),
    *("comment_count", "attachment_count", "reopen_count", "deleted"),
    *("created_at", "updated_at", "resolved_at", "closed_at"),
}
SLA_FIELDS = {
    *("response_due_at", "resolution_due_at", "responded_at", "paused_since"),
    *("response_breached", "resolution_breached"),
}

WHOLE: dict[str, Any] = {
    "title": "Proxy refuses connections",
    "description": "502 since 21:30",
    "category": "PROBLEM",
    "priority": "P1",
    "environment": "STAGING",
    "affected_service": "proxy-02",
    "tags": ["proxy", "web"],
}

WAYS: dict[str, tuple[str, ...]] = {
    "NEW": (),
    "OPEN": ("OPEN",),
    "IN_PROGRESS": ("OPEN", "IN_PROGRESS"),
    "PENDING_INFO": ("OPEN", "PENDING_INFO"),
    "ESCALATED": ("OPEN", "IN_PROGRESS", "ESCALATED"),
    "RESOLVED": ("OPEN", "IN_PROGRESS", "RESOLVED"),
    "CLOSED": ("OPEN", "IN_PROGRESS", "RESOLVED", "CLOSED"),
    "REOPENED": ("OPEN", "IN_PROGRESS", "RESOLVED", "REOPENED"),
}


class Case(NamedTuple):
    """A command, the state that it needs, and what is different after it."""

    start: str
    method: str
    path: str
    body: dict[str, Any] | None
    changed: dict[str, Any]

    def send(self, client: httpx.Client, ticket: dict[str, Any], **headers: str) -> httpx.Response:
        url = f"{TICKETS}/{ticket['id']}{self.path}"
        return client.request(self.method, url, json=self.body, headers={_header(n): v for n, v in headers.items()})


CASES = {
    "replace": Case("NEW", "PUT", "", WHOLE, WHOLE),
    "edit": Case("NEW", "PATCH", "", {"title": "Only the title"}, {"title": "Only the title"}),
    "edit, priority": Case("NEW", "PATCH", "", {"priority": "P4"}, {"priority": "P4"}),
    "assign, team": Case(
        "NEW", "PUT", "/assign", {"team": "Network", "reason": "theirs"}, {"team": "Network", "status": "OPEN"}
    ),
    "status, OPEN": Case("NEW", "PATCH", "/status", {"status": "OPEN"}, {"status": "OPEN"}),
    "status, IN_PROGRESS": Case(
        "OPEN", "PATCH", "/status", {"status": "IN_PROGRESS", "reason": "on it"}, {"status": "IN_PROGRESS"}
    ),
    "status, PENDING_INFO": Case("OPEN", "PATCH", "/status", {"status": "PENDING_INFO"}, {"status": "PENDING_INFO"}),
    "status, ESCALATED": Case(
        "IN_PROGRESS", "PATCH", "/status", {"status": "ESCALATED", "reason": "help"}, {"status": "ESCALATED"}
    ),
    "status, RESOLVED": Case(
        "IN_PROGRESS",
        "PATCH",
        "/status",
        {"status": "RESOLVED", "reason": "Restarted"},
        {"status": "RESOLVED", "resolution_notes": "Restarted"},
    ),
    "resolve": Case(
        "ESCALATED",
        "POST",
        "/resolve",
        {"resolution_notes": "Replaced the disk"},
        {"status": "RESOLVED", "resolution_notes": "Replaced the disk"},
    ),
    "close": Case("RESOLVED", "POST", "/close", {"reason": "confirmed"}, {"status": "CLOSED"}),
    "close without a body": Case("RESOLVED", "POST", "/close", None, {"status": "CLOSED"}),
    "reopen, resolved": Case(
        "RESOLVED",
        "POST",
        "/reopen",
        {"reason": "again"},
        {"status": "REOPENED", "reopen_count": 1, "resolution_notes": None},
    ),
    "reopen, closed": Case(
        "CLOSED",
        "POST",
        "/reopen",
        {"reason": "again"},
        {"status": "REOPENED", "reopen_count": 1, "resolution_notes": None},
    ),
    "restore": Case("deleted", "POST", "/restore", None, {"deleted": False}),
}
DELETE = Case("NEW", "DELETE", "", None, {"deleted": True})

any_command = pytest.mark.parametrize("case", [*CASES.values(), DELETE], ids=[*CASES, "delete"])
any_command_with_a_ticket_in_its_answer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _header(name: str) -> str:
    return name.replace("_", "-")


@pytest.fixture(scope="module")
def admin(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.ADMIN) as client:
        yield client


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    """Somebody without a token; `signed` makes headers for one request."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def signed(role: Role, sub: UUID, *, teams: tuple[str, ...] = (), **headers: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token(role, sub, teams=teams)}",
        **{_header(name): value for name, value in headers.items()},
    }


def made(client: httpx.Client, status: str = "NEW", **fields: Any) -> dict[str, Any]:
    """A ticket in that state."""
    answer = client.post(TICKETS, json=NEW_TICKET | fields)
    assert answer.status_code == 201, answer.text
    ticket: dict[str, Any] = answer.json()
    if status == "deleted":
        assert client.delete(f"{TICKETS}/{ticket['id']}").status_code == 204
        return read(client, ticket["id"])
    for step in WAYS[status]:
        answer = client.patch(f"{TICKETS}/{ticket['id']}/status", json={"status": step, "reason": "because"})
        assert answer.status_code == 200, answer.text
        ticket = answer.json()
    return ticket


def read(client: httpx.Client, ticket_id: str) -> dict[str, Any]:
    answer = client.get(f"{TICKETS}/{ticket_id}")
    assert answer.status_code == 200, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def entries(client: httpx.Client, ticket_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"{TICKETS}/{ticket_id}/history", params={"page_size": 100})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def head(client: httpx.Client) -> int:
    position: int = client.get("/health").json()["ledger"]["position"]
    return position


def assert_ticket(ticket: dict[str, Any]) -> None:
    """It has every field of the contract, no other, each of its kind."""
    assert set(ticket) == FIELDS
    assert set(ticket["sla"]) == SLA_FIELDS
    assert UUID(ticket["id"]).version == 7
    year, serial = ticket["number"].removeprefix("TKT-").split("-")
    assert year == ticket["created_at"][:4]
    assert serial.isdigit()
    assert len(serial) >= 6
    for moment in (ticket["created_at"], ticket["updated_at"], *_moments(ticket["sla"])):
        assert moment.endswith("Z")
        assert datetime.fromisoformat(moment).utcoffset() == timedelta()
    for name in ("version", "comment_count", "attachment_count", "reopen_count"):
        assert type(ticket[name]) is int
    for flag in (ticket["deleted"], ticket["sla"]["response_breached"], ticket["sla"]["resolution_breached"]):
        assert type(flag) is bool


def _moments(sla: dict[str, Any]) -> list[str]:
    return [sla["response_due_at"], sla["resolution_due_at"]]


def assert_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["instance"] == answer.request.url.path
    assert problem["title"]
    assert problem["detail"]
    return problem


# What commands answer


def test_creating_answers_201_with_the_whole_ticket(http: httpx.Client) -> None:
    me = uuid4()
    answer = http.post(TICKETS, json={**WHOLE, "team": "Network"}, headers=signed(Role.END_USER, me))
    assert answer.status_code == 201
    assert answer.headers["Content-Type"] == "application/json"
    ticket = answer.json()
    assert_ticket(ticket)
    assert ticket == {
        **WHOLE,
        "id": ticket["id"],
        "number": ticket["number"],
        "version": 1,
        "status": "NEW",
        "requester_id": str(me),
        "assignee_id": None,
        "team": "Network",
        "resolution_notes": None,
        "sla": {
            "response_due_at": _later(ticket["created_at"], hours=1),
            "resolution_due_at": _later(ticket["created_at"], hours=4),
            "responded_at": None,
            "paused_since": None,
            "response_breached": False,
            "resolution_breached": False,
        },
        "comment_count": 0,
        "attachment_count": 0,
        "reopen_count": 0,
        "deleted": False,
        "created_at": ticket["created_at"],
        "updated_at": ticket["created_at"],
        "resolved_at": None,
        "closed_at": None,
    }
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["Location"] == f"{TICKETS}/{ticket['id']}"
    assert int(answer.headers["Ledger-Position"]) > 0
    assert "Idempotency-Replayed" not in answer.headers
    assert http.get(answer.headers["Location"], headers=signed(Role.END_USER, me)).json() == ticket


def _later(moment: str, hours: int) -> str:
    return (datetime.fromisoformat(moment) + timedelta(hours=hours)).isoformat().replace("+00:00", "Z")


def test_what_is_left_out_of_a_new_ticket_is_p3_and_empty(admin: httpx.Client) -> None:
    ticket = admin.post(TICKETS, json={"title": "Why", "description": "?", "category": "QUESTION"}).json()
    assert_ticket(ticket)
    assert ticket["priority"] == "P3"
    assert (ticket["environment"], ticket["affected_service"], ticket["team"], ticket["tags"]) == (None, None, None, [])
    assert ticket["sla"]["response_due_at"] == _later(ticket["created_at"], hours=8)
    assert ticket["sla"]["resolution_due_at"] == _later(ticket["created_at"], hours=48)


def test_staff_create_for_somebody_else_and_end_users_do_not(http: httpx.Client) -> None:
    somebody = uuid4()
    body = NEW_TICKET | {"requester_id": str(somebody)}
    by_staff = http.post(TICKETS, json=body, headers=signed(Role.DEVOPS_ENGINEER, uuid4()))
    assert by_staff.status_code == 201
    assert by_staff.json()["requester_id"] == str(somebody)
    assert_problem(http.post(TICKETS, json=body, headers=signed(Role.END_USER, uuid4())), 403, "forbidden")
    by_themselves = http.post(TICKETS, json=body, headers=signed(Role.END_USER, somebody))
    assert by_themselves.status_code == 201


@any_command_with_a_ticket_in_its_answer
def test_a_command_answers_with_the_ticket_after_it(admin: httpx.Client, case: Case) -> None:
    before = made(admin, case.start)
    answer = case.send(admin, before)
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert_ticket(after)
    assert after["version"] > before["version"]
    assert after["updated_at"] > before["updated_at"]
    follows = {"version", "updated_at", "sla", "comment_count", "resolved_at", "closed_at"}
    assert {name: after[name] for name in FIELDS - follows} == {
        **{name: before[name] for name in FIELDS - follows},
        **case.changed,
    }
    assert (after["resolved_at"] is not None) == (after["status"] in ("RESOLVED", "CLOSED"))
    assert (after["closed_at"] is not None) == (after["status"] == "CLOSED")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["ETag"] == f'"{after["version"]}"'
    assert "Location" not in answer.headers
    assert "Idempotency-Replayed" not in answer.headers
    assert (
        int(answer.headers["Ledger-Position"])
        == next(one for one in entries(admin, after["id"]) if one["version"] == after["version"])["position"]
    )
    assert read(admin, after["id"]) == after


def test_deleting_answers_204_and_nothing_else(admin: httpx.Client) -> None:
    before = made(admin)
    answer = DELETE.send(admin, before)
    assert (answer.status_code, answer.content) == (204, b"")
    assert int(answer.headers["Ledger-Position"]) > 0
    assert answer.headers["ETag"] == f'"{before["version"] + 1}"'
    assert "Content-Type" not in answer.headers


@any_command
def test_return_minimal_leaves_the_body_out(admin: httpx.Client, case: Case) -> None:
    before = made(admin, case.start)
    answer = case.send(admin, before, Prefer="return=minimal")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Preference-Applied"] == "return=minimal"
    assert answer.headers["ETag"] == f'"{read(admin, before["id"])["version"]}"'
    assert int(answer.headers["Ledger-Position"]) > 0


def test_return_minimal_of_a_creation_is_a_201_without_a_body(admin: httpx.Client) -> None:
    answer = admin.post(TICKETS, json=NEW_TICKET, headers={"Prefer": "respond-async, return=minimal"})
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer.headers["Preference-Applied"] == "return=minimal"
    assert answer.headers["ETag"] == '"1"'
    assert read(admin, answer.headers["Location"].rsplit("/", 1)[1])["version"] == 1


@pytest.mark.parametrize("preference", ["return=representation", "respond-async", "wait=5", ""])
def test_other_preferences_change_nothing(admin: httpx.Client, preference: str) -> None:
    answer = admin.post(TICKETS, json=NEW_TICKET, headers={"Prefer": preference})
    assert answer.status_code == 201
    assert answer.json()["version"] == 1
    assert "Preference-Applied" not in answer.headers


NO_OPS = {
    "replace with the same": ("NEW", "PUT", "", NEW_TICKET | {"environment": None, "affected_service": None}),
    "edit to the same": ("NEW", "PATCH", "", {"title": NEW_TICKET["title"], "priority": NEW_TICKET["priority"]}),
    "edit nothing": ("NEW", "PATCH", "", {}),
    "clear what is empty": ("NEW", "PATCH", "", {"environment": None, "affected_service": None, "tags": None}),
    "take away from nobody": ("NEW", "PUT", "/assign", {"assignee_id": None, "team": None, "reason": "why not"}),
    "move to where it is": ("OPEN", "PATCH", "/status", {"status": "OPEN"}),
    "resolve with the same words": ("RESOLVED", "POST", "/resolve", {"resolution_notes": "because"}),
    "restore what is not deleted": ("NEW", "POST", "/restore", None),
    "reopen what is reopened": ("REOPENED", "POST", "/reopen", {"reason": "once more"}),
}


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "no-op"}], ids=["", "with a key"])
@pytest.mark.parametrize(("start", "method", "path", "body"), NO_OPS.values(), ids=NO_OPS)
def test_a_command_that_changes_nothing_appends_nothing(
    admin: httpx.Client,
    start: str,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    key: dict[str, str],
) -> None:
    before = made(admin, start)
    headers = {name: f"{value} {before['id']}".replace(" ", "-") for name, value in key.items()}
    position = head(admin)
    answer = admin.request(method, f"{TICKETS}/{before['id']}{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json() == before
    assert answer.headers["ETag"] == f'"{before["version"]}"'
    assert head(admin) == position
    assert entries(admin, before["id"])[-1]["version"] == before["version"]


def test_null_clears_what_is_optional_and_a_put_clears_what_it_leaves_out(admin: httpx.Client) -> None:
    ticket = made(admin, **WHOLE)
    url = f"{TICKETS}/{ticket['id']}"
    patched = admin.patch(url, json={"environment": None, "affected_service": None, "tags": None}).json()
    assert (patched["environment"], patched["affected_service"], patched["tags"]) == (None, None, [])
    admin.patch(url, json={name: WHOLE[name] for name in ("environment", "affected_service", "tags")})
    needed = {name: WHOLE[name] for name in ("title", "description", "category", "priority")}
    replaced = admin.put(url, json=needed).json()
    assert (replaced["environment"], replaced["affected_service"], replaced["tags"]) == (None, None, [])


def test_a_merge_patch_is_taken_by_its_own_name(admin: httpx.Client) -> None:
    ticket = made(admin)
    answer = admin.patch(
        f"{TICKETS}/{ticket['id']}",
        content=b'{"title": "Merged"}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.status_code == 200
    assert answer.json()["title"] == "Merged"


def test_a_new_priority_counts_from_the_creation(admin: httpx.Client) -> None:
    ticket = made(admin, priority="P1")
    after = admin.patch(f"{TICKETS}/{ticket['id']}", json={"priority": "P4"}).json()
    assert after["sla"]["response_due_at"] == _later(ticket["created_at"], hours=24)
    assert after["sla"]["resolution_due_at"] == _later(ticket["created_at"], hours=120)


def test_starting_work_is_the_response(admin: httpx.Client) -> None:
    ticket = made(admin, "IN_PROGRESS")
    assert ticket["sla"]["responded_at"] == ticket["updated_at"]
    waiting = admin.patch(f"{TICKETS}/{ticket['id']}/status", json={"status": "PENDING_INFO"}).json()
    assert waiting["sla"]["responded_at"] == ticket["sla"]["responded_at"]
    assert waiting["sla"]["paused_since"] == waiting["updated_at"]


def test_somebody_who_was_seen_can_be_assigned_and_taken_off_again(admin: httpx.Client, http: httpx.Client) -> None:
    engineer = uuid4()
    seen = http.get(TICKETS, params={"page_size": 1}, headers=signed(Role.DEVOPS_ENGINEER, engineer))
    assert seen.status_code == 200
    # The read models know of whom has been seen once they are as far as the ledger.
    assert admin.get(TICKETS, params={"page_size": 1}).status_code == 200
    ticket = made(admin)
    assign = f"{TICKETS}/{ticket['id']}/assign"
    assigned = admin.put(assign, json={"assignee_id": str(engineer), "team": "Network"}).json()
    assert (assigned["assignee_id"], assigned["team"], assigned["status"]) == (str(engineer), "Network", "OPEN")
    only_team = admin.put(assign, json={"assignee_id": None}).json()
    assert (only_team["assignee_id"], only_team["team"], only_team["status"]) == (None, "Network", "OPEN")
    nobody = admin.put(assign, json={"team": None}).json()
    assert (nobody["assignee_id"], nobody["team"]) == (None, None)


def test_an_engineer_takes_a_ticket_and_then_may_move_it(http: httpx.Client, admin: httpx.Client) -> None:
    engineer, ticket = uuid4(), made(admin)
    url = f"{TICKETS}/{ticket['id']}"
    start = {"status": "IN_PROGRESS"}
    as_engineer = signed(Role.DEVOPS_ENGINEER, engineer)
    assert_problem(http.patch(f"{url}/status", json=start, headers=as_engineer), 403, "forbidden")
    taken = http.put(f"{url}/assign", json={"assignee_id": str(engineer)}, headers=as_engineer)
    assert taken.status_code == 200
    started = http.patch(f"{url}/status", json=start, headers=as_engineer)
    assert (started.status_code, started.json()["status"]) == (200, "IN_PROGRESS")
    assert_problem(http.put(f"{url}/assign", json={"assignee_id": str(uuid4())}, headers=as_engineer), 403, "forbidden")


# What commands refuse


def test_an_assignee_whom_nobody_has_seen_is_422(admin: httpx.Client) -> None:
    ticket, nobody = made(admin), str(uuid4())
    answer = admin.put(f"{TICKETS}/{ticket['id']}/assign", json={"assignee_id": nobody})
    assert nobody in assert_problem(answer, 422, "unknown-assignee")["detail"]


@pytest.mark.parametrize("start", WAYS)
def test_a_step_that_the_workflow_does_not_have_is_409_and_says_which_there_are(
    admin: httpx.Client, start: str
) -> None:
    steps = {
        "NEW": ("OPEN",),
        "OPEN": ("IN_PROGRESS", "PENDING_INFO"),
        "IN_PROGRESS": ("RESOLVED", "ESCALATED", "PENDING_INFO"),
        "PENDING_INFO": ("OPEN", "IN_PROGRESS"),
        "ESCALATED": ("IN_PROGRESS", "RESOLVED"),
        "RESOLVED": ("CLOSED", "REOPENED"),
        "CLOSED": ("REOPENED",),
        "REOPENED": ("OPEN", "IN_PROGRESS", "PENDING_INFO"),
    }
    ticket = made(admin, start)
    for to in WAYS.keys() - {start, *steps[start]}:
        answer = admin.patch(f"{TICKETS}/{ticket['id']}/status", json={"status": to, "reason": "try"})
        if start == "CLOSED":
            assert_problem(answer, 409, "ticket-closed")
            continue
        detail = assert_problem(answer, 409, "illegal-transition")["detail"]
        assert int(answer.headers["Ledger-Position"]) >= max(one["position"] for one in entries(admin, ticket["id"]))
        for step in steps[start]:
            assert step in detail
    assert read(admin, ticket["id"]) == ticket


CLOSED_TO = [name for name in CASES if not name.startswith(("reopen", "restore"))]


@pytest.mark.parametrize("name", [*CLOSED_TO, "delete"])
def test_a_closed_ticket_takes_no_command_but_reopen(admin: httpx.Client, name: str) -> None:
    ticket = made(admin, "CLOSED")
    answer = (CASES | {"delete": DELETE})[name].send(admin, ticket)
    assert_problem(answer, 409, "ticket-closed")
    assert read(admin, ticket["id"]) == ticket


@pytest.mark.parametrize("name", [*(name for name in CASES if name != "restore"), "delete"])
def test_a_deleted_ticket_takes_no_command_but_restore(admin: httpx.Client, name: str) -> None:
    ticket = made(admin, "deleted")
    answer = (CASES | {"delete": DELETE})[name].send(admin, ticket)
    assert_problem(answer, 409, "ticket-deleted")
    assert read(admin, ticket["id"]) == ticket


def test_a_ticket_cannot_be_reopened_once_the_window_is_over(own_service: Callable[..., Service]) -> None:
    with own_service(REOPEN_WINDOW_DAYS="0").client() as admin:
        ticket = made(admin, "CLOSED")
        answer = admin.post(f"{TICKETS}/{ticket['id']}/reopen", json={"reason": "again"})
        assert_problem(answer, 409, "reopen-window-over")
        assert admin.post(f"{TICKETS}/{made(admin, 'RESOLVED')['id']}/reopen", json={"reason": "?"}).status_code == 200


def test_deleting_takes_a_ticket_out_of_lists_and_restoring_brings_it_back_as_it_was(admin: httpx.Client) -> None:
    ticket = made(admin, "IN_PROGRESS", tags=[uuid4().hex])
    url, mine = f"{TICKETS}/{ticket['id']}", {"tag": ticket["tags"][0]}
    assert admin.delete(url).status_code == 204
    assert admin.get(TICKETS, params=mine).json()["total"] == 0
    assert read(admin, ticket["id"])["deleted"] is True
    assert entries(admin, ticket["id"])[0]["action"] == "CREATED"
    assert entries(admin, ticket["id"])[-1]["action"] == "DELETED"
    restored = admin.post(f"{url}/restore").json()
    ever = FIELDS - {"version", "updated_at"}
    assert {name: restored[name] for name in ever} == {name: ticket[name] for name in ever}
    assert [one["id"] for one in admin.get(TICKETS, params=mine).json()["items"]] == [ticket["id"]]
    assert entries(admin, ticket["id"])[-1]["action"] == "RESTORED"


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_only_an_admin_deletes_and_restores(http: httpx.Client, admin: httpx.Client, role: Role) -> None:
    me = uuid4()
    there, gone = made(admin, requester_id=str(me)), made(admin, "deleted", requester_id=str(me))
    answer = http.delete(f"{TICKETS}/{there['id']}", headers=signed(role, me))
    assert_problem(answer, 403, "forbidden")
    answer = http.post(f"{TICKETS}/{gone['id']}/restore", headers=signed(role, me))
    assert_problem(answer, 403, "forbidden")
    assert read(admin, there["id"])["deleted"] is False
    assert read(admin, gone["id"])["deleted"] is True


@any_command
def test_a_command_on_somebody_elses_ticket_and_on_none_is_the_same_404(
    http: httpx.Client, admin: httpx.Client, case: Case
) -> None:
    stranger = signed(Role.END_USER, uuid4())
    theirs, none = made(admin, case.start), str(uuid4())
    answers = [
        http.request(case.method, f"{TICKETS}/{one}{case.path}", json=case.body, headers=stranger)
        for one in (theirs["id"], none)
    ]
    for answer in answers:
        assert_problem(answer, 404, "not-found")
    assert answers[0].content.replace(theirs["id"].encode(), none.encode()) == answers[1].content
    assert read(admin, theirs["id"]) == theirs


# If-Match


@pytest.mark.parametrize("header", ['"{0}"', '"998" ,\t"{0}"', '"998", "{0}", "999"', 'W/"998","{0}"', "*"])
def test_a_matching_if_match_lets_a_command_through(admin: httpx.Client, header: str) -> None:
    ticket = made(admin)
    answer = CASES["edit"].send(admin, ticket, If_Match=header.format(ticket["version"]))
    assert answer.status_code == 200, answer.text


@any_command
def test_a_stale_if_match_is_412_and_says_what_happened(admin: httpx.Client, case: Case) -> None:
    before = made(admin, case.start)
    stale = before["version"]
    between = f"{TICKETS}/{before['id']}"
    match case.start:
        case "deleted":
            assert admin.post(f"{between}/restore").status_code == 200
            topic = "ticket.restored.v1"
        case "CLOSED":
            assert admin.post(f"{between}/reopen", json={"reason": "meanwhile"}).status_code == 200
            topic = "ticket.reopened.v1"
        case _:
            assert admin.patch(between, json={"description": "meanwhile"}).status_code == 200
            topic = "ticket.edited.v1"
    now = read(admin, before["id"])
    answer = case.send(admin, before, If_Match=f'"{stale}"')
    problem = assert_problem(answer, 412, "version-mismatch")
    assert int(answer.headers["Ledger-Position"]) >= max(one["position"] for one in entries(admin, before["id"]))
    assert problem["current_version"] == now["version"]
    assert [one["version"] for one in problem["events"]] == list(range(stale + 1, now["version"] + 1))
    assert topic in [one["topic"] for one in problem["events"]]
    assert problem["events"][0]["occurred_at"].endswith("Z")
    assert read(admin, before["id"]) == now


@pytest.mark.parametrize(
    "header", ['W/"{0}"', "{0}", '"0{0}x"', "garbage", '""', '"', '"-1"', '"99999999999999999999"', '"{0}.0"', "0"]
)
def test_an_if_match_that_names_no_version_matches_nothing(admin: httpx.Client, header: str) -> None:
    ticket = made(admin)
    answer = CASES["edit"].send(admin, ticket, If_Match=header.format(ticket["version"]))
    assert assert_problem(answer, 412, "version-mismatch")["current_version"] == ticket["version"]
    assert read(admin, ticket["id"]) == ticket


def test_who_may_not_see_a_ticket_is_not_told_its_version_by_a_stale_if_match(
    http: httpx.Client, admin: httpx.Client
) -> None:
    ticket = made(admin)
    answer = http.patch(
        f"{TICKETS}/{ticket['id']}", json={"title": "Mine now"}, headers=signed(Role.END_USER, uuid4(), If_Match='"9"')
    )
    assert "current_version" not in assert_problem(answer, 404, "not-found")


def test_where_if_match_is_required_only_a_creation_goes_without(own_service: Callable[..., Service]) -> None:
    with own_service(REQUIRE_IF_MATCH="true").client() as admin:
        created = admin.post(TICKETS, json=NEW_TICKET)
        assert created.status_code == 201
        ticket = created.json()
        for case in [*CASES.values(), DELETE]:
            assert_problem(case.send(admin, ticket), 428, "precondition-required")
        assert read(admin, ticket["id"]) == ticket
        assert CASES["edit"].send(admin, ticket, If_Match='"1"').status_code == 200
        assert CASES["edit, priority"].send(admin, ticket, If_Match="*").status_code == 200


# Idempotency-Key


@any_command
def test_the_same_key_and_body_gives_the_first_answer_again(admin: httpx.Client, case: Case) -> None:
    before, key = made(admin, case.start), uuid4().hex
    first = case.send(admin, before, Idempotency_Key=key)
    assert first.is_success, first.text
    assert "Idempotency-Replayed" not in first.headers
    meanwhile = f"{TICKETS}/{before['id']}"
    for method, path, body in (
        ("POST", "/restore", None),
        ("POST", "/reopen", {"reason": "meanwhile"}),
        ("PATCH", "", {"description": "meanwhile"}),
    ):
        admin.request(method, meanwhile + path, json=body)
    position = head(admin)
    again = case.send(admin, before, Idempotency_Key=key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    for name in ("ETag", "Ledger-Position"):
        assert again.headers[name] == first.headers[name]
    assert again.headers.get("Content-Type") == first.headers.get("Content-Type")
    assert head(admin) == position


def test_the_same_key_creates_once(http: httpx.Client) -> None:
    me = uuid4()
    headers = signed(Role.END_USER, me, Idempotency_Key="once")
    first, again = (http.post(TICKETS, json=NEW_TICKET, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["Location"] == first.headers["Location"]
    assert ("Idempotency-Replayed" in first.headers, again.headers["Idempotency-Replayed"]) == (False, "true")
    assert http.get(TICKETS, headers=signed(Role.END_USER, me)).json()["total"] == 1


def test_the_same_key_with_another_body_is_422(http: httpx.Client) -> None:
    me = uuid4()
    headers = signed(Role.END_USER, me, Idempotency_Key="once")
    assert http.post(TICKETS, json=NEW_TICKET, headers=headers).status_code == 201
    other = http.post(TICKETS, json=NEW_TICKET | {"title": "Another matter"}, headers=headers)
    assert_problem(other, 422, "idempotency-key-reused")
    assert http.get(TICKETS, headers=signed(Role.END_USER, me)).json()["total"] == 1


def test_the_same_key_for_another_ticket_or_another_command_is_422(admin: httpx.Client) -> None:
    key, one, other = uuid4().hex, made(admin, "RESOLVED"), made(admin, "RESOLVED")
    assert CASES["close"].send(admin, one, Idempotency_Key=key).status_code == 200
    assert_problem(CASES["close"].send(admin, other, Idempotency_Key=key), 422, "idempotency-key-reused")
    assert_problem(CASES["reopen, closed"].send(admin, one, Idempotency_Key=key), 422, "idempotency-key-reused")
    assert_problem(DELETE.send(admin, one, Idempotency_Key=key), 422, "idempotency-key-reused")


def test_the_same_body_written_differently_is_the_same_body(http: httpx.Client) -> None:
    me = uuid4()
    headers = signed(Role.END_USER, me, Idempotency_Key="once", Content_Type="application/json")
    first = http.post(TICKETS, content=json.dumps(NEW_TICKET), headers=headers)
    backwards = json.dumps(dict(reversed(NEW_TICKET.items())), indent=4)
    again = http.post(TICKETS, content=backwards, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)


def test_a_quoted_key_is_the_bare_one(http: httpx.Client) -> None:
    me = uuid4()
    bare = http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, me, Idempotency_Key="abc-1"))
    quoted = http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, me, Idempotency_Key='"abc-1"'))
    assert quoted.content == bare.content
    assert quoted.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", ["x", "x" * 255, f'"{"x" * 255}"', "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", '"with a space"'])
def test_a_key_of_1_to_255_characters_is_good(http: httpx.Client, key: str) -> None:
    answer = http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, uuid4(), Idempotency_Key=key))
    assert answer.status_code == 201


@pytest.mark.parametrize("key", ["x" * 256, f'"{"x" * 256}"', '""', "", "two words", '"open', "tab\tin"])
def test_any_other_key_is_400(http: httpx.Client, key: str) -> None:
    answer = http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, uuid4(), Idempotency_Key=key))
    problem = assert_problem(answer, 400, "invalid-request")
    assert [one["field"] for one in problem["errors"]] == ["Idempotency-Key"]


def test_a_key_belongs_to_its_sender(http: httpx.Client) -> None:
    answers = [
        http.post(TICKETS, json=NEW_TICKET, headers=signed(Role.END_USER, uuid4(), Idempotency_Key="mine"))
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] != answers[1].json()["id"]
    assert "Idempotency-Replayed" not in answers[1].headers


def test_a_key_whose_command_was_refused_can_be_used_again(admin: httpx.Client) -> None:
    ticket, key = made(admin), uuid4().hex
    assert_problem(CASES["close"].send(admin, ticket, Idempotency_Key=key), 409, "illegal-transition")
    for step in WAYS["RESOLVED"]:
        admin.patch(f"{TICKETS}/{ticket['id']}/status", json={"status": step, "reason": "because"})
    answer = CASES["close"].send(admin, ticket, Idempotency_Key=key)
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (200, False)


def test_a_command_that_changed_nothing_is_remembered_as_that(admin: httpx.Client) -> None:
    ticket, key = made(admin), uuid4().hex
    same = {"title": ticket["title"]}
    first = admin.patch(f"{TICKETS}/{ticket['id']}", json=same, headers={"Idempotency-Key": key})
    assert admin.patch(f"{TICKETS}/{ticket['id']}", json={"title": "Meanwhile"}).status_code == 200
    again = admin.patch(f"{TICKETS}/{ticket['id']}", json=same, headers={"Idempotency-Key": key})
    assert again.content == first.content
    assert again.headers["Idempotency-Replayed"] == "true"
    assert read(admin, ticket["id"])["title"] == "Meanwhile"


# At the same time


@asynccontextmanager
async def crowd(service: Service, size: int, headers: dict[str, str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """That many, each on a connection of their own: a pool of many is slow to choose from."""
    tls = SSLContext(PROTOCOL_TLS_CLIENT)  # not used, and cheaper than one with certificates for each
    async with AsyncExitStack() as clients:
        yield [
            await clients.enter_async_context(
                httpx.AsyncClient(base_url=service.url, headers=headers, timeout=60, verify=tls)
            )
            for _ in range(size)
        ]


async def test_fifty_at_once_with_one_key_make_one_ticket_and_get_equal_answers(service: Service) -> None:
    key = {"Idempotency-Key": "all-of-us"}
    async with crowd(service, 50, signed(Role.END_USER, uuid4())) as clients:
        answers = await asyncio.gather(*(one.post(TICKETS, json=NEW_TICKET, headers=key) for one in clients))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert len({answer.headers["Ledger-Position"] for answer in answers}) == 1
        assert Counter(answer.headers.get("Idempotency-Replayed") for answer in answers) == {None: 1, "true": 49}
        assert (await clients[0].get(TICKETS)).json()["total"] == 1


ROUNDS = int(os.environ.get("RACE_ROUNDS", "10"))
"""How often 64 clients race for one version; RACE_ROUNDS=200 takes half a minute."""


async def test_of_64_at_once_with_the_same_if_match_one_wins_each_round(service: Service) -> None:
    async with crowd(service, 64, signed(Role.ADMIN, uuid4())) as clients:
        ticket = (await clients[0].post(TICKETS, json=NEW_TICKET)).json()
        url, version = f"{TICKETS}/{ticket['id']}", ticket["version"]
        for turn in range(ROUNDS):
            match = {"If-Match": f'"{version}"'}
            answers = await asyncio.gather(
                *(
                    one.patch(url, json={"title": f"Turn {turn}, {who}"}, headers=match)
                    for who, one in enumerate(clients)
                )
            )
            assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 63}
            winner = next(answer.json() for answer in answers if answer.status_code == 200)
            assert winner["version"] == version + 1
            losers = [answer.json() for answer in answers if answer.status_code == 412]
            assert {loser["current_version"] for loser in losers} == {version + 1}
            assert (await clients[turn % 64].get(url)).json() == winner
            version = winner["version"]
        history = (await clients[0].get(f"{url}/history", params={"page_size": 100})).json()
        assert history["total"] == version == ROUNDS + 1
        assert [one["version"] for one in history["items"]] == list(range(1, version + 1))[:100]


async def test_of_64_at_once_without_if_match_each_is_decided(service: Service) -> None:
    async with crowd(service, 64, signed(Role.ADMIN, uuid4())) as clients:
        ticket = (await clients[0].post(TICKETS, json=NEW_TICKET)).json()
        url = f"{TICKETS}/{ticket['id']}"
        answers = await asyncio.gather(
            *(one.patch(url, json={"title": f"Number {who}"}) for who, one in enumerate(clients))
        )
        assert {answer.status_code for answer in answers} == {200}
        assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 66))
        last = max((answer.json() for answer in answers), key=lambda one: int(one["version"]))
        assert (await clients[0].get(url)).json() == last


async def test_of_64_who_take_the_same_step_one_does_and_the_others_find_it_done(service: Service) -> None:
    async with crowd(service, 64, signed(Role.ADMIN, uuid4())) as clients:
        ticket = (await clients[0].post(TICKETS, json=NEW_TICKET)).json()
        url = f"{TICKETS}/{ticket['id']}"
        answers = await asyncio.gather(*(one.patch(f"{url}/status", json={"status": "OPEN"}) for one in clients))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        history = (await clients[0].get(f"{url}/history", params={"action": "STATUS_CHANGE"})).json()
        assert history["total"] == 1


# Text

TEXTS = {
    "emoji": "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 👍🏽 🎫",
    "right to left": "العربية \u202eabc\u202c עברית \u200f.",
    "combining, not composed": "e\u0301 a\u030a o\u0308 — é å ö",
    "quotes": "\"double\" 'single' `back` «guillemets» “curly”",
    "backslashes": "C:\\temp\\new \\n \\\\ \\u0041 \\",
    "an escape that looks like NUL": "it says \\u0000 and \\\\u0000",
    "line ends": "one\r\ntwo\nthree\rfour\u2028five\u2029six\x85",
    "control characters": "\x01\x02\x1b[31mred\x7f\x80",
    "white space around": "  \t three \u00a0\u3000 \n",
    "only white space": "   ",
    "invisible": "\ufeffzero\u200bwidth\u200djoiner\u2060",
    "not characters": "\ufffe\uffff\U0010ffff\ufffd",
    "markup": "<script>alert(1)</script> &amp; <!-- -->]]>",
    "SQL": "'; drop table tickets; -- $1 %s {0} {title}",
    "a part of our own answer": '"response_breached":false,"resolution_breached":false},"comment_count":0',
    "JSON": '{"title": [1, null, "\\""]}',
    "Chinese, Thai, Devanagari": "生产服务器宕机 เซิร์ฟเวอร์ล่ม सर्वर डाउन",
    "numbers and words": "null true NaN 1e400 -0",
}


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "as UTF-8"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_comes_back_as_it_was_sent(admin: httpx.Client, text: str, *, escaped: bool) -> None:
    def body(**fields: Any) -> Any:
        return {
            "content": json.dumps(fields, ensure_ascii=escaped).encode(),
            "headers": {"Content-Type": "application/json"},
        }

    key = uuid4().hex
    fields = {"title": text, "description": text, "affected_service": text, "team": text, "tags": [key, text[:40]]}
    created = admin.post(TICKETS, **body(category="INCIDENT", **fields)).json()
    url = f"{TICKETS}/{created['id']}"
    (listed,) = admin.get(TICKETS, params={"tag": key, "team": text, "affected_service": text}).json()["items"]
    for seen in (created, read(admin, created["id"]), listed, admin.get(url, params={"version": 1}).json()):
        assert {name: seen[name] for name in fields} == fields
    for step in ("OPEN", "IN_PROGRESS"):
        assert admin.patch(f"{url}/status", **body(status=step, reason=text)).status_code == 200
    assert admin.post(f"{url}/resolve", **body(resolution_notes=text)).json()["resolution_notes"] == text
    trail = entries(admin, created["id"])
    assert {one["field"]: one["new"] for one in trail[0]["changes"]}["title"] == text
    assert [one["reason"] for one in trail if one["action"] == "STATUS_CHANGE"] == [text, text]
    resolved = next(one for one in trail if one["action"] == "RESOLVED")
    assert {one["field"]: one["new"] for one in resolved["changes"]}["resolution_notes"] == text


def test_the_longest_texts_fit(admin: httpx.Client) -> None:
    longest: dict[str, Any] = {
        "title": "🎫" * 255,
        "description": "🎫" * 20_000,
        "affected_service": "🎫" * 255,
        "team": "🎫" * 100,
        "tags": [f"{number:02}{'🎫' * 48}" for number in range(20)],
    }
    ticket = made(admin, **longest)
    assert {name: read(admin, ticket["id"])[name] for name in longest} == longest


def test_the_shortest_texts_are_enough(admin: httpx.Client) -> None:
    shortest: dict[str, Any] = {"title": "abc", "description": "x", "affected_service": "y", "team": "z", "tags": ["t"]}
    ticket = made(admin, **shortest)
    assert {name: read(admin, ticket["id"])[name] for name in shortest} == shortest
