"""Hashes and seals: how anybody can tell that the record is the one that was written.

`leaf` and `seal` are the two definitions; `verify` recomputes everything from the stored bytes.
Deliberately absent: writing. The leaf is computed where a fact is appended, the seal inside the
database's own append, under the lock that orders everything.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

import asyncpg
from msgspec import Struct

GENESIS: Final = bytes(32)
"""The seal before the first."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def leaf(stream_id: UUID, version: int, topic: str, occurred_at: datetime, metadata: bytes, state: bytes) -> bytes:
    """SHA-256 over the six parts, each after its length as four big-endian bytes.

    stream: its 16 bytes; version: 4 bytes; topic: UTF-8; time: microseconds since 1970 UTC, 8 bytes,
    signed; metadata and state: as stored. Numbers are big-endian.
    """
    name = topic.encode()
    delta = occurred_at - _EPOCH
    time = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return sha256(
        b"\x00\x00\x00\x10%b\x00\x00\x00\x04%b%b%b\x00\x00\x00\x08%b%b%b%b%b"
        % (
            stream_id.bytes,
            version.to_bytes(4, "big"),
            len(name).to_bytes(4, "big"),
            name,
            time.to_bytes(8, "big", signed=True),
            len(metadata).to_bytes(4, "big"),
            metadata,
            len(state).to_bytes(4, "big"),
            state,
        )
    ).digest()


def seal(before: bytes, first_position: int, last_position: int, sealed_at: datetime, leaves: bytes) -> bytes:
    """SHA-256 over the seal before, the batch's first and last position, its time, and its leaves in order.

    Positions are 8 big-endian bytes, the time is microseconds since 2000 UTC in 8 bytes, as PostgreSQL
    sends a timestamptz.
    """
    time = (sealed_at - _POSTGRES_EPOCH) // _MICROSECOND
    return sha256(
        b"".join(
            (
                before,
                first_position.to_bytes(8, "big"),
                last_position.to_bytes(8, "big"),
                time.to_bytes(8, "big", signed=True),
                leaves,
            )
        )
    ).digest()


class Finding(Struct, frozen=True):
    """The first thing that is not as it was written."""

    position: int
    what: str


class Verified(Struct, frozen=True):
    """What a verification saw."""

    facts: int
    seals: int
    head: str
    """The newest seal, in hexadecimal. Noted elsewhere, it shows later that nothing before it changed."""
    finding: Finding | None


class Progress(Struct, frozen=True):
    """How far a verification is."""

    position: int
    of: int


async def verify(connection: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[Progress | Verified]:
    """Recompute every leaf and every seal, and hold them against each other and against the head.

    Yields Progress now and then and at last one Verified, with the first bad position if there is one.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        head = await connection.fetchrow("select position, seal from ledger.head")
        top: int = head["position"] if head else 0
        chain, expected, seals, finding = GENESIS, 1, 0, None
        versions = _Versions()
        async for batch in _batches(connection):
            finding = _first_fault(batch, chain, expected, versions)
            if finding is not None:
                break
            chain, expected, seals = batch.seal, batch.last + 1, seals + 1
            if seals % 200 == 0:
                yield Progress(position=batch.last, of=top)
        if finding is None:
            finding = await _loose_ends(connection, chain, expected)
        yield Verified(facts=expected - 1, seals=seals, head=chain.hex(), finding=finding)


class _Batch(Struct):
    first: int
    last: int
    sealed_at: datetime
    seal: bytes
    rows: list[asyncpg.Record]


class _Versions:
    """The newest version of each stream, so that a gap in one is noticed where it is."""

    def __init__(self) -> None:
        self.of: dict[UUID, int] = {}

    def follows(self, stream: UUID, version: int) -> bool:
        expected = self.of.get(stream, 0) + 1
        self.of[stream] = version
        return version == expected


async def _batches(connection: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[_Batch]:
    """The seals in order, each with the facts that it should cover; facts under no seal come by themselves."""
    events = connection.cursor(
        """select e.position, e.stream_id, e.version, e.topic, e.occurred_at, e.recorded_at, e.command_id,
                  e.metadata, e.state, e.leaf, s.first_position, s.last_position, s.sealed_at, s.seal
           from ledger.events e
           left join lateral (select * from ledger.seals s where s.last_position >= e.position
                              order by s.last_position limit 1) s on true
           order by e.position""",
        prefetch=2_000,
    )
    batch: _Batch | None = None
    async for row in events:
        last = row["last_position"]
        if batch is None or last != batch.last:
            if batch is not None:
                yield batch
            if last is None:
                batch = _Batch(row["position"], row["position"], row["recorded_at"], b"", [row])
                continue
            batch = _Batch(row["first_position"], last, row["sealed_at"], row["seal"], [])
        batch.rows.append(row)
    if batch is not None:
        yield batch


def _first_fault(batch: _Batch, chain: bytes, expected: int, versions: _Versions) -> Finding | None:
    for row in batch.rows:
        position = row["position"]
        if position != expected:
            return Finding(expected, f"there is no fact at position {expected}; the next is at {position}")
        computed = leaf(
            row["stream_id"], row["version"], row["topic"], row["occurred_at"], row["metadata"], row["state"]
        )
        if computed != row["leaf"]:
            return Finding(position, "the fact is not the one that was hashed")
        if not versions.follows(row["stream_id"], row["version"]):
            return Finding(position, f"version {row['version']} does not follow in stream {row['stream_id']}")
        if row["recorded_at"] != batch.sealed_at:
            return Finding(position, "the time of recording is not the one that was sealed")
        if row["command_id"].hex not in row["metadata"].decode(errors="replace").replace("-", ""):
            return Finding(position, "the command is not the one that the fact names")
        expected += 1
    if not batch.seal:
        return Finding(batch.first, "no seal covers this fact")
    first, last = batch.rows[0]["position"], batch.rows[-1]["position"]
    if (first, last) != (batch.first, batch.last):
        bad = expected if first == batch.first else first
        return Finding(bad, f"the seal covers {batch.first} to {batch.last}, but the facts are {first} to {last}")
    leaves = b"".join(row["leaf"] for row in batch.rows)
    if seal(chain, batch.first, batch.last, batch.sealed_at, leaves) != batch.seal:
        return Finding(batch.first, "the seal does not follow from the one before it and the facts that it covers")
    return None


async def _loose_ends(connection: "asyncpg.Connection[asyncpg.Record]", chain: bytes, expected: int) -> Finding | None:
    """What the walk along the facts cannot see: the head, seals beyond the last fact, and the commands."""
    head = await connection.fetchrow("select position, seal from ledger.head")
    if head is None or head["position"] != expected - 1:
        at = None if head is None else head["position"]
        bad = expected if at is None else min(at + 1, expected)
        return Finding(bad, f"the head says {at}, but the last fact is at {expected - 1}")
    if head["seal"] != chain:
        return Finding(expected - 1, "the head's seal is not the newest seal")
    beyond = await connection.fetchval(
        "select min(last_position) from ledger.seals where last_position >= $1", expected
    )
    if beyond is not None:
        return Finding(expected, f"a seal covers facts up to {beyond} that are not there")
    stray = await connection.fetchval(
        """select min(e.first_position) from (
             select command_id, stream_id, max(version) as version, min(position) as first_position,
                    max(position) as position, max(recorded_at) as recorded_at
             from ledger.events group by command_id, stream_id) e
           left join ledger.commands c on c.command_id = e.command_id and c.stream_id = e.stream_id
             and c.version = e.version and c.position = e.position and c.recorded_at = e.recorded_at
           where c.command_id is null"""
    )
    if stray is not None:
        return Finding(stray, "the command of this fact is not in the record of commands as it was accepted")
    idle = await connection.fetchval(
        """select min(c.position) from ledger.commands c
           left join ledger.events e on e.stream_id = c.stream_id and e.version = c.version
             and e.position <= c.position
           where c.position >= $1 or (e.position is null and c.version > 0)""",
        expected,
    )
    if idle is not None:
        return Finding(min(idle, expected), "a command is on record whose outcome is not among the facts")
    return None
