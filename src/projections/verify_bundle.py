"""Check an audit bundle of the ticket service, without the service.

    python verify.py bundle.zip --key VERIFIER_KEY

It needs Python 3.9 or newer and the library `cryptography` (for Ed25519 signatures), and imports nothing else that is
not Python's own. It is meant to be read. A bundle that is good is all of this:

1. A zip whose every byte is what writing its files in their order makes: no hidden byte, no second meaning.
2. manifest.note is a signed note (c2sp.org/signed-note) of the key, and its text is manifest.json, which has the
   SHA-256 of every other file.
3. checkpoint.txt is a checkpoint (c2sp.org/tlog-checkpoint) of the same key: the ledger's size and its Merkle root.
4. Each line of facts.jsonl is a fact; the line of proofs.jsonl beside it has its leaf, made of the fact's own bytes,
   and a path from the leaf to that root (RFC 9162, section 2.1.3).
5. No fact is left out: of each ticket all versions from the first, or of a stretch of the ledger all positions.
6. history.json has an entry for each fact about a ticket, with the time, the person and the command of that fact.

What it cannot show: that nothing happened to a ticket after the last version in the bundle, that what people said is
true, or that a key is whose it is said to be. Get the key from somebody else than the bundle. The same goes for this
file: take it from where you trust it; a bundle brings a copy, so that there is one in twenty years.

Exit codes: 0 good, 1 something is not as it was signed, 2 wrong usage. Deliberately absent: anything of the service's
own code; the service writes bundles with the two functions about the zip that are here.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

FILES = (
    "README.txt",
    "verify.py",
    "history.html",
    "history.csv",
    "history.json",
    "facts.jsonl",
    "proofs.jsonl",
    "checkpoint.txt",
    "public_key.txt",
    "manifest.json",
    "manifest.note",
)
"""What is in a bundle, in this order. The manifest has the SHA-256 of all but the last two."""

KIND = "ticket-audit-bundle/1"

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 26
_MOST_SMALL = 1 << 24
"""A manifest or note that is larger is none."""


class Bad(Exception):  # noqa: N818 - it says what is wrong
    """Something is not as it was signed."""


class NoCryptography(Exception):  # noqa: N818 - it says what is missing
    """The library is not installed."""


# The zip: stored, not compressed, without dates or owners, so that the same files always make the same bytes.

_LARGE = 0xFFFFFFFF
"""A size or place from here on needs more than 32 bits (zip64)."""
_ELSEWHERE = 0xFFFFFFFF
"""Stands where such a number should; the extra field has it."""


def local_header(name: str, size: int, crc: int) -> bytes:
    """What stands before a file in the zip."""
    large = size >= _LARGE
    extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
    known, needed = (_ELSEWHERE, 45) if large else (size, 20)
    fields = (b"PK\3\4", needed, 0, 0, 0, 0x21, crc, known, known, len(name), len(extra))
    return struct.pack("<4s5H3L2H", *fields) + name.encode() + extra


def directory(files: list[tuple[str, int, int]]) -> bytes:
    """What stands after the last file; of each its name, size and CRC-32, in order."""
    entries, at = b"", 0
    for name, size, crc in files:
        large = max(size, at) >= _LARGE
        extra = struct.pack("<HHQQQ", 1, 24, size, size, at) if large else b""
        known, place = (_ELSEWHERE, _ELSEWHERE) if large else (size, at)
        needed = 45 if large else 20
        fields = (b"PK\1\2", 3 << 8 | needed, needed, 0, 0, 0, 0x21, crc, known, known, len(name), len(extra))
        entries += struct.pack("<4s6H3L2H", *fields) + struct.pack("<3H2L", 0, 0, 0, 0o100644 << 16, place)
        entries += name.encode() + extra
        at += len(local_header(name, size, crc)) + size
    count, end = len(files), b""
    if at >= _LARGE:
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 3 << 8 | 45, 45, 0, 0, count, count, len(entries), at)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, at + len(entries), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), _ELSEWHERE if end else at, 0)
    return entries + end


class Part(NamedTuple):
    """Where a file lies in the zip, and the SHA-256 of what is in it."""

    start: int
    size: int
    sha256: str


def read_zip(file: BinaryIO) -> dict[str, Part]:
    """The files of a bundle, where every byte of the zip is as it must be."""
    end = file.seek(0, 2)
    file.seek(0)
    parts: dict[str, Part] = {}
    seen: list[tuple[str, int, int]] = []
    for name in FILES:
        start = file.tell()
        header = file.read(30 + len(name))
        if header[:4] != b"PK\3\4" or len(header) < 30 + len(name):
            raise Bad(f"at byte {start} of the zip, {name} should begin and does not")
        size: int = struct.unpack("<L", header[22:26])[0]
        if size == _ELSEWHERE:
            header += file.read(20)
            size = int.from_bytes(header[-8:], "little")
        if file.tell() + size > end:
            raise Bad(f"the zip ends within {name}")
        begin, crc, digest, left = file.tell(), 0, hashlib.sha256(), size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise Bad(f"the zip ends within {name}")
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
            digest.update(chunk)
        if local_header(name, size, crc) != header:
            raise Bad(f"{name} is not what the zip says of it, or the zip says it in another way than it should")
        seen.append((name, size, crc))
        parts[name] = Part(begin, size, digest.hexdigest())
    expected = directory(seen)
    if file.read(len(expected) + 1) != expected:
        raise Bad("the end of the zip is not what follows from its files")
    return parts


# Signed notes


class Key(NamedTuple):
    """A verifier key: whose signature it checks."""

    name: str
    id: bytes
    public: bytes


def read_key(text: str) -> Key:
    """The key in `name+id+base64`. Raises Bad."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    raw = unbase64(encoded)
    if not name or re.search(r"\s", name) or len(raw) != 33 or raw[0] != 1:
        raise Bad("a verifier key of Ed25519 is written name+id+base64")
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if key_id != expected.hex():
        raise Bad("the id in the verifier key is not that of its name and key")
    return Key(name, expected, raw[1:])


def signed_text(note: str, key: Key, *, alone: bool) -> str:
    """The text of a signed note, if the key has signed it; with `alone`, if it is the only one that did."""
    text, blank, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not blank or lines.pop() != "" or not lines or (alone and len(lines) > 1):
        raise Bad("it is not a signed note")
    text += "\n"
    for line in lines:
        found = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)", line)
        if found is None:
            raise Bad("a line of signature is none")
        if found[1] == key.name:
            raw = unbase64(found[2])
            if raw[:4] == key.id and _is_signed(key.public, raw[4:], text.encode()):
                return text
    raise Bad(f"it is not signed by {key.name}+{key.id.hex()}")


def _is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - what is missing is said in a sentence
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
    except ImportError as error:
        raise NoCryptography from error
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def unbase64(text: str) -> bytes:
    """The bytes of standard base64 in its one proper form. Raises Bad."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Bad("something should be base64 and is not") from None
    if base64.b64encode(raw).decode() != text:
        raise Bad("base64 has bits that mean nothing")
    return raw


class Checkpoint(NamedTuple):
    """The ledger's size and root, and when that was signed."""

    size: int
    root: bytes
    time: str


_CHECKPOINT = re.compile(r"([^\n]+)\n(0|[1-9][0-9]*)\n([A-Za-z0-9+/=]+)\ntime ([^\n]+)\nprevious ([^\n]+)\n")


def read_checkpoint(note: str, key: Key) -> Checkpoint:
    """What a checkpoint says, if the key has signed it."""
    found = _CHECKPOINT.fullmatch(signed_text(note, key, alone=False))
    if found is None or found[1] != key.name:
        raise Bad("it is not a checkpoint of this ledger")
    microseconds(found[4])
    root = unbase64(found[3])
    if len(root) != 32:
        raise Bad("its root is no SHA-256")
    return Checkpoint(int(found[2]), root, found[4])


# Facts


def leaf(fact: dict[str, Any]) -> bytes:
    """SHA-256 over stream, version, topic, time, metadata and state, each after its length in four bytes.

    Numbers are big-endian; the stream is its 16 bytes, the version 4, the time microseconds since 1970 in 8.
    """
    parts = (
        bytes.fromhex(fact["stream_id"].replace("-", "")),
        fact["version"].to_bytes(4, "big"),
        fact["topic"].encode(),
        microseconds(fact["occurred_at"]).to_bytes(8, "big", signed=True),
        fact["metadata"].encode(),
        fact["state"].encode(),
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)


_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - UTC


def microseconds(text: str) -> int:
    """A time of RFC 3339 in UTC as microseconds since 1970."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise Bad(f"{text[:40]!r} is not a time in UTC")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    fraction = int((found[7] or "").ljust(6, "0"))
    return (datetime(year, month, day, hour, minute, second, fraction) - _EPOCH) // timedelta(microseconds=1)  # noqa: DTZ001 - all of them UTC


def leads_to(root: bytes, entry: bytes, index: int, size: int, path: list[bytes]) -> bool:
    """Whether the path proves that the entry has this index in the tree with that size and root: RFC 9162, 2.1.3.2."""
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    found = hashlib.sha256(b"\0" + entry).digest()
    for one in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = hashlib.sha256(b"\1" + one + found).digest()
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\1" + found + one).digest()
        position, last = position >> 1, last >> 1
    return last == 0 and found == root


def _check_fact(fact: dict[str, Any], proof: dict[str, Any], bundle: Bundle) -> None:
    inclusion = proof["inclusion"]
    if proof["fact"] != fact:
        raise Bad("its proof is of another fact")
    if unbase64(proof["leaf"]) != leaf(fact):
        raise Bad("its leaf is not what follows from it")
    if (proof["checkpoint"], proof["public_key"]) != (bundle.note, bundle.public_key):
        raise Bad("its proof is under another checkpoint or key than the bundle's")
    index, size = inclusion["index"], inclusion["size"]
    if (index, size) != (fact["position"] - 1, bundle.checkpoint.size):
        raise Bad("its proof is for another place in the ledger")
    if not leads_to(bundle.checkpoint.root, leaf(fact), index, size, [unbase64(one) for one in inclusion["path"]]):
        raise Bad("its path does not lead to the root that was signed")


class _Completeness:
    """Whether the facts that come are all that the bundle says it has, one after the other."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.expected: Iterator[tuple[str, int]] | None = None
        self.position, self.upto = 0, 0
        if set(scope) == {"tickets"}:
            self.expected = ((one["id"], v) for one in scope["tickets"] for v in range(1, one["facts"] + 1))
        elif set(scope) == {"after", "upto"}:
            self.position, self.upto = scope["after"], scope["upto"]
        else:
            raise Bad("the manifest says neither which tickets nor which stretch of the ledger")

    def take(self, fact: dict[str, Any]) -> None:
        if self.expected is not None:
            if next(self.expected, None) != (fact["stream_id"], fact["version"]):
                raise Bad("it is not the next version of a ticket that the bundle is about")
        elif fact["position"] != self.position + 1:
            raise Bad(f"the fact after position {self.position} should come")
        self.position = fact["position"]

    def end(self) -> None:
        if self.expected is not None and (missing := next(self.expected, None)) is not None:
            raise Bad(f"version {missing[1]} of ticket {missing[0]} is missing")
        if self.expected is None and self.position != self.upto:
            raise Bad(f"the facts after position {self.position} are missing")


def _check_entry(entry: dict[str, Any], fact: dict[str, Any]) -> None:
    about = json.loads(fact["metadata"])
    said = (entry["ticket_id"], entry["position"], entry["version"], entry["command_id"], entry["actor"]["id"])
    if said != (fact["stream_id"], fact["position"], fact["version"], about["command_id"], about["actor"]["id"]):
        raise Bad("its entry in history.json is of another fact")
    if microseconds(entry["occurred_at"]) != microseconds(fact["occurred_at"]):
        raise Bad("its entry in history.json has another time")


# A bundle


class Bundle:
    """A bundle that is being checked; `said` is what has been found good so far."""

    def __init__(self, file: BinaryIO, key: Key | None, told: Callable[[int, int], None]) -> None:
        self.file = file
        self.trusted = key is not None
        self.told = told
        self.key = key
        self.said: list[str] = []
        self.parts: dict[str, Part] = {}
        self.manifest: dict[str, Any] = {}
        self.public_key = self.note = ""
        self.checkpoint = Checkpoint(0, b"", "")
        self.facts = 0

    def check(self) -> None:
        """All of it. Raises Bad at the first thing that is not good."""
        self.parts = read_zip(self.file)
        self.said.append("the zip is byte for byte what its files make")
        self._check_manifest()
        self.said.append(f"the manifest is signed by {self.key.name if self.key else ''}, and every file is in it")
        self._check_checkpoint()
        self.said.append(f"the checkpoint over {self.checkpoint.size:,} facts, of {self.checkpoint.time}, is signed")
        self._check_facts()
        self.said.append(f"all {self.facts:,} facts are under it, none is left out, and the history is of them")

    def text(self, name: str) -> str:
        """A small file's text."""
        start, size, _ = self.parts[name]
        if size > _MOST_SMALL:
            raise Bad(f"{name} is far too large")
        self.file.seek(start)
        return self.file.read(size).decode()

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a large file, one at a time."""
        at, size, _ = self.parts[name]
        end = at + size
        while at < end:
            self.file.seek(at)
            line = self.file.readline(min(end - at, _LONGEST_LINE))
            at += len(line)
            if not line.endswith(b"\n"):
                raise Bad(f"a line of {name} has no end")
            yield line.decode()

    def _check_manifest(self) -> None:
        self.public_key = self.text("public_key.txt").removesuffix("\n")
        own = read_key(self.public_key)
        if self.key is None:
            self.key = own
        elif self.key != own:
            raise Bad("the bundle is not signed with the key that was given: its own is another")
        try:
            text = signed_text(self.text("manifest.note"), self.key, alone=True)
        except Bad as error:
            raise Bad(f"manifest.note: {error}") from None
        if text != self.text("manifest.json"):
            raise Bad("manifest.json is not the one that was signed")
        self.manifest = json.loads(text)
        if (self.manifest["kind"], self.manifest["origin"]) != (KIND, self.key.name):
            raise Bad("the manifest is of another kind or another ledger")
        said = {one["name"]: (one["size"], one["sha256"]) for one in self.manifest["files"]}
        for name in FILES[:-2]:
            if said.pop(name, None) != (self.parts[name].size, self.parts[name].sha256):
                raise Bad(f"{name} is not the one that was signed")
        if said:
            raise Bad("the manifest has files that are not there")

    def _check_checkpoint(self) -> None:
        assert self.key is not None  # noqa: S101 - the manifest was checked with it
        self.note = self.text("checkpoint.txt")
        try:
            self.checkpoint = read_checkpoint(self.note, self.key)
        except Bad as error:
            raise Bad(f"checkpoint.txt: {error}") from None

    def _check_facts(self) -> None:
        complete, of = _Completeness(self.manifest["scope"]), self.manifest["facts"]
        proofs, entries = self.lines("proofs.jsonl"), self._entries()
        for line in self.lines("facts.jsonl"):
            self.facts += 1
            fact, proof = json.loads(line), json.loads(next(proofs, "null"))
            try:
                _check_fact(fact, proof, self)
                complete.take(fact)
                if fact["topic"].startswith("ticket."):
                    _check_entry(next(entries, {}), fact)
            except (Bad, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                why = error if isinstance(error, Bad) else f"it or its proof or its history cannot be read: {error!r}"
                raise Bad(f"fact {self.facts}, at position {_short(fact)}: {why}") from None
            if not self.facts % 1_000:
                self.told(self.facts, of)
        complete.end()
        if self.facts != of or next(proofs, None) is not None or next(entries, None) is not None:
            raise Bad("there are not as many facts, proofs and entries of the history as there should be")

    def _entries(self) -> Iterator[dict[str, Any]]:
        lines = self.lines("history.json")
        if next(lines, "") != "[\n":
            raise Bad("history.json does not begin as it should")
        for line in lines:
            if line == "]\n":
                break
            entry: dict[str, Any] = json.loads(line.removesuffix("\n").removesuffix(","))
            yield entry
        if next(lines, None) is not None:
            raise Bad("history.json does not end as it should")


def _short(fact: object) -> str:
    return repr(fact.get("position"))[:30] if isinstance(fact, dict) else "unknown"


class Verdict(NamedTuple):
    """What a check came to."""

    good: bool
    trusted: bool
    """Whether it was checked with a key from elsewhere."""
    found: str | None
    said: list[str]
    bundle: Bundle


def check(file: BinaryIO, key: Key | None = None, told: Callable[[int, int], None] = lambda *_: None) -> Verdict:
    """Check a bundle. `told` hears how many facts of how many are done. Raises OSError, NoCryptography."""
    bundle, found = Bundle(file, key, told), None
    try:
        bundle.check()
    except Bad as error:
        found = str(error)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        found = f"the bundle cannot be read: {error!r}"
    return Verdict(found is None, bundle.trusted, found, bundle.said, bundle)


_UNTRUSTED = """\
!! NO KEY WAS GIVEN. The bundle was checked with the key that it brings along, which shows only that it is consistent
!! in itself: whoever forged it could have made that key too. Get the verifier key from somebody else, and say --key.
"""


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Check an audit bundle of the ticket service.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--key", help="the verifier key of the ledger, name+id+base64, from somebody whom you trust")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    asked = parser.parse_args()
    try:
        key = None if asked.key is None else read_key(asked.key)
    except Bad as error:
        parser.error(f"--key: {error}")
    try:
        with asked.bundle.open("rb") as file:
            verdict = check(file, key, _progress if sys.stderr.isatty() else lambda *_: None)
    except OSError as error:
        parser.error(f"{asked.bundle} cannot be read: {error.strerror}")
    except NoCryptography:
        parser.error("the library `cryptography` is needed: python -m pip install cryptography")
    (_tell_machines if asked.json else _tell_people)(asked.bundle, verdict)
    return 0 if verdict.good else 1


def _progress(done: int, of: int) -> None:
    sys.stderr.write(f"\r{done:,} of {of:,} facts\r")


def _tell_people(path: Path, verdict: Verdict) -> None:
    bundle = verdict.bundle
    if not verdict.trusted:
        sys.stdout.write(_UNTRUSTED)
    for line in verdict.said:
        _say(f"ok   {line}")
    if not verdict.good:
        _say(f"BAD  {verdict.found}")
        _say(f"{path} IS NOT AS IT WAS SIGNED.")
        return
    _say(f"{path} is good: {bundle.facts:,} facts, exported {bundle.manifest.get('exported_at')}.")
    if verdict.trusted:
        _say("What it says is what the ledger held when the checkpoint was signed.")
    else:
        sys.stdout.write(_UNTRUSTED)


def _say(line: str) -> None:
    """A line of plain letters: what a forger writes must not be able to change what is shown."""
    sys.stdout.write(line.encode("unicode_escape").decode() + "\n")


def _tell_machines(path: Path, verdict: Verdict) -> None:
    bundle = verdict.bundle
    document = {
        "bundle": str(path),
        "good": verdict.good,
        "trusted": verdict.trusted,
        "finding": verdict.found,
        "key": f"{bundle.key.name}+{bundle.key.id.hex()}" if bundle.key else None,
        "facts": bundle.facts,
        "checkpoint": {"size": bundle.checkpoint.size, "root": bundle.checkpoint.root.hex()},
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
