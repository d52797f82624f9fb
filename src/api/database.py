"""Which database the service works on, and that it has the schema.

Deliberately absent: queries. Those are in tickets/ledger.py and in the projections.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import asyncpg

from api.embedded import embedded_server
from projections.rebuild import Progress, rebuild, reshape
from projections.runner import of_other_versions
from tickets.connections import Connection, connected

SCHEMA: Final = Path(__file__).parents[2] / "schema.sql"

_READ_MODELS: Final = "-- the read models"
"""In schema.sql, the line that they begin with."""

_UPCOMING: Final = "upcoming"
"""The schema where read models of another shape are made before they take the place of those that are read."""

_OUTGOING: Final = "outgoing"
"""The schema of those that they took the place of, until it is dropped: that takes too long for readers to wait."""

_ONE_AT_A_TIME: Final = 0x7469636B6574  # "ticket", as the number of an advisory lock


@contextmanager
def database(url: str | None, data_dir: Path) -> Iterator[str]:
    """The URL of the database: the one that is set, or the embedded one's, which runs meanwhile."""
    if url is not None:
        yield url
    else:
        with embedded_server(data_dir) as embedded:
            yield embedded


async def apply_schema(dsn: str) -> bool:
    """Bring the ledger to this version's schema.sql, and have read models where there are none yet.

    Returns whether there was anything to do; needs the rights of the database's owner only where there was. Read
    models that are of another shape are left as they are: `bring_up` makes them anew.
    """
    text = SCHEMA.read_text()
    digest = sha256(text.encode()).digest()
    async with connected(dsn, role=None, timeout=10) as connection:
        if await _applied(connection) == digest:
            return False
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _ONE_AT_A_TIME)
            if await _applied(connection) == digest:
                return False
            ledger, heading, read_models = text.partition(_READ_MODELS)
            await connection.execute(ledger)
            if await connection.fetchval("select to_regnamespace('read_model')") is None:
                await connection.execute(heading + read_models)
                await connection.execute(
                    "insert into ledger.schema_applied (sha256, read_models) values ($1, $2)", digest, _shape()
                )
            else:
                await connection.execute("update ledger.schema_applied set sha256 = $1, applied_at = now()", digest)
        return True


async def bring_up(dsn: str) -> AsyncGenerator[Progress]:
    """Make anew the read models that are of another shape or version than this one's, from the ledger.

    Whoever runs already goes on with those that there are, until the new ones take their place in one transaction.
    Raises AlreadyRunning, WorkerDied.
    """
    async with connected(dsn, role=None, timeout=10) as connection:
        if await connection.fetchval("select read_models from ledger.schema_applied") != _shape():
            async with connection.transaction():
                await connection.execute("select pg_advisory_xact_lock($1)", _ONE_AT_A_TIME)
                await _empty_ones(connection)
            async with aclosing(reshape(dsn, _UPCOMING, _put_in_place)) as reshaped:
                async for progress in reshaped:
                    yield progress
        if await connection.fetchval("select to_regnamespace($1)", _OUTGOING) is not None:
            await connection.execute(f"drop schema if exists {_OUTGOING} cascade")
        others = await of_other_versions(connection)
        if others:
            async with aclosing(rebuild(dsn, tuple(others))) as made:
                async for step in made:
                    if isinstance(step, Progress):
                        yield step


def _shape() -> bytes:
    """Of which shape this version's read models are."""
    return sha256(SCHEMA.read_text().partition(_READ_MODELS)[2].encode()).digest()


async def _empty_ones(connection: Connection) -> None:
    """Read models of this version's shape, with nothing in them, beside those that are read."""
    shape = _shape().hex()
    described = await connection.fetchval("select obj_description(to_regnamespace($1), 'pg_namespace')", _UPCOMING)
    if described == shape:
        return  # one that was killed left them, and perhaps what it had made
    await connection.execute(f"drop schema if exists {_UPCOMING}, {_OUTGOING} cascade")
    await connection.execute(SCHEMA.read_text().partition(_READ_MODELS)[2].replace("read_model", _UPCOMING))
    await connection.execute(f"comment on schema {_UPCOMING} is '{shape}'")


async def _put_in_place(connection: Connection) -> None:
    as_owner = "set local role none"
    await connection.execute(
        f"{as_owner}; alter schema read_model rename to {_OUTGOING}; alter schema {_UPCOMING} rename to read_model"
    )
    await connection.execute(SCHEMA.read_text().partition(_READ_MODELS)[2])  # functions name the schema
    await connection.execute(as_owner)
    await connection.execute("update ledger.schema_applied set read_models = $1", _shape())


async def _applied(connection: "asyncpg.Connection[asyncpg.Record]") -> bytes | None:
    if await connection.fetchval("select to_regclass('ledger.schema_applied')") is None:
        return None
    found: bytes | None = await connection.fetchval("select sha256 from ledger.schema_applied")
    return found
