"""The disk is full, that of the database and of the files: it says so, keeps its word, and goes on by itself.

Deliberately absent: a storage of files that is away or read-only by itself (tests/api/test_storage.py).
"""

import asyncio
import os
import random
import time
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

from api.problems import HANDLERS, on_connection_lost
from tests.conftest import start_service
from tests.faults import clusters
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.conftest import Tell, limits
from tests.faults.disks import small
from tests.faults.test_upload_faults import Crowd as Uploaders
from tests.faults.test_upload_faults import assert_all_files_are_there
from tests.projections.test_runner import ASKED
from tickets import snapshots
from tickets.commands import Create
from tickets.connections import OUT_OF_SERVICE, Connection, connected
from tickets.handler import Handler
from tickets.ledger import Ledger
from tickets.values import Category

FILLS = int(os.environ.get("DISK_FILLS", "1"))
"""How often the disk is filled."""
LONGEST_S, HEALED_S = limits(long=FILLS > 1)


async def _keep_full(ballast: Path) -> None:
    """Take what there is, and what becomes free."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
        while True:
            await asyncio.sleep(0.05)
            try:
                file.write(bytes(4096))
            except OSError:
                continue


async def _both_are_refused(crowd: Crowd, uploaders: Uploaders) -> None:
    commands, files = len(crowd.refusals) + 16, uploaders.refused + 4
    await crowd.until(lambda: len(crowd.refusals) >= commands and uploaders.refused >= files, timeout=60)


async def test_while_the_disk_is_full_commands_and_files_are_refused_in_time_and_once_there_is_room_all_goes_on(
    original: Path, tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    with (
        small(tmp_path, 160) as disk,
        clusters.copied(original, disk / "data", started=False) as cluster,
    ):
        service = await asyncio.to_thread(
            start_service, "", tmp_path, DATABASE_URL="", DATA_DIR=str(cluster.folder), LOG_LEVEL="WARNING"
        )
        crowd, uploaders = Crowd(8, chance=chance), Uploaders(2)
        try:
            crowd.url = uploaders.url = service.url
            crowd.start()
            uploaders.start()
            for _ in range(FILLS):
                await crowd.acknowledges(20)
                await uploaders.attaches(2)
                began = time.monotonic()
                filling = asyncio.create_task(_keep_full(disk / "ballast"))
                await _both_are_refused(crowd, uploaders)
                filling.cancel()
                (disk / "ballast").unlink()
                healed = time.monotonic()
                took = await crowd.answers(healed, HEALED_S)
                await uploaders.attaches(2, HEALED_S)
                slowest, slowest_file = crowd.all_attempts.slowest(began), uploaders.all_attempts.slowest(began)
                tell(
                    f"disk full: the slowest request took {slowest:.2f} s, of a file {slowest_file:.2f} s; commands "
                    f"again after {took:.2f} s, files after {time.monotonic() - healed:.2f} s"
                )
                assert max(slowest, slowest_file) < LONGEST_S
            await crowd.leave()
            await uploaders.leave()
            async with connected(cluster.dsn, role=None) as owner:
                await assert_that_is_what_happened(crowd, owner, cluster.dsn, cluster.folder, alone=False)
                await assert_all_files_are_there(uploaders, service, owner)
            assert "Traceback" not in service.log.read_text(), "it is no fault of the service"
            assert await asyncio.to_thread(service.stop) == 0
        finally:
            service.process.kill()
            service.process.wait()


async def test_where_postgresql_takes_nothing_any_more_that_is_503_and_no_snapshot_makes_an_error_of_what_is_done(
    ledger: Ledger, owner: Connection
) -> None:
    """It says so by the same kind of error, and here it can be had for new connections alone."""
    handler = Handler(ledger, _nobody)
    made = Create(title="Number one", description="…", category=Category.INCIDENT)
    ticket = (await handler.handle(made, None, ASKED)).ticket
    await owner.execute(
        f"alter database {await owner.fetchval('select current_database()')} set default_transaction_read_only = on"
    )
    await ledger.pool.expire_connections()
    with pytest.raises(OUT_OF_SERVICE):
        await snapshots.keep(ledger.pool, ticket)
    await handler._keep_if_worth_it(replace(ticket, version=500), 499)
    with pytest.raises(OUT_OF_SERVICE) as refused:
        await handler.handle(made, None, ASKED)  # a number is drawn for it
    assert on_connection_lost in (HANDLERS.get(kind) for kind in refused.type.__mro__)


async def _nobody(_person_id: UUID) -> None:
    return None
