"""How the read models are: how far behind the ledger, whether a runner leads, what is parked."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from projections.runner import LEADER, PROJECTIONS
from tickets.connections import Connection


class One(Struct, frozen=True):
    """A read model."""

    name: str
    position: int
    behind: int
    parked: int
    updated_at: datetime | None


class ParkedStream(Struct, frozen=True):
    """A stream that a read model has given up on, from which position on, and why."""

    projection: str
    stream_id: UUID
    position: int
    error: str
    parked_at: datetime


class ProjectionStatus(Struct, frozen=True):
    """All of them."""

    ledger: int
    led: bool
    projections: list[One]
    parked: list[ParkedStream]


async def read_status(connection: Connection) -> ProjectionStatus:
    """How the read models are now; at most 100 parked streams are listed."""
    head: int = await connection.fetchval("select position from ledger.head")
    led: bool = await connection.fetchval(
        """select exists (select from pg_locks where locktype = 'advisory' and objsubid = 1 and granted
             and database = (select oid from pg_database where datname = current_database())
             and (classid::bigint << 32 | objid::bigint) = $1)""",
        LEADER,
    )
    found = {
        row[0]: row
        for row in await connection.fetch(
            """select c.projection, c.position, c.updated_at,
                      (select count(*) from read_model.parked p where p.projection = c.projection)
               from read_model.checkpoints c"""
        )
    }
    rows = [(name, *(found[name][1:] if name in found else (0, None, 0))) for name in PROJECTIONS]
    parked = await connection.fetch(
        "select projection, stream_id, position, error, parked_at from read_model.parked order by parked_at limit 100"
    )
    return ProjectionStatus(
        ledger=head,
        led=led,
        projections=[One(name, at, max(0, head - at), count, updated) for name, at, updated, count in rows],
        parked=[ParkedStream(*row) for row in parked],
    )
