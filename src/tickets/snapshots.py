"""Snapshots: long-lived tickets as they were some facts ago, so that a command need not read thousands.

Not part of the record: they can be thrown away at any time, and one that other code made is not looked at.
Deliberately absent: when one is worth keeping (handler.py).
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from immutables import Map
from msgspec.structs import replace

from tickets import events, ticket
from tickets.batching import Batched
from tickets.connections import Pool
from tickets.events import By
from tickets.ticket import Attachment, Comment, Ticket

_MADE_BY: Final = sha256(
    b"".join(Path(str(one)).read_bytes() for one in (events.__file__, ticket.__file__, __file__))
).digest()
"""What facts are, how they change a ticket and how one is kept, as of this code."""


def _nothing(_value: object) -> None:
    """What stands for a Map inside the ticket: it is beside it, where the type of what it has is known to msgspec."""


def _empty(_kind: object, _value: object) -> Map[Any, Any]:
    return Map()


_encode: Final = msgspec.msgpack.Encoder(enc_hook=_nothing, uuid_format="bytes").encode

_Kept = tuple[UUID, int, bool, datetime, datetime | None, int, int]
"""A comment: its id, its author's place in the list of authors, and the rest. Each author is there once: thousands of
comments are by a few people, and reading them is most of what the first command on such a ticket takes."""

_decode: Final = msgspec.msgpack.Decoder(
    tuple[Ticket, list[By], list[_Kept], dict[UUID, Attachment]], dec_hook=_empty
).decode


def _encoded(kept: Ticket) -> bytes:
    places: dict[By, int] = {}
    comments = [
        (
            comment_id,
            places.setdefault(one.author, len(places)),
            one.internal,
            one.created_at,
            one.edited_at,
            one.version,
            one.said_at,
        )
        for comment_id, one in kept.comments.items()
    ]
    return _encode((kept, list(places), comments, dict(kept.attachments)))


def _decoded(state: bytes) -> Ticket:
    kept, authors, comments, attachments = _decode(state)
    return replace(
        kept,
        comments=Map(
            [
                (comment_id, Comment(authors[by], internal, created_at, edited_at, version, said_at))
                for comment_id, by, internal, created_at, edited_at, version, said_at in comments
            ]
        ),
        attachments=Map(attachments),
    )


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

    async def states(asked: Sequence[_Asked]) -> list[bytes | None]:
        rows = await pool.fetch(
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

    return Batched(states)


async def find(finding: Finding, ticket_id: UUID, *, upto: int | None = None) -> Ticket | None:
    """The ticket as it was kept, if it was, and at no version later than `upto`."""
    state = await finding((ticket_id, 2**31 - 1 if upto is None else upto))
    return None if state is None else _decoded(state)
