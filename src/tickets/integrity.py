"""Hashes and seals: how anybody can tell that the record is the one that was written.

`leaf` and `seal` are the two definitions. Deliberately absent: writing, and verifying. The leaf is computed
where a fact is appended, the seal inside the database's own append, under the lock that orders everything;
verification.py recomputes both from the stored bytes.
"""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

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
    return raw_seal(before, first_position, last_position, time.to_bytes(8, "big", signed=True), leaves)


def raw_seal(before: bytes, first_position: int, last_position: int, sealed_at: bytes, leaves: bytes) -> bytes:
    """As `seal`, with the time in the bytes that are hashed."""
    return sha256(
        b"".join((before, first_position.to_bytes(8, "big"), last_position.to_bytes(8, "big"), sealed_at, leaves))
    ).digest()
