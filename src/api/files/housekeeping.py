"""What is done with files when nobody asks: those in quarantine are scanned again, bytes that nothing names go.

One process does it, the one whose runner leads. Deliberately absent: taking files in (taking.py).
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from time import monotonic, time
from typing import Final

import structlog
from eventsourcing.persistence import MapperDeserialisationError

from api.files.scanning import ScannerAway, answers, scan
from api.files.storage import Storage, StorageAway
from api.files.taking import Files, content_lock
from api.settings import Settings
from projections import attachments
from projections.attachments import ATTACHMENTS, AttachmentView
from projections.runner import Runner
from tickets.connections import CANNOT_CONNECT, Connection, Pool, connected
from tickets.errors import Refusal
from tickets.handler import Handler
from tickets.ticket import BrokenStream

_RESCANNED_AT_ONCE: Final = 20
_ABANDONED: Final = timedelta(hours=1)
"""After this, what an upload left that never came to its end is nobody's any more."""

_PATIENCE_S: Final = 60.0
"""How long one statement may take; what does not answer then never will."""

_LOOKS: Final = 20
_BETWEEN_LOOKS_S: Final = 0.05

_log: Final = structlog.get_logger(__name__)


async def keep_house(settings: Settings, files: Files, runner: Runner, handler: Handler, pool: Pool, dsn: str) -> None:
    """Do it again and again, as long as the runner leads; never ends by itself."""
    swept_at = float("-inf")
    while True:
        try:
            if runner.leads and files.scanner is not None:
                await rescan(files, handler, pool, files.scanner)
            if runner.leads and monotonic() - swept_at > settings.sweep_minutes * 60:
                await sweep(files.storage, dsn, timedelta(days=settings.attachment_retention_days))
                swept_at = monotonic()
        except (StorageAway, Refusal, *CANNOT_CONNECT) as error:
            _log.warning("housekeeping.interrupted", error=repr(error))
        await asyncio.sleep(settings.rescan_seconds)


async def rescan(files: Files, handler: Handler, pool: Pool, scanner: str) -> None:
    """Have the scanner look at what came while it was away; what it cannot look at keeps nothing else waiting."""
    after = 0
    while some := await attachments.waiting(pool, _RESCANNED_AT_ONCE, after):
        for position, one in some:
            after = position
            try:
                infected = await _scanned(files.storage, one, scanner)
                await handler.note_scan(one.ticket_id, one.id, infected)
            except (ScannerAway, StorageAway, Refusal, BrokenStream, MapperDeserialisationError) as error:
                _log.warning("attachment.not_rescanned", attachment_id=str(one.id), error=repr(error))
                away = isinstance(error, StorageAway) and not isinstance(error.__cause__, FileNotFoundError)
                if away or (isinstance(error, ScannerAway) and not await asyncio.to_thread(answers, scanner)):
                    return
            else:
                _log.info("attachment.rescanned", attachment_id=str(one.id), infected=infected)


async def _scanned(storage: Storage, one: AttachmentView, scanner: str) -> str | None:
    with TemporaryFile(dir=storage.incoming) as file:
        async for chunk in storage.read(one.sha256, 0, one.size):
            file.write(chunk)
        return await asyncio.to_thread(scan, scanner, file)


async def sweep(storage: Storage, dsn: str, retention: timedelta, abandoned: timedelta = _ABANDONED) -> int:
    """Remove the bytes that no attachment names, or named until `retention` ago; returns how many contents.

    What is younger than `abandoned` may yet be attached. Raises StorageAway.
    """
    _forget_abandoned(storage, abandoned)
    removed, before = 0, datetime.now(UTC) - abandoned
    async for sha256 in _unnamed(storage, dsn, retention, before):
        async with (
            content_lock(dsn, sha256, shared=False, patience=_PATIENCE_S),
            connected(dsn, statement_timeout=_PATIENCE_S) as connection,
        ):
            if not await _knows_all(connection):
                _log.warning("sweep.postponed", reason="the read model of attachments does not know all facts")
                return removed
            # It may have been kept again since, by somebody whose lock was lost with their connection.
            if await attachments.named(connection, [sha256], retention) or await storage.modified_at(sha256) >= before:
                continue
            await storage.remove(sha256)
            removed += 1
    if removed:
        _log.info("sweep.done", removed=removed)
    return removed


async def _knows_all(connection: Connection) -> bool:
    """Whether the read model has come to where the ledger is now, or does soon, and nothing of it is parked."""
    head: int = await connection.fetchval("select position from ledger.head")
    for _ in range(_LOOKS):
        position: int | None = await connection.fetchval(
            """select c.position from read_model.checkpoints c
               where c.projection = $1 and not exists (select from read_model.parked p where p.projection = $1)""",
            ATTACHMENTS.name,
        )
        if position is None or position >= head:
            return position is not None
        await asyncio.sleep(_BETWEEN_LOOKS_S)
    return False


async def _unnamed(storage: Storage, dsn: str, retention: timedelta, before: datetime) -> AsyncIterator[str]:
    async with connected(dsn, statement_timeout=_PATIENCE_S) as connection:
        async for some in storage.all():
            old = [one.sha256 for one in some if one.modified_at < before]
            named = await attachments.named(connection, old, retention)
            for sha256 in old:
                if sha256 not in named:
                    yield sha256


def _forget_abandoned(storage: Storage, abandoned: timedelta) -> None:
    """Remove what was being received by a process that is no more."""
    for path in storage.incoming.iterdir():
        try:
            if path.stat().st_mtime < time() - abandoned.total_seconds():
                path.unlink()
                _log.info("sweep.abandoned", file=path.name)
        except FileNotFoundError:  # it came to its end meanwhile
            continue
