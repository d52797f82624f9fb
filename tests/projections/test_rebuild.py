"""Making read models anew on a real database: the same to the byte, drift found and mended, nobody held up."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from projections import attachments, beside, history, lists, people, tickets
from projections.beside import Job, begin, unfinished
from projections.comparison import Compared
from projections.rebuild import AlreadyRunning, NotLevel, Progress, UnknownProjection, rebuild
from projections.runner import LEADER, PROJECTIONS
from projections.status import read_status
from tests.conftest import eventually
from tests.projections.test_runner import (
    ADA,
    SAID,
    assert_all_is_as_it_should_be,
    broken,
    compared,
    dump,
    level,
    live,
    refused,
    running,
    said_of,
    store,
)
from tests.tickets.test_ledger import assigned, created
from tickets.connections import CONNECTION_LOST, Connection, connected
from tickets.ledger import Ledger
from tickets.workers import WorkerDied

REBUILD_KILLS = int(os.environ.get("REBUILD_KILLS", "2"))
"""How often a rebuild is killed before it may finish; `make faults` does it ten times."""
REBUILT_TICKETS = int(os.environ.get("REBUILT_TICKETS", "120"))
"""Of how many tickets' read models; in `make faults` there are more."""
KILL_SEED = int(os.environ.get("KILL_SEED", "1"))


async def caught_up(ledger: Ledger, owner: Connection, dsn: str, count: int = 9) -> list[UUID]:
    made = await live(ledger, count)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    return made


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"projections.beside" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def left_beside(owner: Connection) -> list[str]:
    rows = await owner.fetch("select relname from pg_class where relnamespace = 'rebuild'::regnamespace")
    return [row[0] for row in rows]


async def oids(owner: Connection) -> dict[str, int]:
    return {name: await owner.fetchval("select $1::text::regclass::oid", f"read_model.{name}") for name in PROJECTIONS}


async def shape(owner: Connection) -> dict[str, list[tuple[object, ...]]]:
    """Everything about the read models' tables but the rows."""
    queries = {
        "indexes": "select tablename, indexname, indexdef from pg_indexes where schemaname = 'read_model' order by 2",
        "constraints": """select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
                          where connamespace = 'read_model'::regnamespace order by 1, 2""",
        "columns": """select table_name, column_name, ordinal_position, data_type, is_nullable, column_default,
                             col_description(format('read_model.%I', table_name)::regclass, ordinal_position)
                      from information_schema.columns where table_schema = 'read_model' order by 1, 3""",
        "tables": """select relname, relowner::regrole::text, obj_description(oid), relacl::text, reloptions::text
                     from pg_class where relnamespace = 'read_model'::regnamespace and relkind = 'r' order by 1""",
    }
    return {what: [tuple(row) for row in await owner.fetch(query)] for what, query in queries.items()}


# ------------------------------------------------------------------------------------------------- the same


async def test_a_rebuild_leaves_every_read_model_as_it_was_to_the_byte(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await caught_up(ledger, owner, dsn)
    rows, shapes, tables = await dump(owner), await shape(owner), await oids(owner)
    for _ in range(2):
        found = await compared(dsn, swap=True)
        assert [(one.projection, one.rows, one.clean) for one in found] == [
            (name, len(rows[name]), True) for name in PROJECTIONS
        ]
        assert await dump(owner) == rows
        assert await shape(owner) == shapes, "names, indexes, owners and comments as well"
        assert await left_beside(owner) == []
    assert not set((await oids(owner)).values()) & set(tables.values()), "they are other tables than before"
    assert len(shapes["indexes"]) > 15
    assert all(comment for _, _, comment, *_ in shapes["tables"])


async def test_comments_are_the_same_after_a_rebuild_edited_and_deleted_ones_as_well(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    made = await caught_up(ledger, owner, dsn, 8)
    rows = await owner.fetch("table read_model.comments order by 1")
    kinds = {(row["internal"], row["deleted"]) for row in rows}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    assert all(row["doc"] == b"" for row in rows if row["deleted"]), "what was taken back is kept by the ledger alone"
    for _ in range(2):
        for internal, texts in SAID.items():
            assert await said_of(ledger, made[7], internal=internal) == texts
        assert await owner.fetch("table read_model.comments order by 1") == rows
        await owner.execute("truncate read_model.comments")
        await compared(dsn, names=["comments"], swap=True)


async def test_files_are_the_same_after_a_rebuild_those_that_wait_and_deleted_ones_as_well(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    made = await caught_up(ledger, owner, dsn, 8)
    rows = await owner.fetch("table read_model.attachments order by 1")
    kinds = {(row["waiting"], row["deleted_at"] is not None) for row in rows}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    waiting = await attachments.waiting(ledger.pool, 100)
    there = await attachments.read(ledger.pool, made[7])
    assert there.total == len(there.docs) == 3
    for _ in range(2):
        assert await attachments.waiting(ledger.pool, 100) == waiting
        assert await attachments.read(ledger.pool, made[7]) == there
        assert await owner.fetch("table read_model.attachments order by 1") == rows
        await owner.execute("truncate read_model.attachments")
        await compared(dsn, names=["attachments"], swap=True)


async def test_read_models_that_are_empty_can_be_rebuilt(owner: Connection, dsn: str) -> None:
    found = await compared(dsn, swap=True)
    assert [(one.projection, one.position, one.rows, one.clean) for one in found] == [
        (name, 0, 0, True) for name in PROJECTIONS
    ]
    assert all(rows == [] for rows in (await dump(owner)).values())


async def test_it_says_how_far_it_is_and_then_what_it_found(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn)
    head = await ledger.head()
    steps = [step async for step in rebuild(dsn, swap=False)]
    told = [step for step in steps if isinstance(step, Progress)]
    assert told[0] == Progress(facts=0, of=head)
    assert told[-1] == Progress(facts=head, of=head)
    assert [(one.projection, one.position) for one in steps[len(told) :] if isinstance(one, Compared)] == [
        (name, head) for name in PROJECTIONS
    ]


# ----------------------------------------------------------------------------------------------------- drift

FIELDS: dict[str, list[str]] = {
    "a changed answer": ["doc"],
    "a changed column": ["team"],
    "an older ticket": ["version"],
    "an entry that was put differently": ["entry"],
    "a comment that was put differently": ["doc"],
    "an internal comment that everybody sees": ["internal"],
    "a deleted comment that is back": ["deleted"],
    "a file that nobody will scan": ["waiting"],
    "a deleted file that is back": ["deleted_at"],
    "a count that is off": ["n"],
    "a stretch that was longer": ["valid_to"],
    "a ticket that is said to be urgent": ["priority", "doc.title", "doc.priority"],
}
"""Of the drifts where a row is there and not as it should be: in what."""

DRIFTS: dict[str, tuple[str, str, int, int]] = {
    # what, the read model, rows missing, rows unexpected
    "a ticket that is said to be urgent": (
        """update read_model.tickets set priority = 'P9', doc = convert_to(replace(replace(
             convert_from(doc, 'UTF8'), '"priority":"', '"priority":"P9'), '"title":"', '"title":"So '), 'UTF8')
           where number = $1""",
        "tickets",
        1,
        1,
    ),
    "a changed answer": ("update read_model.tickets set doc = doc || ' ' where number = $1", "tickets", 1, 1),
    "a changed column": ("update read_model.tickets set team = 'Nobody' where number = $1", "tickets", 1, 1),
    "a missing ticket": ("delete from read_model.tickets where number = $1", "tickets", 1, 0),
    "an older ticket": ("update read_model.tickets set version = version - 1 where number = $1", "tickets", 1, 1),
    "an extra person": (
        "insert into read_model.people select gen_random_uuid(), $1, 'ADMIN', '{}', 1",
        "people",
        0,
        1,
    ),
    "an entry that was put differently": (
        """update read_model.history set entry = 'x' where position = (select max(h.position) from read_model.history h
           join read_model.tickets t on t.ticket_id = h.ticket_id and t.number = $1)""",
        "history",
        1,
        1,
    ),
    "a comment that was put differently": (
        """update read_model.comments set doc = 'x' where $1 <> '' and comment_id =
           (select comment_id from read_model.comments where not deleted order by comment_id limit 1)""",
        "comments",
        1,
        1,
    ),
    "an internal comment that everybody sees": (
        """update read_model.comments set internal = false where $1 <> '' and comment_id =
           (select comment_id from read_model.comments where internal order by comment_id limit 1)""",
        "comments",
        1,
        1,
    ),
    "a deleted comment that is back": (
        """update read_model.comments set deleted = false where $1 <> '' and comment_id =
           (select comment_id from read_model.comments where deleted order by comment_id limit 1)""",
        "comments",
        1,
        1,
    ),
    "a comment that is gone": (
        """delete from read_model.comments where $1 <> '' and comment_id =
           (select comment_id from read_model.comments order by comment_id limit 1)""",
        "comments",
        1,
        0,
    ),
    "a file that nobody will scan": (
        """update read_model.attachments set waiting = false where $1 <> '' and attachment_id =
           (select attachment_id from read_model.attachments where waiting order by attachment_id limit 1)""",
        "attachments",
        1,
        1,
    ),
    "a deleted file that is back": (
        """update read_model.attachments set deleted_at = null where $1 <> '' and attachment_id =
           (select attachment_id from read_model.attachments where deleted_at is not null order by 1 limit 1)""",
        "attachments",
        1,
        1,
    ),
    "a file that is gone": (
        """delete from read_model.attachments where $1 <> '' and attachment_id =
           (select attachment_id from read_model.attachments order by attachment_id limit 1)""",
        "attachments",
        1,
        0,
    ),
    "a count that is off": (
        """update read_model.counts set n = n + 1 where $1 <> '' and (scope, kind, value) = (
             select scope, kind, value from read_model.counts where kind = 'cell' order by value limit 1)""",
        "counts",
        1,
        1,
    ),
    "a stretch that was longer": (
        """update read_model.periods set valid_to = valid_to + interval '1 microsecond' where $1 <> '' and
           (ticket_id, updated_at) = (select ticket_id, updated_at from read_model.periods order by 1, 2 limit 1)""",
        "periods",
        1,
        1,
    ),
    "a stretch that is gone": (
        """delete from read_model.periods where $1 <> '' and
           (ticket_id, updated_at) = (select ticket_id, updated_at from read_model.periods order by 1, 2 limit 1)""",
        "periods",
        1,
        0,
    ),
    "entries that are gone": ("delete from read_model.history where position <= 3 and $1 <> ''", "history", 3, 0),
}


async def test_a_check_finds_drift_and_a_rebuild_mends_it(ledger: Ledger, owner: Connection, dsn: str) -> None:
    made = [(await live(ledger, 1))[0] for _ in range(3)]  # three creations come first
    await caught_up(ledger, owner, dsn)
    number = await owner.fetchval("select number from read_model.tickets where ticket_id = $1", made[1])
    rows = await dump(owner)
    entries = await owner.fetchval("select count(*) from read_model.history where position <= 3")
    checked = set[str]()
    for what, (statement, name, missing, unexpected) in DRIFTS.items():
        await owner.execute(statement.replace("$1", f"'{number}'"))
        drifted = await dump(owner)
        assert drifted != rows, what
        gone = entries if what == "entries that are gone" else missing
        # A check is a rebuild without the swap: once for each read model is enough.
        for swap in (True,) if name in checked else (False, True):
            told = await compared(dsn, names=[name], swap=swap)
            found = {one.projection: (one.missing, one.unexpected, one.clean) for one in told}
            assert found == {name: (gone, unexpected, False)}, what
            (drift,) = told
            assert (drift.made_by, drift.expected) == (PROJECTIONS[name].version, False)
            assert len(drift.differences) == max(gone, unexpected)
            kinds = {(1, 0): "missing", (0, 1): "unexpected", (1, 1): "different"}
            assert {one.what for one in drift.differences} == {kinds[min(gone, 1), unexpected]}, what
            assert drift.differences[0].fields == FIELDS.get(what, []), what
            assert await dump(owner) == (rows if swap else drifted), what
        checked.add(name)
    assert all(one.clean for one in await compared(dsn))


async def test_a_rebuild_of_one_name_leaves_the_others_alone(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn)
    rows, before = await dump(owner), await oids(owner)
    await owner.execute("delete from read_model.people; delete from read_model.history")
    assert [one.projection for one in await compared(dsn, names=["people"], swap=True)] == ["people"]
    after = await oids(owner)
    assert {name for name in PROJECTIONS if before[name] != after[name]} == {"people"}
    assert await dump(owner) == {**rows, "history": []}


async def test_a_name_that_is_none_is_refused_before_anything_is_done(owner: Connection, dsn: str) -> None:
    before = await oids(owner)
    with pytest.raises(UnknownProjection, match=f"tockets; there are {', '.join(PROJECTIONS)}$"):
        await compared(dsn, names=["people", "tockets"], swap=True)
    assert await oids(owner) == before


async def test_one_at_a_time(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 2)
    steps = rebuild(dsn, swap=False)
    await anext(steps)
    with pytest.raises(AlreadyRunning):
        await compared(dsn)
    async for _ in steps:
        pass
    assert all(one.clean for one in await compared(dsn))


async def test_read_models_that_are_not_level_are_left_for_later(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 2)
    await owner.execute("update read_model.checkpoints set position = position - 1 where projection = 'people'")
    with pytest.raises(NotLevel):
        await compared(dsn, swap=True)
    assert [one.projection for one in await compared(dsn, names=["tickets", "history"])] == ["tickets", "history"]


# ------------------------------------------------------------------------------------------- another version

COLUMNS = {
    ("attachments", 1): "c00980ae",
    ("comments", 1): "e0e6ae2a",
    ("counts", 2): "de1d8fbf",
    ("history", 1): "abc8f7ac",
    ("people", 1): "01d90ce9",
    ("periods", 1): "41b76943",
    ("texts", 1): "ec715673",
    ("tickets", 1): "b67a768f",
}
"""The columns of each read model, by its version: a hash of their names and types."""


async def test_a_table_of_other_columns_is_another_version(owner: Connection) -> None:
    """Else a process of the version before, still running, would go on adding its rows to the new tables."""
    rows = await owner.fetch(
        """select c.relname, string_agg(format('%s %s', a.attname, format_type(a.atttypid, null)), ', ' order by attnum)
           from pg_class c join pg_attribute a on a.attrelid = c.oid and attnum > 0 and not attisdropped
           where relnamespace = 'read_model'::regnamespace and relkind = 'r' group by 1"""
    )
    found = {name: sha256(columns.encode()).hexdigest()[:8] for name, columns in rows if name in PROJECTIONS}
    assert {(name, one.version): found[name] for name, one in PROJECTIONS.items()} == COLUMNS, (
        "raise Projection.version where the columns changed, and note them here"
    )


async def test_rows_of_another_version_are_left_to_it_and_made_anew_by_a_rebuild(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await caught_up(ledger, owner, dsn)
    head, rows = await ledger.head(), await dump(owner)
    await owner.execute(
        """update read_model.checkpoints set version = 7 where projection = 'tickets';
           update read_model.tickets set team = 'As it was said by that version' where team is not null"""
    )
    was = await dump(owner)
    async with running(ledger, dsn) as runner:

        async def leads() -> bool:
            return runner.leads

        await live(ledger, 3)
        await asyncio.sleep(0.3)
        assert not await leads()
        assert await dump(owner) == was, "nothing of this version is among them"
        assert {one.position for one in (await read_status(owner)).projections} == {head}
        found = {one.projection: one for one in await compared(dsn, names=["tickets", "people"], swap=True)}
        await eventually(lambda: level(owner))
        assert await leads()
    assert (found["tickets"].expected, found["tickets"].made_by, found["tickets"].clean) == (True, 7, False)
    assert {tuple(one.fields) for one in found["tickets"].differences} == {("team",)}
    assert (found["people"].expected, found["people"].clean) == (False, True)
    assert (await dump(owner))["tickets"] != rows["tickets"]
    await assert_all_is_as_it_should_be(dsn, owner)


# ------------------------------------------------------------------------------------------ nobody is held up


async def test_reads_and_writes_go_on_while_everything_is_rebuilt(ledger: Ledger, owner: Connection, dsn: str) -> None:
    first = await caught_up(ledger, owner, dsn)
    entries = await _entries(ledger, first[3])
    rebuilt = asyncio.Event()
    reads = 0

    async def read() -> None:
        nonlocal reads
        while not rebuilt.is_set():
            found = await tickets.find(tickets.finding(ledger.pool), first[3], internal=True)
            assert found is not None
            assert len((await lists.search(ledger.pool, lists.Filter())).docs) >= len(first)
            assert await _entries(ledger, first[3]) == entries
            assert await people.find(ledger.pool, ADA.id) is None  # was never seen, only acted
            reads += 1

    async def write() -> int:
        written = 0
        while not rebuilt.is_set():
            written += len(await live(ledger, 3))
        return written

    async def make_anew() -> None:
        try:
            for _ in range(2):
                assert all(one.clean for one in await compared(dsn, swap=True))
                await asyncio.sleep(0.1)
        finally:
            rebuilt.set()

    async with running(ledger, dsn, batch_size=50) as runner, asyncio.timeout(30):
        _, _, _, written = await asyncio.gather(make_anew(), read(), read(), write())
        await eventually(lambda: level(owner))
        assert runner.leads
    assert reads > 10
    assert await owner.fetchval("select count(*) from read_model.tickets") == len(first) + written
    await assert_all_is_as_it_should_be(dsn, owner)
    assert await left_beside(owner) == []


async def test_what_came_while_it_was_being_made_is_in_it(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn)
    async with running(ledger, dsn):
        async for step in rebuild(dsn):
            if isinstance(step, Compared) and step.projection == "tickets":
                await live(ledger, 9)
                await eventually(lambda: level(owner))
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_nothing_is_left_behind_when_it_is_given_up(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 3)
    rows = await dump(owner)
    await compared(dsn)
    assert await left_beside(owner) == []
    steps = rebuild(dsn)
    await anext(steps)
    await steps.aclose()
    assert await left_beside(owner) == []
    assert all(one.clean for one in await compared(dsn, swap=True))
    assert await dump(owner) == rows


async def test_what_a_killed_one_left_is_in_nobodys_way(ledger: Ledger, owner: Connection, dsn: str) -> None:
    await caught_up(ledger, owner, dsn, 3)
    rows = await dump(owner)
    steps = rebuild(dsn)
    await anext(steps)  # nothing is made yet
    await anext(steps)
    await owner.execute(
        """select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted
           and database = (select oid from pg_database where datname = current_database())"""
    )
    with pytest.raises((*CONNECTION_LOST, asyncpg.PostgresError)):
        async for _ in steps:
            pass
    assert await left_beside(owner) != []
    assert all(one.clean for one in await compared(dsn, swap=True))
    assert await left_beside(owner) == []
    assert await dump(owner) == rows


async def test_what_was_begun_for_another_shape_is_not_gone_on_with(owner: Connection, dsn: str) -> None:
    job = Job(uuid4(), dsn, ("people",), 0)
    async with connected(dsn) as connection:
        await begin(connection, job)
        assert await unfinished(connection, dsn, job.names) == job
        await owner.execute("comment on schema read_model is 'of another shape'")
        assert await unfinished(connection, dsn, job.names) is None
    assert await compared(dsn)
    assert await left_beside(owner) == []


# ------------------------------------------------------------------------------------------ several processes


async def test_several_processes_make_the_same(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await caught_up(ledger, owner, dsn, 30)
    rows, head = await dump(owner), await ledger.head()
    monkeypatch.setattr(beside, "_FACTS_A_RANGE", 20)
    ranges = await beside._ranges_of(owner)
    assert len(ranges) > 3
    assert sum(one.facts for one in ranges) == head
    assert all(one.last < following.first for one, following in pairwise(ranges))
    steps = [step async for step in rebuild(dsn, workers=2)]
    assert [step.facts for step in steps if isinstance(step, Progress)][-1] == head
    assert all(step.clean for step in steps if isinstance(step, Compared))
    assert await dump(owner) == rows


async def test_its_processes_let_the_runner_catch_up_first_but_wait_for_nobody_for_ever(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await caught_up(ledger, owner, dsn)

    async def waits() -> bool:
        age: float = await owner.fetchval(
            "select extract(epoch from clock_timestamp() - max(recorded_at)) from ledger.events"
        )
        return age > beside._PATIENCE.total_seconds()

    await live(ledger, 1)
    await eventually(waits)
    async with connected(dsn) as worker, connected(dsn) as leader:
        await leader.execute("select pg_advisory_lock($1)", LEADER)
        giving_way = asyncio.create_task(beside.give_way(worker))
        assert await asyncio.wait({giving_way}, timeout=0.2) == (set(), {giving_way}), "the one that leads is behind"
        await leader.execute("select pg_advisory_unlock($1)", LEADER)
        await asyncio.wait_for(giving_way, beside._PAUSE_S * 10)
        assert not await level(owner), "where nobody leads, nobody is waited for"
        async with running(ledger, dsn):
            await eventually(lambda: level(owner))
        await live(ledger, 1)
        await eventually(waits)
        await leader.execute("select pg_advisory_lock($1)", LEADER)
        await asyncio.wait_for(beside.give_way(worker), 10)
    assert not await level(owner), "it went on although the one that leads took nothing in"


async def test_its_processes_end_with_it_when_it_is_killed(
    ledger: Ledger, owner: Connection, dsn: str, tmp_path: Path
) -> None:
    await caught_up(ledger, owner, dsn, 30)
    rows = await dump(owner)
    script = tmp_path / "rebuilding.py"
    script.write_text(
        f"""
import asyncio, os
from projections import beside
from projections.rebuild import rebuild
beside._FACTS_A_RANGE = 5

async def main():
    async for _ in rebuild({dsn!r}, workers=2):
        print(os.getpid(), flush=True)
        await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.kill()
    await process.wait()

    async def nobody_is_left() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(nobody_is_left)
    assert all(one.clean for one in await compared(dsn, swap=True))
    assert await dump(owner) == rows


async def test_killed_again_and_again_it_goes_on_where_it_was_and_makes_the_same(
    ledger: Ledger, owner: Connection, dsn: str, tmp_path: Path
) -> None:
    await caught_up(ledger, owner, dsn, REBUILT_TICKETS)
    rows, head = await dump(owner), await ledger.head()
    script = tmp_path / "rebuilding.py"
    script.write_text(
        f"""
import asyncio, sys
from projections import beside
from projections.rebuild import rebuild
beside._FACTS_A_RANGE = 20

async def main():
    async for step in rebuild({dsn!r}, workers=2):
        print(getattr(step, "facts", -1), flush=True)

asyncio.run(main())
"""
    )
    began, said = list[int](), list[bytes]()
    luck = Random(KILL_SEED)  # noqa: S311 - when to kill it is no secret
    for _ in range(REBUILD_KILLS):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        assert process.stdout is not None
        began.append(int((await process.stdout.readline()) or head))
        for _ in range(luck.randrange(12)):
            await process.stdout.readline()
        await asyncio.sleep(luck.random() * 0.02)
        try:
            os.killpg(process.pid, signal.SIGKILL) if luck.random() < 0.5 else process.kill()
        except ProcessLookupError:
            began.append(0)  # it was through: the next begins anew
        said.append((await process.communicate())[1])
    assert max(began) > 0, "it went on where one that was killed had been"
    assert b"Traceback" not in b"".join(said), "its workers end without a word"
    found: list[Compared] = []

    async def could() -> bool:
        try:
            found.extend(await compared(dsn, swap=True))
        except AlreadyRunning:  # PostgreSQL has not seen yet that the last one is gone
            return False
        return True

    await eventually(could)
    assert all(one.clean for one in found)
    assert await dump(owner) == rows
    assert await left_beside(owner) == []


async def test_while_a_table_is_vacuumed_its_readers_wait_for_no_swap(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    """Vacuuming goes on as long as it likes; it is the swap that waits, and nobody behind it."""
    await caught_up(ledger, owner, dsn)
    tables = await oids(owner)
    async with connected(dsn) as vacuuming:
        holding = vacuuming.transaction()
        await holding.start()
        await vacuuming.execute("lock table read_model.tickets in share update exclusive mode")
        rebuilding = asyncio.create_task(compared(dsn, swap=True))

        async def waits() -> bool:
            return bool(await owner.fetchval("select count(*) from pg_locks where not granted"))

        await eventually(waits)
        async with asyncio.timeout(5):
            assert await owner.fetchval("select count(*) from read_model.tickets") == 9
        async with asyncio.timeout(5), running(ledger, dsn):
            await live(ledger, 1)
            await eventually(lambda: level(owner))
        assert await oids(owner) == tables
        await holding.rollback()
        assert all(one.clean for one in await rebuilding)
    assert not set((await oids(owner)).values()) & set(tables.values())
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_while_somebody_reads_for_long_nobody_else_waits_for_the_swap(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    """A replay, a dump, a session that was left open: the swap gives way to all others, and comes when it is over."""
    await caught_up(ledger, owner, dsn)
    tables = await oids(owner)
    async with running(ledger, dsn), connected(dsn) as reading:
        holding = reading.transaction()
        await holding.start()
        await reading.fetch("select from read_model.tickets")
        rebuilding = asyncio.create_task(compared(dsn, swap=True))
        slowest, waited = 0.0, 0
        while waited < 3:
            began = time.monotonic()
            assert await owner.fetchval("select count(*) from read_model.tickets", timeout=10) >= 9
            took = time.monotonic() - began
            slowest, waited = max(slowest, took), waited + (took > 0.05)
            assert not rebuilding.done()
            await asyncio.sleep(0.005)
        await live(ledger, 1)
        await eventually(lambda: level(owner))
        assert slowest < 2, "0.2 s, on a machine that has other things to do as well"
        assert await oids(owner) == tables
        await holding.rollback()
        assert all(one.clean for one in await rebuilding)
    assert not set((await oids(owner)).values()) & set(tables.values())
    await assert_all_is_as_it_should_be(dsn, owner)


async def test_what_a_killed_one_had_taken_out_of_place_goes_with_the_next(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    await caught_up(ledger, owner, dsn, 1)
    await owner.execute("create table rebuild.tickets_replaced (like read_model.tickets including all)")
    await owner.execute("alter table rebuild.tickets_replaced owner to tickets_service")
    assert all(one.clean for one in await compared(dsn, swap=True))
    assert await left_beside(owner) == []


async def test_one_of_its_processes_being_killed_ends_it_and_leaves_nothing(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await caught_up(ledger, owner, dsn, 30)
    rows = await dump(owner)
    monkeypatch.setattr(beside, "_FACTS_A_RANGE", 5)
    steps = rebuild(dsn, workers=2)
    await anext(steps)  # nothing is made yet
    await anext(steps)
    workers = workers_of(os.getpid())
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(WorkerDied):
        async for _ in steps:
            pass
    assert await left_beside(owner) == []
    assert await dump(owner) == rows


# ----------------------------------------------------------------------------------------------------- parked


async def test_a_stream_that_is_still_broken_stays_parked(ledger: Ledger, owner: Connection, dsn: str) -> None:
    stream = uuid4()
    await store(owner, stream, 1, created(stream))
    position = await store(owner, stream, 2, **broken(stream)["a topic that nobody knows"])
    await caught_up(ledger, owner, dsn)
    before = await dump(owner)
    assert {row[:3] for row in before["parked"]} == {(name, stream, position) for name in PROJECTIONS}
    assert all(one.clean for one in await compared(dsn, swap=True))
    assert await dump(owner) == before
    await store(owner, stream, 3, assigned(stream, 3))
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    assert await dump(owner) == before, "and what comes after it is passed over as before"


async def test_a_stream_that_can_be_digested_by_now_is_parked_no_longer(
    ledger: Ledger, owner: Connection, dsn: str
) -> None:
    (stream, *_) = await live(ledger, 3)
    await owner.execute("insert into read_model.parked values ('tickets', $1, 1, 'an old mistake', now())", stream)
    async with running(ledger, dsn):
        await eventually(lambda: level(owner))
    assert await tickets.find(tickets.finding(ledger.pool), stream, internal=True) is None
    (found, *others) = await compared(dsn)
    assert (found.missing, found.unexpected, {one.clean for one in others}) == (1, 0, {True})
    await compared(dsn, names=["people"], swap=True)
    assert len((await read_status(owner)).parked) == 1, "another name's rebuild is not its own"
    await compared(dsn, names=["tickets"], swap=True)
    assert (await read_status(owner)).parked == []
    assert await tickets.find(tickets.finding(ledger.pool), stream, internal=True) is not None
    await assert_all_is_as_it_should_be(dsn, owner)


@pytest.mark.parametrize("facts_a_range", [1, 10_000])
async def test_a_row_that_the_database_refuses_parks_its_stream_as_the_runner_does(
    ledger: Ledger, owner: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch, facts_a_range: int
) -> None:
    first = uuid4()
    await store(owner, first, 1, created(first, number="TKT-1"))
    for what in refused(first):
        stream = uuid4()
        await store(owner, stream, 1, refused(stream)[what])
        await store(owner, stream, 2, assigned(stream, 2))
    await store(owner, first, 2, replace(assigned(first, 2), team="a\0b"))
    await caught_up(ledger, owner, dsn)
    before = await dump(owner)
    assert len(before["parked"]) > len(refused(first))
    monkeypatch.setattr(beside, "_FACTS_A_RANGE", facts_a_range)
    assert all(one.clean for one in await compared(dsn, swap=True))
    after = await dump(owner)
    assert [row[:3] for row in after.pop("parked")] == [row[:3] for row in before.pop("parked")]
    assert after == before


async def _entries(ledger: Ledger, ticket_id: UUID) -> int:
    page = await history.reading(ledger.pool)(history.Wanted(ticket_id=ticket_id))
    assert page is not None
    return page.total
