"""Lists of the past: at every moment of every life what folding says, whatever is asked for, however it came to be."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given

from projections import counts, lists, periods
from projections.lists import Filter, Sort
from projections.periods import PERIODS
from projections.projection import Envelope, Step, decode_metadata
from projections.runner import PROJECTIONS, catch_up_alone, rows_of_stream
from projections.tickets import RANK, TICKETS, document, first_breach
from tests.projections.test_runner import store
from tests.tickets.given_when_then import ALICE, BOB, DEV, LEAD, MOMENT
from tests.tickets.test_properties import POLICY, Life, lives, thoroughly
from tickets.commands import Assign, Change, ChangeStatus, Create, Delete, Edit, Restore, create, decide
from tickets.connections import Connection
from tickets.errors import Refusal
from tickets.events import By, Metadata, TicketEvent
from tickets.ledger import Ledger
from tickets.lifecycle import TRANSITIONS, Status
from tickets.permissions import Actor, Assignee, Role
from tickets.sla import Priority
from tickets.ticket import Ticket, fold
from tickets.values import Category, Environment
from tickets.writer import Append

ABOUT: Final = msgspec.json.encode(Metadata(actor=By(ALICE.id, None, None), command_id=UUID(int=1)))
MINUTE: Final = timedelta(minutes=1)


def steps_of(life: Life) -> list[Step]:
    return [
        Step(fact, Envelope(place, fact.timestamp, decode_metadata(ABOUT)), before, after)
        for place, (fact, before, after) in enumerate(zip(life.facts, [None, *life.states], life.states, strict=False))
    ]


def then(life: Life, at: datetime) -> Ticket | None:
    """The ticket at the newest version that had happened by then, as the ledger's version_at has it."""
    versions = [state for fact, state in zip(life.facts, life.states, strict=True) if fact.timestamp <= at]
    return versions[-1] if versions else None


def listed_by(ticket: Ticket) -> tuple[Any, ...]:
    """All that a list filters or sorts by."""
    return (
        *(ticket.id, ticket.status, RANK[ticket.status], ticket.priority, ticket.category, ticket.environment),
        *(ticket.affected_service, ticket.tags, ticket.requester_id, ticket.assignee_id, ticket.team),
        *(ticket.created_at, ticket.updated_at, first_breach(ticket)),
    )


NAMES: Final = (
    *("ticket_id", "status", "status_rank", "priority", "category", "environment", "affected_service", "tags"),
    *("requester_id", "assignee_id", "team", "created_at", "updated_at", "breach_at"),
)


@thoroughly
@given(lives)
def test_the_periods_of_a_life_say_at_every_moment_what_folding_says(life: Life) -> None:
    made, error = rows_of_stream(PERIODS, steps_of(life))
    assert error is None
    rows = [dict(zip(PERIODS.columns, row, strict=True)) for row in made]
    last = life.states[-1]
    for moment in {fact.timestamp + more for fact in life.facts for more in (-MOMENT, timedelta(), MOMENT)}:
        there = [row for row in rows if row["updated_at"] <= moment < row["valid_to"]]
        found = [tuple(row[name] for name in NAMES) for row in there]
        if last.updated_at <= moment and not last.deleted:
            found.append(listed_by(last))
        ticket = then(life, moment)
        assert found == ([] if ticket is None or ticket.deleted else [listed_by(ticket)])
        for row in there:
            assert ticket is not None
            assert row["version"] >= ticket.version
    assert len({row["updated_at"] for row in rows}) == len(rows)
    assert all(row["updated_at"] < row["valid_to"] for row in rows)


@thoroughly
@given(lives)
def test_what_changes_nothing_that_a_list_shows_makes_no_row(life: Life) -> None:
    for step in steps_of(life):
        same = step.before is not None and step.after is not None and listed_by(step.before) == listed_by(step.after)
        assert not same or not PERIODS.rows(step)


# ------------------------------------------------------------------------------ many tickets, in a real database

TEAMS: Final = ("Mail", "Network", None)
SOMEBODY: Final = Actor(id=UUID(int=7), role=Role.ADMIN, username="admin", teams=("Mail",))
START: Final = datetime(2026, 3, 2, 9, tzinfo=UTC)


def a_life(chance: random.Random, number: int) -> list[TicketEvent]:
    """All that happens to a ticket within some hours, several things at a moment among them."""
    at = START + chance.randrange(300) * MINUTE
    asked = Create(
        title=f"Number {number}",
        description="…",
        category=chance.choice(list(Category)),
        priority=chance.choice(list(Priority)),
        environment=chance.choice([None, *Environment]),
        affected_service=chance.choice([None, "mail", "web"]),
        tags=chance.choice([(), ("web",), ("db", "web")]),
        team=chance.choice(TEAMS),
    )
    asker = chance.choice([ALICE, BOB])
    facts: list[TicketEvent] = list(
        create(asked, ticket_id=uuid4(), number=f"TKT-{number}", actor=asker, at=at, policy=POLICY)
    )
    for _ in range(chance.randrange(12)):
        ticket = fold(facts)
        assert ticket is not None
        at += chance.choice([0, 0, 1, 7, 90]) * MINUTE
        ways: list[Change] = [
            Edit(priority=chance.choice(list(Priority)), tags=chance.choice([(), ("web",)])),
            Edit(category=chance.choice(list(Category)), environment=chance.choice([None, *Environment])),
            Edit(affected_service=chance.choice([None, "mail"])),
            Assign(assignee_id=chance.choice([None, DEV.id, LEAD.id]), team=chance.choice(TEAMS)),
            *[ChangeStatus(status=status, reason="so") for status in TRANSITIONS[ticket.status]] * 2,
            *([Restore()] if ticket.deleted else [Delete()]),
            Edit(title=f"Number {number}, again"),
        ]
        command = Restore() if ticket.deleted and chance.random() < 0.5 else chance.choice(ways)
        to = command.assignee_id if isinstance(command, Assign) else None
        assignee = Assignee(id=to) if isinstance(to, UUID) else None
        try:
            facts += decide(ticket, command, actor=SOMEBODY, at=at, policy=POLICY, assignee=assignee)
        except Refusal:
            continue
    return facts


async def recorded(ledger: Ledger, life: Sequence[TicketEvent]) -> None:
    about = Metadata(actor=By(SOMEBODY.id, SOMEBODY.username, SOMEBODY.role), command_id=uuid4())
    facts = tuple((fact, about) for fact in life)
    await ledger.append(
        Append(command_id=about.command_id, stream_id=life[0].originator_id, expected_version=0, facts=facts)
    )


def at_the_time(lived: Sequence[Sequence[TicketEvent]], at: datetime) -> list[Ticket]:
    """Every ticket that was there at a moment and not deleted, folded one by one."""
    found = [fold(fact for fact in life if fact.timestamp <= at) for life in lived]
    return [ticket for ticket in found if ticket is not None and not ticket.deleted]


BREACHED: Final[Callable[[Ticket, datetime], bool]] = lambda ticket, at: (  # noqa: E731 - one of those below
    (first := first_breach(ticket)) is not None and first < at
)
NOON: Final = START + 180 * MINUTE
FILTERS: Final[dict[str, tuple[Filter, Callable[[Ticket, datetime], bool]]]] = {
    "none": (Filter(), lambda _, __: True),
    "status": (Filter(status=(Status.NEW,)), lambda t, _: t.status is Status.NEW),
    "closed": (Filter(status=(Status.CLOSED,)), lambda t, _: t.status is Status.CLOSED),
    "several statuses": (
        Filter(status=(Status.OPEN, Status.IN_PROGRESS, Status.REOPENED)),
        lambda t, _: t.status in {Status.OPEN, Status.IN_PROGRESS, Status.REOPENED},
    ),
    "priority": (Filter(priority=(Priority.P1,)), lambda t, _: t.priority is Priority.P1),
    "category": (Filter(category=(Category.PROBLEM,)), lambda t, _: t.category is Category.PROBLEM),
    "environment": (
        Filter(environment=(Environment.STAGING, Environment.TESTING)),
        lambda t, _: t.environment in {Environment.STAGING, Environment.TESTING},
    ),
    "requester": (Filter(requester_id=ALICE.id), lambda t, _: t.requester_id == ALICE.id),
    "assignee": (Filter(assignee_id=DEV.id), lambda t, _: t.assignee_id == DEV.id),
    "nobody": (Filter(unassigned=True), lambda t, _: t.assignee_id is None),
    "team": (Filter(team="Mail"), lambda t, _: t.team == "Mail"),
    "service": (Filter(affected_service="mail"), lambda t, _: t.affected_service == "mail"),
    "tag": (Filter(tag="web"), lambda t, _: "web" in t.tags),
    "breached": (Filter(breached=True), BREACHED),
    "in time": (Filter(breached=False), lambda t, at: not BREACHED(t, at)),
    "created": (
        Filter(created_from=START + 60 * MINUTE, created_to=NOON),
        lambda t, _: START + 60 * MINUTE <= t.created_at <= NOON,
    ),
    "updated": (
        Filter(updated_from=START + 60 * MINUTE, updated_to=NOON),
        lambda t, _: START + 60 * MINUTE <= t.updated_at <= NOON,
    ),
    "one's own": (Filter(visible_to=BOB.id), lambda t, _: t.requester_id == BOB.id),
    "open P1s of a team": (
        Filter(status=(Status.OPEN, Status.NEW), priority=(Priority.P1, Priority.P2), team="Mail"),
        lambda t, _: (
            t.status in {Status.OPEN, Status.NEW} and t.priority in {Priority.P1, Priority.P2} and t.team == "Mail"
        ),
    ),
}
SORTS: Final[dict[Sort, Callable[[Ticket], Any]]] = {
    Sort.CREATED_AT: lambda ticket: ticket.created_at,
    Sort.UPDATED_AT: lambda ticket: ticket.updated_at,
    Sort.PRIORITY: lambda ticket: ticket.priority,
    Sort.STATUS: lambda ticket: RANK[ticket.status],
}


@pytest.fixture
async def desk(ledger: Ledger, owner: Connection) -> tuple[list[list[TicketEvent]], list[datetime]]:
    """The lives of many tickets, in the ledger and in the read models, and moments at which things were so or so."""
    chance = random.Random(20261125)  # noqa: S311 - the same every time
    lived = [a_life(chance, number) for number in range(120)]
    for life in lived:
        await recorded(ledger, life)
    await catch_up_alone(owner, batch_size=50)
    times = sorted({fact.timestamp for life in lived for fact in life})
    some = [chance.choice(times) + chance.choice([-MOMENT, timedelta(), MOMENT]) for _ in range(12)]
    return lived, [START - MINUTE, times[0], *some, times[-1], datetime.now(UTC)]


Desk = tuple[list[list[TicketEvent]], list[datetime]]


async def test_every_filter_finds_at_every_moment_what_a_fold_over_all_tickets_finds(
    ledger: Ledger, desk: Desk
) -> None:
    lived, moments = desk
    met: set[str] = set()
    for at in moments:
        there = at_the_time(lived, at)
        for name, (wanted, fits) in FILTERS.items():
            expected = {ticket.id: ticket for ticket in there if fits(ticket, at)}
            page = await periods.search(ledger, wanted, at, page_size=len(lived) + 1)
            internal = wanted.visible_to is None
            assert sorted(page.docs) == sorted(document(one, at, internal=internal) for one in expected.values()), (
                name,
                at,
            )
            assert (page.total, page.total_is_exact, page.next_cursor) == (len(expected), True, None)
            if 0 < len(expected) < len(there):
                met.add(name)
    assert met == set(FILTERS) - {"none"}, "each has told tickets apart"


async def test_every_sort_is_kept_from_page_to_page(ledger: Ledger, desk: Desk) -> None:
    lived, _ = desk
    at = START + 400 * MINUTE
    there = at_the_time(lived, at)
    assert len(there) > 60
    for sort, key in SORTS.items():
        for descending in (False, True):
            expected = sorted(there, key=lambda one: (key(one), one.id), reverse=descending)
            docs = [document(one, at, internal=True) for one in expected]
            seen: list[bytes] = []
            cursor: str | None = None
            while True:
                page = await periods.search(
                    ledger, Filter(), at, sort=sort, descending=descending, page_size=7, cursor=cursor
                )
                assert page.total == len(there)
                seen += page.docs
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == docs, sort
            numbered = [
                await periods.search(ledger, Filter(), at, sort=sort, descending=descending, page=n, page_size=7)
                for n in range(1, len(docs) // 7 + 2)
            ]
            assert [doc for page in numbered for doc in page.docs] == docs


async def test_the_numbers_on_the_tabs_were_what_counting_finds(ledger: Ledger, desk: Desk) -> None:
    lived, moments = desk
    for at in moments:
        for whose in (None, ALICE.id, UUID(int=999)):
            there = [one for one in at_the_time(lived, at) if whose in (None, one.requester_id)]
            found = await periods.count(ledger.pool, at, visible_to=whose)
            assert found.total == len(there)
            assert found.status == {one: sum(t.status is one for t in there) for one in Status}
            assert found.priority == {one: sum(t.priority is one for t in there) for one in Priority}
            assert found.category == {one: sum(t.category is one for t in there) for one in Category}
            assert found.team == {n: c for n in TEAMS if n and (c := sum(t.team == n for t in there))}
            assert found.assignee == {
                who.id: c for who in (DEV, LEAD) if (c := sum(t.assignee_id == who.id for t in there))
            }
            assert found.unassigned == sum(t.assignee_id is None for t in there)
            assert found.breached == sum(BREACHED(t, at) for t in there)


async def test_now_is_the_newest_of_the_past(ledger: Ledger, desk: Desk) -> None:
    del desk
    at = datetime.now(UTC)
    assert await periods.count(ledger.pool, at) == await counts.read(ledger.pool)
    for wanted in (Filter(), Filter(status=(Status.CLOSED,)), Filter(breached=True), Filter(team="Mail")):
        for sort in SORTS:
            then_, now = (
                await periods.search(ledger, wanted, at, sort=sort),
                await lists.search(ledger.pool, wanted, sort=sort),
            )
            assert then_ == now


async def test_a_stream_whose_fact_cannot_be_digested_stays_as_it_was_before_it(
    ledger: Ledger, owner: Connection
) -> None:
    life = a_life(random.Random(3), 1)  # noqa: S311 - as above
    while len(life) < 4 or life[-1].timestamp == life[0].timestamp:
        life = a_life(random.Random(len(life)), 1)  # noqa: S311 - as above
    await recorded(ledger, life)
    await catch_up_alone(owner)
    before = await owner.fetch("table read_model.periods order by updated_at")
    await store(owner, life[0].originator_id, len(life) + 1, topic="ticket.teleported.v1", state=b"{}")
    await catch_up_alone(owner)
    assert await owner.fetch("table read_model.periods order by updated_at") == before
    parked = await owner.fetch("select projection from read_model.parked")
    assert {row[0] for row in parked} == set(PROJECTIONS)


def test_a_period_has_a_column_for_all_that_a_list_filters_or_sorts_by() -> None:
    """What tickets has columns for, but for what is only shown or only now."""
    assert set(PERIODS.columns) - {"valid_to"} == set(TICKETS.columns) - {
        *("number", "position", "doc", "deleted", "internal_comments", "response_breach_at", "resolution_breach_at")
    }
