"""Checkpoints: how large the ledger was at a time and what its Merkle root was, signed, each naming the one before.

A checkpoint is a signed note of C2SP (c2sp.org/signed-note, c2sp.org/tlog-checkpoint) with one Ed25519
signature; two lines more than the minimum say when, and what came before. Deliberately absent: making
roots (proofs.py), and when and where checkpoints are written (api/checkpointing.py).
"""

import os
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Struct

NAME: Final = re.compile(r"[^\s+\x00]{1,100}")
"""What origins and names of keys are made of: C2SP has no blanks and no plus signs in them."""

_ED25519: Final = b"\x01"
"""The kind of signature, as a key's id and a verifier key name it."""

_NOTE: Final = re.compile(
    r"""(?P<text>(?P<origin>[^\s+]+)\n
    (?P<size>0|[1-9][0-9]{0,18})\n
    (?P<root>[A-Za-z0-9+/]{43}=)\n
    time\ (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)\n
    previous\ (?P<previous>none|[A-Za-z0-9+/]{43}=)\n)
    \n
    —\ (?P<name>[^\s+]+)\ (?P<signature>[A-Za-z0-9+/]{91}=)\n""",
    re.VERBOSE,
)


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The ledger's first `size` facts have this Merkle root; said at `time`, after the note with that SHA-256."""

    origin: str
    size: int
    root: bytes
    time: datetime
    previous: bytes | None
    note: str
    """The whole of it, signature included: what is kept and passed on."""

    @property
    def digest(self) -> bytes:
        """What the checkpoint after it calls it: SHA-256 over the note."""
        return sha256(self.note.encode()).digest()


class BadCheckpoint(Exception):  # noqa: N818 - it says what is wrong
    """A note is no checkpoint, or is not signed by whoever was expected."""


class BadKey(Exception):  # noqa: N818 - as above
    """What was given as a key is none."""


class VerifierKey(Struct, frozen=True):
    """Whose signature is believed: a name and an Ed25519 public key of 32 bytes."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The first 4 bytes of SHA-256 over name, line end, kind and key."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        """The verifier key as C2SP writes it: name+id+key."""
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public)}"


def verifier_key(text: str) -> VerifierKey:
    """The key that was written as name+id+key. Raises BadKey."""
    name, _, rest = text.strip().partition("+")
    stated, _, encoded = rest.partition("+")
    try:
        decoded = b64decode(encoded, validate=True)
    except (NotBase64, ValueError):
        decoded = b""
    key = VerifierKey(name, decoded[1:])
    if NAME.fullmatch(name) is None or len(decoded) != 33 or decoded[:1] != _ED25519 or stated != key.id.hex():
        raise BadKey("a verifier key is written name+id+key, such as `tickets+1a2b3c4d+AT…`")
    return key


def sign(
    key: Ed25519PrivateKey, origin: str, *, size: int, root: bytes, time: datetime, previous: bytes | None
) -> Checkpoint:
    """A checkpoint of this origin, signed in its name. Raises ValueError where that cannot be a name."""
    if NAME.fullmatch(origin) is None:
        raise ValueError(f"{origin!r} has a blank or a plus sign in it")
    time = time.astimezone(UTC)
    before = "none" if previous is None else _base64(previous)
    text = f"{origin}\n{size}\n{_base64(root)}\ntime {time:%Y-%m-%dT%H:%M:%S.%f}Z\nprevious {before}\n"
    signature = verifier(key, origin).id + key.sign(text.encode())
    note = f"{text}\n— {origin} {_base64(signature)}\n"
    return Checkpoint(origin=origin, size=size, root=root, time=time, previous=previous, note=note)


def parse(note: str) -> Checkpoint:
    """What a note says, whoever signed it. Raises BadCheckpoint."""
    return _read(note)[0]


def verify_note(note: str, *keys: VerifierKey) -> Checkpoint:
    """What a note says, if one of these keys signed it. Raises BadCheckpoint."""
    checkpoint, text, name, signature = _read(note)
    for key in keys:
        if key.name == name == checkpoint.origin and signature[:4] == key.id:
            with suppress(InvalidSignature, ValueError):
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature[4:], text)
                return checkpoint
    raise BadCheckpoint(f"it is not signed by {' or '.join(map(str, keys)) or 'anybody who is trusted'}")


def _read(note: str) -> tuple[Checkpoint, bytes, str, bytes]:
    found = _NOTE.fullmatch(note)
    if found is None:
        raise BadCheckpoint("it is not a checkpoint of this kind")
    try:
        root, signature = _decoded(found["root"]), _decoded(found["signature"])
        previous = None if found["previous"] == "none" else _decoded(found["previous"])
        checkpoint = Checkpoint(
            origin=found["origin"],
            size=int(found["size"]),
            root=root,
            time=datetime.fromisoformat(found["time"]),
            previous=previous,
            note=note,
        )
    except ValueError as error:
        raise BadCheckpoint(f"it is not a checkpoint of this kind: {error}") from None
    return checkpoint, found["text"].encode(), found["name"], signature


# Keys

Key = Ed25519PrivateKey | Ed25519PublicKey
"""What signs, or where only the public half is known, what others signed is checked with."""


def verifier(key: Key, name: str) -> VerifierKey:
    """The public half of a key, under a name."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return VerifierKey(name, public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def read_key(path: Path) -> Key:
    """The key in a PEM file: PKCS8, or a public key where others sign. Raises BadKey, FileNotFoundError."""
    pem = path.read_bytes()
    try:
        key = load_pem_public_key(pem) if b"PUBLIC KEY" in pem else load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise BadKey(f"{path} is no key in PEM without a password: {error}") from None
    if not isinstance(key, (Ed25519PrivateKey, Ed25519PublicKey)):
        raise BadKey(f"{path} is no Ed25519 key")
    return key


def make_key(path: Path) -> None:
    """Make a key and keep it there, readable by us alone, unless there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # Written beside and linked: nobody ever reads half a key, and of several processes one is first.
        with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(file.name, path)


def _decoded(text: str) -> bytes:
    """What was written in base64, if it was written in the one way that there is. Raises ValueError."""
    value = b64decode(text, validate=True)
    if _base64(value) != text:
        raise ValueError("base64 has bits that mean nothing")
    return value


def _base64(value: bytes) -> str:
    return b64encode(value).decode()
