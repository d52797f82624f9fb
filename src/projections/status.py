"""How the read models are: how far behind the ledger, whether a runner leads, what is parked, what holds things up."""

from datetime import datetime

from msgspec import Struct

from projections.parking import ParkedStream, read_parked
from projections.runner import PROJECTIONS
from projections.stalls import Standing, look
from tickets.connections import Connection


class One(Struct, frozen=True):
    """A read model."""

    name: str
    position: int
    behind: int
    parked: int
    updated_at: datetime | None


class ProjectionStatus(Struct, frozen=True):
    """All of them."""

    ledger: int
    led: bool
    projections: list[One]
    parked: list[ParkedStream]
    parked_in_all: int
    """How many there are of those; not all are listed."""
    standing: Standing


async def read_status(connection: Connection) -> ProjectionStatus:
    """How the read models are now; at most 100 parked streams are listed."""
    head: int = await connection.fetchval("select position from ledger.head")
    standing = await look(connection)
    found = {
        row[0]: row
        for row in await connection.fetch(
            """select c.projection, c.position, c.updated_at,
                      (select count(*) from read_model.parked p where p.projection = c.projection)
               from read_model.checkpoints c"""
        )
    }
    rows = [(name, *(found[name][1:] if name in found else (0, None, 0))) for name in PROJECTIONS]
    parked = await read_parked(connection)
    return ProjectionStatus(
        ledger=head,
        led=standing.leader is not None,
        projections=[One(name, at, max(0, head - at), count, updated) for name, at, updated, count in rows],
        parked=parked.items,
        parked_in_all=parked.total,
        standing=standing,
    )
