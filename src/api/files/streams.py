"""Streams that give out what is in an archive a little at a time, whatever the archive says of it.

None of them holds more than it is asked for. Deliberately absent: what may be in an archive (archives.py).
"""

import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol
from zipfile import ZipInfo

CHUNK: Final = 64 * 1024


class Readable(Protocol):
    """All that is asked of a stream."""

    def read(self, size: int = ..., /) -> bytes:
        """At most so many bytes; none at the end."""


class Source:
    """A stream of which so many bytes are taken, all of them or it was cut off."""

    def __init__(self, stream: Readable, head: bytes = b"") -> None:
        """`head` has been read of the stream already."""
        self._stream = stream
        self._head = head

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)

    def take(self, size: int, multiple: int = 1) -> bytes:
        """So many bytes, and what is missing to a multiple skipped. Raises EOFError."""
        data = bytearray()
        padded = size + -size % multiple
        while len(data) < padded:
            more = self.read(padded - len(data))
            if not more:
                raise EOFError("it was cut off")
            data += more
        return bytes(data[:size])

    def refuse_more(self) -> None:
        """See to it that nothing but zeros comes. Raises ValueError."""
        while more := self.read():
            if more.strip(b"\0"):
                raise ValueError("there is something behind its end")


class Part:
    """So many bytes of a source."""

    def __init__(self, source: Source, size: int) -> None:
        """The next `size` bytes of it."""
        self._source = source
        self._left = size

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises EOFError."""
        if not self._left:
            return b""
        data = self._source.read(min(size, self._left))
        if not data:
            raise EOFError("it was cut off")
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read what is left."""
        while self.read():
            pass


class Gzip:
    """What gzip compressed, one member after the other (RFC 1952); it is told of each."""

    def __init__(self, stream: Readable, begun: Callable[[], None]) -> None:
        """`begun` is called at the beginning of each member."""
        self._stream = stream
        self._begun = begun
        self._compressed = b""
        self._member: Any = None

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises zlib.error, EOFError."""
        while True:
            if not self._compressed:
                self._compressed = self._stream.read(CHUNK)
            if self._member is None:
                self._compressed = self._compressed.lstrip(b"\0")  # padding
                if not self._compressed:
                    return b""
                self._begun()
                self._member = zlib.decompressobj(wbits=31)
            data: bytes = self._member.decompress(self._compressed, size)
            ended = self._member.eof
            if not ended and not self._compressed and not data:
                raise EOFError("it was cut off")
            self._compressed = self._member.unused_data if ended else self._member.unconsumed_tail
            if ended:
                self._member = None
            if data:
                return data


class Inflated:
    """What was deflated (RFC 1951), all of it and nothing behind it."""

    def __init__(self, stream: Readable) -> None:
        """Of a stream that ends with it."""
        self._stream = stream
        self._compressed = b""
        self._inflating: Any = zlib.decompressobj(wbits=-15)

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises zlib.error, EOFError, ValueError."""
        while not self._inflating.eof:
            if not self._compressed:
                self._compressed = self._stream.read(CHUNK)
            data: bytes = self._inflating.decompress(self._compressed, size)
            if not data and not self._compressed:
                raise EOFError("it was cut off")
            self._compressed = self._inflating.unconsumed_tail
            if data:
                return data
        if self._inflating.unused_data or self._stream.read(1):
            raise ValueError("there is something behind an entry")
        return b""


class Counted:
    """A stream whose bytes are counted."""

    def __init__(self, stream: Readable, count: Callable[[int], None]) -> None:
        """`count` is told how many came."""
        self._stream = stream
        self._count = count

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._count(len(data))
        return data


class Checked:
    """What an entry of a zip archive is, held against what the archive says that it is."""

    def __init__(self, stream: Readable, info: ZipInfo) -> None:
        """`info` is what the archive says of it."""
        self._stream = stream
        self._info = info
        self._size = 0
        self._sum = 0

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._size += len(data)
        self._sum = zlib.crc32(data, self._sum)
        return data

    def finish(self) -> None:
        """Read what is left. Raises ValueError where it is not what the archive says."""
        while self.read():
            pass
        if (self._size, self._sum) != (self._info.file_size, self._info.CRC):
            raise ValueError(f"{self._info.filename!r} in it is not what the archive says that it is")
