"""Connections to the database: as whom, and how it shows that it is gone.

Deliberately absent: statements.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # generic in their stubs only
    Connection, Pool = asyncpg.Connection, asyncpg.Pool

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

OUT_OF_SERVICE: Final = (asyncpg.InsufficientResourcesError, asyncpg.ReadOnlySQLTransactionError)
"""The database is there and says that it cannot write: the disk is full, or it is a standby."""

POISONED: Final = (ValueError, TypeError, OverflowError)
"""What asyncpg raises when an argument cannot be sent at all (its own DataError is a ValueError)."""


def service_settings(role: str | None = "tickets_service", *, purpose: str | None = None) -> dict[str, str]:
    """The server settings of every connection of the service; role None stays the owner.

    What the connection is for, and which process has it where, is what the database shows of it.
    """
    who = f"tickets{'' if purpose is None else ' ' + purpose} {os.getpid()}@{socket.gethostname()}"
    settings = {"application_name": who.encode()[:63].decode(errors="ignore"), "timezone": "UTC", "jit": "off"}
    return settings if role is None else {**settings, "role": role}


async def connect(
    dsn: str, *, role: str | None = "tickets_service", timeout: float = 5.0, purpose: str | None = None
) -> Connection:
    """One connection of its own, as the role that the service works as."""
    return await asyncpg.connect(dsn, timeout=timeout, server_settings=service_settings(role, purpose=purpose))


@asynccontextmanager
async def connected(
    dsn: str, *, role: str | None = "tickets_service", timeout: float = 5.0, purpose: str | None = None
) -> AsyncIterator[Connection]:
    """As `connect`, closed afterwards."""
    connection = await connect(dsn, role=role, timeout=timeout, purpose=purpose)
    try:
        yield connection
    finally:
        await connection.close()
