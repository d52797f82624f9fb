"""An audit bundle: facts, their history to read, and the proof that they are the ledger's, in one file.

It is here, and not in api/, because all that it is made of is read off the ledger and shaped by this side; it knows
no settings and no keys but those that it is given. What a bundle is, and when it is good, is said where it is
checked: verify_bundle.py, which goes along in it. Facts are gone through once and written to files beside, then put
together, so that memory does not grow with what is exported. Deliberately absent: who may have one. It has
everything, internal comments and addresses too.
"""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final
from uuid import UUID
from zlib import crc32

import msgspec
from cachetools import LRUCache
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from projections import printing, telling, verify_bundle
from projections.history import Entry, entry
from projections.projection import Step
from projections.replay import Moment, follow
from projections.runner import INDIGESTIBLE, Fold
from tickets.checkpoints import Checkpoint, VerifierKey, verifier
from tickets.connections import Connection
from tickets.integrity import leaf
from tickets.ledger import Stored, read_whole
from tickets.merkle import Span, inclusion_spans, leaf_hash, node_hash
from tickets.proofs import Inclusion, Proof, ProvenFact, in_microseconds, inclusion

_FACTS_AT_A_TIME: Final = 2_000
_BLOCK: Final = 256
_BLOCKS_KEPT: Final = 512
"""Some 30 MB. In the order of the ledger one is enough; tickets are spread over many."""

_VERIFIER: Final = Path(str(verify_bundle.__file__)).read_bytes()

_encode: Final = msgspec.json.Encoder().encode


_Parts = dict[str, BinaryIO]
"""A file for each that will be in the bundle, in that order."""


class Stretch(Struct, frozen=True):
    """The facts after one position, up to and including another."""

    after: int
    upto: int


class Exported(Struct, frozen=True):
    """What a bundle has in it. `key` is what it is checked with."""

    out: str
    facts: int
    checkpoint: int
    sha256: str
    key: str


class NotAsWritten(Exception):  # noqa: N818 - it says what is the matter
    """A fact is not the one that was hashed, or does not follow: there is nothing to prove about it."""


async def export(
    connection: Connection,
    out: Path,
    scope: Sequence[UUID] | Stretch,
    checkpoint: Checkpoint,
    key: Ed25519PrivateKey,
    told: Callable[[int, int | None], None] = lambda *_: None,
) -> Exported:
    """Write the whole lives of tickets, or a stretch of the ledger, all of it under the checkpoint.

    The key signs in the name of the checkpoint's origin, and must be the one that signed it. Needs a transaction.
    Raises NotAsWritten, OSError; then there is no file.
    """
    by = verifier(key, checkpoint.origin)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder, ExitStack() as opened:
        parts: _Parts = {name: opened.enter_context((Path(folder) / name).open("w+b")) for name in verify_bundle.FILES}
        made = _Made(parts, scope, checkpoint, by)
        of = scope.upto - scope.after if isinstance(scope, Stretch) else None
        async for fact, step, heading in _facts(connection, scope, checkpoint.size):
            await made.take(connection, fact, step, heading)
            if not made.facts % 500:
                told(made.facts, of)
        made.end()
        parts["README.txt"].write(_README.format(key=by).encode())
        parts["verify.py"].write(_VERIFIER)
        parts["checkpoint.txt"].write(checkpoint.note.encode())
        parts["public_key.txt"].write(f"{by}\n".encode())
        _sign(parts, key, by, made.manifest())
        digest = _put_together(parts, out, Path(folder) / "whole")
    return Exported(str(out), made.facts, checkpoint.size, digest, str(by))


async def _facts(
    connection: Connection, scope: Sequence[UUID] | Stretch, size: int
) -> AsyncIterator[tuple[Stored, Step, str | None]]:
    """The facts in order, with the step that each is, and where something new begins, its heading."""
    if isinstance(scope, Stretch):
        fold, position, heading = Fold(connection), scope.after, f"Positions {scope.after + 1:,} to {scope.upto:,}"
        while batch := await read_whole(connection, position, _FACTS_AT_A_TIME, upto=scope.upto):
            await fold.prepare(batch)
            for fact in batch:
                try:
                    step = fold.step(fact)
                except INDIGESTIBLE as error:
                    raise _broken(fact, str(error)) from error
                yield fact, step, heading if position == scope.after else None
                position = fact.position
        return
    async for one in follow(connection, Moment(size), scope):
        if one.unreadable is not None:
            raise _broken(one.facts[len(one.steps)], str(one.unreadable.why)) from one.unreadable.why
        ticket = one.ticket
        assert ticket is not None  # noqa: S101 - it has facts, and all were read
        heading = f"{ticket.number}  {ticket.title}"
        for fact, step in zip(one.facts, one.steps, strict=True):
            yield fact, step, heading if fact.version == 1 else None


def _broken(fact: Stored, why: str) -> NotAsWritten:
    return NotAsWritten(f"The fact at position {fact.position} cannot be exported: {why}. Run `tickets verify`.")


class _Made:
    """The parts that grow by every fact."""

    def __init__(self, parts: _Parts, scope: Sequence[UUID] | Stretch, checkpoint: Checkpoint, by: VerifierKey) -> None:
        self._parts, self._scope, self._checkpoint, self._by = parts, scope, checkpoint, by
        self._paths = _Paths(checkpoint.size)
        self._now = datetime.now(UTC)
        self._entries = self._tables = self.facts = 0
        self._tickets: dict[UUID, dict[str, Any]] = {}
        """Those that were asked for; in a stretch there can be any number, and they are not kept."""
        what = (
            f"the whole history of {len(scope):,} ticket{'s' * (len(scope) != 1)}"
            if isinstance(scope, Sequence)
            else f"positions {scope.after + 1:,} to {scope.upto:,} of the ledger"
        )
        about = {
            "Ledger": checkpoint.origin,
            "Exported": telling.moment(self._now),
            "What": what,
            "Checkpoint": f"the first {checkpoint.size:,} facts, {telling.moment(checkpoint.time)}",
            "Merkle root": checkpoint.root.hex(),
            "Key": str(by),
        }
        self._write("history.html", printing.page_begins("Audit of tickets", about))
        self._write("history.csv", telling.csv_row(*telling.CSV_COLUMNS))
        self._write("history.json", "[\n")

    async def take(self, connection: Connection, fact: Stored, step: Step, heading: str | None) -> None:
        proven = _proven(fact)
        path = await self._paths.of(connection, fact.position)
        inclusion = Inclusion(fact.position - 1, self._checkpoint.size, path)
        proof = Proof(proven, fact.leaf, inclusion, self._checkpoint.note, str(self._by))
        self._parts["facts.jsonl"].write(_encode(proven) + b"\n")
        self._parts["proofs.jsonl"].write(_encode(proof) + b"\n")
        self.facts += 1
        if heading is not None:
            self._write("history.html", printing.table_ends() * bool(self._tables) + printing.table_begins(heading))
            self._tables += 1
        if (after := step.after) is not None:
            self._tell(after.id, after.number, entry(step.fact, step.envelope, step.before, after), fact.leaf)
            if not isinstance(self._scope, Stretch):
                self._tickets[after.id] = {"id": after.id, "number": after.number, "facts": after.version}

    def _tell(self, ticket_id: UUID, number: str, line: Entry, leaf: bytes) -> None:
        self._write("history.html", printing.row(number, line, leaf))
        self._write("history.csv", telling.as_csv(ticket_id, number, [line]))
        self._write("history.json", ",\n" * bool(self._entries))
        self._parts["history.json"].write(telling.as_json_lines(ticket_id, number, [line])[:-1])
        self._entries += 1

    def end(self) -> None:
        self._write("history.html", printing.table_ends() * bool(self._tables) + printing.page_ends())
        self._write("history.json", "\n" * bool(self._entries) + "]\n")

    def manifest(self) -> dict[str, Any]:
        return {
            "kind": verify_bundle.KIND,
            "origin": self._checkpoint.origin,
            "exported_at": telling.moment(self._now),
            "scope": self._scope if isinstance(self._scope, Stretch) else {"tickets": list(self._tickets.values())},
            "facts": self.facts,
            "checkpoint": {"size": self._checkpoint.size, "root": self._checkpoint.root.hex()},
        }

    def _write(self, name: str, text: str) -> None:
        self._parts[name].write(text.encode())


def _proven(fact: Stored) -> ProvenFact:
    """The fact, if it is the one that was hashed."""
    stored = fact.stream_id, fact.version, fact.topic, fact.occurred_at, fact.metadata, fact.state
    if leaf(*stored) != fact.leaf:
        raise _broken(fact, "it is not the one that was hashed")
    try:
        metadata, state = fact.metadata.decode(), fact.state.decode()
    except UnicodeDecodeError as error:
        raise _broken(fact, "it is not a text") from error
    at = in_microseconds(fact.occurred_at)
    return ProvenFact(fact.position, fact.stream_id, fact.version, fact.topic, at, metadata, state)


class _Block:
    """The part of the tree over 256 entries that are next to each other, or as many as there are."""

    def __init__(self, start: int, leaves: Sequence[bytes], above: dict[Span, bytes]) -> None:
        self._nodes = {(start + at, start + at + 1): leaf_hash(one) for at, one in enumerate(leaves)} | above

    def node(self, span: Span) -> bytes:
        if (known := self._nodes.get(span)) is None:
            start, end = span
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            known = self._nodes[span] = node_hash(self.node((start, middle)), self.node((middle, end)))
        return known


class _Paths:
    """Paths of inclusion, for very many facts: what is common to the entries of a block is asked for once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: LRUCache[int, _Block] = LRUCache(_BLOCKS_KEPT)

    async def of(self, connection: Connection, position: int) -> list[bytes]:
        index = position - 1
        if (block := self._blocks.get(index // _BLOCK)) is None:
            block = self._blocks[index // _BLOCK] = await self._block(connection, index - index % _BLOCK)
        return [block.node(span) for span in inclusion_spans(index, self._size)]

    async def _block(self, connection: Connection, start: int) -> _Block:
        spans, path = inclusion_spans(start, self._size), await inclusion(connection, start + 1, self._size)
        facts = await read_whole(connection, start, _BLOCK, upto=self._size)
        return _Block(start, [fact.leaf for fact in facts], dict(zip(spans, path, strict=True)))


def _sign(parts: _Parts, key: Ed25519PrivateKey, by: VerifierKey, manifest: dict[str, Any]) -> None:
    *others, of_manifest, of_note = verify_bundle.FILES
    files = []
    for name in others:
        size, digest, _ = _measured(parts[name])
        files.append({"name": name, "size": size, "sha256": digest})
    text = msgspec.json.format(_encode(manifest | {"files": files}), indent=2) + b"\n"
    parts[of_manifest].write(text)
    signature = msgspec.json.decode(_encode(by.id + key.sign(text)))  # base64
    parts[of_note].write(text + f"\n\N{EM DASH} {by.name} {signature}\n".encode())


def _measured(part: BinaryIO) -> tuple[int, str, int]:
    """A file's size, SHA-256 and CRC-32."""
    part.seek(0)
    size, digest, crc = 0, sha256(), 0
    while chunk := part.read(1 << 20):
        size, crc = size + len(chunk), crc32(chunk, crc)
        digest.update(chunk)
    return size, digest.hexdigest(), crc


def _put_together(parts: _Parts, out: Path, beside: Path) -> str:
    """Write the zip; returns its SHA-256. It is there whole or not at all, and only its owner can read it."""
    with os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
        entries = []
        for name, part in parts.items():
            size, _, crc = _measured(part)
            entries.append((name, size, crc))
            file.write(verify_bundle.local_header(name, size, crc))
            part.seek(0)
            copyfileobj(part, file, 1 << 20)
        file.write(verify_bundle.directory(entries))
        file.flush()
        os.fsync(file.fileno())
        _, digest, _ = _measured(file)
    beside.replace(out)
    return digest


_README: Final = """\
AUDIT BUNDLE

This file says what happened to tickets, as a ledger recorded it, and brings the proof along.
It has EVERYTHING that the ledger has about them: internal comments, names, and the addresses that
people worked from. Whoever passes it on passes that on.

  history.html     to read and to print
  history.csv      for spreadsheets: a row a change. A cell that would be a formula has an apostrophe before it.
  history.json     for programs: an entry a line
  facts.jsonl      the facts that the history is made of, with the exact bytes that were hashed
  proofs.jsonl     beside each fact, its hash and the path from there to the root that was signed
  checkpoint.txt   the ledger's size and Merkle root at a time, signed (c2sp.org/tlog-checkpoint)
  public_key.txt   the key to check that with. Do not take it from here, if you have it from somebody else.
  manifest.json    the SHA-256 of each of these; manifest.note is the same, signed
  verify.py        the program that checks it all

TO CHECK IT
With Python 3.9 or newer and the library cryptography (python -m pip install cryptography):

    python verify.py bundle.zip --key '{key}'

Take verify.py and the key from somebody whom you trust, not from here: whoever could forge this bundle could forge
those too. verify.py is in the service's source, as src/projections/verify_bundle.py.

WHAT IT PROVES
That these facts, to the byte, were in the ledger when the checkpoint was signed, in this order, and that of each
ticket none was left out from the first to the last that is here (or, of a stretch of the ledger, none at all). If
a checkpoint that you noted before is consistent with this one, that nothing before it was changed since.

WHAT IT DOES NOT PROVE
That nothing happened to a ticket after the last fact that is here. That what people said is true, that clocks were
right, or that somebody was at the keyboard in person. Files that were attached are not in here, only their SHA-256.
"""
