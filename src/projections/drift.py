"""One ticket's rows held against what its facts say: for samples all day long, and to put one ticket right.

A rebuild compares whole read models; this compares one stream, in a few indexed reads. Deliberately absent: sums
over many tickets, of which one ticket's part cannot be told: a check or a rebuild holds those.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import SystemRandom
from typing import Final
from uuid import UUID

import structlog
from msgspec import Struct

from projections.beside import rows_of_streams
from projections.comparison import EXAMPLES, Difference, difference
from projections.projection import LIVE, Projection, Row, write
from projections.runner import PROJECTIONS, Runner, checkpoints_of
from tickets.connections import CANNOT_CONNECT, Connection, connected
from tickets.ledger import read_streams

COMPARED: Final[dict[str, Projection]] = {name: one for name, one in PROJECTIONS.items() if one.of_stream is not None}
"""The read models that have rows of one ticket."""

_PATIENCE_S: Final = 60.0
"""How long one statement may take; what does not answer then never will."""
_REMEMBERED: Final = 100
"""So many tickets that were found not to be right are looked at again, one each time, until they are."""

_luck: Final = SystemRandom()
_log: Final = structlog.get_logger(__name__)


class Drift(Struct, frozen=True):
    """Rows of one ticket in one read model that are not what its facts say."""

    projection: str
    stream_id: UUID
    differences: list[Difference]


async def sample(connection: Connection) -> UUID | None:
    """A ticket by luck, the more likely the more happened to it; None where luck has found a person, or nothing."""
    head: int = await connection.fetchval("select position from ledger.head")
    found: UUID | None = await connection.fetchval(
        "select stream_id from ledger.events where position = $1 and topic like 'ticket.%'",
        _luck.randint(1, max(head, 1)),
    )
    return found


async def drift_of(connection: Connection, stream_id: UUID) -> list[Drift]:
    """What is not as it should be of one ticket, seen as of one moment; where it is parked, nothing is expected."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _differences(connection, stream_id, await _rows(connection, stream_id))


async def put_right(connection: Connection, stream_id: UUID) -> list[Drift]:
    """Make one ticket's rows what its facts say; returns what was not."""
    async with connection.transaction():
        # Holding the checkpoints keeps the runner from adding to it meanwhile.
        await checkpoints_of(connection, lock=True)
        rows = await _rows(connection, stream_id)
        found = await _differences(connection, stream_id, rows)
        for drift in found:
            one = COMPARED[drift.projection]
            table, made = f"{LIVE}.{one.name}", f"select {one.key} from unnest($2::{one.row_in(LIVE)}[])"
            await connection.execute(
                f"delete from {table} where ({one.of_stream}) or ({one.key}) in ({made})", stream_id, rows[one.name]
            )
            await write(connection, one, rows[one.name])
    return found


class Sampler:
    """Holds tickets by luck against their facts, all day long; what is found is known until it is right again."""

    def __init__(self, dsn: str, *, seconds: float, found: Callable[[int], None]) -> None:
        """A ticket every so many seconds. `found` is told how many are known not to be right."""
        self._dsn, self._seconds, self._told = dsn, seconds, found
        self.sampled = 0
        """How many were looked at."""
        self.found: dict[UUID, list[Drift]] = {}
        """Those that were not right when they were last looked at, a hundred of them at most."""

    async def run(self, runner: Runner) -> None:
        """Do so as long as the runner of this process leads, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            if not runner.leads:
                continue
            try:
                await self.look()
            except CANNOT_CONNECT as error:
                _log.warning("drift.not_looked", error=repr(error))

    async def look(self) -> None:
        """Look at one ticket, and again at the one that has waited longest of those that were not right."""
        async with connected(self._dsn, statement_timeout=_PATIENCE_S) as connection:
            again = next(iter(self.found), None)
            for stream_id in {await sample(connection), again} - {None}:
                assert stream_id is not None  # noqa: S101 - for the type checker
                drift = await drift_of(connection, stream_id)
                self.sampled += stream_id != again
                known = self.found.pop(stream_id, None)
                if drift and len(self.found) < _REMEMBERED:
                    self.found[stream_id] = drift
                self._told(len(self.found))
                for one in drift if known is None else ():
                    _log.error("projection.drift", projection=one.projection, stream_id=str(stream_id))


async def _rows(connection: Connection, stream_id: UUID) -> dict[str, Sequence[Row]]:
    """The rows that the facts make of it, as far as each read model has come that follows it at all."""
    following = await connection.fetch(
        f"""select projection, position, version from {LIVE}.checkpoints c
            where not exists (select from {LIVE}.parked p where p.projection = c.projection and p.stream_id = $1)""",
        stream_id,
    )
    positions: dict[int, list[str]] = {}
    for name, position, version in following:
        if name in COMPARED and version == COMPARED[name].version:
            positions.setdefault(position, []).append(name)
    facts = await read_streams(connection, stream_id, stream_id, upto=max(positions, default=0))
    rows: dict[str, Sequence[Row]] = {}
    for position, names in positions.items():
        made, given_up = rows_of_streams(
            [raw for raw in facts if raw.position <= position], {name: COMPARED[name] for name in names}
        )
        broken = {name for name, *_ in given_up}  # parked just now, or about to be
        rows |= {name: of_one for name, of_one in made.items() if name not in broken}
    return rows


async def _differences(connection: Connection, stream_id: UUID, rows: Mapping[str, Sequence[Row]]) -> list[Drift]:
    found: list[Drift] = []
    for name, made in rows.items():
        one = COMPARED[name]
        columns, key = ", ".join(one.columns), ", ".join(f"'{part}', {part}" for part in one.columns[: one.key_columns])
        different = await connection.fetch(
            f"""with made as materialized (select {columns} from unnest($2::{one.row_in(LIVE)}[])),
                     live as materialized (select {columns} from {LIVE}.{name} where {one.of_stream}
                                           union select {", ".join(f"l.{part}" for part in one.columns)}
                                           from {LIVE}.{name} l join made using ({one.key}))
                select json_build_object({key}), to_json(live), to_json(made)
                from live full join made using ({one.key}) where live is distinct from made
                order by {one.key} limit {EXAMPLES}""",
            stream_id,
            made,
        )
        if different:
            found.append(Drift(name, stream_id, [difference(*row) for row in different]))
    return found
