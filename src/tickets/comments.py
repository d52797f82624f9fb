"""The comments of a ticket, as much of them as decisions need: who wrote which, and where what it says stands.

Those that a snapshot brings stay packed until one is asked for: of a ticket with thousands, a command needs one, or
only how many there are. Deliberately absent: what they say, and what facts do to them (ticket.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from struct import Struct as Layout
from typing import Final, Self
from uuid import UUID

from immutables import Map
from msgspec import Struct

from tickets.events import By

_LAYOUT: Final = Layout(">16sI?qqII")
"""Id, the author's place in the list of authors, internal, created, edited, version, said at."""
_SIZE: Final = _LAYOUT.size
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)
_NEVER: Final = -(2**63)


class Comment(Struct, frozen=True, gc=False):
    """What is known of a comment to decide about it; what it says is in the fact of version `said_at`.

    `version` is that of the fact that added it.
    """

    author: By
    internal: bool
    created_at: datetime
    edited_at: datetime | None
    version: int
    said_at: int


class Comments(Mapping[UUID, Comment]):
    """Comments by their ids. Never changed: `set` and `delete` give others, which share what is the same."""

    __slots__ = ("_authors", "_packed", "_unpacked")

    def __init__(
        self,
        unpacked: Map[UUID, Comment] = Map(),  # noqa: B008 - it is immutable
        packed: bytes = b"",
        authors: Sequence[By] = (),
    ) -> None:
        """No comment is in both; `packed` and `authors` are what `pack` gave."""
        self._unpacked = unpacked
        self._packed = packed
        self._authors = authors

    def __getitem__(self, comment_id: UUID) -> Comment:
        known = self._unpacked.get(comment_id)
        if known is not None:
            return known
        at = self._place(comment_id)
        if at < 0:
            raise KeyError(comment_id)
        _, author, internal, created, edited, version, said_at = _LAYOUT.unpack_from(self._packed, at)
        edited_at = None if edited == _NEVER else _EPOCH + edited * _TICK
        return Comment(self._authors[author], internal, _EPOCH + created * _TICK, edited_at, version, said_at)

    def __iter__(self) -> Iterator[UUID]:
        return chain((UUID(bytes=record[0]) for record in _LAYOUT.iter_unpack(self._packed)), self._unpacked)

    def __len__(self) -> int:
        return len(self._packed) // _SIZE + len(self._unpacked)

    def set(self, comment_id: UUID, comment: Comment) -> Self:
        """With this comment, instead of the one with this id if there is one."""
        return type(self)(self._unpacked.set(comment_id, comment), self._packed_but(comment_id), self._authors)

    def delete(self, comment_id: UUID) -> Self:
        """Without this comment, which is there."""
        packed = self._packed_but(comment_id)
        unpacked = self._unpacked.delete(comment_id) if packed is self._packed else self._unpacked
        return type(self)(unpacked, packed, self._authors)

    def pack(self) -> tuple[bytes, Sequence[By]]:
        """All of them as bytes, and the authors that these name by their places, each once."""
        places = {author: place for place, author in enumerate(self._authors)}
        records = (
            _LAYOUT.pack(
                comment_id.bytes,
                places.setdefault(one.author, len(places)),
                one.internal,
                (one.created_at - _EPOCH) // _TICK,
                _NEVER if one.edited_at is None else (one.edited_at - _EPOCH) // _TICK,
                one.version,
                one.said_at,
            )
            for comment_id, one in self._unpacked.items()
        )
        return self._packed + b"".join(records), tuple(places)

    def _place(self, comment_id: UUID) -> int:
        """Where the comment is among the packed ones, or -1."""
        at = self._packed.find(comment_id.bytes)
        while at % _SIZE and at >= 0:  # what looks like its id is part of others
            at = self._packed.find(comment_id.bytes, at + 1)
        return at

    def _packed_but(self, comment_id: UUID) -> bytes:
        at = self._place(comment_id)
        return self._packed if at < 0 else self._packed[:at] + self._packed[at + _SIZE :]
