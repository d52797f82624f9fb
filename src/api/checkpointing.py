"""The process that signs: every minute, or after so many facts, a checkpoint, outside first and then in the database.

One process signs, by an advisory lock; others stand by. A checkpoint beside the data proves nothing, so it
is kept outside too, with the leaves since the one before: whatever is changed later, what was signed is
there. Before signing, the new root is proven to contain the one before; where it does not, nothing is
signed any more and health says so. Deliberately absent: what a checkpoint is (tickets/checkpoints.py), and
verifying (tickets/verification.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import obstore
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from obstore.store import LocalStore, ObjectStore

from api.files.storage import StorageAway, flush, folder_at, storage_errors, store_at
from api.settings import Settings, SettingsError
from tickets import proofs
from tickets.checkpoints import (
    BadCheckpoint,
    BadKey,
    Checkpoint,
    VerifierKey,
    make_key,
    parse,
    read_key,
    sign,
    verify_note,
)
from tickets.checkpoints import verifier as verifier_of
from tickets.connections import CANNOT_CONNECT, Connection
from tickets.merkle import verify_consistency

SIGNER: Final = 0x7369676E6572  # "signer", as the number of an advisory lock

_LOOKS_S: Final = 1.0
_RETRYING_S: Final = 60.0
_MOST: Final = 250_000
"""A checkpoint has no more new facts than this: their leaves are 8 MB, and are taken into memory."""
_PATIENCE_S: Final = 120.0
"""A round that takes longer has lost its database or its store without noticing."""

_NOTE: Final = ".checkpoint"
_LEAVES: Final = ".leaves"

_log: Final = structlog.get_logger(__name__)


class Outside:
    """Where checkpoints are beside the database: a folder or an object store, two objects for each.

    <size, 20 digits>.checkpoint is the note; <size, 20 digits>.leaves the leaves since the one before.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        """A file:// URL or an object store's, as `folder_at` and `store_at` take them. Raises StorageAway."""
        self._folder: Final = folder_at(url)
        with storage_errors():
            self._store: ObjectStore = store_at(url) if self._folder is None else LocalStore(self._folder, mkdir=make)

    async def keep(self, checkpoint: Checkpoint, leaves: bytes) -> None:
        """Keep a checkpoint, and before it the leaves of what is new. Raises StorageAway."""
        with storage_errors():
            for kind, content in ((_LEAVES, leaves), (_NOTE, checkpoint.note.encode())):
                name = _name(checkpoint.size, kind)
                await obstore.put_async(self._store, name, content)
                if self._folder is not None:
                    await asyncio.to_thread(flush, self._folder / name)
            if self._folder is not None:
                await asyncio.to_thread(flush, self._folder)

    async def sizes(self, after: int = 0) -> list[int]:
        """The sizes of the checkpoints that are here, after one, in order. Raises StorageAway."""
        with storage_errors():
            found = [
                int(stem)
                async for some in obstore.list(self._store, offset=_name(after, _NOTE) if after else None)
                for stem, dot, kind in (one["path"].rpartition(".") for one in some)
                if dot + kind == _NOTE and stem.isdigit() and int(stem) > after
            ]
        return sorted(found)

    async def note(self, size: int) -> str:
        """The note of a checkpoint. Raises StorageAway."""
        return (await self._read(size, _NOTE)).decode(errors="replace")

    async def leaves(self, size: int) -> bytes | None:
        """The leaves since the checkpoint before, where they are here. Raises StorageAway."""
        try:
            return await self._read(size, _LEAVES)
        except StorageAway as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    async def _read(self, size: int, kind: str) -> bytes:
        with storage_errors():
            found = await obstore.get_async(self._store, _name(size, kind))
            return bytes(await found.bytes_async())


def _name(size: int, kind: str) -> str:
    return f"{size:020d}{kind}"


def trusted_key(settings: Settings) -> VerifierKey | None:
    """The public half of this installation's key; None where there is none yet. Raises SettingsError."""
    try:
        return verifier_of(read_key(settings.checkpoint_key), settings.origin)
    except FileNotFoundError:
        return None
    except (BadKey, OSError) as error:
        raise SettingsError(f"CHECKPOINT_KEY_FILE is not usable: {error}") from None


class Refused(Exception):  # noqa: N818 - it says what happened
    """What is to be signed contradicts what was signed before."""


class Checkpointer:
    """Signs as long as it runs, if it is the one that does, and knows the newest checkpoint in any case."""

    def __init__(self, settings: Settings, connect: Callable[[], Awaitable[Connection]]) -> None:
        """Makes the key if there is none. Raises SettingsError where that is not usable."""
        try:
            if settings.checkpoint_key_file is None:
                make_key(settings.checkpoint_key)
            self._key = read_key(settings.checkpoint_key)
        except (BadKey, OSError) as error:
            raise SettingsError(f"CHECKPOINT_KEY_FILE is not usable: {error}") from None
        self._settings = settings
        self._connect = connect
        self._every = timedelta(seconds=settings.checkpoint_seconds)
        self._size = 0
        self._signed_at: datetime | None = None
        self._outside = "standby"
        self._store: Outside | None = None
        self._settled = False
        """Whether all that is outside is known to be in the database too."""

    @property
    def health(self) -> dict[str, Any]:
        """The newest checkpoint, and how its signing is: ok, away, refused, or standby where another process does."""
        return {"size": self._size, "signed_at": self._signed_at, "outside": self._outside}

    async def run(self) -> None:
        """Follow the ledger until cancelled; what is away is waited for."""
        while True:
            try:
                connection = await self._connect()
            except CANNOT_CONNECT as error:
                _log.warning("checkpoints.unreachable", error=repr(error))
                await asyncio.sleep(_LOOKS_S)
                continue
            try:
                await self._follow(connection)
            except CANNOT_CONNECT as error:
                _log.warning("checkpoints.interrupted", error=repr(error))
                await asyncio.sleep(_LOOKS_S)
            finally:
                connection.terminate()

    async def _follow(self, connection: Connection) -> None:
        signs, pause = False, _LOOKS_S
        self._settled = False
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    signs = signs or await self._leads(connection)
                    more = await self._checkpoint(connection, self._key) if signs else await self._stand_by(connection)
                pause = 0 if more else _LOOKS_S
            except StorageAway as error:
                self._settled, self._outside, pause = False, "away", min(max(pause, _LOOKS_S) * 2, _RETRYING_S)
                _log.warning("checkpoints.outside_away", error=str(error), retry_in_s=pause)
            except (Refused, proofs.NotThere) as error:
                self._settled, self._outside, pause = False, "refused", _RETRYING_S
                _log.error("checkpoints.refused", error=str(error), advice="run `tickets verify --outside`")
            await asyncio.sleep(pause)

    async def _leads(self, connection: Connection) -> bool:
        leads: bool = isinstance(self._key, Ed25519PrivateKey) and await connection.fetchval(
            "select pg_try_advisory_lock($1)", SIGNER
        )
        return leads

    async def _stand_by(self, connection: Connection) -> bool:
        self._outside = "standby"
        await self._newest(connection)
        return False

    async def _newest(self, connection: Connection) -> Checkpoint | None:
        row = await connection.fetchrow("select note from ledger.checkpoints order by size desc limit 1")
        try:
            found = None if row is None else parse(row["note"])
        except BadCheckpoint as error:
            raise Refused(f"the newest checkpoint in the database is none: {error}") from None
        if found is not None:
            self._size, self._signed_at = found.size, found.time
        return found

    async def _checkpoint(self, connection: Connection, key: Any) -> bool:
        """Sign what is due; whether that leaves more. Raises Refused, StorageAway, NotThere."""
        newest = await self._newest(connection)
        before = 0 if newest is None else newest.size
        head: int = await connection.fetchval("select position from ledger.head")
        if head < before:
            raise Refused(f"the ledger ends at {head}, but {before} facts were signed")
        if self._store is None:
            self._store = await asyncio.to_thread(Outside, self._settings.outside)
        if not self._settled:
            self._check_own(newest, key)
            if await self._adopt(connection, self._store, newest, key):
                return True
            self._settled, self._outside = True, "ok"
        now = datetime.now(UTC)
        due = newest is None or now - newest.time >= self._every or head - before >= self._settings.checkpoint_facts
        if head == before or not due:
            return False
        size = min(head, before + _MOST)
        await proofs.extend(connection, size)
        root = await proofs.root_at(connection, size)
        await self._check_follows(connection, newest, size, root)
        previous = None if newest is None else newest.digest
        checkpoint = sign(key, self._settings.origin, size=size, root=root, time=now, previous=previous)
        leaves: bytes = await connection.fetchval(
            """select string_agg(leaf, ''::bytea order by position) from ledger.events
               where position > $1 and position <= $2""",
            before,
            size,
        )
        self._settled = False  # unless it comes into both
        await self._store.keep(checkpoint, leaves)
        await _record(connection, checkpoint)
        self._size, self._signed_at, self._settled = size, now, True
        _log.info("checkpoints.signed", size=size, root=root.hex())
        return size < head

    def _check_own(self, newest: Checkpoint | None, key: Any) -> None:
        """Another name is another signer, deliberately; the same name with another key is not."""
        if newest is not None and newest.origin == self._settings.origin:
            try:
                verify_note(newest.note, verifier_of(key, self._settings.origin))
            except BadCheckpoint as error:
                raise Refused(f"the newest checkpoint in the database is not ours: {error}") from None

    async def _check_follows(self, connection: Connection, newest: Checkpoint | None, size: int, root: bytes) -> None:
        if newest is None:
            return
        path = await proofs.consistency(connection, newest.size, size)
        if not verify_consistency(newest.size, size, newest.root, root, path):
            raise Refused(f"the first {newest.size} facts are not those that were signed")

    async def _adopt(self, connection: Connection, outside: Outside, newest: Checkpoint | None, key: Any) -> bool:
        """Take in what was kept outside and did not come into the database; whether there was any."""
        for size in await outside.sizes(0 if newest is None else newest.size):
            with suppress(BadCheckpoint):  # one that did not come to be whole: it says nothing
                found = verify_note(await outside.note(size), verifier_of(key, self._settings.origin))
                if found.previous != (None if newest is None else newest.digest):
                    raise Refused(
                        f"the checkpoint at {size} that is kept outside does not follow those in the database"
                    )
                if found.root != await proofs.root_at(connection, size):
                    raise Refused(f"the first {size} facts are not those that were signed and kept outside")
                await _record(connection, found)
                _log.info("checkpoints.adopted", size=size)
                return True
        return False


async def _record(connection: Connection, checkpoint: Checkpoint) -> None:
    await connection.execute(
        "insert into ledger.checkpoints (size, root, time, note) values ($1, $2, $3, $4)",
        checkpoint.size,
        checkpoint.root,
        checkpoint.time,
        checkpoint.note,
    )
