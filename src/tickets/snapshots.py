"""Snapshots: long-lived tickets as they were some facts ago, so that a command need not read thousands.

Not part of the record: they can be thrown away at any time, and one that other code made is not looked at.
Deliberately absent: who keeps them (handler.py).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from immutables import Map
from msgspec.structs import replace

from tickets import comments, events, ticket
from tickets.batching import Batched
from tickets.comments import Comments
from tickets.connections import Connection, Pool
from tickets.events import By
from tickets.ticket import Attachment, Ticket

EVERY: Final = 500
"""So many facts are between one and the next: nobody has to read many more at once."""

_log: Final = structlog.get_logger(__name__)

_MADE_BY: Final = sha256(
    b"".join(Path(str(one)).read_bytes() for one in (events.__file__, comments.__file__, ticket.__file__, __file__))
).digest()
"""What facts are, how they change a ticket and how one is kept, as of this code."""


def _nothing(_value: object) -> None:
    """What stands for comments and attachments inside the ticket: they are beside it, as msgspec can read them."""


def _empty(kind: type, _value: object) -> Comments | Map[Any, Any]:
    return Comments() if kind is Comments else Map()


_encode: Final = msgspec.msgpack.Encoder(enc_hook=_nothing, uuid_format="bytes").encode
_decode: Final = msgspec.msgpack.Decoder(tuple[Ticket, bytes, list[By], dict[UUID, Attachment]], dec_hook=_empty).decode


def _encoded(kept: Ticket) -> bytes:
    return _encode((kept, *kept.comments.pack(), dict(kept.attachments)))


def _decoded(state: bytes) -> Ticket | None:
    """The ticket, or None where that cannot be read: the facts can, and only they have to."""
    try:
        kept, said, authors, attachments = _decode(state)
    except msgspec.MsgspecError as error:
        _log.warning("snapshot.unreadable", error=str(error))
        return None
    return replace(kept, comments=Comments(packed=said, authors=authors), attachments=Map(attachments))


async def keep(pool: Pool, kept: Ticket) -> None:
    """Keep a ticket as it is now, unless a newer one is kept already."""
    await pool.execute(
        """insert into ledger.snapshots as s (stream_id, version, made_by, state) values ($1, $2, $3, $4)
           on conflict (stream_id) do update
           set version = excluded.version, made_by = excluded.made_by, state = excluded.state
           where s.version < excluded.version or s.made_by <> excluded.made_by""",
        kept.id,
        kept.version,
        _MADE_BY,
        _encoded(kept),
    )


_Asked = tuple[UUID, int]
"""Whose snapshot, and up to which version."""

Finding = Batched[_Asked, bytes | None]


def finding(pool: Pool) -> Finding:
    """For `find`: the snapshots of tickets, for all who ask at the same time at once."""
    return Batched(partial(_states, pool))


async def find(finding: Finding, ticket_id: UUID, *, upto: int | None = None) -> Ticket | None:
    """The ticket as it was kept, if it was, and at no version later than `upto`."""
    state = await finding((ticket_id, 2**31 - 1 if upto is None else upto))
    return None if state is None else _decoded(state)


async def read(connection: Connection, upto: Mapping[UUID, int]) -> dict[UUID, Ticket]:
    """Of several tickets, those that were kept, each at no version later than the one that is named."""
    asked = [(stream, version) for stream, version in upto.items() if version >= EVERY]
    states = await _states(connection, asked) if asked else ()
    return {one.id: one for state in states if state is not None and (one := _decoded(state)) is not None}


async def _states(connection: Pool | Connection, asked: Sequence[_Asked]) -> list[bytes | None]:
    rows = await connection.fetch(
        """select w.n, s.state
           from unnest($1::uuid[], $2::int[]) with ordinality w(stream_id, upto, n)
           join ledger.snapshots s on s.stream_id = w.stream_id and s.version <= w.upto
           where s.made_by = $3""",
        [one[0] for one in asked],
        [one[1] for one in asked],
        _MADE_BY,
    )
    found: dict[int, bytes] = {row[0]: row[1] for row in rows}
    return [found.get(n) for n in range(1, len(asked) + 1)]
