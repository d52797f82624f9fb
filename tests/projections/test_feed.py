"""The feed's ways through the ledger all tell what there is, in order and bounded, each by an index."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from projections import feed
from projections.feed import TOPICS, BeyondTheLedger, Happened, Tail, Wanted, read, topics_of
from projections.freshness import Freshness
from tests.conftest import eventually
from tests.projections.test_freshness import watching
from tests.projections.test_runner import level, running
from tickets.commands import AddComment, Assign, Command, Create, Delete, Edit
from tickets.connections import Connection, Pool
from tickets.events import FACTS
from tickets.handler import Asked, Handler
from tickets.ledger import Ledger
from tickets.people import People
from tickets.permissions import Actor, Assignee, Role
from tickets.values import Category

ADA = Asked(actor=Actor(id=uuid4(), role=Role.ADMIN, username="ada", teams=("Mail",)))
THEY = [Actor(id=uuid4(), role=Role.END_USER) for _ in range(3)]


async def _known(person_id: UUID) -> Assignee | None:
    return Assignee(id=person_id)


async def lived(ledger: Ledger, count: int = 4) -> list[UUID]:
    """Each of them has tickets that public and internal things happen to, at the same time, and some are deleted."""
    handler, people = Handler(ledger, _known), People(ledger)

    async def one(number: int) -> UUID:
        who = Asked(actor=THEY[number % len(THEY)])
        await people.saw(who.actor)
        made = Create(title=f"Number {number}", description="…", category=Category.INCIDENT)
        ticket = (await handler.handle(made, None, who)).ticket
        for command in cast(
            "tuple[Command, ...]",
            (
                AddComment(body="Between us", internal=True),
                AddComment(body="To all"),
                Assign(team="Mail"),
                AddComment(body="Between us again", internal=True),
                Edit(title="Another title"),
                *[Delete()] * (number % 2),
            ),
        ):
            await handler.handle(command, ticket.id, ADA)
        return ticket.id

    return await asyncio.gather(*(one(number) for number in range(count * len(THEY))))


async def everything(owner: Connection) -> list[Happened]:
    """All facts about tickets, from the tables as they are."""
    rows = await owner.fetch(
        """select e.position, e.stream_id, e.version, e.topic, e.occurred_at, t.number, t.requester_id,
                  h.internal, h.entry
           from ledger.events e join read_model.history h using (position)
             join read_model.tickets t on t.ticket_id = e.stream_id order by e.position"""
    )
    return [Happened(*row) for row in rows]


def wishes(tickets: Sequence[UUID]) -> list[Wanted]:
    kinds: list[frozenset[str]] = [frozenset(), topics_of("ticket.comment_added"), topics_of("ticket.deleted")]
    return [
        Wanted(visible_to=who, ticket_id=ticket, topics=topics)
        for who in (None, *(one.id for one in THEY), uuid4())
        for ticket in (None, *tickets)
        for topics in kinds
    ]


async def all_of(source: Any, wanted: Wanted, limit: int, after: int = 0) -> list[Happened]:
    found = list[Happened]()
    while True:
        batch = await source(wanted, after, limit)
        assert len(batch.facts) <= limit
        assert batch.next_after > after or batch.is_end
        found += batch.facts
        after = batch.next_after
        if batch.is_end:
            return found


@pytest.mark.parametrize(("looked_at", "many"), [(5_000, 1_000), (7, 1_000), (7, 2), (3, 1)])
async def test_each_way_tells_all_that_fits_and_nothing_else_in_order(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch, looked_at: int, many: int
) -> None:
    monkeypatch.setattr(feed, "LOOKED_AT", looked_at)
    monkeypatch.setattr(feed, "_MANY", many)
    tickets = await lived(ledger)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    whole = await everything(owner)
    assert len(whole) > 60

    async def source(wanted: Wanted, after: int, limit: int) -> feed.Batch:
        return await read(ledger.pool, wanted, after, limit)

    for wanted in wishes(tickets[:2]):
        mine = wanted.visible_to is None or any(wanted.visible_to == one.requester_id for one in whole)
        if wanted.ticket_id is not None and (not mine or not any(map(wanted.fits, whole))):
            continue  # whether a ticket is the reader's is asked before
        fitting = [one for one in whole if wanted.fits(one)]
        for limit in (2, 1_000):
            assert await all_of(source, wanted, limit) == fitting
        middle = fitting[len(fitting) // 2].position if fitting else 5
        assert await all_of(source, wanted, 3, middle) == [one for one in fitting if one.position > middle]


async def test_what_is_kept_for_those_who_wait_is_what_the_database_would_say(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_REMEMBERED", 40)
    freshness = Freshness(ledger)
    asked = _Counted(ledger.pool)
    tail = Tail(cast("Pool", asked), freshness)
    following = asyncio.create_task(tail.follow())
    async with running(ledger, dsn), watching(freshness, dsn):
        wanted = [Wanted(), *(Wanted(visible_to=one.id) for one in THEY), Wanted(topics=topics_of("ticket.deleted"))]
        told: list[list[Happened]] = [[] for _ in wanted]
        stopped = asyncio.Event()

        async def follows(number: int) -> None:
            after = 0
            while not stopped.is_set():
                batch = await tail.read(wanted[number], after, 5)
                told[number] += batch.facts
                after = batch.next_after
                if batch.is_end:
                    await tail.wait(wanted[number], after, 0.5)

        readers = [asyncio.create_task(follows(number)) for number in range(len(wanted))]
        for _ in range(3):
            await lived(ledger, 2)
            await asyncio.sleep(0.7)
        head = await ledger.head()
        assert await freshness.wait_for(head, 10)
        whole = await everything(owner)

        async def all_are_told() -> bool:
            return [len(one) for one in told] == [sum(map(one.fits, whole)) for one in wanted]

        await eventually(all_are_told)
        # Once they have caught up, waiting costs one query for all of them, however many they are.
        waiting = [asyncio.create_task(tail.wait(Wanted(), head, 10)) for _ in range(50)]
        await asyncio.sleep(0.2)
        before = asked.count
        await lived(ledger, 1)
        await asyncio.gather(*waiting)
        assert asked.count - before < 12
        stopped.set()
        await asyncio.gather(*readers)
        whole = await everything(owner)
        for number, one in enumerate(wanted):
            assert told[number] == [fact for fact in whole if one.fits(fact)][: len(told[number])]
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


class _Counted:
    """A pool that counts what it is asked."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.count = pool, 0

    async def fetch(self, *arguments: Any) -> Any:
        self.count += 1
        return await self.pool.fetch(*arguments)

    async def fetchval(self, *arguments: Any) -> Any:
        return await self.pool.fetchval(*arguments)


async def test_nothing_is_told_beyond_what_all_read_models_have_and_nobody_loses_their_place(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await lived(ledger, 1)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    whole, head = await everything(owner), await ledger.head()
    await owner.execute("update read_model.checkpoints set position = 9 where projection = 'people'")
    found = await read(ledger.pool, Wanted(), 0, 100)
    assert (found.facts, found.next_after, found.is_end) == ([one for one in whole if one.position <= 9], 9, True)
    ahead = await read(ledger.pool, Wanted(), 15, 100)
    assert (ahead.facts, ahead.next_after, ahead.is_end) == ([], 15, True)
    await owner.execute("delete from read_model.checkpoints where projection = 'people'")
    nothing = await read(ledger.pool, Wanted(), 0, 100)
    assert (nothing.facts, nothing.next_after) == ([], 0)
    assert (await read(ledger.pool, Wanted(), head, 100)).next_after == head
    with pytest.raises(BeyondTheLedger):
        await read(ledger.pool, Wanted(), head + 1, 100)


async def test_each_way_goes_by_an_index(owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []

    class Explaining:
        async def fetch(self, query: str, *arguments: Any) -> Any:
            rows = await owner.fetch(f"explain {query}", *arguments)
            plans.append("\n".join(row[0] for row in rows))
            return await owner.fetch(query, *arguments)

        async def fetchval(self, query: str, *arguments: Any) -> Any:
            rows = await owner.fetch(f"explain {query}", *arguments)
            plans.append("\n".join(row[0] for row in rows))
            return await owner.fetchval(query, *arguments)

    await owner.execute("set enable_seqscan = off")
    for many in (1_000, 0):
        monkeypatch.setattr(feed, "_MANY", many)
        for wanted in wishes([uuid4()]):
            await read(cast("Pool", Explaining()), wanted, 0, 100)
    assert len(plans) > 40
    for plan in plans:
        for table in ("events", "history", "tickets"):
            assert f"Seq Scan on {table}" not in plan, plan
        assert "Index Cond" in plan


def test_every_kind_of_fact_about_a_ticket_can_be_asked_for_and_none_about_people() -> None:
    assert {fact.TOPIC for fact in FACTS} - set(TOPICS) == {"person.seen.v1"}
    assert topics_of("ticket") == set(TOPICS)
    assert topics_of("ticket.comment") == topics_of("person") == topics_of("") == frozenset()
    assert topics_of("ticket.created") == topics_of("ticket.created.v1") == {"ticket.created.v1"}
