"""Who came by: recorded when first seen and when something about them changed, by however many processes at once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import msgspec
import pytest

from tests.conftest import eventually, fresh_database
from tests.tickets.test_ledger import held_up, waits_for_the_head
from tickets.connections import Connection
from tickets.errors import Overloaded
from tickets.events import By, Metadata, PersonSeen
from tickets.ledger import Ledger
from tickets.people import People, stream_of
from tickets.permissions import Actor, Role


@pytest.fixture(scope="module")
def dsn(server: str, template: str) -> Iterator[str]:
    """One database for all of these: each test looks at its own people only."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture
async def two(dsn: str) -> AsyncIterator[tuple[People, People]]:
    """Two processes, as it were, that know nothing of each other."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(Ledger.open(dsn)) for _ in range(2)]
        yield People(first), People(second)


def somebody(person_id: UUID | None = None, *teams: str, role: Role = Role.SENIOR_ENGINEER) -> Actor:
    return Actor(id=person_id or uuid4(), role=role, username="sam", teams=teams)


async def seen(ledger: Ledger, actor: Actor) -> list[tuple[int, Role | None, tuple[str, ...]]]:
    facts = await ledger.facts(stream_of(actor.id))
    assert all(isinstance(fact, PersonSeen) and fact.person_id == actor.id for fact in facts)
    return [(fact.originator_version, fact.role, fact.teams) for fact in facts if isinstance(fact, PersonSeen)]


async def test_whoever_comes_by_is_recorded_once(ledger: Ledger, two: tuple[People, People]) -> None:
    sam = somebody(None, "Mail")
    for people in (*two, *two, People(ledger)):  # the last one has just been started
        await people.saw(sam)
    assert await seen(ledger, sam) == [(1, sam.role, ("Mail",))]


async def test_what_is_recorded_says_who_from_where_and_when(ledger: Ledger) -> None:
    sam = somebody(None, "Web", "Mail", "Web")
    await People(ledger).saw(sam, request_id="r-1", ip_address="192.0.2.3")
    (recorded,) = await ledger.load(stream_of(sam.id))
    fact = recorded.fact
    assert isinstance(fact, PersonSeen)
    assert (fact.person_id, fact.username, fact.role, fact.teams) == (sam.id, "sam", sam.role, ("Mail", "Web"))
    about = msgspec.json.decode(recorded.metadata, type=Metadata)
    assert about.actor == By(sam.id, "sam", sam.role)
    assert (about.request_id, about.ip_address) == ("r-1", "192.0.2.3")
    assert (await ledger.known([about.command_id])) == {about.command_id}


async def test_a_change_of_role_teams_or_name_is_recorded_and_the_order_of_teams_is_none(ledger: Ledger) -> None:
    people = People(ledger)
    sam = somebody(None, "Mail", "Web")
    steps = [
        sam,
        somebody(sam.id, "Web", "Mail"),
        somebody(sam.id, "Web"),
        somebody(sam.id, "Web", role=Role.TEAM_LEAD),
        Actor(id=sam.id, role=Role.TEAM_LEAD, username="samantha", teams=("Web",)),
        somebody(sam.id, "Web", role=Role.TEAM_LEAD),
    ]
    for step in steps:
        await people.saw(step)
        await people.saw(step)
    assert await seen(ledger, sam) == [
        (1, Role.SENIOR_ENGINEER, ("Mail", "Web")),
        (2, Role.SENIOR_ENGINEER, ("Web",)),
        (3, Role.TEAM_LEAD, ("Web",)),
        (4, Role.TEAM_LEAD, ("Web",)),
        (5, Role.TEAM_LEAD, ("Web",)),
    ]


async def test_a_change_that_another_process_recorded_is_not_recorded_again(
    ledger: Ledger, two: tuple[People, People]
) -> None:
    here, there = two
    sam = uuid4()
    mail, web = (somebody(sam, team) for team in ("Mail", "Web"))
    await here.saw(mail)
    await there.saw(web)
    await here.saw(web)
    await here.saw(mail)
    assert [teams for _, _, teams in await seen(ledger, mail)] == [("Mail",), ("Web",), ("Mail",)]


async def test_many_first_visits_at_once_are_one(ledger: Ledger, two: tuple[People, People]) -> None:
    visitors = [somebody(None, "Mail") for _ in range(5)]
    await asyncio.gather(*(two[turn % 2].saw(who) for turn in range(20) for who in visitors))
    for who in visitors:
        assert await seen(ledger, who) == [(1, who.role, ("Mail",))]


async def test_many_visits_at_once_with_different_teams_leave_every_process_content(
    ledger: Ledger, two: tuple[People, People]
) -> None:
    sam = uuid4()
    visits = [somebody(sam, team) for team in ("Mail", "Web", "Network")]
    async with asyncio.timeout(20):
        await asyncio.gather(*(two[turn % 2].saw(visits[turn % 3]) for turn in range(60)))
    recorded = await seen(ledger, visits[0])
    assert [version for version, _, _ in recorded] == list(range(1, len(recorded) + 1))
    assert {teams for _, _, teams in recorded} == {("Mail",), ("Web",), ("Network",)}


async def test_who_is_forgotten_here_is_looked_up_and_not_recorded_again(ledger: Ledger) -> None:
    people = People(ledger, size=1)
    visitors = [somebody() for _ in range(3)]
    for _ in range(3):
        for who in visitors:
            await people.saw(who)
    assert [len(await seen(ledger, who)) for who in visitors] == [1, 1, 1]


async def test_a_visit_that_could_not_be_recorded_is_recorded_the_next_time(dsn: str, owner: Connection) -> None:
    async with Ledger.open(dsn, queue_limit=1) as ledger:
        people, sam = People(ledger), somebody()
        async with held_up(dsn):
            first = asyncio.create_task(people.saw(somebody()))
            await eventually(lambda: waits_for_the_head(owner))
            second = asyncio.create_task(people.saw(somebody()))

            async def second_waits() -> bool:
                return ledger.waiting == 1

            await eventually(second_waits)
            with pytest.raises(Overloaded):
                await people.saw(sam)
        await first
        await second
        await people.saw(sam)
        assert await seen(ledger, sam) == [(1, sam.role, ())]


async def test_a_person_is_no_ticket_even_with_a_tickets_id(ledger: Ledger) -> None:
    sam = somebody()
    await People(ledger).saw(sam)
    assert await ledger.facts(sam.id) == []
    assert stream_of(sam.id) != sam.id
