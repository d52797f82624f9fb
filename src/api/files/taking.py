"""Taking a file in: received, looked at, scanned, kept, and only then attached.

Deliberately absent: each of these steps; they have modules of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from api.files.archives import Limits, UnsafeArchive
from api.files.inspection import WrongKind, extension_of, inspect
from api.files.receiving import Received, Terms, received
from api.files.scanning import ScannerAway, scan
from api.files.storage import Storage
from api.problems import Problem
from api.requests import ApiRequest
from api.settings import Settings
from tickets.commands import Attach
from tickets.connections import PATIENCE_S, connected
from tickets.values import Scan

_INSPECTED_AT_ONCE: Final = 2
_SCANNED_AT_ONCE: Final = 2
_KEPT_AT_ONCE: Final = 4
_CONTENT: Final = 0x636F6E74656E74
"""Sets the advisory locks on contents apart from others: "content", as a number."""

_log: Final = structlog.get_logger(__name__)


class Files:
    """What this process takes files in with, and gives them out."""

    def __init__(self, settings: Settings, dsn: str, storage: Storage) -> None:
        """Nothing is being taken in yet."""
        self.storage: Final = storage
        self.scanner: Final = settings.clamav_url
        self._dsn = dsn
        self._terms = Terms(
            extensions=settings.allowed_file_extensions,
            largest=settings.max_file_size_mb * 1024 * 1024,
            patience=settings.upload_timeout_ms / 1000,
        )
        self._limits = Limits(
            entries=settings.max_archive_entries,
            bytes=settings.max_archive_size_mb * 1024 * 1024,
            ratio=settings.max_archive_ratio,
            depth=settings.max_archive_depth,
        )
        self._places = settings.uploads_at_once
        self._inspecting = asyncio.Semaphore(_INSPECTED_AT_ONCE)
        self._scanning = asyncio.Semaphore(_SCANNED_AT_ONCE)
        self._keeping = asyncio.Semaphore(_KEPT_AT_ONCE)

    @asynccontextmanager
    async def taken(
        self, request: ApiRequest, considered: Callable[[Attach | None], Awaitable[None]]
    ) -> AsyncIterator[Attach]:
        """What can be asked with the file that the request brings; its bytes are kept, and not removed meanwhile.

        It is `considered` whether it may come, before there is anything of it and once it is there. Raises
        InvalidRequest, Problem, StorageAway, and what `considered` raises.
        """
        if not self._places:
            raise Problem("overloaded", "Too many files are coming in at the same time.")
        self._places -= 1
        try:
            await considered(None)
            async with received(request, self.storage, self._terms) as file:
                attach = await self._looked_at(file)
                await considered(attach)
                if attach.infected is not None:
                    yield attach
                    return
                async with self._keeping, content_lock(self._dsn, file.sha256, shared=True):
                    await self.storage.keep(file.path, file.sha256)
                    yield attach
        finally:
            self._places += 1

    async def _looked_at(self, file: Received) -> Attach:
        extension = extension_of(file.filename)
        async with self._inspecting:
            try:
                content_type = await asyncio.to_thread(
                    inspect, file.file, extension, file.size, self._limits, self.storage.incoming
                )
            except WrongKind as error:
                raise Problem("unsupported-media-type", f"{file.filename}: {error}.") from None
            except UnsafeArchive as error:
                raise Problem("unsafe-archive", f"{file.filename}: {error}.") from None
        verdict, infected = await self._scanned(file)
        return Attach(
            filename=file.filename,
            content_type=content_type,
            size=file.size,
            sha256=file.sha256,
            scan=verdict,
            infected=infected,
        )

    async def _scanned(self, file: Received) -> tuple[Scan, str | None]:
        if self.scanner is None:
            return Scan.UNSCANNED, None
        try:
            async with self._scanning:
                infected = await asyncio.to_thread(scan, self.scanner, file.file)
        except ScannerAway as error:
            _log.warning("scanner.away", error=str(error), sha256=file.sha256)
            return Scan.QUARANTINED, None
        return (Scan.CLEAN, None) if infected is None else (Scan.QUARANTINED, infected)


@asynccontextmanager
async def content_lock(dsn: str, sha256: str, *, shared: bool, patience: float = PATIENCE_S) -> AsyncIterator[None]:
    """Keep others from removing (shared) or attaching (not shared) what has this SHA-256."""
    kind = "_shared" if shared else ""
    async with connected(dsn, statement_timeout=patience) as connection:
        await connection.execute(f"select pg_advisory_lock{kind}($1)", int(sha256[:15], 16) ^ _CONTENT)
        yield  # it is given back with the connection, of which nothing has to come any more
