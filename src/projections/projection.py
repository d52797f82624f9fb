"""The contract of a projection.

A projection is a pure function from a step to rows, and the names of the table and columns that they go
into. The runner folds each stream once for all projections, writes their rows as sets, and keeps their
checkpoints in the same transaction. Deliberately absent: when and where that happens (runner.py,
rebuild.py).
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from tickets.connections import Connection
from tickets.events import Fact, Metadata
from tickets.ticket import Ticket

LIVE: Final = "read_model"
BESIDE: Final = "rebuild"
"""The two schemas that have the read models' tables: the one that is read, and the one being made."""


class Envelope(Struct, frozen=True, gc=False):
    """Where a fact stands in the ledger, and who did it from where."""

    position: int
    recorded_at: datetime
    metadata: Metadata


class Step(Struct, frozen=True, gc=False):
    """One fact, with the ticket before and after it; both are None where the fact is not about a ticket."""

    fact: Fact
    envelope: Envelope
    before: Ticket | None
    after: Ticket | None


Row = tuple[Any, ...]


class Projection(Struct, frozen=True):
    """A read model: which rows a step makes, and where they go.

    Rows are in the order of the table's `columns`, the key first. With `newest_only`, a row replaces the
    one that was there unless that one is of a later position; otherwise rows are only ever added. With
    `one_a_stream`, what a stream's newest step makes is all that stands of it.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Step], Sequence[Row]]
    newest_only: bool
    one_a_stream: bool = False
    row_type: str | None = None
    """The type of a row where it is not that of the table, because the table adds columns of its own."""
    key_columns: int = 1
    """How many columns a row is known by."""

    @property
    def key(self) -> str:
        """The columns that a row is known by, as SQL."""
        return ", ".join(self.columns[: self.key_columns])


decode_metadata: Final = msgspec.json.Decoder(Metadata).decode


async def write(connection: Connection, projection: Projection, rows: Sequence[Row], schema: str = LIVE) -> None:
    """Write rows, in the order of the ledger, as one set."""
    if not rows:
        return
    if projection.newest_only:
        rows = list({row[0]: row for row in rows}.values())
    table, conflict = f"{schema}.{projection.name}", ""
    if projection.newest_only:
        updates = ", ".join(f"{column} = excluded.{column}" for column in projection.columns[1:])
        conflict = f"on conflict ({projection.key}) do update set {updates} where t.position < excluded.position"
    await connection.execute(
        f"insert into {table} as t ({', '.join(projection.columns)}) "
        f"select * from unnest($1::{projection.row_type or table}[]) {conflict}",
        rows,
    )
