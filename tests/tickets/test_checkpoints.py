"""Checkpoints: signed notes as C2SP has them, read back only whole and only if somebody who is trusted signed."""

import stat
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as other_kind
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tickets.checkpoints import (
    BadCheckpoint,
    BadKey,
    VerifierKey,
    make_key,
    parse,
    read_key,
    sign,
    verifier,
    verifier_key,
    verify_note,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = verifier(KEY, "desk.example.org/tickets")
NOON = datetime(2026, 11, 25, 12, 0, 0, 123, tzinfo=UTC)
FIRST = sign(KEY, TRUSTED.name, size=3, root=sha256(b"3").digest(), time=NOON, previous=None)
SECOND = sign(KEY, TRUSTED.name, size=5, root=sha256(b"5").digest(), time=NOON, previous=FIRST.digest)

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
"""The key and the note in the documentation of golang.org/x/mod/sumdb/note."""
PETERS_TEXT = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETERS_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def test_keys_and_their_ids_are_those_of_signed_notes() -> None:
    key = verifier_key(PETER)
    assert str(key) == PETER
    signature = b64decode(PETERS_SIGNATURE)
    assert signature[:4] == key.id
    Ed25519PublicKey.from_public_bytes(key.public).verify(signature[4:], PETERS_TEXT)


def test_a_checkpoint_is_a_signed_note() -> None:
    text, _, signature = SECOND.note.partition("\n\n")
    assert text.splitlines() == [
        "desk.example.org/tickets",
        "5",
        b64encode(SECOND.root).decode(),
        "time 2026-11-25T12:00:00.000123Z",
        f"previous {b64encode(sha256(FIRST.note.encode()).digest()).decode()}",
    ]
    assert FIRST.note.splitlines()[4] == "previous none"
    dash, name, encoded = signature.split()
    assert (dash, name) == ("\N{EM DASH}", "desk.example.org/tickets")
    raw = b64decode(encoded)
    assert raw[:4] == sha256(b"desk.example.org/tickets\n\x01" + TRUSTED.public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(TRUSTED.public).verify(raw[4:], text.encode() + b"\n")


def test_a_checkpoint_reads_back_as_it_was_signed() -> None:
    assert verify_note(SECOND.note, TRUSTED) == parse(SECOND.note) == SECOND
    assert (SECOND.size, SECOND.time, SECOND.previous) == (5, NOON, FIRST.digest)


def test_times_are_in_utc_whatever_they_were_given_in() -> None:
    there = NOON.astimezone(timezone(timedelta(hours=5)))
    assert sign(KEY, TRUSTED.name, size=3, root=FIRST.root, time=there, previous=None).note == FIRST.note


@given(st.integers(min_value=0), st.integers(0, 7))
def test_no_byte_can_be_flipped(at: int, bit: int) -> None:
    raw = bytearray(SECOND.note.encode())
    raw[at % len(raw)] ^= 1 << bit
    try:
        changed = raw.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(BadCheckpoint):
        verify_note(changed, TRUSTED)


@pytest.mark.parametrize(
    "changed",
    [
        "",
        FIRST.note.replace("\n", "\r\n"),
        FIRST.note + "\n",
        FIRST.note.rstrip("\n"),
        FIRST.note.replace("\n3\n", "\n03\n"),
        FIRST.note.replace("\n3\n", "\n-3\n"),
        FIRST.note.replace("000123Z", "000123+00:00"),
        FIRST.note.replace("2026-11-25", "2026-13-25"),
        FIRST.note.replace("previous none", "previous"),
        "\n".join([*FIRST.note.split("\n")[:-2], *FIRST.note.split("\n")[-2:-1] * 2, ""]),
    ],
)
def test_what_is_written_differently_is_no_checkpoint(changed: str) -> None:
    with pytest.raises(BadCheckpoint, match="not a checkpoint of this kind"):
        verify_note(changed, TRUSTED)


def test_only_who_is_trusted_can_have_signed_it() -> None:
    other = Ed25519PrivateKey.generate()
    forged = sign(other, TRUSTED.name, size=3, root=FIRST.root, time=NOON, previous=None)
    renamed = VerifierKey("another", TRUSTED.public)
    for note, keys in ((forged.note, [TRUSTED]), (FIRST.note, [renamed]), (FIRST.note, [])):
        with pytest.raises(BadCheckpoint, match="not signed by"):
            verify_note(note, *keys)
    assert verify_note(forged.note, TRUSTED, verifier(other, TRUSTED.name)) == forged


@pytest.mark.parametrize("origin", ["", "a desk", "a+desk", "a\ndesk"])
def test_an_origin_is_a_name_that_a_note_can_have(origin: str) -> None:
    with pytest.raises(ValueError, match="blank or a plus"):
        sign(KEY, origin, size=3, root=FIRST.root, time=NOON, previous=None)


@pytest.mark.parametrize(
    "text",
    ["", "tickets", PETER.replace("c74f20a3", "c74f20a4"), PETER[:-4], PETER.replace("+AR", "+BR"), "a b" + PETER],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(BadKey):
        verifier_key(text)


def test_a_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "var" / "checkpoint.key"
    make_key(path)
    first = read_key(path)
    make_key(path)
    assert verifier(read_key(path), "x") == verifier(first, "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["checkpoint.key"]


def test_a_public_key_can_check_and_not_sign(tmp_path: Path) -> None:
    path = tmp_path / "public.pem"
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    key = read_key(path)
    assert isinstance(key, Ed25519PublicKey)
    assert verifier(key, TRUSTED.name) == TRUSTED


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n",
        other_kind(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_a_file_that_is_no_such_key_is_named(tmp_path: Path, pem: bytes) -> None:
    path = tmp_path / "checkpoint.key"
    path.write_bytes(pem)
    with pytest.raises(BadKey, match=r"checkpoint\.key"):
        read_key(path)
