"""Looking at every fact of a range of positions: leaves and seals recomputed from the stored bytes.

A range ends at a seal and begins after one. The database puts the bytes together that were hashed, in one
COPY: its binary form, each value after its length, is just how a leaf is defined. A worker is this module
run as a program (workers.py). Deliberately absent: which parts there are, and what follows from all of
them together (verification.py).
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final

import uvloop
from msgspec import Struct

from tickets.connections import Connection, connected
from tickets.integrity import raw_seal
from tickets.merkle import Piece, pieces
from tickets.workers import asked

_TIMEOUT_S: Final = 30.0
_FIRST: Final = -(2**63)
LAST: Final = 2**63 - 1


class Job(Struct, frozen=True):
    """The ledger as it was when this snapshot was exported."""

    dsn: str
    snapshot: str


class Range(Struct, frozen=True, tag=True, kw_only=True):
    """Facts after one seal up to another, or up to the end; the sizes of trees whose pieces are wanted, in order."""

    after: int
    upto: int
    seal: bytes
    """The one before."""
    sizes: tuple[int, ...] | None = None
    """None where no trees are wanted, not even for what comes after."""


class Part(Struct, frozen=True, tag=True):
    """One of so many parts of all streams and commands, `of` a power of two; of the facts after a position."""

    number: int
    of: int
    after: int


class Fault(Struct, frozen=True):
    """Something that is not as it was written."""

    position: int
    """Where at first: all before it is as it was. A seal that does not fit says so of its whole batch."""
    rank: int
    what: str

    @property
    def order(self) -> tuple[int, int]:
        """Of several at one position, what says most comes first."""
        return self.position, self.rank


class Scanned(Struct, frozen=True, tag=True, kw_only=True):
    """What a range has: facts and seals that are as they were written, up to a fault if there is one."""

    upto: int
    """The last good position."""
    seals: int
    seal: bytes
    fault: Fault | None
    trees: list[list[Piece]]
    """For each of the sizes that were asked for, as far as all is good: the pieces since the one before. Then the
    rest."""


class Checked(Struct, frozen=True, tag=True, kw_only=True):
    """Of a part, the first version that does not follow, and the first facts and commands that do not match."""

    version: Fault | None
    stray: int | None
    idle: int | None


_ROW: Final = struct.Struct(">2x4xq4x8s4xi4xi4x36s4x32s")
"""Of a row of COPY: how many values, and then each after its length: position, time of recording, length of what was
hashed and of the state at its end, the command's id, the leaf. Then comes what was hashed."""
_HEAD: Final = 19
_TAIL: Final = 2
"""What COPY's binary form has before the rows and after."""

_FACTS: Final = """
select position, recorded_at,
       52 + pg_catalog.octet_length(topic) + pg_catalog.octet_length(metadata) + pg_catalog.octet_length(state),
       pg_catalog.octet_length(state), command_id::text, leaf,
       stream_id, version, topic, occurred_at + '946684800 s'::interval, metadata, state
from ledger.events where position > $1 and position <= $2 order by position"""
"""The time since 1970 that was hashed is what PostgreSQL, which counts from 2000, sends of one 30 years later."""

_SEALS: Final = """
select first_position, last_position, pg_catalog.timestamptz_send(sealed_at), seal
from ledger.seals where last_position > $1 and last_position <= $2 order by last_position"""


async def scan(connection: Connection, wanted: Range) -> Scanned:
    """Look at every fact of a range."""
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)

    await connection.copy_from_query(
        _FACTS, wanted.after or _FIRST, wanted.upto, output=take, format="binary", timeout=_TIMEOUT_S
    )
    seals = await connection.fetch(_SEALS, wanted.after or _FIRST, wanted.upto)
    leaves: list[bytes] = []
    upto, count, chain, fault = _walked(b"".join(chunks), seals, wanted, leaves)
    trees: list[list[Piece]] = []
    if wanted.sizes is not None:
        hashes = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
        ends = (wanted.after, *(size for size in wanted.sizes if size <= upto), upto)
        trees = [pieces(start, hashes[start - wanted.after : end - wanted.after]) for start, end in pairwise(ends)]
    return Scanned(upto=upto, seals=count, seal=chain, fault=fault, trees=trees)


def _walked(
    data: bytes, seals: Sequence[Any], wanted: Range, leaves: list[bytes]
) -> tuple[int, int, bytes, Fault | None]:
    """How far all is good, under how many seals and the last of them, and the first fault; adds the good leaves."""
    at, end = _HEAD, len(data) - _TAIL
    unpack, hashed = _ROW.unpack_from, sha256
    expected, chain, count = wanted.after + 1, wanted.seal, 0

    def fault(rank: int, what: str, position: int | None = None) -> tuple[int, int, bytes, Fault]:
        bad = expected if position is None else position
        return bad - 1, count, chain, Fault(bad, rank, what)

    for first, last, sealed_at, seal in (*seals, (0, LAST, None, None)):
        begun = expected
        while at < end:
            try:
                position, recorded_at, length, state, command, leaf = unpack(data, at)
            except struct.error:
                return fault(1, "the fact cannot be read")
            if position > last:
                break
            if position != expected:
                return fault(0, f"there is no fact at position {expected}; the next is at {position}")
            start = at + _ROW.size
            at = start + length
            if hashed(data[start:at]).digest() != leaf:
                return fault(1, "the fact is not the one that was hashed")
            if recorded_at != sealed_at and sealed_at is not None:
                return fault(3, "the time of recording is not the one that was sealed")
            if data.find(command, start, at - state) < 0:
                return fault(4, "the command is not the one that the fact names")
            leaves.append(leaf)
            expected += 1
        if begun == expected:
            continue  # nothing is there; what comes after shows it
        if seal is None:
            return fault(5, "no seal covers this fact", begun)
        if (begun, expected - 1) != (first, last):
            bad = expected if begun == first else begun
            return fault(5, f"the seal covers {first} to {last}, but the facts are {begun} to {expected - 1}", bad)
        if raw_seal(chain, first, last, sealed_at, b"".join(leaves[begun - wanted.after - 1 :])) != seal:
            return fault(5, "the seal does not follow from the one before it and the facts that it covers", begun)
        chain, count = seal, count + 1
    return expected - 1, count, chain, None


# What no range shows by itself

_VERSIONS: Final = """
select position, version, stream_id from (
  select e.position, e.version, e.stream_id, row_number() over (partition by e.stream_id order by e.position) as place
  from ledger.events e where e.position > $1 and pg_catalog.uuid_hash(e.stream_id) & $2 = $3) f
where version <> place + case $1 when 0 then 0 else coalesce(
  (select b.version from ledger.events b where b.stream_id = f.stream_id and b.position <= $1
   order by b.version desc limit 1), 0) end
order by position limit 1"""

_SUSPICIOUS: Final = """
select count(*) filter (where e.command_id is not null and (
         c.command_id is null or c.stream_id is distinct from e.stream_id
         or c.recorded_at is distinct from e.recorded_at
         or c.position - e.position is distinct from c.version - e.version or c.position < e.position)) > 0
       or count(*) filter (where c.position = e.position) + count(*) filter (where e.command_id is null)
          <> (select count(*) from ledger.commands where position > $1 and pg_catalog.uuid_hash(command_id) & $2 = $3)
       or count(*) filter (where e.command_id is null and (
         c.position > (select coalesce(max(position), 0) from ledger.events)
         or c.version > 0 and not exists (select from ledger.events o where o.stream_id = c.stream_id
                                          and o.version = c.version and o.position <= c.position))) > 0
from (select command_id, stream_id, version, position, recorded_at from ledger.events
      where position > $1 and pg_catalog.uuid_hash(command_id) & $2 = $3) e
full join (select * from ledger.commands where position > $1 and pg_catalog.uuid_hash(command_id) & $2 = $3) c
  on c.command_id = e.command_id"""
"""Whether it is worth the trouble to look for what does not match: of a command, positions and versions count up
together to those on record."""

_COMMANDS: Final = """
select min(f.first_position) filter (where c.command_id is null or (c.version, c.position, c.recorded_at)
         is distinct from (f.version, f.position, f.recorded_at)),
       min(c.position) filter (where f.command_id is null and (
         c.position > (select coalesce(max(position), 0) from ledger.events)
         or c.version > 0 and not exists (select from ledger.events e where e.stream_id = c.stream_id
                                          and e.version = c.version and e.position <= c.position)))
from (select command_id, stream_id, max(version) as version, min(position) as first_position,
             max(position) as position, max(recorded_at) as recorded_at
      from ledger.events where position > $1 and pg_catalog.uuid_hash(command_id) & $2 = $3
      group by command_id, stream_id) f
full join (select * from ledger.commands where position > $1 and pg_catalog.uuid_hash(command_id) & $2 = $3) c
  on c.command_id = f.command_id and c.stream_id = f.stream_id"""


async def check(connection: Connection, wanted: Part) -> Checked:
    """Whether versions follow and commands are on record as they were accepted, in one part of all."""
    which = wanted.after, wanted.of - 1, wanted.number
    version = await connection.fetchrow(_VERSIONS, *which)
    stray, idle = None, None
    if await connection.fetchval(_SUSPICIOUS, *which):
        stray, idle = await connection.fetchrow(_COMMANDS, *which) or (None, None)
    return Checked(
        version=None
        if version is None
        else Fault(
            version["position"], 2, f"version {version['version']} does not follow in stream {version['stream_id']}"
        ),
        stray=stray,
        idle=idle,
    )


async def look(connection: Connection, wanted: Range | Part) -> Scanned | Checked:
    """Do one or the other."""
    return await scan(connection, wanted) if isinstance(wanted, Range) else await check(connection, wanted)


async def prepare(connection: Connection) -> None:
    """Have a transaction's statements mean what PostgreSQL itself means by them, sort in memory, and work alone."""
    await connection.execute(
        """set local search_path = pg_catalog;
           set local work_mem = '64MB';
           set local max_parallel_workers_per_gather = 0"""
    )


# The program


async def _work() -> None:
    with asked(Job, Range | Part) as (job, wanted, tell):
        async with connected(job.dsn, timeout=_TIMEOUT_S) as connection:
            await connection.execute("begin isolation level repeatable read read only")
            await connection.execute(f"set transaction snapshot '{job.snapshot}'")
            await prepare(connection)
            for one in wanted:
                tell(await look(connection, one))


if __name__ == "__main__":
    uvloop.run(_work())
