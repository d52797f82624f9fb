"""The power is cut in the middle of writing: what was acknowledged is there when it is back.

The disk is a file system in a file that is shut down without its journal, so that everything is lost that was not
synchronised; and it is shown that this loses what was acknowledged where PostgreSQL is told not to synchronise.
Deliberately absent: disks that lie about what they have written.
"""

import asyncio
import os
import random
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from api.embedded import EmbeddedServerError
from api.files.storage import Storage, StorageAway
from tests.conftest import eventually, start_service
from tests.faults import clusters
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.clusters import Cluster
from tests.faults.conftest import Tell, assert_back_in_time
from tests.faults.disks import Disk, journaled
from tests.faults.test_service_faults import LONGEST_S, told
from tests.faults.test_upload_faults import Crowd as Uploaders
from tests.faults.test_upload_faults import assert_all_files_are_there
from tests.tickets.test_ledger import appending
from tickets.connections import CONNECTION_LOST, connected
from tickets.errors import LedgerUnavailable
from tickets.ledger import Ledger

POWER_CUTS = int(os.environ.get("POWER_CUTS", "0"))
"""How often the power of the whole service is cut, in the long form."""
WRITERS, ENOUGH = 8, 60
CONFIGURATION = "max_wal_size = 64MB\nwal_recycle = off\n"


async def _write_until_it_is_cut(cluster: Cluster, storage: Storage, disk: Disk) -> tuple[set[UUID], set[str]]:
    """What was acknowledged: commands, and contents that were kept."""
    acknowledged, kept = set[UUID](), set[str]()

    async def append(ledger: Ledger) -> None:
        with suppress(LedgerUnavailable, *CONNECTION_LOST):
            while True:
                one = appending(uuid4(), 0)
                assert (await ledger.append(one)).verdict == "appended"
                acknowledged.add(one.command_id)

    async def keep() -> None:
        with suppress(StorageAway, OSError):
            while True:
                content = os.urandom(5_000)
                name = sha256(content).hexdigest()
                path = storage.incoming / name
                await asyncio.to_thread(path.write_bytes, content)
                await storage.keep(path, name)
                kept.add(name)

    async with Ledger.open(cluster.dsn, timeout=2) as ledger:
        writing = [asyncio.create_task(append(ledger)) for _ in range(WRITERS)]
        keeping = asyncio.create_task(keep())

        async def enough() -> bool:
            return len(acknowledged) >= ENOUGH and len(kept) >= 3

        await eventually(enough)
        disk.cut()
        cluster.kill(random.Random(0))  # noqa: S311 - in whatever order
        await asyncio.gather(*writing, keeping)
    return acknowledged, kept


async def _there(cluster: Cluster) -> set[UUID]:
    async with connected(cluster.dsn, role=None) as connection:
        return {row[0] for row in await connection.fetch("select command_id from ledger.events")}


async def _after_a_power_cut(original: Path, folder: Path, configuration: str) -> tuple[set[UUID], set[str]]:
    """What of that which was acknowledged is not there any more: commands and contents."""
    with (
        journaled(folder, 256) as disk,
        clusters.copied(original, disk.path / "data", CONFIGURATION + configuration, started=False) as cluster,
    ):
        storage = Storage(disk.path / "uploads")
        await asyncio.to_thread(cluster.start)
        disk.synchronise()
        acknowledged, kept = await _write_until_it_is_cut(cluster, storage, disk)
        await disk.power_is_back()
        try:
            await asyncio.to_thread(cluster.start)
            there = await _there(cluster)
        except (EmbeddedServerError, *CONNECTION_LOST):
            there = set()
        whole = {
            name
            for name in kept
            if (path := disk.path / "uploads" / "objects" / name[:2] / name).exists()
            and sha256(path.read_bytes()).hexdigest() == name
        }
        return acknowledged - there, kept - whole


async def test_after_a_power_cut_all_that_was_acknowledged_is_there(original: Path, tmp_path: Path) -> None:
    assert await _after_a_power_cut(original, tmp_path, "fsync = on\n") == (set(), set())


async def test_where_postgresql_does_not_synchronise_a_power_cut_loses_what_was_acknowledged(
    original: Path, tmp_path: Path
) -> None:
    lost, _ = await _after_a_power_cut(original, tmp_path, "fsync = off\n")
    assert lost, "or cutting the power would show nothing"


@pytest.mark.skipif(not POWER_CUTS, reason="the long form: POWER_CUTS=20")
async def test_power_that_is_cut_again_and_again_under_the_service_loses_no_command_and_no_file(
    original: Path, tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    recoveries = list[float]()
    with (
        journaled(tmp_path, 512) as disk,
        clusters.copied(original, disk.path / "data", started=False) as cluster,
    ):
        disk.synchronise()
        crowd, uploaders = Crowd(12, chance=chance), Uploaders(4)
        service = await asyncio.to_thread(start_service, "", cluster.folder, DATABASE_URL="")
        try:
            crowd.url = uploaders.url = service.url
            crowd.start()
            uploaders.start()
            for _ in range(POWER_CUTS):
                await crowd.acknowledges(50 + chance.randrange(200))
                await uploaders.attaches(3)
                cut = time.monotonic()
                disk.cut()
                service.process.kill()
                service.process.wait()
                cluster.kill(chance)
                await disk.power_is_back()
                service = await asyncio.to_thread(start_service, "", cluster.folder, DATABASE_URL="")
                crowd.url = uploaders.url = service.url
                recoveries.append(await crowd.answers(cut, LONGEST_S))
            assert_back_in_time(recoveries)
            await uploaders.attaches(3)
            await crowd.leave()
            await uploaders.leave()
            async with connected(cluster.dsn, role=None) as owner:
                await assert_that_is_what_happened(crowd, owner, cluster.dsn, cluster.folder, alone=False)
                await assert_all_files_are_there(uploaders, service, owner)
            assert await asyncio.to_thread(service.stop) == 0
        finally:
            service.process.kill()
            service.process.wait()
    tell(told("power cuts", recoveries, crowd) + f"; {len(uploaders.acknowledged)} files, all there")
