"""Searching over real HTTP: what is found, in which order, and what is shown of it.

A word that only one test's tickets have keeps the tests apart on the service that they share. Deliberately
absent: that END_USERs find nothing of internal comments in any other way (test_no_leak.py).
"""

from collections.abc import Iterator
from html import unescape
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import pytest

from projections import texts
from projections.lists import Filter, Sort, search
from tests.conftest import NEW_TICKET, Service, eventually
from tests.projections.test_runner import level, running
from tests.tickets.test_ledger import created
from tickets.connections import Connection
from tickets.events import By, CommentAdded, Metadata
from tickets.ledger import Ledger
from tickets.permissions import Role
from tickets.writer import Append

TICKETS: Final = "/api/v1/tickets"


@pytest.fixture
def word() -> str:
    """A word that is nowhere else."""
    # It has a vowel and no ending, so that it is its own stem, and its plural's.
    return "zoq" + uuid4().hex[:12].translate(str.maketrans("0123456789", "ghijklmnop")) + "q"


@pytest.fixture(scope="module")
def staff(service: Service) -> Iterator[httpx.Client]:
    with service.client(Role.TEAM_LEAD) as client:
        yield client


def make(client: httpx.Client, **said: Any) -> str:
    answer = client.post(TICKETS, json=NEW_TICKET | said)
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made


def say(client: httpx.Client, ticket: str, body: str, *, internal: bool = False) -> str:
    answer = client.post(f"{TICKETS}/{ticket}/comments", json={"body": body, "internal": internal})
    assert answer.status_code == 201, answer.text
    said: str = answer.json()["id"]
    return said


def find(client: httpx.Client, q: str, **further: Any) -> dict[str, Any]:
    answer = client.get(TICKETS, params={"q": q, **further})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [one["id"] for one in found["items"]]


def test_a_ticket_is_found_by_its_title_its_description_its_number_and_what_was_said(
    staff: httpx.Client, word: str
) -> None:
    by_title = make(staff, title=f"The {word} is down")
    by_description = make(staff, description=f"It is about the {word}.")
    by_comment = make(staff)
    say(staff, by_comment, f"Could be the {word}s")
    found = find(staff, word)
    assert set(ids(found)) == {by_title, by_description, by_comment}, "plural or not"
    assert ids(found)[0] == by_title, "a title says more"
    assert (found["total"], found["total_is_exact"]) == (3, True)
    number = staff.get(f"{TICKETS}/{by_comment}").json()["number"]
    assert ids(find(staff, number)) == [by_comment]


def test_what_was_put_differently_or_taken_back_is_found_as_it_is_now(staff: httpx.Client, word: str) -> None:
    ticket = make(staff, title=f"{word}one", description=f"{word}two")
    comment = say(staff, ticket, f"{word}three")
    staff.patch(f"{TICKETS}/{ticket}", json={"title": f"{word}four"})
    staff.put(f"/api/v1/comments/{comment}", json={"body": f"{word}five"})
    now = {f"{word}{n}": bool(ids(find(staff, f"{word}{n}"))) for n in ("one", "two", "three", "four", "five")}
    assert list(now.values()) == [False, True, False, True, True]
    staff.delete(f"/api/v1/comments/{comment}")
    assert ids(find(staff, f"{word}five")) == []


QUERIES: Final = {
    "a word": ("{w}a", "12"),
    "two words": ("{w}a {w}b", "1"),
    "one or the other": ("{w}b or {w}c", "13"),
    "one and not the other": ("{w}a -{w}b", "2"),
    "a phrase": ('"{w}a {w}b"', "1"),
    "a phrase the other way round": ('"{w}b {w}a"', ""),
    "in capitals": ("{W}A", "12"),
    "a word that nobody said": ("{w}d", ""),
}


def test_a_search_is_written_as_people_write_them(staff: httpx.Client, word: str) -> None:
    tickets = {
        "1": make(staff, title=f"{word}a {word}b"),
        "2": make(staff, title=f"{word}a"),
        "3": make(staff, title=f"{word}c"),
    }
    for what, (q, expected) in QUERIES.items():
        found = find(staff, q.format(w=word, W=word.upper()))
        assert set(ids(found)) == {tickets[name] for name in expected}, what


def test_internal_comments_are_found_by_staff_alone(service: Service, staff: httpx.Client, word: str) -> None:
    with service.client(Role.END_USER) as uma:
        ticket = make(uma, title=f"{word}open")
        say(staff, ticket, f"{word}secret {word}open", internal=True)
        assert ids(find(staff, f"{word}secret")) == [ticket]
        assert find(staff, f"{word}secret")["items"][0]["highlights"] != []
        assert find(uma, f"{word}secret") == find(uma, f"{word}nonsense")
        (found,) = find(uma, f"{word}open")["items"]
        assert "secret" not in str(found)
    with service.client(Role.END_USER) as other:
        assert ids(find(other, f"{word}open")) == [], "it is not theirs"


def test_a_search_goes_with_every_filter_and_sort(staff: httpx.Client, word: str) -> None:
    first = make(staff, title=f"{word} one", priority="P2", team="Web", tags=["x"])
    second = make(staff, title=f"{word} two", priority="P1", category="QUESTION")
    third = make(staff, title=f"{word} three", priority="P3", team="Web")
    staff.put(f"{TICKETS}/{first}/assign", json={"team": "Net"})
    filters: list[tuple[dict[str, Any], set[str]]] = [
        ({"priority": "P1"}, {second}),
        ({"status": "NEW"}, {second, third}),
        ({"team": "Net"}, {first}),
        ({"category": "QUESTION"}, {second}),
        ({"tag": "x"}, {first}),
        ({"assignee_id": "none"}, {first, second, third}),
        ({"assignee_id": "me"}, set()),
        ({"breached": "true"}, set()),
        ({"created_to": "2020-01-01T00:00:00Z"}, set()),
        ({"priority": ["P1", "P2"], "status": "OPEN"}, {first}),
    ]
    for wanted, expected in filters:
        assert set(ids(find(staff, word, **wanted))) == expected, wanted
    sorts = {
        "created_at": [first, second, third],
        "-created_at": [third, second, first],
        "-updated_at": [first, third, second],
        "priority": [second, first, third],
        "-priority": [third, first, second],
    }
    for sort, order in sorts.items():
        assert ids(find(staff, word, sort=sort)) == order, sort


@pytest.mark.parametrize("sort", ["relevance", "created_at", "-created_at", "priority"])
def test_pages_of_a_search_follow_each_other_without_a_gap(staff: httpx.Client, word: str, sort: str) -> None:
    made = [make(staff, title=f"{word} {'again ' * n}", description=f"{word} " * (n + 1)) for n in range(7)]
    whole = ids(find(staff, word, sort=sort, page_size=100))
    assert sorted(whole) == sorted(made)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        further = {} if cursor is None else {"cursor": cursor}
        found = find(staff, word, sort=sort, page_size=3, **further)
        assert (found["total"], found["total_is_exact"]) == (7, True)
        seen += ids(found)
        cursor = found["next_cursor"]
        if cursor is None:
            break
    assert seen == whole
    assert ids(find(staff, word, sort=sort, page_size=3, page=2)) == whole[3:6]


def test_highlights_are_of_their_own_ticket(staff: httpx.Client, word: str) -> None:
    said = {make(staff, title=f"The {name} {word}", description=f"It is {name}."): name for name in ("red", "blue")}
    numbers = {ticket: staff.get(f"{TICKETS}/{ticket}").json()["number"] for ticket in said}
    assert {one["id"]: one["highlights"] for one in find(staff, word)["items"]} == {
        ticket: [f"{numbers[ticket]} The {name} <mark>{word}</mark> It is {name}."] for ticket, name in said.items()
    }


def test_highlights_show_the_words_and_let_no_markup_through(staff: httpx.Client, word: str) -> None:
    ticket = make(staff, title="Title", description=f"<script>alert(1)</script> & the {word} & <b>more</b>")
    say(staff, ticket, f"{word} <img src=x>")
    (found,) = find(staff, word)["items"]
    assert len(found["highlights"]) == 2
    for snippet in found["highlights"]:
        assert f"<mark>{word}</mark>" in snippet
        bare = snippet.replace("<mark>", "").replace("</mark>", "")
        assert "<" not in bare
    assert "&" in unescape("".join(found["highlights"]))
    assert "highlights" not in staff.get(TICKETS, params={"page_size": 1}).json()["items"][0]


ODD: Final = {
    "an operator without its other side": "a &",
    "operators alone": "& | ! <-> ( ) :*",
    "quotes left open": '"never closed',
    "a quote alone": "'",
    "a backslash": "\\",
    "ten thousand letters": "a" * 10_000,
    "ten thousand characters of words": "word " * 2_000,
    "thousands of ors": "a or " * 2_000,
    "thousands of nots": "-a " * 3_333,
    "only stop words": "the and of it",
    "nothing but not": "-",
    "not stop words": "-the",
    "a template": "{{7*7}}",
    "SQL": "'; drop table read_model.tickets; --",
    "percent": "%_%",
    "right to left": "\u202eabc",
    "an emoji": "🔥",
    "a lone combining mark": "\u0301",
    "a line break": "a\nb",
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("sort", ["relevance", "-created_at"])
def test_odd_input_finds_little_and_breaks_nothing(staff: httpx.Client, what: str, sort: str) -> None:
    answer = staff.get(TICKETS, params={"q": ODD[what], "sort": sort})
    assert answer.status_code == 200, answer.text
    assert answer.elapsed.total_seconds() < 5


def test_only_stop_words_find_nothing(staff: httpx.Client) -> None:
    make(staff, title="The and of it")
    assert ids(find(staff, "the and of it")) == []


@pytest.mark.parametrize("q", ["", "   "])
def test_an_empty_search_is_none(staff: httpx.Client, q: str) -> None:
    made = make(staff)
    found = find(staff, q)
    assert ids(found)[0] == made
    assert "highlights" not in found["items"][0]


@pytest.mark.parametrize(
    ("params", "field"),
    [({"q": "a" * 10_001}, "q"), ({"sort": "relevance"}, "sort"), ({"q": " ", "sort": "-relevance"}, "sort")],
)
def test_what_cannot_be_searched_for_is_refused(staff: httpx.Client, params: dict[str, str], field: str) -> None:
    answer = staff.get(TICKETS, params=params)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


async def test_a_common_word_is_ranked_among_the_newest_and_said_to_have_more(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[UUID] = []
    for _ in range(12):
        ticket = uuid4()
        by = By(uuid4(), "uma", Role.END_USER)
        about = Metadata(actor=by, command_id=uuid4())
        first = created(ticket)
        said = CommentAdded(
            originator_id=ticket,
            originator_version=2,
            timestamp=first.timestamp,
            comment_id=uuid4(),
            author=by,
            body="everybody says flurb",
        )
        facts = ((first, about), (said, about))
        await ledger.append(Append(command_id=about.command_id, stream_id=ticket, expected_version=0, facts=facts))
        made.append(ticket)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    rare = await search(ledger.pool, Filter(q="flurb"), sort=Sort.RELEVANCE)
    assert (len(rare.docs), rare.total, rare.total_is_exact) == (12, 12, True)
    monkeypatch.setattr("projections.lists.FEW", 0)
    monkeypatch.setattr(texts, "_ASKED", 0)
    assert texts.is_common(await texts.expected(ledger.pool, "flurb"), fitting=12, tickets=12)
    for sort in (Sort.RELEVANCE, Sort.CREATED_AT):
        common = await search(ledger.pool, Filter(q="flurb"), sort=sort)
        assert sorted(common.docs) == sorted(rare.docs)
        assert (common.total, common.total_is_exact) == (12, True)
    monkeypatch.setattr("projections.lists.LOOKED_AT", 10)
    for sort in (Sort.RELEVANCE, Sort.CREATED_AT):
        some = await search(ledger.pool, Filter(q="flurb"), sort=sort, page_size=5)
        assert (len(some.docs), some.total, some.total_is_exact) == (5, 10, False)


@pytest.mark.parametrize(
    ("having", "fitting", "common"),
    [
        (1_500, 100_000, False),  # one ticket in sixty has it: thousands would have to be asked
        (3_000, 100_000, False),
        (20_000, 100_000, True),  # every fifth: the first thousand asked have enough
        (3_000, 100, True),  # whoever asks for few tickets has them asked, all of them
        (1_100, 900, False),
    ],
)
def test_what_takes_less_is_done(having: int, fitting: int, common: bool) -> None:  # noqa: FBT001 - a column
    assert texts.is_common(having, fitting=fitting, tickets=100_000) is common
