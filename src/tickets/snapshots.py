"""Snapshots: long-lived tickets as they were some facts ago, so that a command need not read thousands.

Not part of the record: they can be thrown away at any time, and one that other code made is not looked at.
Deliberately absent: when one is worth keeping (handler.py).
"""

from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from immutables import Map
from msgspec.structs import replace

from tickets import events, ticket
from tickets.connections import Pool
from tickets.ticket import Attachment, Comment, Ticket

_MADE_BY: Final = sha256(b"".join(Path(str(one.__file__)).read_bytes() for one in (events, ticket))).digest()
"""What facts are and how they change a ticket, as of this code."""


def _nothing(_value: object) -> None:
    """What stands for a Map inside the ticket: it is beside it, where the type of what it has is known to msgspec."""


def _empty(_kind: object, _value: object) -> Map[Any, Any]:
    return Map()


_encode: Final = msgspec.msgpack.Encoder(enc_hook=_nothing, uuid_format="bytes").encode
_decode: Final = msgspec.msgpack.Decoder(
    tuple[Ticket, dict[UUID, Comment], dict[UUID, Attachment]], dec_hook=_empty
).decode


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
        _encode((kept, dict(kept.comments), dict(kept.attachments))),
    )


async def find(pool: Pool, ticket_id: UUID, *, upto: int | None = None) -> Ticket | None:
    """The ticket as it was kept, if it was, and at no version later than `upto`."""
    state = await pool.fetchval(
        "select state from ledger.snapshots where stream_id = $1 and made_by = $2 and version <= $3",
        ticket_id,
        _MADE_BY,
        2**31 - 1 if upto is None else upto,
    )
    if state is None:
        return None
    kept, comments, attachments = _decode(state)
    return replace(kept, comments=Map(comments), attachments=Map(attachments))
