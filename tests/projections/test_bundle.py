"""An audit bundle: it checks without us, and nothing in it can be changed unseen."""

import asyncio
import csv
import json
import os
import subprocess
import sys
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html.parser import HTMLParser
from importlib.metadata import files as files_of_package
from io import BytesIO, StringIO
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4
from zlib import crc32

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from projections import verify_bundle
from projections.bundle import NotAsWritten, Stretch, export
from projections.history import Entry
from projections.replay import replay
from projections.telling import as_csv, as_json_lines
from projections.verify_bundle import FILES, Verdict, check, directory, local_header, read_key
from tests.conftest import fresh_database
from tests.tickets.given_when_then import A_REQUEST
from tests.tickets.test_snapshots import ADA, a_long_life, nobody
from tickets import proofs
from tickets.checkpoints import Checkpoint, sign, verifier
from tickets.commands import AddComment
from tickets.connections import connect
from tickets.handler import Asked, Handler
from tickets.ledger import Ledger

ORIGIN: Final = "tickets.example"
KEY: Final = Ed25519PrivateKey.generate()
VERIFIER: Final = str(verifier(KEY, ORIGIN))
HOSTILE: Final = '=HYPERLINK("x")<script>alert(1)</script><b onclick=x>&amp;\u202e\x1b[2K"\nv9 CLOSED by mallory'

EVERY_FLIP: Final = os.environ.get("BUNDLE_FLIPS") == "all"
"""The long form: not some thousand bytes, but each."""


class Made(NamedTuple):
    tickets: bytes
    """The bundle of two tickets."""
    stretch: bytes
    """The bundle of positions 100 to 300."""
    hostile: UUID
    histories: dict[UUID, tuple[str, list[Entry]]]
    dsn: str


async def signed(dsn: str, key: Ed25519PrivateKey = KEY) -> Checkpoint:
    connection = await connect(dsn)
    size: int = await connection.fetchval("select position from ledger.head")
    root = await proofs.root_at(connection, size)
    await connection.close()
    return sign(key, ORIGIN, size=size, root=root, time=datetime.now(UTC), previous=None)


async def exported(dsn: str, out: Path, scope: Sequence[UUID] | Stretch) -> bytes:
    checkpoint = await signed(dsn)
    connection = await connect(dsn)
    try:
        async with connection.transaction():
            made = await export(connection, out, scope, checkpoint, KEY)
    finally:
        await connection.close()
    assert made.key == VERIFIER
    bundle = read(out)
    assert made.sha256 == sha256(bundle).hexdigest()
    return bundle


def read(path: Path) -> bytes:
    return path.read_bytes()


async def make(dsn: str, folder: Path) -> Made:
    async with Ledger.open(dsn) as ledger:
        at_work, asked = Handler(ledger, nobody), Asked(actor=ADA, ip_address="192.0.2.7")
        first = (await a_long_life(ledger)).id
        hostile = (await at_work.handle(replace(A_REQUEST, title=HOSTILE, description=HOSTILE), None, asked)).ticket.id
        await at_work.handle(AddComment(body=HOSTILE, internal=True), hostile, asked)
        await asyncio.gather(*(at_work.handle(A_REQUEST, None, asked) for _ in range(500)))
        histories = {}
        for one in (first, hostile):
            life = await replay(ledger, one)
            assert life is not None
            histories[one] = (life.ticket.number, life.history)
    return Made(
        await exported(dsn, folder / "tickets.zip", sorted([first, hostile])),
        await exported(dsn, folder / "stretch.zip", Stretch(100, 300)),
        hostile,
        histories,
        dsn,
    )


@pytest.fixture(scope="module")
def made(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with fresh_database(server, template) as dsn:
        yield asyncio.run(make(dsn, tmp_path_factory.mktemp("bundles")))


def checked(bundle: bytes, key: str | None = VERIFIER) -> Verdict:
    return check(BytesIO(bundle), None if key is None else read_key(key))


def contents(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(bundle)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(files: dict[str, bytes]) -> bytes:
    """The files as a bundle has them: what somebody does who changes one and knows how a zip is made."""
    inside = b"".join(local_header(name, len(what), crc32(what)) + what for name, what in files.items())
    return inside + directory([(name, len(what), crc32(what)) for name, what in files.items()])


def signed_anew(files: dict[str, bytes], key: Ed25519PrivateKey, **changes: Any) -> bytes:
    """As `zipped`, with a manifest that fits, signed: what only somebody with a key can do."""
    manifest = json.loads(files["manifest.json"]) | changes
    manifest["files"] = [
        {"name": name, "size": len(files[name]), "sha256": sha256(files[name]).hexdigest()} for name in FILES[:-2]
    ]
    text = json.dumps(manifest).encode() + b"\n"
    signature = b64encode(verifier(key, ORIGIN).id + key.sign(text))
    note = text + "\n— tickets.example ".encode() + signature + b"\n"
    return zipped({**files, "manifest.json": text, "manifest.note": note})


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def flips(data: bytes, some: int, *, every: bool = False) -> Iterator[bytes]:
    """The data with one bit of one byte turned: of so many bytes, or of each."""
    luck = Random(some)  # noqa: S311 - not for secrets
    for at in range(len(data)) if every else luck.sample(range(len(data)), min(some, len(data))):
        yield flipped(data, at, luck.randrange(8))


# ------------------------------------------------------------------------------------------------ a good one


def test_a_bundle_of_tickets_and_one_of_a_stretch_are_good(made: Made) -> None:
    of_tickets = sum(len(one) for _, one in made.histories.values())
    for bundle, facts in ((made.tickets, of_tickets), (made.stretch, 200)):
        verdict = checked(bundle)
        assert verdict.found is None
        assert verdict.trusted
        assert verdict.bundle.facts == facts
        assert list(contents(bundle)) == list(FILES)


def test_what_is_in_it_is_what_the_ledger_has_to_the_byte(made: Made) -> None:
    async def stored() -> list[tuple[Any, ...]]:
        connection = await connect(made.dsn)
        rows = await connection.fetch(
            """select position, stream_id::text, version, topic, metadata, state from ledger.events
               where stream_id = any($1) order by stream_id, version""",
            list(made.histories),
        )
        await connection.close()
        return [tuple(row) for row in rows]

    facts = [json.loads(line) for line in contents(made.tickets)["facts.jsonl"].splitlines()]
    names = ("position", "stream_id", "version", "topic")
    assert [
        (*(fact[name] for name in names), fact["metadata"].encode(), fact["state"].encode()) for fact in facts
    ] == asyncio.run(stored())


def test_the_history_in_it_is_what_replay_tells(made: Made) -> None:
    files = contents(made.tickets)
    told = sorted(made.histories.items())
    lines = b"".join(as_json_lines(ticket, *one) for ticket, one in told).splitlines()
    assert json.loads(files["history.json"]) == [json.loads(line) for line in lines]
    rows = list(csv.reader(StringIO(files["history.csv"].decode(), newline="")))[1:]
    assert rows == [row for ticket, one in told for row in csv.reader(StringIO(as_csv(ticket, *one), newline=""))]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.said = set[str](), set[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_to_print_has_every_entry_and_no_value_in_it_is_more_than_text(made: Made) -> None:
    page = Page()
    page.feed(contents(made.tickets)["history.html"].decode())
    assert not page.tags & {"script", "b", "img", "iframe", "link", "object"}
    assert page.attributes == {"lang", "charset", "http-equiv", "content", "class"}
    assert page.said.count("<script>alert(1)</script>") >= 3, "title, description, comment: as text"
    assert not {"\u202e", "\x1b"} & set(page.said)
    for fact in contents(made.tickets)["proofs.jsonl"].splitlines():
        leaf: bytes = json.loads(fact)["leaf"]
        assert sha256_hex(leaf) in page.said


def sha256_hex(encoded: Any) -> str:
    return verify_bundle.unbase64(encoded).hex()


def test_it_can_be_read_by_its_owner_alone_and_leaves_nothing_beside(made: Made, tmp_path: Path) -> None:
    asyncio.run(exported(made.dsn, tmp_path / "x.zip", [made.hostile]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    assert (tmp_path / "x.zip").stat().st_mode & 0o077 == 0


# ----------------------------------------------------------------------------------------- one that is not good


def test_every_flipped_byte_of_a_bundle_is_found(made: Made) -> None:
    for number, bundle in enumerate(flips(made.tickets, 3_000, every=EVERY_FLIP)):
        assert checked(bundle).found, number
    for number, bundle in enumerate(flips(made.stretch, 300)):
        assert checked(bundle).found, number


def test_every_flipped_byte_is_found_where_the_zip_was_made_to_fit(made: Made) -> None:
    files = contents(made.tickets)
    for name in FILES:
        for what in flips(files[name], 150, every=EVERY_FLIP):
            assert not checked(zipped({**files, name: what})).good, name


@pytest.mark.parametrize("name", ["facts.jsonl", "proofs.jsonl", "checkpoint.txt"])
def test_every_flipped_byte_of_the_proof_is_found_where_it_was_signed_anew_with_the_very_key(
    made: Made, name: str
) -> None:
    files = contents(made.tickets)
    for what in flips(files[name], 250):
        assert not checked(signed_anew({**files, name: what}, KEY)).good or _same(what, files[name])


def _same(one: bytes, other: bytes) -> bool:
    """Whether they are the same JSON, written in another way: an E for an e in an escape."""
    return list(map(json.loads, one.splitlines())) == list(map(json.loads, other.splitlines()))


@pytest.mark.parametrize("at", [0, 1, 7, -1, -30])
def test_a_byte_more_or_less_is_found(made: Made, at: int) -> None:
    bundle = made.tickets
    place = at % len(bundle)
    assert not checked(bundle[:place] + bundle[place + 1 :]).good
    assert not checked(bundle[:place] + b"x" + bundle[place:]).good
    assert not checked(bundle + b"x").good
    assert not checked(bundle[:place]).good


def test_a_bundle_that_is_cut_off_anywhere_is_found(made: Made) -> None:
    luck = Random(4)  # noqa: S311 - as above
    for end in luck.sample(range(len(made.tickets)), 300):
        assert not checked(made.tickets[:end]).good


@given(st.binary())
def test_what_is_no_bundle_is_found(data: bytes) -> None:
    assert not checked(data).good
    assert not checked(local_header("README.txt", len(data), crc32(data)) + data).good


def test_files_in_another_order_or_one_more_are_found(made: Made) -> None:
    files = contents(made.tickets)
    assert checked(zipped(files)).good, "the zip is made in one way"
    assert not checked(zipped(dict(reversed(files.items())))).good
    assert not checked(zipped({**files, "more.txt": b"x"})).good
    del files["README.txt"]
    assert not checked(zipped(files)).good


def test_every_bit_of_the_signature_and_of_the_key_counts(made: Made) -> None:
    """Also those bits of base64 that mean nothing."""
    files = contents(made.tickets)
    for name, start in (("manifest.note", len(files["manifest.json"])), ("public_key.txt", 0)):
        for at in range(start, len(files[name])):
            for bit in range(8):
                assert not checked(zipped({**files, name: flipped(files[name], at, bit)})).good, (name, at, bit)


def test_a_signature_more_is_found(made: Made) -> None:
    files = contents(made.tickets)
    for more in ("— somebody AAAA\n", files["manifest.note"].decode().splitlines()[-1] + "\n", "\n", "—\n"):
        assert not checked(zipped({**files, "manifest.note": files["manifest.note"] + more.encode()})).good


def without(line: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [one for at, one in enumerate(lines) if at != line % len(lines)]


@pytest.mark.parametrize("which", ["tickets", "stretch"])
@pytest.mark.parametrize(
    "change",
    [
        *(without(line) for line in (0, 1, 5, -2, -1)),
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], *lines],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[: len(lines) // 2],
        lambda _: [],
    ],
)
def test_facts_that_are_left_out_doubled_or_moved_are_found_though_the_very_key_signed_that(
    made: Made, which: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    files = contents(getattr(made, which))
    changed = {name: change(files[name].splitlines()) for name in ("facts.jsonl", "proofs.jsonl")}
    entries = change(files["history.json"].splitlines()[1:-1])
    files |= {name: b"".join(line + b"\n" for line in lines) for name, lines in changed.items()}
    files["history.json"] = b"[\n" + b",\n".join(one.removesuffix(b",") for one in entries) + b"\n]\n"
    verdict = checked(signed_anew(files, KEY, facts=len(changed["facts.jsonl"])))
    assert not verdict.good


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"ip_address":"192.0.2.7"', b'"ip_address":"192.0.2.8"'),
        (b'"username":"ada"', b'"username":"eve"'),
    ],
)
def test_a_fact_that_was_changed_with_its_leaf_does_not_lead_to_the_root(made: Made, old: bytes, new: bytes) -> None:
    """Who has the key, and makes leaf, manifest and history fit, still has not got it into the tree."""
    files = contents(made.tickets)
    lines = [json.loads(line) for line in files["proofs.jsonl"].splitlines()]
    for line in lines:
        fact = line["fact"]
        fact["metadata"] = fact["metadata"].encode().replace(old, new).decode()
        line["leaf"] = b64encode(verify_bundle.leaf(fact)).decode()
    files["proofs.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    files["facts.jsonl"] = b"".join(json.dumps(line["fact"]).encode() + b"\n" for line in lines)
    verdict = checked(signed_anew(files, KEY))
    assert verdict.found is not None
    assert "does not lead to the root" in verdict.found


def test_a_fact_that_says_another_place_than_its_proof_is_found_though_the_very_key_signed_it(made: Made) -> None:
    """The place is not in the leaf: only the proof says where in the ledger a fact is."""
    files = contents(made.tickets)
    lines = [json.loads(line) for line in files["proofs.jsonl"].splitlines()]
    entries = json.loads(files["history.json"])
    for one in (lines[0]["fact"], entries[0]):
        one["position"] += 1
    files["proofs.jsonl"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    files["facts.jsonl"] = b"".join(json.dumps(line["fact"]).encode() + b"\n" for line in lines)
    files["history.json"] = b"[\n" + b",\n".join(json.dumps(one).encode() for one in entries) + b"\n]\n"
    verdict = checked(signed_anew(files, KEY))
    assert verdict.found is not None
    assert "another place" in verdict.found


def test_an_entry_of_the_history_that_names_another_is_found_though_the_very_key_signed_it(made: Made) -> None:
    files = contents(made.tickets)
    for old in (str(ADA.id), str(made.hostile)):
        changed = files["history.json"].replace(old.encode(), str(uuid4()).encode())
        verdict = checked(signed_anew({**files, "history.json": changed}, KEY))
        assert verdict.found is not None
        assert "history.json" in verdict.found


def test_an_entry_with_another_time_or_one_too_many_is_found_though_the_very_key_signed_it(made: Made) -> None:
    files = contents(made.tickets)
    entries = json.loads(files["history.json"])
    other_time = [entries[0] | {"occurred_at": "2001-01-01T00:00:00Z"}, *entries[1:]]
    for changed in (other_time, [*entries, entries[-1]]):
        text = b"[\n" + b",\n".join(json.dumps(one).encode() for one in changed) + b"\n]\n"
        assert not checked(signed_anew({**files, "history.json": text}, KEY)).good
    more = files["proofs.jsonl"] + files["proofs.jsonl"].splitlines(keepends=True)[-1]
    assert not checked(signed_anew({**files, "proofs.jsonl": more}, KEY)).good
    assert not checked(signed_anew(files, KEY, facts=len(entries) + 1)).good
    assert checked(signed_anew(files, KEY)).good, "the same without any of that"


def test_what_somebody_else_signed_is_good_only_in_itself(made: Made) -> None:
    """All of it made anew with another key: only who has the right one from elsewhere can tell."""
    other = Ed25519PrivateKey.generate()
    files, theirs = contents(made.tickets), str(verifier(other, ORIGIN))
    note = asyncio.run(signed(made.dsn, other)).note
    lines = [json.loads(line) for line in files["proofs.jsonl"].splitlines()]
    for line in lines:
        line |= {"checkpoint": note, "public_key": theirs}
    files |= {
        "proofs.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        "checkpoint.txt": note.encode(),
        "public_key.txt": theirs.encode() + b"\n",
    }
    forged = signed_anew(files, other)
    assert (checked(forged, None).good, checked(forged, None).trusted) == (True, False)
    assert not checked(forged, VERIFIER).good


def test_nothing_that_a_forger_writes_can_change_what_is_shown(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "x\x1b[2K\u202e\x9b"
    raw = b"\1" + bytes(32)
    key = f"{name}+{sha256(name.encode() + bytes([10]) + raw).hexdigest()[:8]}+{b64encode(raw).decode()}"
    forged = zipped({**contents(made.tickets), "public_key.txt": key.encode()})
    verify_bundle._tell_people(tmp_path, checked(forged, None))
    shown = capsys.readouterr().out
    assert "BAD" in shown
    assert shown.isascii()
    assert set(shown) - {"\n"} <= set(map(chr, range(32, 127)))


async def test_a_fact_that_is_not_as_it_was_written_is_not_exported(dsn: str, tmp_path: Path) -> None:
    async with Ledger.open(dsn) as ledger:
        ticket = await a_long_life(ledger)
    owner = await connect(dsn, role=None)
    await owner.execute("alter table ledger.events disable trigger all")
    for change in ("state = state || ' '", "topic = 'ticket.closed.v9'", r"metadata = '\xff'"):
        async with owner.transaction():
            undo = owner.transaction()
            await undo.start()
            await owner.execute(f"update ledger.events set {change} where position = 9")
            checkpoint = sign(KEY, ORIGIN, size=20, root=bytes(32), time=datetime.now(UTC), previous=None)
            for scope in ([ticket.id], Stretch(0, 20)):
                with pytest.raises(NotAsWritten, match="position 9 "):
                    await export(owner, tmp_path / "x.zip", scope, checkpoint, KEY)
            await undo.rollback()
    await owner.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - in a test that is async


# ------------------------------------------------------------------------------------------------ large ones


def test_where_32_bits_are_not_enough_the_zip_has_64(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_bundle, "_LARGE", 10_000)
    files = contents(made.tickets)
    large = zipped(files)
    assert len(large) > len(made.tickets)
    assert contents(large) == files, "Python's own reader takes it"
    assert checked(large).good
    for bundle in flips(large, 301):
        assert not checked(bundle).good


# ------------------------------------------------------------------------------------------------ the program


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cryptography and what it needs, and nothing else that is not Python's."""
    folder = tmp_path_factory.mktemp("alone")
    for package in ("cryptography", "cffi", "pycparser"):
        for file in files_of_package(package) or ():
            top = file.parts[0]
            if top.startswith(("cryptography", "cffi", "_cffi", "pycparser")) and not (folder / top).exists():
                (folder / top).symlink_to(str(file.locate()).split(f"/{top}")[0] + f"/{top}")
    return folder


def program(libraries: Path, verifier: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The verifier as a program that has the standard library and those alone."""
    start = (
        "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv[:2] = []; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, str(libraries), str(verifier), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=verifier.parent,
        env={},
    )


def test_the_program_that_goes_along_needs_nothing_but_cryptography(made: Made, alone: Path, tmp_path: Path) -> None:
    files = contents(made.tickets)
    verify, bundle, broken = tmp_path / "verify.py", tmp_path / "bundle.zip", tmp_path / "broken.zip"
    verify.write_bytes(files["verify.py"])
    bundle.write_bytes(made.tickets)
    broken.write_bytes(flipped(made.tickets, 5_000, 3))
    good = program(alone, verify, "bundle.zip", "--key", VERIFIER)
    assert (good.returncode, good.stderr) == (0, "")
    assert "is good" in good.stdout
    assert "NO KEY" not in good.stdout
    assert "NO KEY WAS GIVEN" in program(alone, verify, "bundle.zip").stdout
    found = program(alone, verify, "broken.zip", "--json", "--key", VERIFIER)
    assert (found.returncode, found.stderr) == (1, "")
    assert json.loads(found.stdout)["good"] is False
    assert "BAD" in program(alone, verify, "broken.zip").stdout
    for wrong in (
        ("nothing.zip",),
        ("bundle.zip", "--key", "nonsense"),
        ("bundle.zip", "--key", VERIFIER.replace("e", "f")),
        (),
    ):
        done = program(alone, verify, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
    missing = program(tmp_path, verify, "bundle.zip", "--key", VERIFIER)
    assert missing.returncode == 2
    assert "pip install cryptography" in missing.stderr
