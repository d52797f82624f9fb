"""The past over HTTP: a ticket's history, comments and attachments as they then were, what differs, and who did it.

And lists as of a moment, as far as the edge has to do with them. Deliberately absent: that every list of the past is
true (tests/projections/test_periods.py), and that nobody learns of internal comments who may not (test_no_leak.py).
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from msgspec.structs import replace

from projections.past import FIELDS
from tests.conftest import NEW_TICKET, Service, token
from tests.tickets.given_when_then import ADMIN, ALICE, START, commented, created, numbered
from tickets.events import By, Metadata, TicketEvent
from tickets.ledger import Ledger
from tickets.people import stream_of
from tickets.permissions import Role
from tickets.writer import Append

TICKETS: Final = "/api/v1/tickets"
COMMENTS: Final = "/api/v1/comments"
PARTS: Final = ("history", "comments", "attachments")


class Case:
    """A ticket that much happened to, and what its parts were for staff after each step."""

    def __init__(self, http: httpx.Client) -> None:
        self.http, self.requester_id, self.lead_id = http, uuid4(), uuid4()
        self.requester = {"Authorization": f"Bearer {token(Role.END_USER, self.requester_id, username='alice')}"}
        self.lead = {"Authorization": f"Bearer {token(Role.TEAM_LEAD, self.lead_id, username='lead')}"}
        self.then: list[dict[str, Any]] = []
        self.url = TICKETS
        self.url = f"{TICKETS}/{self.did('POST', '', self.requester, **NEW_TICKET)['id']}"
        said = self.did("POST", "/comments", self.requester, body="Since the upgrade")["id"]
        self.did("PATCH", "/status", self.lead, status="OPEN", reason="Seen")
        self.did("POST", "/comments", self.lead, body="They upgraded?", internal=True)
        self.did("PUT", f"{COMMENTS}/{said}", self.requester, body="Since the upgrade 🔥")
        file = self.attached("proxy.log", b"connection reset")
        second = self.did("POST", "/comments", self.lead, body="Which one?")["id"]
        self.did("PUT", "/assign", self.lead, team="Network", reason="Theirs")
        self.did("DELETE", f"{COMMENTS}/{said}", self.requester)
        self.did("DELETE", f"/api/v1/attachments/{file}", self.requester)
        self.did("PATCH", "", self.lead, title="It is slow", priority="P2")
        self.did("PUT", f"{COMMENTS}/{second}", self.lead, body="Which upgrade?")
        self.did("PATCH", "/status", self.lead, status="PENDING_INFO", reason="Which?")

    def did(self, method: str, path: str, who: dict[str, str], **body: Any) -> dict[str, Any]:
        url = path if path.startswith("/api") else self.url + path
        answer = self.http.request(method, url, headers=who, json=body or None)
        assert answer.is_success, answer.text
        if self.url != TICKETS:
            self.note()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def attached(self, name: str, content: bytes) -> str:
        answer = self.http.post(f"{self.url}/attachments", headers=self.requester, files={"file": (name, content)})
        assert answer.is_success, answer.text
        self.note()
        attachment_id: str = answer.json()["id"]
        return attachment_id

    def note(self) -> None:
        """What there is for whom at this moment."""
        version = self.see("", self.lead)["version"]
        seen = {
            (part, who["Authorization"]): self.see(f"/{part}?page_size=100", who)
            for part in PARTS
            for who in (self.lead, self.requester)
        }
        self.then.append({"version": version, "at": datetime.now(UTC), "seen": seen})

    def see(self, path: str, who: dict[str, str] | None = None) -> dict[str, Any]:
        answer = self.http.get(self.url + path, headers=who or self.lead)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def case(http: httpx.Client) -> Case:
    return Case(http)


# ------------------------------------------------------------------------------------------- parts of a ticket


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_at_every_version_and_time_what_it_then_was_for_who_looks(case: Case, part: str) -> None:
    sizes = set()
    for then in case.then:
        for who in (case.lead, case.requester):
            was = then["seen"][part, who["Authorization"]]
            sizes.add(len(was["items"]))
            assert case.see(f"/{part}?page_size=100&version={then['version']}", who) == was
            at = then["at"].isoformat().replace("+00:00", "Z")
            assert case.see(f"/{part}?page_size=100&as_of={at}", who) == was
    assert len(sizes) > 1


@pytest.mark.parametrize("part", PARTS)
def test_pages_of_the_past_go_on_where_the_last_one_ended(case: Case, part: str) -> None:
    version = case.then[-3]["version"]
    whole = case.see(f"/{part}?page_size=100&version={version}")
    seen: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = case.see(f"/{part}?page_size=2&version={version}{cursor}")
        assert (page["page_size"], page["total"], page["total_is_exact"]) == (2, whole["total"], True)
        assert len(page["items"]) <= 2
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == whole["items"]
    now = case.see(f"/{part}?page_size=1")
    then = case.see(f"/{part}?page_size=1&version={case.then[-1]['version']}")
    assert then == now, "a cursor is the same whether it was given for then or for now"


def test_an_earlier_text_is_there_before_its_edit_and_a_deleted_comment_before_it_was_deleted(case: Case) -> None:
    texts = {
        then["version"]: [
            one["body"] for one in case.see(f"/comments?version={then['version']}")["items"] if not one["system"]
        ]
        for then in case.then
    }
    assert list(texts.values())[1] == ["Since the upgrade"]
    assert ["Since the upgrade 🔥", "They upgraded?"] in texts.values()
    assert ["Since the upgrade 🔥", "They upgraded?", "Which one?"] in texts.values()
    assert list(texts.values())[-1] == ["They upgraded?", "Which upgrade?"]


def test_the_history_of_then_is_filtered_by_action_and_shows_end_users_no_addresses(case: Case) -> None:
    version = case.then[-1]["version"]
    wanted = "action=COMMENT_EDITED&action=COMMENT_DELETED"
    found = case.see(f"/history?version={version}&{wanted}")["items"]
    assert [one["action"] for one in found] == ["COMMENT_EDITED", "COMMENT_DELETED", "COMMENT_EDITED"]
    assert {one["ip_address"] for one in found} == {"127.0.0.1"}
    assert {one["ip_address"] for one in case.see(f"/history?version={version}", case.requester)["items"]} == {None}


@pytest.mark.parametrize("part", ["", *(f"/{part}" for part in PARTS)])
def test_what_was_not_there_then_is_404_and_two_moments_are_400(case: Case, part: str) -> None:
    def status(query: str, who: dict[str, str]) -> tuple[int, str]:
        answer = case.http.get(f"{case.url}{part}?{query}", headers=who)
        problem = answer.json()
        return answer.status_code, (problem.get("errors") or [{"field": problem["type"]}])[0]["field"]

    last = case.then[-1]["version"]
    for who in (case.lead, case.requester):
        assert status(f"version={last + 1}", who) == (404, "/problems/not-found")
        assert status("as_of=2001-01-01T00:00:00Z", who) == (404, "/problems/not-found")
        assert status("version=1&as_of=2026-01-01T00:00:00Z", who) == (400, "as_of")
        assert status("version=0", who) == (400, "version")
    somebody = {"Authorization": f"Bearer {token(Role.END_USER, uuid4())}"}
    assert status("version=1", somebody) == (404, "/problems/not-found")


async def test_the_past_of_a_ticket_with_5000_comments_takes_no_seconds(service: Service) -> None:
    about = Metadata(actor=By(ADMIN.id, "ada", Role.ADMIN), command_id=uuid4())
    ticket_id = uuid4()
    said = [commented(comment_id=uuid4(), at=START + timedelta(seconds=n)) for n in range(1, 5_001)]
    life: list[TicketEvent] = [replace(created(by=ALICE), number=f"TKT-{ticket_id.hex}"), *said]
    facts = [replace(fact, originator_id=ticket_id) for fact in numbered(life)]
    async with Ledger.open(service.dsn) as ledger:
        for start in range(0, len(facts), 500):
            part = tuple((fact, about) for fact in facts[start : start + 500])
            await ledger.append(Append(command_id=uuid4(), stream_id=ticket_id, expected_version=start, facts=part))
        newest = await ledger.head()
    with service.client() as client:
        while int(client.get(TICKETS).headers["Ledger-Position"]) < newest:
            continue  # queries wait for the read models, which this is not about
        for path in (
            "comments?version=4000&page_size=100",
            "history?version=4000",
            "blame",
            "diff?from=1",
            "?version=9",
        ):
            began = time.perf_counter()
            answer = client.get(f"{TICKETS}/{ticket_id}/{path}".replace("/?", "?"))
            took = time.perf_counter() - began
            assert answer.status_code == 200
            assert took < 1, f"{path} took {took * 1000:.0f} ms"
        assert client.get(f"{TICKETS}/{ticket_id}/comments?version=4000").json()["total"] == 3_999


# ------------------------------------------------------------------------------------------------ diff and blame


def test_a_diff_has_what_differs_how_much_lies_between_and_who_was_at_work(case: Case) -> None:
    last = case.then[-1]["version"]
    first, now = case.see("?version=1"), case.see("")
    found = case.see("/diff?from=1")
    assert (found["from"], found["to"], found["versions"]) == (1, last, last - 1)
    shown = {one["field"]: (one["old"], one["new"]) for one in found["changes"]}
    for name in ("title", "priority", "status", "team", "comment_count"):
        assert shown[name] == (first[name], now[name])
        assert first[name] != now[name]
    assert "attachment_count" not in shown, "it came and went"
    assert "description" not in shown
    assert [one["username"] for one in found["actors"]] == ["alice", "lead"]
    assert case.see("/diff") == case.see(f"/diff?from=1&to={last}") == found
    nothing = case.see("/diff?from=3&to=3")
    assert nothing == {"from": 3, "to": 3, "changes": [], "versions": 0, "actors": []}


def test_the_diffs_from_version_to_version_are_what_the_history_says(case: Case) -> None:
    for line in case.see("/history?page_size=100")["items"][1:]:
        version = line["version"]
        found = case.see(f"/diff?from={version - 1}&to={version}")
        counts = {"comment_count", "attachment_count"}
        told = {"comment", "attachment", "attachment.scan"}
        assert [one for one in found["changes"] if one["field"] not in counts] == [
            one for one in line["changes"] if one["field"] not in told
        ]
        assert found["actors"] == [line["actor"]]


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("from=0", 400, "from"),
        ("from=3&to=2", 400, "to"),
        ("from=999", 400, "from"),
        ("from=1&to=999", 404, None),
        ("from=1&from=2", 400, "from"),
        ("from=1e1", 400, "from"),
        ("from=1&as_of=2026-01-01T00:00:00Z", 400, "as_of"),
    ],
)
def test_a_diff_between_what_is_not_there_is_refused(case: Case, query: str, status: int, field: str | None) -> None:
    answer = case.http.get(f"{case.url}/diff?{query}", headers=case.lead)
    assert answer.status_code == status, answer.text
    assert field is None or answer.json()["errors"][0]["field"] == field


def test_blame_names_for_every_field_the_fact_that_made_it_what_it_is(case: Case) -> None:
    now, found = case.see(""), case.see("/blame")
    assert found["version"] == now["version"]
    lines = {line["version"]: line for line in case.see("/history?page_size=100")["items"]}
    blamed = {one["field"]: one for one in found["items"]}
    assert list(blamed) == list(FIELDS)
    for name, one in blamed.items():
        value = now
        for part in name.split("."):
            value = value[part]
        assert one["value"] == value
        line = lines[one["version"]]
        assert (one["since"], one["actor"]) == (line["occurred_at"], line["actor"])
        assert (one["command_id"], one["position"]) == (line["command_id"], line["position"])
        before = [change for at, other in lines.items() if at > one["version"] for change in other["changes"]]
        assert name not in {change["field"] for change in before}, "nothing since has changed it"
    assert blamed["title"]["actor"]["username"] == "lead"
    assert blamed["description"]["version"] == 1
    assert blamed["environment"] == {**blamed["description"], "field": "environment", "value": None}


def test_what_only_staff_may_know_of_is_nobodys_doing_to_the_requester(case: Case) -> None:
    whispered = next(
        line["version"] for line in case.see("/history?page_size=100")["items"] if line["metadata"].get("internal")
    )
    told = case.see(f"/diff?from={whispered - 1}&to={whispered}", case.requester)
    assert told == {"from": whispered - 1, "to": whispered, "changes": [], "versions": 1, "actors": []}
    staff = case.see(f"/diff?from={whispered - 1}&to={whispered}", case.lead)
    assert [one["field"] for one in staff["changes"]] == ["comment_count"]


@pytest.mark.parametrize("path", ["diff?from=1", "blame"])
def test_whose_ticket_it_is_not_gets_what_is_got_where_there_is_none(case: Case, path: str) -> None:
    somebody = {"Authorization": f"Bearer {token(Role.END_USER, uuid4())}"}
    answers = [case.http.get(f"{url}/{path}", headers=somebody) for url in (case.url, f"{TICKETS}/{uuid4()}")]
    assert {answer.status_code for answer in answers} == {404}
    bodies = [answer.text.replace(answer.request.url.path.split("/")[4], "<id>") for answer in answers]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    "path", ["", "?version=1", "/history?version=1", "/comments?version=1", "/attachments?version=1", "/diff", "/blame"]
)
def test_the_stream_of_a_person_is_no_ticket(case: Case, path: str) -> None:
    for who, person_id in ((case.requester, case.requester_id), (case.lead, case.lead_id)):
        answer = case.http.get(f"{TICKETS}/{stream_of(person_id)}{path}", headers=who)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


# --------------------------------------------------------------------------------------------------------- lists


def test_a_list_as_of_a_moment_has_each_ticket_as_its_own_page_has_it_then(case: Case) -> None:
    for then in case.then:
        at = then["at"].isoformat()
        for who in (case.lead, case.requester):
            answer = case.http.get(TICKETS, params={"as_of": at, "requester_id": str(case.requester_id)}, headers=who)
            assert answer.status_code == 200, answer.text
            (listed,) = answer.json()["items"]
            assert listed == case.http.get(case.url, params={"as_of": at}, headers=who).json()
            counted = case.http.get(f"{TICKETS}/counts", params={"as_of": at}, headers=case.requester).json()
            assert counted["total"] == counted["status"][listed["status"]] == 1
            assert counted["team"] == ({} if listed["team"] is None else {listed["team"]: 1})


def test_a_deleted_ticket_is_in_the_lists_of_before_and_between(service: Service) -> None:
    with service.client(Role.ADMIN) as admin:
        requester = str(uuid4())
        made = admin.post(TICKETS, json={**NEW_TICKET, "requester_id": requester}).json()
        url, moments = f"{TICKETS}/{made['id']}", [datetime.now(UTC)]
        for method, path in (("DELETE", ""), ("POST", "/restore"), ("DELETE", "")):
            assert admin.request(method, url + path).is_success
            moments.append(datetime.now(UTC))
        before = (datetime.fromisoformat(made["created_at"]) - timedelta(microseconds=1)).isoformat()
        seen = [
            admin.get(TICKETS, params={"requester_id": requester, "as_of": at}).json()["total"]
            for at in (before, made["created_at"], *(moment.isoformat() for moment in moments))
        ]
        assert seen == [0, 1, 1, 0, 1, 0]


def test_the_pages_of_a_list_as_of_a_moment_are_linked(service: Service) -> None:
    with service.client(Role.ADMIN) as admin:
        requester = str(uuid4())
        ids = [admin.post(TICKETS, json={**NEW_TICKET, "requester_id": requester}).json()["id"] for _ in range(3)]
        at = datetime.now(UTC).isoformat()
        admin.post(TICKETS, json={**NEW_TICKET, "requester_id": requester})
        answer = admin.get(
            TICKETS, params={"requester_id": requester, "as_of": at, "page_size": 2, "sort": "created_at"}
        )
        seen = [one["id"] for one in answer.json()["items"]]
        following = answer.headers["Link"].split('rel="first", <')[1].split(">")[0]
        seen += [one["id"] for one in admin.get(following).json()["items"]]
        assert seen == ids


REFUSED: Final[dict[str, tuple[str, str]]] = {
    "a time to come": ("as_of=2999-01-01T00:00:00Z", "as_of"),
    "a time to come, with filters": ("status=NEW&as_of=2999-01-01T00:00:00Z", "as_of"),
    "a search": ("q=server&as_of=2026-01-01T00:00:00Z", "q"),
    "relevance": ("sort=relevance&as_of=2026-01-01T00:00:00Z", "sort"),
    "a day": ("as_of=2026-01-01", "as_of"),
    "no zone": ("as_of=2026-01-01T00:00:00", "as_of"),
    "twice": ("as_of=2026-01-01T00:00:00Z&as_of=2026-01-01T00:00:00Z", "as_of"),
    "the year 10000": ("as_of=9999-12-31T23:59:59-23:00", "as_of"),
    "a cursor that is none": ("as_of=2026-01-01T00:00:00Z&cursor=x", "cursor"),
}


@pytest.mark.parametrize(("query", "field"), REFUSED.values(), ids=REFUSED)
def test_a_list_of_a_past_that_cannot_be_is_refused_by_name(case: Case, query: str, field: str) -> None:
    answer = case.http.get(f"{TICKETS}?{query}", headers=case.lead)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


def test_counts_as_of_a_time_to_come_are_refused(case: Case) -> None:
    answer = case.http.get(f"{TICKETS}/counts?as_of=2999-01-01T00:00:00Z", headers=case.lead)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "as_of")


def test_an_empty_search_box_searches_nothing_in_the_past_either(case: Case) -> None:
    answer = case.http.get(f"{TICKETS}?q=+&as_of=2001-01-01T00:00:00Z", headers=case.lead)
    assert (answer.status_code, answer.json()["items"], answer.json()["total"]) == (200, [], 0)
