"""Bringing a database to this version's schema: once, and read models of another shape made anew."""

from api.database import apply_schema
from tests.conftest import eventually
from tests.projections.test_runner import assert_all_is_as_it_should_be, level, live, running
from tickets.connections import Connection
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


async def test_read_models_of_another_shape_are_made_anew_from_the_ledger(
    ledger: Ledger, dsn: str, owner: Connection
) -> None:
    await live(ledger, 3)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await owner.execute(
        """update ledger.schema_applied set sha256 = 'an earlier version', read_models = null;
           alter table read_model.tickets drop column internal_comments"""
    )
    facts = await owner.fetch("select * from ledger.events order by position")
    assert await apply_schema(dsn) is True
    assert await owner.fetch("select * from ledger.events order by position") == facts
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await assert_all_is_as_it_should_be(dsn, owner)
