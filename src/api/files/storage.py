"""Where the bytes are: by their SHA-256, in a folder or an object store, so that the same ones are there once.

What is kept is durable when `keep` returns. Deliberately absent: which attachments name them, and so when
they may go (housekeeping.py).
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

_CHUNK: Final = 256 * 1024
_SHA256: Final = re.compile("[0-9a-f]{64}")
_LISTED_AT_ONCE: Final = 1_000
_RETRYING: Final = timedelta(seconds=10)


class StorageAway(Exception):  # noqa: N818 - it says what is the matter
    """The files' storage cannot be reached, is full, or has lost something."""


class Kept(Struct, frozen=True):
    """Some bytes in the storage."""

    sha256: str
    modified_at: datetime


class Storage:
    """The folder or object store that has the bytes."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        """`folder` is where files are received, and kept where there is no `url`. Raises StorageAway."""
        self.incoming: Final = folder / "incoming"
        self._local: Final = folder / "objects" if url is None else None
        with storage_errors():
            self.incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._local is not None:
                self._local.mkdir(exist_ok=True, mode=0o700)
            self._store: ObjectStore = store_at(url) if url is not None else LocalStore(folder / "objects")

    async def keep(self, file: Path, sha256: str) -> None:
        """Keep what is in `file`, which is gone afterwards if it was moved. Raises StorageAway."""
        with storage_errors():
            if self._local is not None:
                await asyncio.to_thread(_move_durably, file, self._local / _key(sha256))
            else:
                await obstore.put_async(self._store, _key(sha256), file)

    async def read(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to but not including `end`. Raises StorageAway."""
        if start == end:
            return
        with storage_errors():
            found = await obstore.get_async(self._store, _key(sha256), options={"range": (start, end)})
            async for chunk in found.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    async def remove(self, sha256: str) -> None:
        """Remove the bytes. Raises StorageAway."""
        with storage_errors():
            await obstore.delete_async(self._store, _key(sha256))

    async def modified_at(self, sha256: str) -> datetime:
        """When the bytes were last kept. Raises StorageAway."""
        with storage_errors():
            return (await obstore.head_async(self._store, _key(sha256)))["last_modified"]

    async def all(self) -> AsyncIterator[list[Kept]]:
        """Everything that is there, some at a time. Raises StorageAway."""
        with storage_errors():
            async for some in obstore.list(self._store, chunk_size=_LISTED_AT_ONCE):
                names = [(one["path"].rpartition("/")[2], one) for one in some]
                yield [
                    Kept(sha256, one["last_modified"])
                    for sha256, one in names
                    if _SHA256.fullmatch(sha256) and one["path"] == _key(sha256)  # what else is there is not ours
                ]


def store_at(url: str) -> ObjectStore:
    """The object store at a URL: s3://, gs:// or az://; credentials are in the environment. Raises ValueError."""
    if not url.startswith(("s3://", "gs://", "az://")):
        raise ValueError("must begin with s3://, gs:// or az://; leave it unset to keep files in UPLOAD_DIR")
    try:
        # Without options for its HTTP client: those would take the place of all that the environment says of it.
        return from_url(url, retry_config={"max_retries": 3, "retry_timeout": _RETRYING})
    except BaseError as error:
        raise ValueError(str(error).partition("\n")[0]) from None


def folder_at(url: str) -> Path | None:
    """The folder at a file:// URL, None where it is an object store's. Raises ValueError, as `store_at` does."""
    if not url.startswith("file:"):
        try:
            store_at(url)
        except ValueError as error:
            raise ValueError(str(error).replace("must begin with", "must begin with file://,")) from None
        return None
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/"):
        raise ValueError("must name a folder from the root on: file:///srv/checkpoints")
    return Path(unquote(parts.path))


@contextmanager
def storage_errors() -> Iterator[None]:
    """Says of what files and object stores raise that the storage is away."""
    try:
        yield
    except (OSError, BaseError) as error:
        raise StorageAway(str(error).partition("\n")[0]) from error


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _move_durably(file: Path, to: Path) -> None:
    """Move, so that it is there whole or not at all, whatever happens, and stays once this returns."""
    flush(file)
    to.parent.mkdir(exist_ok=True, mode=0o700)
    file.replace(to)
    flush(to.parent)
    flush(to.parent.parent)  # somebody else may have made the folder and not have come to this yet


def flush(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
