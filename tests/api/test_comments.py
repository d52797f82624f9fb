"""Comments over HTTP: said, put differently, taken back; pages of them, and what the history keeps.

Deliberately absent: who may (tests/tickets/test_permissions.py), and that nobody learns of internal ones who
may not (test_no_leak.py).
"""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
COMMENTS = "/api/v1/comments"
FIELDS = {"id", "ticket_id", "body", "internal", "system", "author", "created_at", "edited_at"}


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


class Person:
    """Somebody with a token."""

    def __init__(self, http: httpx.Client, role: Role, username: str) -> None:
        self.id, self.role, self.username, self._http = uuid4(), role, username, http
        self._bearer = {"Authorization": f"Bearer {token(role, self.id, username=username)}"}

    def __call__(self, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._http.request(method, url, json=body, headers={**self._bearer, **named})

    @property
    def as_author(self) -> dict[str, Any]:
        return {"id": str(self.id), "username": self.username, "role": self.role}

    def did(self, method: str, url: str, body: Any = None, **headers: str) -> dict[str, Any]:
        answer = self(method, url, body, **headers)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def says(self, ticket: str, text: str, *, internal: bool = False) -> dict[str, Any]:
        return self.did("POST", f"{TICKETS}/{ticket}/comments", {"body": text, "internal": internal})

    def moves(self, ticket: str, *steps: str) -> None:
        for step in steps:
            self.did("PATCH", f"{TICKETS}/{ticket}/status", {"status": step, "reason": f"to {step}"})

    def reads(self, ticket: str, **query: Any) -> dict[str, Any]:
        asked = "&".join(f"{name}={value}" for name, value in ({"page_size": 100} | query).items())
        return self.did("GET", f"{TICKETS}/{ticket}/comments?{asked}")

    def sees(self, ticket: str) -> dict[str, Any]:
        return self.did("GET", f"{TICKETS}/{ticket}")


@pytest.fixture
def alice(http: httpx.Client) -> Person:
    return Person(http, Role.END_USER, "alice")


@pytest.fixture
def dev(http: httpx.Client) -> Person:
    return Person(http, Role.DEVOPS_ENGINEER, "dev")


@pytest.fixture
def lead(http: httpx.Client) -> Person:
    return Person(http, Role.TEAM_LEAD, "lead")


@pytest.fixture
def ticket(alice: Person) -> str:
    """A new ticket of Alice's."""
    ticket_id: str = alice.did("POST", TICKETS, NEW_TICKET)["id"]
    return ticket_id


def assert_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert (problem["type"], problem["status"]) == (f"/problems/{slug}", status)
    return problem


# Saying something


def test_a_comment_is_answered_by_201_as_the_list_has_it(alice: Person, dev: Person, ticket: str) -> None:
    answer = alice("POST", f"{TICKETS}/{ticket}/comments", {"body": "Since the upgrade"})
    assert (answer.status_code, answer.headers["ETag"]) == (201, '"2"')
    assert int(answer.headers["Ledger-Position"]) > 0
    comment = answer.json()
    assert UUID(comment["id"]).version == 7
    assert comment == {
        "id": comment["id"],
        "ticket_id": ticket,
        "body": "Since the upgrade",
        "internal": False,
        "system": False,
        "author": alice.as_author,
        "created_at": comment["created_at"],
        "edited_at": None,
    }
    internal = dev.says(ticket, "Which one?", internal=True)
    assert (internal["internal"], internal["author"]) == (True, dev.as_author)
    found = dev.reads(ticket)
    assert found["items"] == [comment, internal]
    assert (found["total"], found["total_is_exact"], found["next_cursor"]) == (2, True, None)
    assert alice.reads(ticket)["items"] == [comment]


@pytest.mark.parametrize(
    "text",
    ["x", "x" * 20_000, "🔥" * 20_000, "\r\n\t <b>'\"\\</b> \u2028 ", "e\u0301 is not \u00e9", '"comment_count":7,'],
    ids=["one", "longest", "longest of four bytes", "odd", "decomposed", "JSON"],
)
def test_a_text_comes_back_as_it_was_sent(alice: Person, ticket: str, text: str) -> None:
    said = alice.says(ticket, text)
    assert said["body"] == text
    assert alice.reads(ticket)["items"] == [said]
    edited = alice.did("PUT", f"{COMMENTS}/{said['id']}", {"body": text[::-1]})
    assert edited["body"] == text[::-1]
    assert alice.reads(ticket)["items"] == [edited]
    assert alice.sees(ticket)["comment_count"] == 1


def test_the_requesters_comment_opens_a_ticket_that_waits_for_information(
    alice: Person, lead: Person, ticket: str
) -> None:
    lead.moves(ticket, "OPEN", "PENDING_INFO")
    lead.says(ticket, "Which server?")
    assert alice.sees(ticket)["status"] == "PENDING_INFO"
    lead.says(ticket, "I could guess", internal=True)
    assert alice.sees(ticket)["status"] == "PENDING_INFO"
    answer = alice("POST", f"{TICKETS}/{ticket}/comments", {"body": "The second"})
    assert answer.json()["body"] == "The second"
    now = alice.sees(ticket)
    assert (now["status"], now["sla"]["paused_since"]) == ("OPEN", None)
    assert answer.headers["ETag"] == f'"{now["version"]}"'
    said = alice.reads(ticket)["items"]
    assert [one["body"] for one in said if one["system"]][-1] == "Status changed from PENDING_INFO to OPEN."
    assert [one["author"] for one in said if one["system"]][-1] == alice.as_author


def test_the_first_public_comment_by_staff_is_the_response(alice: Person, dev: Person, ticket: str) -> None:
    alice.says(ticket, "Anybody there?")
    dev.says(ticket, "Shall I?", internal=True)
    assert alice.sees(ticket)["sla"]["responded_at"] is None
    first = dev.says(ticket, "On it")
    dev.says(ticket, "Still")
    assert alice.sees(ticket)["sla"]["responded_at"] == first["created_at"]


def test_each_change_of_status_leaves_a_comment_by_the_system_with_its_reason(
    alice: Person, lead: Person, ticket: str
) -> None:
    lead.did("PUT", f"{TICKETS}/{ticket}/assign", {"team": "Network", "reason": "theirs"})
    lead.moves(ticket, "IN_PROGRESS", "ESCALATED")
    lead.did("PATCH", TICKETS + f"/{ticket}", {"title": "Not a change of status", "priority": "P4"})
    lead.did("POST", f"{TICKETS}/{ticket}/resolve", {"resolution_notes": "Replaced the disk"})
    lead.did("POST", f"{TICKETS}/{ticket}/close")
    alice.did("POST", f"{TICKETS}/{ticket}/reopen", {"reason": "Down again"})
    expected = [
        ("Status changed from NEW to OPEN.", lead),
        ("Status changed from OPEN to IN_PROGRESS: to IN_PROGRESS", lead),
        ("Status changed from IN_PROGRESS to ESCALATED: to ESCALATED", lead),
        ("Status changed from ESCALATED to RESOLVED: Replaced the disk", lead),
        ("Status changed from RESOLVED to CLOSED.", lead),
        ("Status changed from CLOSED to REOPENED: Down again", alice),
    ]
    found = alice.reads(ticket)["items"]
    assert [(one["body"], one["author"]) for one in found] == [(text, who.as_author) for text, who in expected]
    assert {(one["system"], one["internal"], one["edited_at"]) for one in found} == {(True, False, None)}
    assert len({one["id"] for one in found}) == len(expected)
    changes = [
        line["occurred_at"]
        for line in lead.did("GET", f"{TICKETS}/{ticket}/history?page_size=100")["items"]
        if any(change["field"] == "status" and change["old"] for change in line["changes"])
    ]
    assert [one["created_at"] for one in found] == changes


def test_a_comment_by_the_system_is_nobodys_to_change(alice: Person, lead: Person, ticket: str) -> None:
    lead.moves(ticket, "OPEN")
    (line,) = alice.reads(ticket)["items"]
    for who in (alice, lead):
        assert_problem(who("PUT", f"{COMMENTS}/{line['id']}", {"body": "It was not"}), 404, "not-found")
        assert_problem(who("DELETE", f"{COMMENTS}/{line['id']}"), 404, "not-found")
    assert alice.reads(ticket)["items"] == [line]


def test_a_closed_or_deleted_ticket_takes_no_comment(alice: Person, lead: Person, http: httpx.Client) -> None:
    for slug in ("ticket-closed", "ticket-deleted"):
        ticket = alice.did("POST", TICKETS, NEW_TICKET)["id"]
        said = alice.says(ticket, "Before")
        if slug == "ticket-closed":
            lead.moves(ticket, "OPEN", "IN_PROGRESS", "RESOLVED", "CLOSED")
        else:
            Person(http, Role.ADMIN, "ada").did("DELETE", f"{TICKETS}/{ticket}")
        before = alice.reads(ticket)
        assert said in before["items"], "but it can be read"
        assert_problem(alice("POST", f"{TICKETS}/{ticket}/comments", {"body": "After"}), 409, slug)
        assert_problem(lead("POST", f"{TICKETS}/{ticket}/comments", {"body": "x", "internal": True}), 409, slug)
        assert_problem(alice("PUT", f"{COMMENTS}/{said['id']}", {"body": "After"}), 409, slug)
        assert_problem(alice("DELETE", f"{COMMENTS}/{said['id']}"), 409, slug)
        assert alice.reads(ticket) == before


# Changing it


def test_an_edit_changes_the_text_and_says_when_and_keeps_the_place(alice: Person, dev: Person, ticket: str) -> None:
    first, second = alice.says(ticket, "One"), dev.says(ticket, "Two")
    answer = alice("PUT", f"{COMMENTS}/{first['id']}", {"body": "Uno"})
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"4"')
    edited = answer.json()
    assert edited["edited_at"] > second["created_at"]
    assert edited == {**first, "body": "Uno", "edited_at": edited["edited_at"]}
    assert dev.reads(ticket)["items"] == [edited, second]


def test_an_edit_that_says_the_same_is_no_edit(alice: Person, ticket: str) -> None:
    said = alice.says(ticket, "One")
    answer = alice("PUT", f"{COMMENTS}/{said['id']}", {"body": "One"})
    assert (answer.status_code, answer.headers["ETag"], answer.json()) == (200, '"2"', said)


def test_a_comment_that_was_deleted_is_not_there_any_more(
    alice: Person, dev: Person, lead: Person, ticket: str
) -> None:
    kept, gone, taken = alice.says(ticket, "Stays"), alice.says(ticket, "Goes"), alice.says(ticket, "Is taken")
    answer = alice("DELETE", f"{COMMENTS}/{gone['id']}")
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (204, b"", '"5"')
    assert_problem(dev("DELETE", f"{COMMENTS}/{taken['id']}"), 403, "forbidden")
    assert lead("DELETE", f"{COMMENTS}/{taken['id']}").status_code == 204
    for who in (alice, lead):
        for one in (gone, taken):
            assert_problem(who("PUT", f"{COMMENTS}/{one['id']}", {"body": "Back"}), 404, "not-found")
            assert_problem(who("DELETE", f"{COMMENTS}/{one['id']}"), 404, "not-found")
        found = who.reads(ticket)
        assert (found["items"], found["total"]) == ([kept], 1)
        assert who.sees(ticket)["comment_count"] == 1


def test_only_its_author_puts_a_comment_differently(alice: Person, dev: Person, lead: Person, ticket: str) -> None:
    hers, his = alice.says(ticket, "Hers"), dev.says(ticket, "His")
    for who, one in ((dev, hers), (lead, hers), (lead, his), (alice, his)):
        assert_problem(who("PUT", f"{COMMENTS}/{one['id']}", {"body": "Mine"}), 403, "forbidden")
    assert alice.reads(ticket)["items"] == [hers, his]


def test_a_comment_on_somebody_elses_ticket_is_not_found(http: httpx.Client, alice: Person, ticket: str) -> None:
    bob, said = Person(http, Role.END_USER, "bob"), alice.says(ticket, "Hers")
    assert_problem(bob("POST", f"{TICKETS}/{ticket}/comments", {"body": "Mine"}), 404, "not-found")
    assert_problem(bob("PUT", f"{COMMENTS}/{said['id']}", {"body": "Mine"}), 404, "not-found")
    assert_problem(bob("DELETE", f"{COMMENTS}/{said['id']}"), 404, "not-found")
    assert_problem(bob("GET", f"{TICKETS}/{ticket}/comments"), 404, "not-found")
    assert_problem(alice("GET", f"{TICKETS}/{uuid4()}/comments"), 404, "not-found")


# What each reader counts


def test_a_ticket_counts_for_each_reader_the_comments_that_their_list_has(
    alice: Person, dev: Person, lead: Person, ticket: str
) -> None:
    def counted(public: int, internal: int) -> None:
        for who, expected in ((alice, public), (dev, public + internal), (lead, public + internal)):
            found = who.reads(ticket)
            (listed,) = who.did("GET", f"{TICKETS}?requester_id={alice.id}")["items"]
            assert who.sees(ticket)["comment_count"] == found["total"] == len(found["items"]) == expected
            assert listed["comment_count"] == expected

    counted(0, 0)
    public, internal = dev.says(ticket, "Public"), dev.says(ticket, "Internal", internal=True)
    counted(1, 1)
    lead.says(ticket, "Internal as well", internal=True)
    lead.moves(ticket, "OPEN")
    counted(2, 2)
    dev.did("PUT", f"{COMMENTS}/{internal['id']}", {"body": "Still internal"})
    counted(2, 2)
    dev.did("DELETE", f"{COMMENTS}/{internal['id']}")
    counted(2, 1)
    dev.did("DELETE", f"{COMMENTS}/{public['id']}")
    counted(1, 1)


# Pages


@pytest.mark.parametrize("page_size", [1, 2, 3, 6, 7, 100])
def test_walking_by_cursor_meets_every_comment_once_oldest_first(
    alice: Person, dev: Person, lead: Person, ticket: str, page_size: int
) -> None:
    said = [alice.says(ticket, "One")]
    lead.moves(ticket, "OPEN")
    said += [dev.says(ticket, "Two", internal=True), alice.says(ticket, "Three")]
    lead.moves(ticket, "IN_PROGRESS")
    said.append(lead.says(ticket, "Four"))
    alice.did("PUT", f"{COMMENTS}/{said[0]['id']}", {"body": "One, edited last"})
    for who, expected in (
        (alice, ["One, edited last", "OPEN", "Three", "IN_PROGRESS", "Four"]),
        (dev, ["One, edited last", "OPEN", "Two", "Three", "IN_PROGRESS", "Four"]),
    ):
        seen: list[str] = []
        url = f"{TICKETS}/{ticket}/comments?page_size={page_size}"
        for turn in range(10):
            answer = who("GET", url)
            page = answer.json()
            assert (page["page"], page["page_size"]) == (1 if turn == 0 else None, page_size)
            assert page["total"] == len(expected)
            assert 1 <= len(page["items"]) <= page_size
            seen += [one["body"].rpartition("to ")[2] for one in page["items"]]
            links = answer.links
            assert links["first"]["url"] == f"{TICKETS}/{ticket}/comments?page_size={page_size}"
            assert ("next" in links) == (page["next_cursor"] is not None)
            if "next" not in links:
                break
            url = links["next"]["url"]
        assert seen == expected


def test_a_cursor_holds_its_place_while_comments_come_and_go(alice: Person, ticket: str) -> None:
    one, two, three = (alice.says(ticket, text) for text in ("One", "Two", "Three"))
    first = alice.reads(ticket, page_size=2)
    assert first["items"] == [one, two]
    alice.did("DELETE", f"{COMMENTS}/{two['id']}")
    four = alice.says(ticket, "Four")
    rest = alice.reads(ticket, page_size=2, cursor=first["next_cursor"])
    assert (rest["items"], rest["total"], rest["next_cursor"]) == ([three, four], 3, None)


@pytest.mark.parametrize(
    "query",
    [
        *("cursor=x", "cursor=", "cursor=W10", "cursor=WzEsMl0", "page_size=0", "page_size=101", "page_size=x"),
        *("page=1", "nope=1", "internal=true"),
    ],
)
def test_what_a_list_of_comments_cannot_be_asked_for_is_refused_by_name(alice: Person, ticket: str, query: str) -> None:
    problem = assert_problem(alice("GET", f"{TICKETS}/{ticket}/comments?{query}"), 400, "invalid-request")
    assert [one["field"] for one in problem["errors"]] == [query.partition("=")[0]]


def test_a_cursor_of_another_list_is_refused(alice: Person, ticket: str) -> None:
    alice.did("POST", TICKETS, NEW_TICKET)
    cursor = alice.did("GET", f"{TICKETS}?page_size=1")["next_cursor"]
    assert cursor
    assert_problem(alice("GET", f"{TICKETS}/{ticket}/comments?cursor={cursor}"), 400, "invalid-request")


# Conditions and repetitions


def test_the_same_key_gives_the_same_bytes_and_comments_once(alice: Person, ticket: str) -> None:
    url, body, key = f"{TICKETS}/{ticket}/comments", {"body": "Once"}, str(uuid4())
    first = alice("POST", url, body, Idempotency_Key=key)
    alice.did("PUT", f"{COMMENTS}/{first.json()['id']}", {"body": "Changed since"})
    again = alice("POST", url, body, Idempotency_Key=key)
    assert (again.status_code, again.content) == (201, first.content)
    assert (first.headers.get("Idempotency-Replayed"), again.headers.get("Idempotency-Replayed")) == (None, "true")
    assert again.headers["Ledger-Position"] == first.headers["Ledger-Position"]
    assert alice.reads(ticket)["total"] == 1
    for other in ({"body": "Twice"}, {"body": "Once", "internal": True}):
        assert_problem(alice("POST", url, other, Idempotency_Key=key), 422, "idempotency-key-reused")


def test_the_same_key_edits_and_deletes_once_whatever_happened_since(alice: Person, ticket: str) -> None:
    said = alice.says(ticket, "One")
    url, edit, delete = f"{COMMENTS}/{said['id']}", str(uuid4()), str(uuid4())
    first = alice("PUT", url, {"body": "Two"}, Idempotency_Key=edit)
    alice.did("PUT", url, {"body": "Three"})
    gone = alice("DELETE", url, Idempotency_Key=delete)
    again = alice("PUT", url, {"body": "Two"}, Idempotency_Key=edit)
    assert (again.status_code, again.content, again.headers["ETag"]) == (200, first.content, first.headers["ETag"])
    assert again.headers["Idempotency-Replayed"] == "true"
    gone_again = alice("DELETE", url, Idempotency_Key=delete)
    assert (gone_again.status_code, gone_again.headers["ETag"]) == (204, gone.headers["ETag"])
    assert gone_again.headers["Idempotency-Replayed"] == "true"
    assert_problem(alice("PUT", url, {"body": "Four"}, Idempotency_Key=edit), 422, "idempotency-key-reused")
    assert_problem(alice("DELETE", url, Idempotency_Key=edit), 422, "idempotency-key-reused")
    assert alice.reads(ticket)["items"] == []


def test_a_comment_for_another_version_is_refused_and_told_what_happened_since(
    alice: Person, dev: Person, ticket: str
) -> None:
    said = alice.says(ticket, "One")
    dev.says(ticket, "Aside", internal=True)
    dev.says(ticket, "Two")
    url = f"{COMMENTS}/{said['id']}"
    for who, versions in ((alice, [2, 4]), (dev, [2, 3, 4])):
        problem = assert_problem(
            who("POST", f"{TICKETS}/{ticket}/comments", {"body": "Late"}, If_Match='"1"'), 412, "version-mismatch"
        )
        assert problem["current_version"] == 4
        assert [(one["version"], one["topic"]) for one in problem["events"]] == [
            (version, "ticket.comment_added.v1") for version in versions
        ]
    assert_problem(alice("PUT", url, {"body": "Late"}, If_Match='"2"'), 412, "version-mismatch")
    assert_problem(alice("DELETE", url, If_Match='"2"'), 412, "version-mismatch")
    assert [one["body"] for one in alice.reads(ticket)["items"]] == ["One", "Two"]
    answer = alice("PUT", url, {"body": "In time"}, If_Match='"4"')
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"5"')
    assert alice("DELETE", url, If_Match='"5"').status_code == 204


def test_return_minimal_leaves_the_body_out(alice: Person, ticket: str) -> None:
    minimal = {"Prefer": "return=minimal"}
    added = alice("POST", f"{TICKETS}/{ticket}/comments", {"body": "One"}, **minimal)
    (said,) = alice.reads(ticket)["items"]
    edited = alice("PUT", f"{COMMENTS}/{said['id']}", {"body": "Two"}, **minimal)
    (found,) = alice.reads(ticket)["items"]
    deleted = alice("DELETE", f"{COMMENTS}/{said['id']}", **minimal)
    assert (said["body"], found["body"]) == ("One", "Two")
    assert [(answer.status_code, answer.content, answer.headers["ETag"]) for answer in (added, edited, deleted)] == [
        (201, b"", '"2"'),
        (204, b"", '"3"'),
        (204, b"", '"4"'),
    ]
    assert {answer.headers["Preference-Applied"] for answer in (added, edited, deleted)} == {"return=minimal"}


def test_a_query_that_is_sent_the_position_of_a_comment_has_it(alice: Person, ticket: str) -> None:
    for turn in range(5):
        answer = alice("POST", f"{TICKETS}/{ticket}/comments", {"body": f"Turn {turn}"})
        position = answer.headers["Ledger-Position"]
        found = alice("GET", f"{TICKETS}/{ticket}/comments", Ledger_Position=position)
        assert found.json()["items"][-1] == answer.json()
        assert int(found.headers["Ledger-Position"]) >= int(position)


# Bad input

BAD_BODIES: dict[str, tuple[Any, str]] = {
    "nothing in it": ({}, "body"),
    "no text": ({"body": ""}, "body"),
    "null": ({"body": None}, "body"),
    "a number": ({"body": 1}, "body"),
    "too long": ({"body": "x" * 20_001}, "body"),
    "NUL": ({"body": "a\0b"}, "body"),
    "an unknown field": ({"body": "x", "nope": 1}, "nope"),
    "an author": ({"body": "x", "author": str(uuid4())}, "author"),
    "an id": ({"body": "x", "comment_id": str(uuid4())}, "comment_id"),
}


@pytest.mark.parametrize(("body", "field"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_is_refused_by_name_and_says_nothing(alice: Person, ticket: str, body: Any, field: str) -> None:
    said = alice.says(ticket, "Stays")
    for method, url in (("POST", f"{TICKETS}/{ticket}/comments"), ("PUT", f"{COMMENTS}/{said['id']}")):
        problem = assert_problem(alice(method, url, body), 400, "invalid-request")
        assert [one["field"] for one in problem["errors"]] == [field]
    assert alice.reads(ticket)["items"] == [said]


@pytest.mark.parametrize("internal", ["yes", 1, None, "true"])
def test_internal_is_true_or_false_and_cannot_be_edited(dev: Person, ticket: str, internal: Any) -> None:
    body = {"body": "x", "internal": internal}
    problem = assert_problem(dev("POST", f"{TICKETS}/{ticket}/comments", body), 400, "invalid-request")
    assert [one["field"] for one in problem["errors"]] == ["internal"]
    said = dev.says(ticket, "Aside", internal=True)
    for value in (True, False, internal):
        edited = dev("PUT", f"{COMMENTS}/{said['id']}", {"body": "x", "internal": value})
        assert [one["field"] for one in assert_problem(edited, 400, "invalid-request")["errors"]] == ["internal"]
    assert dev.reads(ticket)["items"] == [said]


def test_what_is_no_json_is_refused(http: httpx.Client, alice: Person, ticket: str) -> None:
    said = alice.says(ticket, "Stays")
    bearer = {"Authorization": f"Bearer {token(alice.role, alice.id)}"}
    for method, url in (("POST", f"{TICKETS}/{ticket}/comments"), ("PUT", f"{COMMENTS}/{said['id']}")):
        for kind, content, status, slug in (
            ("text/plain", b"hello", 415, "unsupported-media-type"),
            ("application/merge-patch+json", b'{"body": "x"}', 415, "unsupported-media-type"),
            ("application/json", b"hello", 400, "invalid-request"),
            ("application/json", b"", 400, "invalid-request"),
            ("application/json", b'{"body": "\xff"}', 400, "invalid-request"),
        ):
            answer = http.request(method, url, content=content, headers={**bearer, "Content-Type": kind})
            assert_problem(answer, status, slug)
    assert alice.reads(ticket)["items"] == [said]


@pytest.mark.parametrize("comment_id", ["x", "1", "01a20a58-ca6b-71ac-903d", "%00"])
def test_what_is_no_id_is_not_found(alice: Person, comment_id: str) -> None:
    assert_problem(alice("PUT", f"{COMMENTS}/{comment_id}", {"body": "x"}), 404, "not-found")
    assert_problem(alice("DELETE", f"{COMMENTS}/{comment_id}"), 404, "not-found")


# The history


def test_the_history_has_every_comment_and_keeps_every_text_for_staff(
    alice: Person, dev: Person, lead: Person, ticket: str
) -> None:
    said = {one["id"]: one for one in (alice.says(ticket, "One"), dev.says(ticket, "Aside", internal=True))}
    public, internal = said
    alice.did("PUT", f"{COMMENTS}/{public}", {"body": "Uno"})
    dev.did("PUT", f"{COMMENTS}/{internal}", {"body": "Another aside"})
    lead.did("DELETE", f"{COMMENTS}/{public}")
    dev.did("DELETE", f"{COMMENTS}/{internal}")
    expected = [
        ("COMMENT_ADDED", alice, public, False, None, "One"),
        ("COMMENT_ADDED", dev, internal, True, None, "Aside"),
        ("COMMENT_EDITED", alice, public, False, "One", "Uno"),
        ("COMMENT_EDITED", dev, internal, True, "Aside", "Another aside"),
        ("COMMENT_DELETED", lead, public, False, "Uno", None),
        ("COMMENT_DELETED", dev, internal, True, "Another aside", None),
    ]
    for reader in (lead, dev, alice):
        page = reader.did("GET", f"{TICKETS}/{ticket}/history?page_size=100")
        lines = page["items"]
        wanted = [line for line in expected if reader is not alice or not line[3]]
        assert lines[0]["action"] == "CREATED"
        assert [
            (
                line["action"],
                line["actor"],
                line["metadata"]["comment_id"],
                line["metadata"]["internal"],
                line["changes"],
            )
            for line in lines[1:]
        ] == [
            (action, who.as_author, one, internal, [{"field": "comment", "old": old, "new": new}])
            for action, who, one, internal, old, new in wanted
        ]
        assert page["total"] == len(wanted) + 1
        assert all((line["ip_address"] is None) is (reader is alice) for line in lines)
    for action in ("COMMENT_ADDED", "COMMENT_EDITED", "COMMENT_DELETED"):
        for reader, total in ((lead, 2), (alice, 1)):
            found = reader.did("GET", f"{TICKETS}/{ticket}/history?action={action}")
            assert ({line["action"] for line in found["items"]}, found["total"]) == ({action}, total)


def test_the_line_of_the_comment_that_was_the_response_says_so(alice: Person, dev: Person, ticket: str) -> None:
    first = dev.says(ticket, "On it")
    (line,) = alice.did("GET", f"{TICKETS}/{ticket}/history?action=COMMENT_ADDED")["items"]
    assert {change["field"]: change["new"] for change in line["changes"]} == {
        "sla.responded_at": first["created_at"],
        "comment": "On it",
    }
