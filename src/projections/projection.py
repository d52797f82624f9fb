"""The contract of a projection.

A projection is a pure function from a step to rows, and the names of the table and columns that they go
into. The runner folds each stream once for all projections, writes their rows as sets, and keeps their
checkpoints in the same transaction. Deliberately absent: when and where that happens (runner.py,
rebuild.py).
"""

from collections import Counter
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
    `one_a_stream`, what a stream's newest step makes is all that stands of it. With `sums`, the last column
    is an amount and the others are the key: a step's rows are what it adds, the difference between its
    before and its after.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[Step], Sequence[Row]]
    newest_only: bool
    one_a_stream: bool = False
    sums: bool = False
    row_type: str | None = None
    """The type of a row where it is not that of the table, because the table adds columns of its own."""
    of_stream: str | None = "ticket_id = $1"
    """As SQL, the rows that show something of a ticket; None where no row is one ticket's."""
    version: int = 1
    """Goes up when the same facts make other rows: those of the version before are then made anew."""
    about: frozenset[type[Fact]] | None = None
    """The facts that make rows at all, so that nobody asks about others; None is all."""
    key_columns: int = 1
    """How many columns a row is known by."""

    @property
    def key(self) -> str:
        """The columns that a row is known by, as SQL."""
        return ", ".join(self.columns[: self.key_columns])

    def row_in(self, schema: str) -> str:
        """The type of a row of the table in that schema, as SQL."""
        return f"{schema}.{self.row_type or self.name}"


def is_parked(projection: str, stream_id: str) -> str:
    """SQL: whether a read model has given up on a stream, so that what it has of it may be old."""
    return f"exists (select from {LIVE}.parked p where p.projection = '{projection}' and p.stream_id = {stream_id})"


decode_metadata: Final = msgspec.json.Decoder(Metadata).decode


async def write(connection: Connection, projection: Projection, rows: Sequence[Row], schema: str = LIVE) -> None:
    """Write rows, in the order of the ledger, as one set."""
    if not rows:
        return
    if projection.sums:
        await _add(connection, projection, rows, schema)
        return
    if projection.newest_only:
        rows = list({row[0]: row for row in rows}.values())
    table, conflict = f"{schema}.{projection.name}", ""
    if projection.newest_only:
        updates = ", ".join(f"{column} = excluded.{column}" for column in projection.columns[1:])
        conflict = f"on conflict ({projection.key}) do update set {updates} where t.position < excluded.position"
    await connection.execute(
        f"insert into {table} as t ({', '.join(projection.columns)}) "
        f"select * from unnest($1::{projection.row_in(schema)}[]) {conflict}",
        rows,
    )


def summed(rows: Sequence[Row]) -> list[Row]:
    """One row for each key, with what all of its amounts come to; what comes to nothing is left out."""
    sums = Counter[Row]()
    for row in rows:
        sums[row[:-1]] += row[-1]
    return [(*key, amount) for key, amount in sums.items() if amount]


async def _add(connection: Connection, projection: Projection, rows: Sequence[Row], schema: str) -> None:
    table, amount = f"{schema}.{projection.name}", projection.columns[-1]
    await connection.execute(
        f"insert into {table} as t ({', '.join(projection.columns)}) select * from unnest($1::{table}[]) "
        f"on conflict ({projection.key}) do update set {amount} = t.{amount} + excluded.{amount}",
        summed(rows),
    )
    await connection.execute(f"delete from {table} where {amount} = 0")
