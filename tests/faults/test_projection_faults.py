"""Read models under faults: facts that cannot be digested, transactions that stay open, runners that are killed.

Each ends with a rebuild that has the same to say. Deliberately absent: what can be wrong with a fact
(tests/projections/test_runner.py), and faults of the whole service.
"""

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import suppress
from uuid import uuid4

import pytest

from projections.feed import Wanted, read
from projections.runner import PROJECTIONS
from projections.status import read_status
from tests.conftest import eventually
from tests.faults.conftest import Tell
from tests.projections.test_runner import compared, level, live, running, store
from tests.tickets.test_ledger import appending, assigned, created, held_up
from tickets.connections import Connection, connected
from tickets.errors import LedgerUnavailable
from tickets.ledger import Ledger
from tickets.writer import _prepare, _send

HELD_OPEN_S = float(os.environ.get("HELD_OPEN_SECONDS", "1"))
"""How long a transaction stays open."""
RUNNER_KILLS = int(os.environ.get("RUNNER_KILLS", "2"))
"""How often the runner is killed."""
POISONED = int(os.environ.get("POISONED", "3"))
"""How many tickets get a fact that nobody can digest, while others go on."""

RUNNER = """
import asyncio, sys
from projections.runner import Runner
from tickets.connections import connect
from tickets.ledger import Ledger

async def main(dsn):
    async with Ledger.open(dsn) as ledger:
        await Runner(ledger, lambda: connect(dsn, purpose="runner"), batch_size=7).run()

asyncio.run(main(sys.argv[1]))
"""
"""A process that does nothing but project, in small batches."""


async def test_facts_that_cannot_be_digested_park_their_tickets_under_load_and_stop_nobody_else(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    parked = set()
    async with running(ledger, dsn, batch_size=50) as runner:
        for _ in range(POISONED):
            load = asyncio.create_task(live(ledger, 4))
            stream = uuid4()
            await store(owner, stream, 1, created(stream))
            await store(owner, stream, 2, topic="ticket.teleported.v1", state=b"{}")
            await store(owner, stream, 3, assigned(stream, 3))
            parked.add(stream)
            await load
        await eventually(lambda: level(owner))
        assert runner.leads
    status = await read_status(owner)
    assert {row["stream_id"] for row in await owner.fetch("select stream_id from read_model.parked")} == parked
    assert {one.name: one.parked for one in status.projections} == dict.fromkeys(PROJECTIONS, len(parked))
    assert all(one.clean for one in await compared(dsn))


async def _holding_up_nobody(ledger: Ledger, owner: Connection, dsn: str) -> int:
    """How many facts come meanwhile: a reader that has an old snapshot is in nobody's way."""
    async with connected(dsn) as reader, reader.transaction(isolation="repeatable_read"):
        seen = await reader.fetchval("select count(*) from ledger.events")
        began, ends = await ledger.head(), time.monotonic() + HELD_OPEN_S
        while True:
            await live(ledger, 2)
            await eventually(lambda: level(owner))
            if time.monotonic() > ends:
                break
        assert await reader.fetchval("select count(*) from ledger.events") == seen
        return await ledger.head() - began


async def test_while_a_reader_holds_its_transaction_open_commands_and_read_models_go_on(
    ledger: Ledger, owner: Connection, dsn: str, tell: Tell
) -> None:
    async with running(ledger, dsn):
        came = await _holding_up_nobody(ledger, owner, dsn)
    assert came
    assert all(one.clean for one in await compared(dsn))
    tell(f"a snapshot held open for {HELD_OPEN_S:g} s: {came} facts appended and projected meanwhile")


async def test_what_a_transaction_has_appended_and_not_committed_is_waited_for_and_never_skipped(
    ledger: Ledger, owner: Connection, dsn: str, tell: Tell
) -> None:
    """It has the next position, and whoever comes after it waits: so there is no gap that a reader could step over."""
    stream = uuid4()
    async with running(ledger, dsn):
        await live(ledger, 2)
        await eventually(lambda: level(owner))
        head = await ledger.head()
        async with connected(dsn) as slow:
            transaction = slow.transaction()
            await transaction.start()
            (outcome,) = await _send(slow, [_prepare(appending(stream, 0))], 5)
            assert outcome.position == head + 1
            waiting = [asyncio.create_task(ledger.append(appending(uuid4(), 0))) for _ in range(8)]
            held = min(HELD_OPEN_S, 3)  # an append is pursued for as long as DATABASE_TIMEOUT_MS, not longer
            done, _ = await asyncio.wait(waiting, timeout=held)
            assert not done, "they come after it"
            assert (await read(ledger.pool, Wanted(), head, 100)).facts == []
            assert await level(owner), "there is nothing to be seen yet"
            await transaction.commit()
        positions = sorted(one.position for one in await asyncio.gather(*waiting))
        assert positions == list(range(head + 2, head + 10))
        await eventually(lambda: level(owner))
        assert [one.position for one in (await read(ledger.pool, Wanted(), head, 100)).facts] == list(
            range(head + 1, head + 10)
        )
    assert all(one.clean for one in await compared(dsn))
    tell(f"an append held open for {held:g} s: what came after it waited, and the feed has all of it in order")


async def test_while_the_head_is_held_for_long_appends_are_refused_and_no_crowd_of_them_gathers_in_the_database(
    owner: Connection, dsn: str
) -> None:
    async with Ledger.open(dsn, timeout=0.2) as ledger:
        one = appending(uuid4(), 0)
        async with held_up(dsn):
            ends = time.monotonic() + HELD_OPEN_S
            while time.monotonic() < ends:
                with pytest.raises(LedgerUnavailable):
                    await ledger.append(one)
                await asyncio.sleep(0.02)
            waiting = await owner.fetchval(
                """select count(*) from pg_stat_activity where datname = current_database()
                   and application_name like 'tickets writer%' and wait_event_type = 'Lock'"""
            )
        assert waiting <= 2, "who is not waited for any more does not wait either"

        async def settled() -> bool:
            with suppress(LedgerUnavailable):
                return (await ledger.append(one)).version == 1
            return False

        await eventually(settled)
    assert await owner.fetchval("select count(*) from ledger.events where command_id = $1", one.command_id) == 1


async def test_a_runner_that_is_killed_in_the_middle_of_its_batches_leaves_nothing_out_and_nothing_twice(
    ledger: Ledger, owner: Connection, dsn: str, chance: random.Random, tell: Tell
) -> None:
    async def reached() -> int:
        return min((one.position for one in (await read_status(owner)).projections), default=0)

    places = []
    for _ in range(RUNNER_KILLS):
        await live(ledger, 8)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", RUNNER, dsn)
        before = await reached()
        some = 1 + chance.randrange(30)

        async def has_begun(before: int = before, some: int = some) -> bool:
            return await reached() >= before + some

        await eventually(has_begun, timeout=30)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        places.append(await ledger.head() - await reached())
    assert all(places), "it was killed before it was done, each time"
    async with running(ledger, dsn):
        await eventually(lambda: level(owner), timeout=30)
    assert all(one.clean for one in await compared(dsn))
    tell(f"a runner killed {RUNNER_KILLS} times, with {min(places)} to {max(places)} facts to go")
