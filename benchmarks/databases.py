"""The PostgreSQL server that is measured on, and databases on it.

Without DATABASE_URL it is the embedded one, as the service starts it, in a folder beside the results: on
the disk, because /tmp may be memory, where a commit costs nothing. Either way commits must be durable.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
from msgspec import Struct

from api.database import apply_schema
from api.embedded import embedded_server
from tickets.connections import connect, connected

DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
"""Settings without which a commit is not a commit."""

SHOWN: Final = (*DURABLE, "server_version", "shared_buffers", "max_wal_size", "wal_compression", "max_connections")

_QUIET_LOOKS: Final = 5
_BETWEEN_LOOKS_S: Final = 0.05
_QUIET_WITHIN_S: Final = 300.0


class Server(Struct, frozen=True):
    """A PostgreSQL server that databases can be made on."""

    dsn: str
    kept: dict[str, str] = {}
    """URLs of the databases that benchmarks share, by what is in them."""

    async def settings(self) -> dict[str, str]:
        """How the server is set. Raises AssertionError where its commits are not durable."""
        connection = await connect(self.dsn, role=None)
        try:
            found: dict[str, str] = {name: await connection.fetchval(f"show {name}") for name in SHOWN}
        finally:
            await connection.close()
        for name, value in DURABLE.items():
            assert found[name] == value, f"{name} is {found[name]}: without durable commits the figures mean nothing"
        return found

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """The URL of a database with the schema and nothing in it, which goes away afterwards."""
        dsn = await self._make()
        try:
            yield dsn
        finally:
            await self._drop(dsn)

    async def filled(self, what: str, fill: Callable[[str], Awaitable[None]], *, schema: bool = True) -> str:
        """The URL of a database that is filled the first time it is asked for, and kept till the end.

        Without `schema` there is nothing in it before. It is vacuumed then, as the database would do within a minute,
        while somebody is measured.
        """
        if what not in self.kept:
            dsn = await self._make(schema=schema)
            self.kept[what] = dsn
            await fill(dsn)
            async with connected(dsn, role=None, timeout=600) as connection:
                await connection.execute("vacuum analyze")
        return self.kept[what]

    async def drop_kept(self) -> None:
        """Drop the databases that were kept."""
        for what in list(self.kept):
            await self._drop(self.kept.pop(what))

    async def settle(self) -> None:
        """Have what was written so far on disk, so that nobody pays for what was measured before."""
        with suppress(asyncpg.InsufficientPrivilegeError):
            await self._execute("checkpoint")

    async def quiet(self) -> None:
        """Wait until nobody works on it: who was measured last may have left questions that nobody waits for."""
        async with connected(self.dsn, role=None) as connection, asyncio.timeout(_QUIET_WITHIN_S):
            quiet = 0
            while quiet < _QUIET_LOOKS:
                busy = await connection.fetchval(
                    """select exists (select from pg_stat_activity where pid <> pg_backend_pid() and state <> 'idle'
                       and backend_type in ('client backend', 'autovacuum worker'))"""
                )
                quiet = 0 if busy else quiet + 1
                await asyncio.sleep(_BETWEEN_LOOKS_S)

    async def _make(self, *, schema: bool = True) -> str:
        name = f"tickets_bench_{uuid4().hex[:12]}"
        await self._execute(f"create database {name}")
        dsn = urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))
        if schema:
            await apply_schema(dsn)
        return dsn

    async def _drop(self, dsn: str) -> None:
        await self._execute(f"drop database {urlsplit(dsn).path[1:]} with (force)")

    async def _execute(self, statement: str) -> None:
        connection = await connect(self.dsn, role=None, timeout=30)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def running_server(url: str | None, folder: Path) -> Iterator[str]:
    """The URL of the server that is set, or of an embedded one that runs meanwhile in `folder`."""
    if url:
        yield url
    else:
        with embedded_server(folder / "data") as dsn:
            yield dsn
