"""Connections to the database: as whom, for how long it is waited for, and how it shows that it is gone.

A network that swallows what is sent says nothing: what shows it is that no answer comes. So nothing here waits for one
without end, neither for a connection nor for taking leave of it. Deliberately absent: statements.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    AnyConnection = Connection | PoolConnectionProxy[asyncpg.Record]
    _Acquiring = PoolAcquireContext[asyncpg.Record]
else:  # generic in their stubs only
    Connection, Pool, _Acquiring = asyncpg.Connection, asyncpg.Pool, PoolAcquireContext

PATIENCE_S: Final = 4.0
"""How long the database is waited for where nobody says otherwise."""

_KEEPALIVES: Final = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
"""By these the database notices within half a minute that a process of ours is cut off, and gives back its locks:
others lead then. By default that takes two hours."""

CONNECTION_LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.exceptions.OperatorInterventionError,  # shutting down, crashed, cannot connect now
    asyncpg.TooManyConnectionsError,
    asyncpg.exceptions.InternalClientError,
)
"""What asyncpg raises when the database, rather than the statement, is the matter."""

CANNOT_CONNECT: Final = (*CONNECTION_LOST, asyncpg.PostgresError)
"""What is raised where there is no connection to be had for now: away, or it will not have us, which may pass too."""

OUT_OF_SERVICE: Final = (asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError)
"""The database is there and says that it cannot write: the disk is full, or it is a standby."""

POISONED: Final = (ValueError, TypeError, OverflowError)
"""What asyncpg raises when an argument cannot be sent at all (its own DataError is a ValueError)."""


_FIRST_OF_OTHERS: Final = 16_384
"""Below it are the numbers of types that PostgreSQL comes with: each is the same everywhere, and for ever."""


class _NotAsked(NamedTuple):
    """Stands for asyncpg's question where it was not asked: with a name, it has overwritten no other statement."""

    name: str = "not asked"


class _Connection(Connection):
    """Knows what another one has found out of types that PostgreSQL comes with, arrays above all.

    asyncpg asks anew on every connection, and each time that takes more than a command: 10 to 20 ms.
    """

    __slots__ = ()
    _known: ClassVar[dict[frozenset[int], Any]] = {}

    async def _introspect_types(self, typeoids: Collection[int], timeout: float | None) -> Any:
        if max(typeoids) >= _FIRST_OF_OTHERS:
            return await super()._introspect_types(typeoids, timeout)  # type: ignore[misc] # not in its stubs
        asked = frozenset(typeoids)
        known = self._known.get(asked)
        if known is None:
            found = await super()._introspect_types(typeoids, timeout)  # type: ignore[misc] # as above
            self._known[asked] = found[0]
            return found
        return known, _NotAsked()


def service_settings(role: str | None = "tickets_service", *, purpose: str | None = None) -> dict[str, str]:
    """The server settings of every connection of the service; role None stays the owner.

    What the connection is for, and which process has it where, is what the database shows of it.
    """
    who = f"tickets{'' if purpose is None else ' ' + purpose} {os.getpid()}@{socket.gethostname()}"
    name = who.encode()[:63].decode(errors="ignore")
    settings = {"application_name": name, "timezone": "UTC", "jit": "off", **_KEEPALIVES}
    return settings if role is None else {**settings, "role": role}


async def connect(
    dsn: str,
    *,
    role: str | None = "tickets_service",
    timeout: float = PATIENCE_S,
    statement_timeout: float | None = None,
    purpose: str | None = None,
) -> Connection:
    """One connection of its own, as the role that the service works as.

    It is waited for `timeout` seconds, each of its statements `statement_timeout`, or without end.
    """
    return await asyncpg.connect(
        dsn,
        timeout=timeout,
        command_timeout=statement_timeout,
        connection_class=_Connection,
        server_settings={**service_settings(role, purpose=purpose), **_ending_there_too(statement_timeout)},
    )


def _ending_there_too(statement_timeout: float | None) -> dict[str, str]:
    """A statement that is not waited for any more should not wait for a lock either, and a crowd of them gather."""
    return {} if statement_timeout is None else {"statement_timeout": str(round(statement_timeout * 1000))}


@asynccontextmanager
async def connected(
    dsn: str,
    *,
    role: str | None = "tickets_service",
    timeout: float = PATIENCE_S,
    statement_timeout: float | None = None,
    purpose: str | None = None,
) -> AsyncIterator[Connection]:
    """As `connect`, closed afterwards."""
    connection = await connect(dsn, role=role, timeout=timeout, statement_timeout=statement_timeout, purpose=purpose)
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=timeout)
        except CONNECTION_LOST:  # then it is closed on our side
            connection.terminate()


@asynccontextmanager
async def in_transaction(connection: "AnyConnection", *, readonly: bool = False) -> AsyncIterator[None]:
    """A transaction that is not taken back where no answer comes: with its connection it is gone.

    asyncpg's own would wait for an answer to that as well.
    """
    transaction = connection.transaction(readonly=readonly)
    await transaction.start()
    try:
        yield
    except (TimeoutError, asyncio.CancelledError):
        connection.terminate()
        raise
    except BaseException:
        await transaction.rollback()
        raise
    await transaction.commit()


@asynccontextmanager
async def pooled(dsn: str, *, size: int, timeout: float, purpose: str) -> AsyncIterator[Pool]:
    """Connections for single statements. `timeout` seconds are waited for one, for a statement, and for the end."""
    pool: _Pool = await _Pool(
        dsn,
        patience=timeout,
        min_size=1,
        max_size=size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300,
        reset=_nothing_to_reset,
        loop=None,
        connection_class=_Connection,
        record_class=asyncpg.Record,
        timeout=timeout,
        command_timeout=timeout,
        server_settings={**service_settings(purpose=purpose), **_ending_there_too(timeout)},
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(timeout):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _nothing_to_reset(_connection: object) -> None:
    """Spare the round trip: nobody who borrows a connection changes its session."""


class _Pool(Pool):
    """One that lets nobody wait for ever, and drops connections that do not answer."""

    def __init__(self, dsn: str, *, patience: float, **arguments: Any) -> None:
        super().__init__(dsn, **arguments)
        self._patience = patience

    def acquire(self, *, timeout: float | None = None) -> Any:
        return _Acquired(self, self._patience if timeout is None else timeout)


class _Acquired(_Acquiring):
    """Its connection is not given back where its statement was given up: asyncpg would wait until that is cancelled.

    Where no answer came in time, the others that were connected by then are not trusted either.
    """

    async def __aexit__(self, *raised: object) -> None:
        error = raised[1]
        if isinstance(error, TimeoutError | asyncio.CancelledError) and self.connection is not None:
            if isinstance(error, TimeoutError):
                await self.pool.expire_connections()
            self.connection.terminate()
        await super().__aexit__(*raised)
