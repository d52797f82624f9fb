"""Bringing a database to this version's schema: once, and read models of another shape made anew."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

from api.database import apply_schema, bring_up
from projections.rebuild import Progress
from projections.runner import Fold, catch_up, checkpoints_of
from tests.conftest import eventually
from tests.projections.test_rebuild import shape
from tests.projections.test_runner import assert_all_is_as_it_should_be, level, live, running
from tickets.connections import Connection, connected
from tickets.ledger import Ledger


async def test_a_schema_that_is_applied_is_left_alone(dsn: str, owner: Connection) -> None:
    before = await owner.fetchrow("select * from ledger.schema_applied")
    assert await apply_schema(dsn) is False
    assert await owner.fetchrow("select * from ledger.schema_applied") == before


async def test_another_ledger_part_leaves_the_read_models_as_they_are(
    ledger: Ledger, dsn: str, owner: Connection
) -> None:
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    table = await owner.fetchval("select 'read_model.tickets'::regclass::oid")
    await owner.execute("update ledger.schema_applied set sha256 = 'an earlier version'")
    assert await apply_schema(dsn) is True
    assert await owner.fetchval("select 'read_model.tickets'::regclass::oid") == table
    await assert_all_is_as_it_should_be(dsn, owner)


async def another_shape(owner: Connection) -> None:
    """As an earlier version may have had it."""
    await owner.execute(
        """update ledger.schema_applied set sha256 = 'an earlier version', read_models = 'and its read models';
           alter table read_model.tickets drop column internal_comments;
           alter table read_model.counts add column of_old text;
           drop index read_model.tickets_by_tag;
           update read_model.checkpoints set version = 0"""
    )


async def test_read_models_of_another_shape_are_made_anew_while_the_old_ones_are_read(
    ledger: Ledger, dsn: str, owner: Connection
) -> None:
    before = await shape(owner)
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await another_shape(owner)
    facts, old = await owner.fetch("table ledger.events"), await owner.fetch("table read_model.tickets")
    assert await apply_schema(dsn) is True
    assert await owner.fetch("table read_model.tickets") == old, "until the new ones are ready"
    async with running(ledger, dsn) as runner:
        async for _ in bring_up(dsn):
            assert not runner.leads
            assert len(await owner.fetch("table read_model.tickets")) == len(old)
            await live(ledger, 1)
        await eventually(lambda: level(owner))
    assert (await owner.fetch("table ledger.events"))[: len(facts)] == facts
    assert await shape(owner) == before
    assert await owner.fetch("select from pg_namespace where nspname in ('upcoming', 'outgoing')") == []
    await assert_all_is_as_it_should_be(dsn, owner)
    assert await apply_schema(dsn) is False
    assert [step async for step in bring_up(dsn)] == []


async def test_a_runner_that_waits_while_they_are_put_in_place_goes_on_where_the_new_ones_are(
    ledger: Ledger, dsn: str, owner: Connection
) -> None:
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await owner.execute(
        "update ledger.schema_applied set sha256 = 'an earlier version', read_models = 'and its read models'"
    )
    await apply_schema(dsn)
    await live(ledger, 1)
    async with connected(dsn) as before, connected(dsn) as leader:
        holding = before.transaction()
        await holding.start()
        await checkpoints_of(before, lock=True)
        making = asyncio.create_task(_all(bring_up(dsn)))
        await eventually(lambda: _wait_for_locks(owner, 1), timeout=30)
        leading = asyncio.create_task(catch_up(leader, Fold(leader), 1_000))
        await eventually(lambda: _wait_for_locks(owner, 2))
        await holding.rollback()
        await making
        await leading
        while await catch_up(leader, Fold(leader), 1_000):
            pass
    assert await owner.fetch("select from read_model.parked") == []
    await assert_all_is_as_it_should_be(dsn, owner)


async def _all(steps: AsyncIterator[Progress]) -> list[Progress]:
    return [step async for step in steps]


async def _wait_for_locks(owner: Connection, count: int) -> bool:
    waiting: int = await owner.fetchval(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return waiting >= count


async def test_making_them_anew_is_gone_on_with_after_a_kill(ledger: Ledger, dsn: str, owner: Connection) -> None:
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await another_shape(owner)
    await apply_schema(dsn)
    script = f"""
import asyncio
from api.database import bring_up

async def main():
    async for step in bring_up({dsn!r}):
        print(step.facts, flush=True)
        if step.facts:
            await asyncio.sleep(60)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=PIPE)
    assert process.stdout is not None
    while int(await process.stdout.readline()) == 0:
        pass
    process.kill()
    await process.communicate()
    (job,) = await owner.fetch("select id from rebuild.job")
    steps = bring_up(dsn)
    assert (await anext(steps)).facts > 0, "nothing was made twice"
    assert await owner.fetchval("select id from rebuild.job") == job["id"]
    async for _ in steps:
        pass
    await assert_all_is_as_it_should_be(dsn, owner)
    assert [step async for step in bring_up(dsn)] == []


async def test_what_was_read_before_and_a_kill_left_is_dropped(dsn: str, owner: Connection) -> None:
    await owner.execute("create schema outgoing; create table outgoing.tickets (ticket_id uuid)")
    assert [step async for step in bring_up(dsn)] == []
    assert await owner.fetchval("select to_regnamespace('outgoing')") is None


async def test_read_models_of_another_version_are_made_anew(ledger: Ledger, dsn: str, owner: Connection) -> None:
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    others = await owner.fetchval("select 'read_model.history'::regclass::oid")
    await owner.execute("update read_model.checkpoints set version = 0 where projection in ('tickets', 'people')")
    await owner.execute("update read_model.tickets set team = 'As it was'")
    assert [step async for step in bring_up(dsn)] != []
    await assert_all_is_as_it_should_be(dsn, owner)
    assert await owner.fetchval("select 'read_model.history'::regclass::oid") == others
    assert [step async for step in bring_up(dsn)] == []
