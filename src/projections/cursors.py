"""Cursors: where a page of a list ended, so that the next one begins there whatever came meanwhile.

Deliberately absent: which columns a list is ordered by; it says that by the decoder of its cursors.
"""

import base64
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

Moment = Annotated[datetime, Meta(tz=True)]

T = TypeVar("T")


class Stretch(Struct, frozen=True):
    """Some of what only ever grows, oldest first, as JSON, and after what the next ones come."""

    docs: list[bytes]
    total: int
    next_after: int | None
    stale: bool = False
    """Whether there are facts about it that the read model could not digest yet."""


class BadCursor(Exception):  # noqa: N818 - it says what is bad
    """The cursor is not one that this list gave out."""


_encode: Final = msgspec.json.Encoder().encode


def cursor_after(place: tuple[Any, ...]) -> str:
    """The cursor of the page that begins after this place."""
    return base64.urlsafe_b64encode(_encode(place)).decode().rstrip("=")


def read_cursor(cursor: str, decoder: msgspec.json.Decoder[T]) -> T:
    """The place that a cursor stands for. Raises BadCursor."""
    try:
        place = decoder.decode(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        for one in place if isinstance(place, tuple) else ():
            if isinstance(one, datetime):
                one.astimezone(UTC)  # what no database could compare
    except (ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise BadCursor(str(error)) from error
    return place
