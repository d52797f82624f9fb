"""What holds the tail is named: the process, since when, its statement without what is written in it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import httpx
import pytest

from projections.stalls import Standing, Watch, look, without_values
from tests.api.test_cli import tickets
from tests.conftest import NEW_TICKET, NO_CERTIFICATES, Service, eventually, token
from tests.projections.test_runner import level, live, running, store
from tests.tickets.test_ledger import appending, created, held_up
from tickets.connections import Connection, connect, connected
from tickets.ledger import Ledger
from tickets.permissions import Role


@asynccontextmanager
async def held(dsn: str, statement: str, name: str = "somebody else") -> AsyncIterator[Connection]:
    """A transaction of another program's that did this, and does not end."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": name})
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield connection
    finally:
        await connection.close()


async def stalled(dsn: str, holders: int = 1) -> Standing:
    """How it stands once something does."""
    async with connected(dsn, purpose="watch") as connection:
        deadline = time.monotonic() + 10
        while True:
            seen = await look(connection)
            if seen.stall is not None and len(seen.stall.held_by) == holders:
                return seen
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.1)


async def test_where_nothing_stands_still_nothing_is_named(ledger: Ledger, owner: Connection, dsn: str) -> None:
    async with running(ledger, dsn):
        await live(ledger, 3)
        await eventually(lambda: level(owner))
        async with connected(dsn) as connection:
            seen = await look(connection)
            for _ in range(3):
                seen = await look(connection)
                assert (seen.behind, seen.oldest_seconds, seen.parked, seen.stall) == (0, 0, 0, None)
                assert abs(seen.looked_at - datetime.now(UTC)) < timedelta(seconds=5)
                await asyncio.sleep(0.5)
        assert seen.leader is not None
        assert seen.leader.application_name.startswith("tickets ")
        assert await owner.fetchval("select count(*) from pg_stat_activity where pid = $1", seen.leader.pid) == 1
    async with connected(dsn) as connection:
        assert (await look(connection)).leader is None


@pytest.mark.parametrize("awaited", [True, False])
async def test_who_holds_the_head_is_named(ledger: Ledger, dsn: str, awaited: bool) -> None:  # noqa: FBT001
    began = datetime.now(UTC)
    waiting: asyncio.Task[Any] | None = None
    async with held(dsn, "select position, 'a secret', 17 from ledger.head for update", "a night job") as holding:
        if awaited:
            waiting = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
        seen = await stalled(dsn)
        assert seen.stall is not None
        (holder,) = seen.stall.held_by
        assert holder.pid == holding.get_server_pid()
        assert holder.application_name == "a night job"
        assert holder.state == "idle in transaction"
        assert holder.statement == "select position, ?, ? from ledger.head for update"
        assert holder.since is not None
        assert abs(holder.since - began) < timedelta(seconds=5)
        assert seen.stall.since is not None
        assert timedelta(seconds=1) < seen.looked_at - seen.stall.since < timedelta(seconds=12)
        assert seen.stall.rows == ["ledger.head"]
    if waiting is not None:
        assert (await waiting).verdict == "appended"
    async with connected(dsn) as connection:
        assert not (found := (await look(connection)).stall) or not found.held_by


async def test_who_holds_the_checkpoints_is_named_and_how_far_behind_that_is(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    async with running(ledger, dsn):
        await live(ledger, 1)  # so that there are checkpoints to hold
        await eventually(lambda: level(owner))
        before = await ledger.head()
        async with held(dsn, "update read_model.checkpoints set updated_at = updated_at") as holding:
            await live(ledger, 3)
            seen = await stalled(dsn)
            assert seen.stall is not None
            assert [one.pid for one in seen.stall.held_by] == [holding.get_server_pid()]
            assert seen.stall.rows == ["read_model.checkpoints"]
            assert seen.behind == await ledger.head() - before
            assert seen.oldest_seconds > 0.5
            assert seen.leader is not None, "the runner leads, and waits"
        await eventually(lambda: level(owner))


async def test_it_is_named_who_is_waited_for_in_the_end(ledger: Ledger, dsn: str, owner: Connection) -> None:
    await owner.execute("create table elsewhere as select 1 as n")
    async with held(dsn, "update elsewhere set n = 2", "the last") as last:
        between = await asyncpg.connect(dsn, server_settings={"application_name": "in between"})
        try:
            await between.execute("begin; select from ledger.head for update")
            blocked = asyncio.create_task(between.execute("update elsewhere set n = 3"))
            waiting = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
            seen = await stalled(dsn)
            assert seen.stall is not None
            assert [one.pid for one in seen.stall.held_by] == [last.get_server_pid()]
        finally:
            await last.execute("rollback; begin")
            await blocked
            await between.close()
        await waiting


async def test_a_table_that_is_locked_as_a_whole_holds_nobody_up_who_looks(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await live(ledger, 1)
    watch = Watch()
    task = asyncio.create_task(watch.run(lambda: connect(dsn)))
    try:

        async def has_looked() -> bool:
            return watch.seen is not None and watch.seen.behind > 0

        await eventually(has_looked)
        async with held(dsn, "lock table read_model.checkpoints") as holding:

            async def is_named() -> bool:
                stall = None if watch.seen is None else watch.seen.stall
                return stall is not None and [one.pid for one in stall.held_by] == [holding.get_server_pid()]

            await eventually(is_named)
            assert watch.seen is not None
            assert watch.seen.behind > 0, "as it was known before"
        # Its connection is lost, and it looks on.
        await owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_stat_activity using%'"
            " and pid <> pg_backend_pid()"
        )
        at = watch.seen.looked_at

        async def looks_on() -> bool:
            return watch.seen is not None and watch.seen.looked_at > at + timedelta(seconds=1)

        await eventually(looks_on)
    finally:
        task.cancel()


async def test_where_no_runner_leads_it_stands_still_and_nobody_is_named(ledger: Ledger, dsn: str) -> None:
    await live(ledger, 1)
    seen = await stalled(dsn, holders=0)
    assert (seen.leader, seen.stall is not None, seen.behind) == (None, True, await ledger.head())


async def test_a_poison_fact_is_parked_and_no_stall(ledger: Ledger, owner: Connection, dsn: str) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    await store(owner, stream, 2, state=b"{")
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
        await asyncio.sleep(1.2)
        async with connected(dsn) as connection:
            seen = await look(connection)
    assert (seen.parked, seen.stall, seen.behind) == (1, None, 0)


async def test_what_the_database_does_not_tell_is_said_to_be_hidden(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    name = f"only_serves_{uuid4().hex[:8]}"
    await owner.execute(f"create role {name} login password 'serves' in role tickets_service")
    try:
        parts = urlsplit(dsn)
        place = parts.netloc.rpartition("@")[2]
        as_service = urlunsplit(parts._replace(netloc=f"{name}:serves@{place}"))
        async with held(dsn, "select from ledger.head for update", "a night job") as holding:
            waiting = asyncio.create_task(ledger.append(appending(uuid4(), 0)))
            seen = await stalled(as_service)
            assert seen.stall is not None
            (holder,) = seen.stall.held_by
            assert (holder.pid, holder.application_name) == (holding.get_server_pid(), "a night job")
            assert holder.statement == "statement hidden; grant pg_read_all_stats"
            assert (holder.since, holder.state) == (None, None)
            assert seen.stall.since is not None
            await owner.execute(f"grant pg_read_all_stats to {name}")
            seen = await stalled(as_service)
            assert seen.stall is not None
            assert seen.stall.held_by[0].statement == "select from ledger.head for update"
        await waiting
    finally:
        await owner.execute(f"drop role {name}")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("select 1", "select ?"),
        ("select * from t1 where a = 'x''y' and b=17.5e3 and c=$1", "select * from t1 where a = ? and b=? and c=$1"),
        ("select E'it\\'s secret', 2", "select ?, ?"),
        ("select e'secret\\\\', 'secret'", "select ?, ?"),
        ("select $$secret$$, $a$sec'$$ret$a$, $12", "select ?, ?, $12"),
        ("select 'cut off sec", "select ?"),
        ("select e'cut off \\", "select ?"),
        ("select $x$cut off", "select ?"),
        (
            "select -- it's\n 'secret' /* 'a secret */ from \"It's\" where u & 'secret'",
            'select ? from "It\'s" where u & ?',
        ),
        ("select b'101', N'secret', U&'secret', X'1F'", "select ?, ?, ?, ?"),
        ("select\n\t 0x1F,   1_000", "select ?, ?"),
    ],
)
def test_no_value_that_is_written_in_a_statement_is_told(statement: str, told: str) -> None:
    assert without_values(statement) == told


# The service, and the command line


async def test_the_command_line_names_who_holds_it(ledger: Ledger, dsn: str, tmp_path: Path) -> None:
    await live(ledger, 1)
    async with held(dsn, "select 'a secret' from ledger.head for update", "a night job") as holding:
        await stalled(dsn)
        where = {"DATABASE_URL": dsn, "DATA_DIR": str(tmp_path)}
        told = await asyncio.to_thread(tickets, "projections", "status", **where)
    assert told.returncode == 0, told.stderr
    assert "STANDS STILL since" in told.stdout
    assert "ledger.head held" in told.stdout
    assert f"by process {holding.get_server_pid()} (a night job)" in told.stdout
    assert "select ? from ledger.head for update" in told.stdout
    assert "no runner leads" in told.stdout
    assert "s old" in told.stdout


async def test_health_names_who_holds_it_and_waits_for_nobody(own_service: Callable[..., Service], dsn: str) -> None:
    service = await asyncio.to_thread(own_service)
    headers = {"Authorization": f"Bearer {token(Role.ADMIN, uuid4())}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=20, verify=NO_CERTIFICATES) as http:
        assert (await http.post("/api/v1/tickets", json=NEW_TICKET)).status_code == 201

        async def told() -> dict[str, Any]:
            began = time.monotonic()
            found: dict[str, Any] = (await http.get("/health")).json()["projections"]
            assert time.monotonic() - began < 1
            return found

        async def nothing_is_held() -> bool:
            seen = await told()
            return "stall" in seen and seen["stall"] is None and seen["leader"] is not None and seen["behind"] == 0

        await eventually(nothing_is_held)
        assert (await told())["leader"]["application_name"].startswith(f"tickets runner {service.process.pid}@")
        async with held_up(dsn) as holding:
            asked = asyncio.create_task(http.post("/api/v1/tickets", json=NEW_TICKET))

            async def it_is_named() -> bool:
                stall = (await told())["stall"]
                return stall is not None and [one["pid"] for one in stall["held_by"]] == [holding.get_server_pid()]

            await eventually(it_is_named)
        assert (await asked).status_code == 201
        await eventually(nothing_is_held)
        async with held(dsn, "select from read_model.checkpoints for update") as holding:
            assert (await http.post("/api/v1/tickets", json=NEW_TICKET)).status_code == 201
            await eventually(it_is_named)
            seen = await told()
            assert seen["behind"] > 0
            metrics = (await http.get("/metrics")).text
            assert f"projections_behind {float(seen['behind'])}" in metrics

            async def it_is_measured() -> bool:
                (line,) = [
                    one
                    for one in (await http.get("/metrics")).text.splitlines()
                    if one.startswith("projections_oldest_seconds ")
                ]
                return float(line.split()[1]) > 0.5

            await eventually(it_is_measured)
            assert "projections_parked 0.0" in metrics
        await eventually(nothing_is_held)
