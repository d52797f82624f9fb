"""Which database the service works on, and that it has the schema.

Deliberately absent: queries. Those are in tickets/ledger.py and in the projections.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import asyncpg

from api.embedded import embedded_server
from tickets.connections import connected

SCHEMA: Final = Path(__file__).parents[2] / "schema.sql"

_READ_MODELS: Final = "-- the read models"
"""In schema.sql, the line that they begin with."""

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
    """Bring the database to this version's schema.sql; returns whether there was anything to do.

    Needs the rights of the database's owner only where there is. Read models of another shape are dropped and
    made anew: whoever runs the projections catches up from the beginning of the ledger.
    """
    text = SCHEMA.read_text()
    digest = sha256(text.encode()).digest()
    shape = sha256(text.partition(_READ_MODELS)[2].encode()).digest()
    async with connected(dsn, role=None, timeout=10) as connection:
        if await _applied(connection) == digest:
            return False
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _ONE_AT_A_TIME)
            if await _applied(connection) == digest:
                return False
            if await _shape(connection) != shape:
                await connection.execute("drop schema if exists read_model cascade")
            await connection.execute(text)
            await connection.execute(
                """insert into ledger.schema_applied (sha256, read_models) values ($1, $2)
                   on conflict (only_row) do update
                   set sha256 = excluded.sha256, read_models = excluded.read_models, applied_at = now()""",
                digest,
                shape,
            )
        return True


async def _applied(connection: "asyncpg.Connection[asyncpg.Record]") -> bytes | None:
    if await connection.fetchval("select to_regclass('ledger.schema_applied')") is None:
        return None
    found: bytes | None = await connection.fetchval("select sha256 from ledger.schema_applied")
    return found


async def _shape(connection: "asyncpg.Connection[asyncpg.Record]") -> bytes | None:
    applied = await connection.fetchrow(
        "select * from ledger.schema_applied"
        if await connection.fetchval("select to_regclass('ledger.schema_applied')") is not None
        else "select null"
    )
    found: bytes | None = dict(applied or {}).get("read_models")
    return found
