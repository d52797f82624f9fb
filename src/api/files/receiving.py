"""How a file comes in: one part of a multipart body, streamed to a file of its own and hashed on the way.

Deliberately absent: whether it is welcome (inspection.py, scanning.py).
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import mkstemp
from typing import Any, BinaryIO, Final

from msgspec import Struct
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from api.files.inspection import extension_of
from api.files.storage import Storage, storage_errors
from api.problems import InvalidRequest, Problem
from api.requests import ApiRequest, header

_PART: Final = "file"
_LONGEST_NAME: Final = 255
_SLOWEST: Final = 10_000
"""Bytes a second; fewer only for as long as an upload may pause."""
ENVELOPE: Final = 16 * 1024
"""What may be around the file in the body."""
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f\u0080-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, those that turn the direction of writing included: they make a name look like another."""


class Received(Struct, frozen=True):
    """A file that has come in whole."""

    path: Path
    file: BinaryIO
    filename: str
    size: int
    sha256: str


class Terms(Struct, frozen=True):
    """What may come in: files of these extensions, so many bytes long, with so many seconds' pause on the way."""

    extensions: tuple[str, ...]
    largest: int
    patience: float


@asynccontextmanager
async def received(request: ApiRequest, storage: Storage, terms: Terms) -> AsyncIterator[Received]:
    """The file that the request brings, for as long as it is needed.

    Raises InvalidRequest, Problem, StorageAway.
    """
    parser = _parser(request, terms.largest)
    with _temporary(storage) as (path, file):
        filename, size, digest = await _receive(_chunks(request, terms.patience), parser, file, terms)
        yield Received(path, file, filename, size, digest)


async def _chunks(request: ApiRequest, patience: float) -> AsyncIterator[bytes]:
    """The request's body, as it comes; whoever sends it a little at a time does not have a place for ever."""
    more, deadline = True, asyncio.get_running_loop().time()
    while more:
        try:
            async with asyncio.timeout(patience), asyncio.timeout_at(deadline + patience):
                event: Any = await request.receive()
        except TimeoutError:
            raise InvalidRequest("body", f"nothing more came for {patience:g} s, or too little") from None
        if event["type"] == "http.disconnect":
            raise InvalidRequest("body", "the connection ended before it did")
        more = event["more_body"]
        deadline += len(event["body"]) / _SLOWEST
        yield event["body"]


def _parser(request: ApiRequest, largest: int) -> PushMultipartParser:
    kind, options = parse_options_header(header(request, b"content-type") or "")  # type: ignore[no-untyped-call]
    if kind != "multipart/form-data":
        raise Problem("unsupported-media-type", f"Send multipart/form-data with the file as its part `{_PART}`.")
    length = header(request, b"content-length")
    if length is not None and length.isdigit() and int(length) > largest + ENVELOPE:
        raise _too_large(largest)
    try:
        return PushMultipartParser(options.get("boundary", ""), max_segment_count=1, strict=True)
    except MultipartError as error:
        raise InvalidRequest("Content-Type", f"has no usable boundary: {error}") from None


@contextmanager
def _temporary(storage: Storage) -> Iterator[tuple[Path, BinaryIO]]:
    with storage_errors():
        descriptor, name = mkstemp(dir=storage.incoming)
    path, file = Path(name), os.fdopen(descriptor, "w+b")
    try:
        yield path, file
    finally:
        with storage_errors():
            path.unlink(missing_ok=True)  # where it was kept, it is elsewhere by now
            file.close()


async def _receive(
    chunks: AsyncIterator[bytes], parser: PushMultipartParser, file: BinaryIO, terms: Terms
) -> tuple[str, int, str]:
    filename, size, digest, part, came = "", 0, sha256(), None, 0
    try:
        with parser:
            async for chunk in chunks:
                came += len(chunk)
                if part is not None and part.complete and not chunk.strip(b"\r\n"):
                    chunk = b""  # noqa: PLW2901 - the end of the last line may come by itself
                for event in parser.parse(chunk) if chunk else ():
                    if isinstance(event, MultipartSegment):
                        part, filename = event, _filename(event, terms)
                    elif event is not None:
                        size += len(event)
                        if size > terms.largest:
                            raise _too_large(terms.largest)
                        digest.update(event)
                        with storage_errors():
                            file.write(event)
                if came - size > ENVELOPE:
                    raise InvalidRequest("body", f"has more than {ENVELOPE:,} bytes around the file")
    except MultipartError as error:
        raise InvalidRequest("body", f"is not multipart/form-data with one part `{_PART}`: {error}") from None
    if not filename:
        raise InvalidRequest(_PART, "is missing")
    if not size:
        raise InvalidRequest(_PART, "is empty")
    with storage_errors():
        file.flush()
    return filename, size, digest.hexdigest()


def _filename(part: MultipartSegment, terms: Terms) -> str:
    """What the sender calls the file, without the folders that some browsers put in front (RFC 7578, 4.2)."""
    if part.name != _PART:
        raise InvalidRequest(part.name or "body", f"is not a part here; there is `{_PART}`")
    if part.filename is None:
        raise InvalidRequest(_PART, "must have a filename")
    name = PurePosixPath(part.filename.replace("\\", "/")).name if "\0" not in part.filename else part.filename
    if not name or name in (".", ".."):
        raise InvalidRequest(_PART, "must have a filename")
    if _UNPRINTABLE.search(name):
        raise InvalidRequest(_PART, "must not have control characters in its filename")
    if len(name) > _LONGEST_NAME:
        raise InvalidRequest(_PART, f"must have a filename of at most {_LONGEST_NAME} characters")
    extension = extension_of(name)
    if extension not in terms.extensions:
        called = f"called .{extension}" if extension else "without an extension"
        raise Problem(
            "unsupported-media-type", f"Files {called} are not taken here; there are {', '.join(terms.extensions)}."
        )
    return name


def _too_large(largest: int) -> Problem:
    return Problem("content-too-large", f"A file may have {largest:,} bytes, not more.")
