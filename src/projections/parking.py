"""Streams that a read model has given up on: which they are, and trying them again.

To try again is to digest the stream anew from its beginning, up to where the read model is, in one transaction
under the lock of the checkpoints, as the runner and a rebuild take it. Deliberately absent: giving up (runner.py).
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from projections.projection import LIVE, Projection, Row, Step, write
from projections.runner import INDIGESTIBLE, PROJECTIONS, REFUSED, checkpoints_of, rows_of_stream, step_of
from tickets.connections import Connection
from tickets.ledger import Raw, read_streams

_AT_A_TIME: Final = 100


class ParkedStream(Struct, frozen=True):
    """A stream that a read model has given up on: from which position on, since when, and why."""

    projection: str
    stream_id: UUID
    position: int
    error: str
    parked_at: datetime
    number: str | None = None
    """The ticket's, where it is one that is known."""


class Parked(Struct, frozen=True):
    """Some of what is parked, in the order of streams, and how much there is of it at all."""

    items: list[ParkedStream]
    total: int


class Retried(Struct, frozen=True):
    """What became of a stream that was tried again."""

    stream_id: UUID
    digested: list[str]
    """The read models that have it now."""
    still: list[ParkedStream]
    """Those that still have not."""


async def read_parked(connection: Connection, *, limit: int = 100, after: tuple[UUID, str] | None = None) -> Parked:
    """What is parked, at most `limit` after a stream and projection."""
    rows = await connection.fetch(
        """select p.projection, p.stream_id, p.position, p.error, p.parked_at, t.number
           from read_model.parked p left join read_model.tickets t on t.ticket_id = p.stream_id
           where (p.stream_id, p.projection) > ($1, $2) order by p.stream_id, p.projection limit $3""",
        *(after or (UUID(int=0), "")),
        limit,
    )
    total: int = await connection.fetchval("select count(*) from read_model.parked")
    return Parked([ParkedStream(*row) for row in rows], total)


async def find_parked(connection: Connection, id_or_number: str) -> UUID | None:
    """The parked stream that is named by its id, or by its ticket's number; None if it is not parked."""
    try:
        stream_id: UUID | None = UUID(id_or_number)
    except ValueError:
        stream_id = await connection.fetchval(
            "select ticket_id from read_model.tickets where number = $1", id_or_number
        )
    found: UUID | None = await connection.fetchval(
        "select stream_id from read_model.parked where stream_id = $1 limit 1", stream_id
    )
    return found


async def retry_all(connection: Connection) -> AsyncIterator[Retried]:
    """Try every parked stream again, each in a transaction of its own."""
    last = UUID(int=0)
    while streams := await connection.fetch(
        "select distinct stream_id from read_model.parked where stream_id > $1 order by stream_id limit $2",
        last,
        _AT_A_TIME,
    ):
        for (last,) in streams:
            yield await retry(connection, last)


async def retry(connection: Connection, stream_id: UUID) -> Retried:
    """Digest a stream anew for the read models that gave up on it; those that now can are level with it again."""
    digested, still = list[str](), list[ParkedStream]()
    async with connection.transaction():
        positions = {one.application_name: one.notification_id for one in await checkpoints_of(connection, lock=True)}
        rows = await connection.fetch(
            """select p.projection, p.stream_id, p.position, p.error, p.parked_at, t.number
               from read_model.parked p left join read_model.tickets t on t.ticket_id = p.stream_id
               where p.stream_id = $1 order by p.projection""",
            stream_id,
        )
        parked = [ParkedStream(*row) for row in rows if row[0] in PROJECTIONS]
        upto = max((positions[one.projection] for one in parked), default=0)
        facts = await read_streams(connection, stream_id, stream_id, upto=upto)
        for one in parked:
            steps, broken = _steps([raw for raw in facts if raw.position <= positions[one.projection]])
            left = await _digest(connection, one, steps, broken)
            if left is None:
                digested.append(one.projection)
                await connection.execute(
                    "delete from read_model.parked where projection = $1 and stream_id = $2", one.projection, stream_id
                )
            else:
                still.append(left)
                await connection.execute(
                    "update read_model.parked set position = $3, error = $4 where projection = $1 and stream_id = $2",
                    one.projection,
                    stream_id,
                    left.position,
                    left.error,
                )
    return Retried(stream_id, digested, still)


def _steps(facts: Sequence[Raw]) -> tuple[list[Step], tuple[int, str] | None]:
    """The steps that a stream's facts are, and where and why there are no more, if that is so."""
    steps: list[Step] = []
    for raw in facts:
        try:
            steps.append(step_of(raw, steps[-1].after if steps else None))
        except INDIGESTIBLE as error:
            return steps, (raw.position, f"{raw.topic}: {error!r}")
    return steps, None


async def _digest(
    connection: Connection, parked: ParkedStream, steps: Sequence[Step], broken: tuple[int, str] | None
) -> ParkedStream | None:
    """Write what the stream makes; returns what is still parked of it, if anything is."""
    one = PROJECTIONS[parked.projection]
    if one.sums:
        # What the facts before it added is in the sums already, so those from there on are added.
        steps = [step for step in steps if step.envelope.position >= parked.position]
    made, error_at = rows_of_stream(one, steps) if steps else ((), None)
    error_at = error_at or broken
    try:
        async with connection.transaction():
            await _replace(connection, one, made)
    except REFUSED as error:
        return replace(parked, error=repr(error))
    if error_at is None:
        return None
    return replace(parked, position=max(error_at[0], parked.position), error=error_at[1])


async def _replace(connection: Connection, one: Projection, rows: Sequence[Row]) -> None:
    """Write a stream's rows over those that are there of it."""
    if not one.sums:
        rows = list({row[: one.key_columns]: row for row in rows}.values())
        table = f"{LIVE}.{one.name}"
        await connection.execute(
            f"delete from {table} where ({one.key}) in (select {one.key} from unnest($1::{one.row_in(LIVE)}[]))",
            rows,
        )
    await write(connection, one, rows)
