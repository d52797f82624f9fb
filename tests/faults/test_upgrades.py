"""Another version beside, and another time: two versions of the service on one ledger, and a ledger that was restored.

The version before is this one with one of its read models as that version had it, which is what it differs in for the
others (ARCHITECTURE.md, "What an upgrade does to read models"). That every topic ever stored can be read is shown by
tests/tickets/test_golden_facts.py. Deliberately absent: the code of the version before.
"""

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from api import embedded
from api.checkpointing import Checkpointer
from api.settings import Settings
from projections.runner import PROJECTIONS, of_other_versions
from tests.api.test_cli import tickets
from tests.conftest import Service, eventually
from tests.faults import clusters
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.conftest import Tell
from tests.projections.test_runner import compared, level, live, running
from tickets.connections import Connection, connect, connected
from tickets.ledger import Ledger

UPGRADES = int(os.environ.get("UPGRADES", "0"))
"""How often a service is replaced by one of another version, in the long form."""

VERSION_BEFORE = """
from msgspec.structs import replace
from projections.runner import PROJECTIONS

one = PROJECTIONS["history"]
PROJECTIONS["history"] = replace(one, version=one.version - 1)
"""
"""Python runs it at its start where it is a module of this name: in the service, and in what that starts."""


@pytest.mark.skipif(not UPGRADES, reason="the long form: UPGRADES=5")
async def test_two_versions_on_one_ledger_lose_nothing_and_the_newer_one_has_the_read_models(
    own_service: Callable[..., Service],
    owner: Connection,
    dsn: str,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "sitecustomize.py").write_text(VERSION_BEFORE)
    crowd = Crowd(8, shared=4, chance=chance)
    for _ in range(UPGRADES):
        older = await asyncio.to_thread(own_service, PYTHONPATH=str(tmp_path / "before"))
        await eventually(lambda: _are_of(owner, {"history": PROJECTIONS["history"].version - 1}))
        crowd.urls = [older.url]
        if not crowd.history:
            crowd.start()
        await crowd.acknowledges(30)
        newer = await asyncio.to_thread(own_service)
        crowd.urls = [older.url, newer.url]
        await eventually(lambda: _are_of(owner, {}))
        await crowd.acknowledges(60)
        crowd.urls = [newer.url]
        assert await asyncio.to_thread(older.stop) == 0
        await crowd.acknowledges(10)
    await crowd.leave()
    await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)
    tell(f"{UPGRADES} upgrades under load: {len(crowd.history)} operations on two versions, linearizable, nothing lost")


async def _are_of(owner: Connection, versions: dict[str, int]) -> bool:
    """Whether these, and no other read models, are of another version than this one's."""
    made = await owner.fetchval("select count(*) from read_model.checkpoints")
    return made == len(PROJECTIONS) and await of_other_versions(owner) == versions


@asynccontextmanager
async def signing(dsn: str, folder: Path) -> AsyncIterator[Callable[[int], "asyncio.Future[None]"]]:
    """Signs checkpoints in that folder; waits until there is one of a size."""
    settings = Settings(data_dir=folder, checkpoint_seconds=0.1)
    checkpointer = Checkpointer(settings, lambda: connect(dsn))
    task = asyncio.create_task(checkpointer.run())

    async def reaches(size: int) -> None:
        async def did() -> bool:
            return bool(checkpointer.health["size"] >= size and checkpointer.health["outside"] == "ok")

        await eventually(did)

    try:
        yield lambda size: asyncio.ensure_future(reaches(size))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_restored_to_a_point_in_time_the_ledger_is_whole_and_is_told_from_one_that_goes_on(
    original: Path, tmp_path: Path, tell: Tell
) -> None:
    archive, base, signed = tmp_path / "archive", tmp_path / "base", tmp_path / "signed"
    archive.mkdir()
    # Renamed once it is whole: a segment that is still being copied is none.
    archives = f'cp "%p" "{archive}/%f.part" && mv "{archive}/%f.part" "{archive}/%f"'
    archiving = f"archive_mode = on\narchive_command = '{archives}'\nwal_level = replica\n"
    with clusters.copied(original, tmp_path / "first", archiving) as cluster:
        async with Ledger.open(cluster.dsn) as ledger, signing(cluster.dsn, signed) as signs:
            await live(ledger, 4)
            await signs(await ledger.head())
            shutil.copytree(signed / "checkpoints", tmp_path / "older")
            await asyncio.to_thread(_back_up, cluster.sockets, base)
            await live(ledger, 2)
            await signs(point := await ledger.head())  # so that none is outside and not in the database yet
            async with connected(cluster.dsn, role=None) as owner:
                await owner.execute("select pg_create_restore_point('noon')")
                await live(ledger, 2)
                await signs(await ledger.head())
                shutil.copytree(signed / "checkpoints", tmp_path / "newer")
                last = await owner.fetchval("select pg_walfile_name(pg_switch_wal())")

                async def is_archived(segment: Path = archive / last) -> bool:
                    return await asyncio.to_thread(segment.exists)

                await eventually(is_archived, timeout=30)
            lost = await ledger.head() - point
    (tmp_path / "second").mkdir(mode=0o700)
    base.rename(tmp_path / "second" / "postgres")
    (tmp_path / "second" / "postgres" / "recovery.signal").touch()
    restored = clusters.Cluster(
        tmp_path / "second",
        f"restore_command = 'cp \"{archive}/%f\" \"%p\"'\nrecovery_target_name = 'noon'\n"
        "recovery_target_action = 'promote'\n",
    )
    try:
        await asyncio.to_thread(restored.start)
        async with connected(restored.dsn, role=None) as owner, Ledger.open(restored.dsn) as ledger:

            async def is_promoted() -> bool:
                return not await owner.fetchval("select pg_is_in_recovery()")

            await eventually(is_promoted)
            assert await ledger.head() == point
            where = {"DATABASE_URL": restored.dsn, "DATA_DIR": str(signed)}
            older = await asyncio.to_thread(tickets, "verify", "--checkpoint", str(tmp_path / "older"), **where)
            assert older.returncode == 0, older.stdout + older.stderr
            newer = await asyncio.to_thread(
                tickets, "verify", "--json", "--checkpoint", str(tmp_path / "newer"), **where
            )
            assert newer.returncode == 1, newer.stdout + newer.stderr
            finding = json.loads(newer.stdout)["finding"]
            assert finding["position"] == point + 1
            assert "covers facts that are not there" in finding["what"]
            async with running(ledger, restored.dsn):
                await live(ledger, 1)
                await eventually(lambda: level(owner))
        assert all(one.clean for one in await compared(restored.dsn)), "and it goes on from there"
    finally:
        restored.stop("immediate")
    tell(f"restored to position {point}, {lost} facts short: verified against an older checkpoint, told by a newer")


def _back_up(sockets: Path, base: Path) -> None:
    embedded._run(
        "pg_basebackup", f"--host={sockets}", "--username=postgres", f"--pgdata={base}", "--checkpoint=fast",
        "--wal-method=none", "--no-manifest",
    )  # fmt: skip
