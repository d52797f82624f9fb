"""One ticket's rows held against its facts, on a real database: whatever is wrong with it is found, and put right."""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from projections.drift import COMPARED, Sampler, drift_of, put_right, sample
from projections.runner import Runner
from tests.conftest import NEW_TICKET, Service, eventually, executing
from tests.projections.test_rebuild import DRIFTS, FIELDS, caught_up
from tests.projections.test_runner import broken, dump, level, live, running, store
from tests.tickets.test_ledger import assigned, created
from tickets.connections import Connection, connect
from tickets.ledger import Ledger


async def all_drift(owner: Connection) -> dict[UUID, list[tuple[str, str, tuple[str, ...]]]]:
    """What is found of each ticket: where, in what way, in which fields."""
    streams = await owner.fetch("select distinct stream_id from ledger.events where topic like 'ticket.%'")
    found: dict[UUID, list[tuple[str, str, tuple[str, ...]]]] = {}
    for (stream,) in streams:
        drift = await drift_of(owner, stream)
        if drift:
            found[stream] = [(d.projection, one.what, tuple(one.fields)) for d in drift for one in d.differences]
    return found


async def test_what_a_rebuild_would_find_is_found_of_its_ticket_and_put_right(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    made = [(await live(ledger, 1))[0] for _ in range(3)]
    await caught_up(ledger, owner, dsn)
    rows = await dump(owner)
    number = await owner.fetchval("select number from read_model.tickets where ticket_id = $1", made[1])
    assert await all_drift(owner) == {}
    for what, (statement, name, missing, unexpected) in DRIFTS.items():
        if name not in COMPARED:
            continue
        await owner.execute(statement.replace("$1", f"'{number}'"))
        assert await dump(owner) != rows, what
        found = await all_drift(owner)
        assert {one[0] for told in found.values() for one in told} == {name}, what
        kinds = {(1, 0): "missing", (1, 1): "different"}
        told = [one for told in found.values() for one in told]
        assert {one[1] for one in told} == {kinds[min(missing, 1), unexpected]}, what
        assert told[0][2] == tuple(FIELDS.get(what, ())), what
        for stream in found:
            assert [one.projection for one in await put_right(owner, stream)] == [name]
        assert await dump(owner) == rows, what


async def test_rows_that_should_not_be_there_are_found_and_put_right(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    (stream, *_) = await caught_up(ledger, owner, dsn, 3)
    rows = await dump(owner)
    await owner.execute(
        f"""insert into read_model.history select ticket_id, 1000000, action, internal, entry
            from read_model.history where ticket_id = '{stream}' limit 1;
            insert into read_model.comments select gen_random_uuid(), '{stream}', 1000000, 99, false, false, 'x'"""
    )
    found = await all_drift(owner)
    assert found == {stream: [("history", "unexpected", ()), ("comments", "unexpected", ())]}
    await put_right(owner, stream)
    assert await dump(owner) == rows


async def test_a_sample_is_a_ticket_that_something_happened_to(ledger: Ledger, owner: Connection) -> None:
    assert await sample(owner) is None, "there is nothing yet"
    await live(ledger, 3)
    rows = await owner.fetch("select distinct stream_id from ledger.events where topic like 'ticket.%'")
    drawn = {await sample(owner) for _ in range(300)}
    assert drawn - {None} == {row[0] for row in rows}


async def test_of_what_is_parked_or_not_yet_projected_nothing_is_expected(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    await store(owner, stream, 2, **broken(stream)["a topic that nobody knows"])
    await live(ledger, 2)
    assert await all_drift(owner) == {}, "no read model has come to anything"
    await caught_up(ledger, owner, dsn, 2)
    assert await owner.fetchval("select count(*) from read_model.parked where stream_id = $1", stream) > 0
    await store(owner, stream, 3, assigned(stream, 3))
    assert await all_drift(owner) == {}
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    assert await all_drift(owner) == {}


async def test_a_row_of_another_version_is_no_drift(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 3)
    await owner.execute("update read_model.tickets set team = 'As it was'")
    assert {told[0][0] for told in (await all_drift(owner)).values()} == {"tickets"}
    await owner.execute("update read_model.checkpoints set version = 0 where projection = 'tickets'")
    assert await all_drift(owner) == {}


@pytest.mark.parametrize("name", sorted(COMPARED))
async def test_it_reads_by_indexes(owner: Connection, name: str) -> None:
    one = COMPARED[name]
    await owner.execute("set enable_seqscan = off; set plan_cache_mode = force_generic_plan")
    await owner.execute(f"prepare asked (uuid) as select from read_model.{name} where {one.of_stream}")
    plan = "\n".join(row[0] for row in await owner.fetch(f"explain execute asked ('{uuid4()}')"))
    assert "Seq Scan" not in plan, plan
    assert "Index" in plan


async def test_samples_find_drift_and_forget_it_once_it_is_put_right(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await caught_up(ledger, owner, dsn, 3)
    told: list[int] = []
    sampler = Sampler(dsn, seconds=0.001, found=told.append)
    async with running(ledger, dsn) as runner:
        looking = asyncio.create_task(sampler.run(runner))
        await eventually(lambda: _is(lambda: sampler.sampled > 2))
        assert (sampler.found, set(told)) == ({}, {0})
        # To which most happened, so that luck finds it soon.
        stream = await owner.fetchval(
            """update read_model.tickets set team = 'Nobody' where ticket_id =
               (select ticket_id from read_model.tickets order by version desc limit 1) returning ticket_id"""
        )
        with capture_logs() as logged:
            await eventually(lambda: _is(lambda: told[-1] == 1))
            enough = sampler.sampled + 2
            await eventually(lambda: _is(lambda: sampler.sampled > enough))
        assert [one["event"] for one in logged].count("projection.drift") == 1, "an alarm is raised once"
        assert {(one.projection, *one.differences[0].fields) for one in sampler.found[stream]} == {("tickets", "team")}
        await put_right(owner, stream)
        await eventually(lambda: _is(lambda: told[-1] == 0))
        looking.cancel()


async def test_who_does_not_lead_takes_no_samples(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 3)
    sampler = Sampler(dsn, seconds=0.001, found=lambda _: None)
    looking = asyncio.create_task(sampler.run(Runner(ledger, lambda: connect(dsn))))
    await asyncio.sleep(0.1)
    looking.cancel()
    assert sampler.sampled == 0


def test_a_service_raises_the_alarm(own_service: Callable[..., Service], dsn: str) -> None:
    service = own_service(DRIFT_SAMPLE_SECONDS="0.1")
    with service.client() as http:
        ticket = http.post("/api/v1/tickets", json=NEW_TICKET).json()["id"]
        assert http.get(f"/api/v1/tickets/{ticket}").status_code == 200, "it is in the read model"
        assert http.get("/health").json()["projections"]["drifted"] == []
        spoil = f"update read_model.tickets set team = 'Nobody' where ticket_id = '{ticket}'"
        with executing(dsn) as execute:
            execute(spoil)
        deadline = time.monotonic() + 10
        while (told := http.get("/health").json()["projections"])["drifted"] != [ticket]:
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        assert "projections_drifted_tickets 1.0" in http.get("/metrics").text
        assert http.get("/ready").status_code == 200, "it serves; somebody should look"


async def _is(holds: Callable[[], bool]) -> bool:
    return holds()
