"""What is parked, found and tried again: level with what a rebuild makes, however it came to be parked."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from projections import parking
from projections.parking import read_parked, retry, retry_all
from projections.runner import PROJECTIONS, checkpoints_of
from tests.api.test_cli import tickets
from tests.conftest import NEW_TICKET, Service, eventually
from tests.projections.test_runner import (
    broken,
    compared,
    dump,
    level,
    live,
    refused,
    running,
    store,
)
from tests.tickets.test_ledger import NOON, SOMEBODY, assigned, created
from tickets import mapper
from tickets.connections import Connection, connected
from tickets.events import Metadata, TicketEvent
from tickets.ledger import Ledger
from tickets.permissions import Role


async def mend(owner: Connection, position: int, fact: TicketEvent) -> None:
    """Put a fact that can be digested where one could not be: as no other than the owner could."""
    await owner.execute("alter table ledger.events disable trigger rows_are_immutable")
    await owner.execute(
        "update ledger.events set topic = $2, state = $3, metadata = $4 where position = $1",
        position,
        fact.TOPIC,
        mapper.encode(fact),
        msgspec.json.encode(Metadata(actor=SOMEBODY, command_id=uuid4())),
    )
    await owner.execute("alter table ledger.events enable trigger rows_are_immutable")


async def assert_nothing_is_parked_and_all_is_right(owner: Connection, dsn: str) -> None:
    assert (await read_parked(owner)).total == 0
    assert await level(owner)
    for one in await compared(dsn):
        assert one.clean, one


async def test_a_stream_that_can_be_digested_now_is_level_with_the_others_again(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    positions: dict[UUID, int] = {}
    await live(ledger, 3)
    async with running(ledger, dsn, batch_size=5):
        for what in broken(uuid4()):
            stream = uuid4()
            await store(owner, stream, 1, created(stream))
            positions[stream] = await store(owner, stream, 2, **broken(stream)[what])
            await store(owner, stream, 3, assigned(stream, 3))
        await eventually(lambda: level(owner))
        assert (await read_parked(owner)).total == len(PROJECTIONS) * len(positions)
        for stream, position in positions.items():
            await mend(owner, position, assigned(stream, 2))
        busy = asyncio.create_task(live(ledger, 6))
        tried = [one async for one in retry_all(owner)]
        assert {one.stream_id for one in tried} == set(positions)
        for one in tried:
            assert (sorted(one.digested), one.still) == (sorted(PROJECTIONS), [])
        for stream in positions:
            await store(owner, stream, 4, assigned(stream, 4))
        await busy
        await eventually(lambda: level(owner))
    for stream in positions:
        assert await owner.fetchval("select version from read_model.tickets where ticket_id = $1", stream) == 4
        assert await owner.fetchval("select count(*) from read_model.history where ticket_id = $1", stream) == 4
    await assert_nothing_is_parked_and_all_is_right(owner, dsn)


async def test_what_still_cannot_be_digested_stays_as_it_is_and_is_told(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await live(ledger, 2)
    streams = {uuid4() for _ in range(3)}
    for stream in streams:
        await store(owner, stream, 1, created(stream))
        await store(owner, stream, 2, state=b"{")
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
        before, parked = await dump(owner), await read_parked(owner)
        tried = [one async for one in retry_all(owner)]
        assert {one.stream_id for one in tried} == streams
        assert all(not one.digested for one in tried)
        assert sorted((left.stream_id, left.projection) for one in tried for left in one.still) == sorted(
            (one.stream_id, one.projection) for one in parked.items
        )
        assert await dump(owner) == before
        assert await read_parked(owner) == parked, "since when, too"
    nobody = await retry(owner, uuid4())
    assert (nobody.digested, nobody.still) == ([], [])


async def test_it_goes_as_far_as_it_can_and_sums_have_each_fact_once(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    await store(owner, stream, 2, assigned(stream, 2))
    first = await store(owner, stream, 3, state=b"{")
    await store(owner, stream, 4, assigned(stream, 4))
    second = await store(owner, stream, 5, state=b"}")
    await store(owner, stream, 6, assigned(stream, 6))
    async with running(ledger, dsn, batch_size=2):
        await eventually(lambda: level(owner))
    since = {one.parked_at for one in (await read_parked(owner)).items}
    await mend(owner, first, assigned(stream, 3))
    for _ in range(2):
        tried = await retry(owner, stream)
        assert {(one.projection, one.position) for one in tried.still} == {(name, second) for name in PROJECTIONS}
    assert {one.position for one in (await read_parked(owner)).items} == {second}
    assert {one.parked_at for one in (await read_parked(owner)).items} == since
    assert await owner.fetchval("select version from read_model.tickets where ticket_id = $1", stream) == 4
    assert all(one.clean for one in await compared(dsn)), "and a rebuild comes just as far"
    await mend(owner, second, assigned(stream, 5))
    assert (await retry(owner, stream)).still == []
    await assert_nothing_is_parked_and_all_is_right(owner, dsn)


async def test_rows_that_the_database_refused_are_written_once_it_takes_them(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    first = uuid4()
    await store(owner, first, 1, created(first, number="TKT-1"))
    bad: dict[UUID, tuple[int, TicketEvent]] = {}
    for number, what in enumerate(refused(first)):
        stream = uuid4()
        fact = refused(stream)[what]
        bad[stream] = (await store(owner, stream, 1, fact), created(stream, number=f"TKT-{number + 2}"))
        await store(owner, stream, 2, assigned(stream, 2))
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    assert {one.projection for one in (await read_parked(owner)).items} == {"tickets"}
    assert all([one.still async for one in retry_all(owner)])
    for position, mended in bad.values():
        await mend(owner, position, mended)
    assert not any([one.still async for one in retry_all(owner)])
    # The history of what was mended is of what was there before; that was no part of this.
    assert [(one.projection, one.clean) for one in await compared(dsn, names=["tickets", "counts"])] == [
        ("tickets", True),
        ("counts", True),
    ]


async def test_a_retry_waits_for_whoever_has_the_checkpoints(ledger: Ledger, owner: Connection, dsn: str) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    await store(owner, stream, 2, state=b"{")
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    async with connected(dsn) as other:
        async with owner.transaction():
            await checkpoints_of(owner, lock=True)
            trying = asyncio.create_task(retry(other, stream))
            assert not (await asyncio.wait({trying}, timeout=0.3))[0]
        assert len((await trying).still) == len(PROJECTIONS)


async def test_a_projection_that_is_behind_the_others_is_brought_no_further_than_it_is(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    position = await store(owner, stream, 2, state=b"{")
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await store(owner, stream, 3, assigned(stream, 3))
    await mend(owner, position, assigned(stream, 2))
    assert (await retry(owner, stream)).still == []
    assert await owner.fetchval("select version from read_model.tickets where ticket_id = $1", stream) == 2
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    await assert_nothing_is_parked_and_all_is_right(owner, dsn)


async def test_what_is_parked_is_told_in_pages(owner: Connection) -> None:
    streams = sorted(uuid4() for _ in range(5))
    await owner.executemany(
        "insert into read_model.parked values ($1, $2, 1, 'why', $3)",
        [(name, stream, NOON) for stream in streams for name in PROJECTIONS],
    )
    found, after = list[parking.ParkedStream](), None
    while True:
        page = await read_parked(owner, limit=4, after=after)
        assert page.total == 5 * len(PROJECTIONS)
        found += page.items
        if len(page.items) < 4:
            break
        after = (page.items[-1].stream_id, page.items[-1].projection)
    assert [(one.stream_id, one.projection) for one in found] == [
        (stream, name) for stream in streams for name in sorted(PROJECTIONS)
    ]


# The command line, and what readers are told


def test_readers_are_told_that_a_ticket_is_stale_until_it_was_tried_again(
    own_service: Callable[..., Service], dsn: str, tmp_path: Path
) -> None:
    service = own_service()
    where = {"DATABASE_URL": dsn, "DATA_DIR": str(tmp_path)}
    with service.client(Role.ADMIN) as http:
        other = http.post("/api/v1/tickets", json=NEW_TICKET).json()
        ticket = http.post("/api/v1/tickets", json=NEW_TICKET).json()
        url = f"/api/v1/tickets/{ticket['id']}"
        paths = ("/history", "/comments", "/attachments")
        before = {path: http.get(url + path).json() for path in ("", *paths)}
        assert not any("stale" in one for one in before.values())
        assert not [one for one in http.get("/api/v1/tickets").json()["items"] if "stale" in one]
        told = tickets("projections", "parked", **where)
        assert (told.returncode, told.stdout) == (0, "Nothing is parked.\n")

        position = asyncio.run(_poisoned(dsn, UUID(ticket["id"])))
        wait = {"Ledger-Position": str(position)}
        etag = {"If-None-Match": '"1"'}
        found = http.get(url, headers=wait | etag)
        assert (found.status_code, found.json()) == (200, before[""] | {"stale": True})
        for path in paths:
            assert http.get(url + path).json() == before[path] | {"stale": True}
        listed = {one["id"]: one.get("stale") for one in http.get("/api/v1/tickets").json()["items"]}
        assert listed == {ticket["id"]: True, other["id"]: None}
        (hit,) = http.get("/api/v1/tickets", params={"q": ticket["number"]}).json()["items"]
        assert hit["stale"] is True
        assert http.get("/api/v1/events", params={"ticket_id": ticket["id"]}).json()["items"][-1] | {"time": ""} == {
            "specversion": "1.0",
            "id": str(position),
            "source": "/api/v1/events",
            "type": "ticket.assigned.v1",
            "subject": ticket["id"],
            "time": "",
            "datacontenttype": "application/json",
            "sequence": f"{position:019d}",
            "ticketversion": 2,
            "data": None,
            "ticketnumber": ticket["number"],
        }
        whole = http.get("/api/v1/events").json()
        assert [one["data"] for one in whole["items"]][-1] is None, "in order, and not passed over"
        with service.client(Role.END_USER, UUID(ticket["requester_id"])) as requester:
            assert len(requester.get("/api/v1/events").json()["items"]) == 2

        told = tickets("projections", "parked", **where)
        assert told.returncode == 1
        assert ticket["number"] in told.stdout
        as_json = msgspec.json.decode(tickets("projections", "parked", "--json", **where).stdout, type=parking.Parked)
        assert as_json.total == len(PROJECTIONS)
        again = tickets("projections", "retry", ticket["number"], **where)
        assert again.returncode == 1
        assert "1 tried, 1 still parked" in again.stdout
        asyncio.run(_mended(dsn, UUID(ticket["id"]), position))
        again = tickets("projections", "retry", "--all", "--json", **where)
        assert again.returncode == 0, again.stderr
        (done,) = msgspec.json.decode(again.stdout, type=list[parking.Retried])
        assert (str(done.stream_id), sorted(done.digested)) == (ticket["id"], sorted(PROJECTIONS))
        after = http.get(url, headers=etag).json()
        assert (after["version"], after.get("stale")) == (2, None)
        assert "stale" not in http.get(url + "/history").json()


async def _poisoned(dsn: str, stream: UUID) -> int:
    async with connected(dsn, role=None) as owner:
        return await store(owner, stream, 2, topic="ticket.assigned.v1", state=b"{")


async def _mended(dsn: str, stream: UUID, position: int) -> None:
    async with connected(dsn, role=None) as owner:
        await mend(owner, position, assigned(stream, 2))


@pytest.mark.parametrize("arguments", [(), ("--all", str(UUID(int=1))), (str(UUID(int=1)),), ("TKT-7",)])
def test_it_must_be_said_what_to_try_again_and_that_must_be_parked(
    dsn: str, tmp_path: Path, arguments: tuple[Any, ...]
) -> None:
    done = tickets("projections", "retry", *arguments, DATABASE_URL=dsn, DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert ("not parked" in done.stderr) == (len(arguments) == 1)
