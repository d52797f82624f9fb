"""How far the read models are: known without asking, waited for, and never longer than was said."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

from projections import tickets
from projections.freshness import Freshness
from projections.runner import PROJECTIONS
from tests.conftest import eventually
from tests.projections.test_runner import level, live, running
from tests.tickets.test_ledger import appending
from tickets.connections import Connection, connect
from tickets.ledger import Ledger


@asynccontextmanager
async def watching(freshness: Freshness, dsn: str) -> AsyncIterator[None]:
    task = asyncio.create_task(freshness.watch(lambda: connect(dsn)))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_is_there_need_not_be_waited_for(ledger: Ledger) -> None:
    freshness = Freshness(ledger)
    freshness.reached(5)
    began = time.monotonic()
    assert [await freshness.wait_for(position, 0.0) for position in (0, 1, 5)] == [True, True, True]
    assert time.monotonic() - began < 0.1


async def test_what_does_not_come_is_waited_for_just_as_long_as_was_said(ledger: Ledger) -> None:
    freshness = Freshness(ledger)
    began = time.monotonic()
    assert not await freshness.wait_for(1, 0.2)
    assert 0.19 < time.monotonic() - began < 1
    assert not await freshness.wait_for(1, 0)
    freshness.reached(1)
    assert await freshness.wait_for(1, 0)


async def test_each_is_let_go_on_as_soon_as_their_own_position_is_there(ledger: Ledger) -> None:
    freshness = Freshness(ledger)
    waiting = {position: asyncio.create_task(freshness.wait_for(position, 10)) for position in (1, 2, 3, 7)}
    cancelled = asyncio.create_task(freshness.wait_for(2, 10))
    await asyncio.sleep(0)
    cancelled.cancel()
    for reached, done in ((2, {1, 2}), (1, {1, 2}), (3, {1, 2, 3}), (9, {1, 2, 3, 7})):
        freshness.reached(reached)
        await asyncio.wait(waiting.values(), timeout=0.05)
        assert {position for position, task in waiting.items() if task.done()} == done
        assert freshness.projected == max(2, reached)
    assert {await task for task in waiting.values()} == {True}


async def test_whoever_goes_while_waiting_leaves_nothing_behind(ledger: Ledger) -> None:
    """A client can hang up, or be refused, while it waits for a position that never comes."""
    freshness = Freshness(ledger)
    waiting = [asyncio.create_task(freshness.wait_for(10**18 - 1, 10)) for _ in range(20)]
    await asyncio.sleep(0)
    assert len(freshness._waiting) == 20
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not await freshness.wait_for(10**18 - 1, 0)
    assert not freshness._waiting


async def test_a_position_from_a_command_can_be_read_as_soon_as_waiting_for_it_ends(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    """Whoever waits in another process than the one that wrote and the one that projects."""
    async with Ledger.open(dsn) as elsewhere, Ledger.open(dsn) as projecting, running(projecting, dsn):
        freshness = Freshness(elsewhere)
        async with watching(freshness, dsn):
            for _ in range(10):
                (ticket_id,) = await live(ledger, 1)
                assert await freshness.wait_for(ledger.newest, 5)
                assert freshness.projected >= ledger.newest
                assert await tickets.find(tickets.finding(elsewhere.pool), ticket_id, internal=True) is not None
            assert elsewhere.newest == ledger.newest, "and it heard how far the ledger is"
    assert await level(owner)


async def test_it_is_as_far_as_the_read_model_that_is_furthest_behind(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    freshness = Freshness(ledger)
    await live(ledger, 3)
    await freshness.look(owner)
    assert freshness.projected == 0, "without any checkpoint nothing has been reached"
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await owner.execute("update read_model.checkpoints set position = 2 where projection = 'people'")
    await freshness.look(owner)
    assert freshness.projected == 2
    await owner.execute("delete from read_model.checkpoints where projection = 'people'")
    behind = Freshness(ledger)
    await behind.look(owner)
    assert behind.projected == 0


async def test_it_finds_out_by_itself_where_nobody_tells_it_and_after_its_connection_was_lost(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with Ledger.open(dsn) as elsewhere:
        freshness = Freshness(elsewhere)
        async with watching(freshness, dsn):
            await ledger.append(appending(uuid4(), 0))

            async def heard() -> bool:
                return elsewhere.newest == 1

            await eventually(heard)
            # Moved without a word to anybody.
            await owner.execute(
                "insert into read_model.checkpoints select name, 1, now(), 1 from unnest($1::text[]) name",
                list(PROJECTIONS),
            )
            assert await freshness.wait_for(1, 5)
            killed = await owner.fetchval(
                """select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()
                   and datname = current_database() and query like '%read_model.checkpoints%'"""
            )
            assert killed == 1
            await owner.execute("update read_model.checkpoints set position = 2")
            assert await freshness.wait_for(2, 5)
