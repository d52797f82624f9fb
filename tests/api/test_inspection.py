"""Looking into files: where each limit is, and that looking itself takes little memory, time and nothing else.

Deliberately absent: what each kind of bad file is answered (test_uploads.py, over HTTP).
"""

import gzip
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from api.files.archives import Limits, UnsafeArchive
from api.files.inspection import TYPES, WrongKind, extension_of, inspect
from tests.api.hostile_files import (
    END,
    GOOD,
    HOSTILE,
    KIB,
    MIB,
    PNG,
    Entry,
    crowded,
    heavy_headers,
    long_table,
    member,
    nested,
    noise,
    old_sparse,
    pax_sparse,
    tarred,
    zip_of,
    zipped,
)


def looked_at(extension: str, content: bytes, limits: Limits | None = None, folder: Path | None = None) -> str:
    with TemporaryFile() as file:
        file.write(content)
        return inspect(file, extension, len(content), limits, folder)


def is_safe(extension: str, content: bytes, limits: Limits) -> bool:
    try:
        looked_at(extension, content, limits)
    except UnsafeArchive:
        return False
    return True


@pytest.mark.parametrize("extension", TYPES)
def test_a_file_that_is_what_it_says_gets_the_media_type_of_its_extension(extension: str) -> None:
    assert looked_at(extension, GOOD[extension]) == TYPES[extension]


@pytest.mark.parametrize("extension", TYPES)
def test_of_whatever_there_is_there_is_a_verdict(extension: str) -> None:
    for content in (b"\0", b"P", b"\x1f", b"\x1f\x8b", b"PK\3\4", b"PK\5\6", b"\xff\xfe", b"\0" * 512):
        with suppress(WrongKind, UnsafeArchive):
            assert looked_at(extension, content) == TYPES[extension]


@pytest.mark.parametrize("extension", ["zip", "tgz", "tar", "gz", "docx", "odt"])
def test_of_whatever_is_damaged_there_is_a_verdict(extension: str) -> None:
    """Each byte of an archive changed, one after the other."""
    whole = GOOD[extension]
    for at in range(min(len(whole), 700)):
        for byte in (0, whole[at] ^ 1):
            damaged = whole[:at] + bytes([byte]) + whole[at + 1 :]
            with suppress(WrongKind, UnsafeArchive):
                assert looked_at(extension, damaged) == TYPES[extension]


@pytest.mark.parametrize(
    ("filename", "extension"),
    [
        ("a.TXT", "txt"),
        ("a.b.Png", "png"),
        ("README", ""),
        (".png", ""),
        ("a.", ""),
        ("a.png.", ""),
        ("a. png", " png"),
    ],
)
def test_the_extension_is_what_is_after_the_last_dot(filename: str, extension: str) -> None:
    assert extension_of(filename) == extension


@pytest.mark.parametrize(
    ("extension", "made"),
    [
        ("zip", crowded),
        ("tar", lambda count: tarred(*[("a", b"")] * count)),
        ("tgz", lambda count: gzip.compress(tarred(("n", noise(KIB)), *[("a", b"")] * (count - 2)))),  # and itself
        ("zip", lambda count: zip_of(("a.zip", crowded(count // 2)), ("b.zip", crowded(count - count // 2 - 2)))),
    ],
    ids=["zip", "tar", "tgz", "zips in a zip"],
)
def test_as_many_entries_as_are_allowed_are_and_one_more_is_not(extension: str, made: Callable[[int], bytes]) -> None:
    allowed = Limits(entries=20)
    assert is_safe(extension, made(20), allowed)
    assert not is_safe(extension, made(21), allowed)


@pytest.mark.parametrize(
    ("extension", "made"),
    [
        ("zip", lambda size: zip_of(("a", bytes(size)))),
        ("zip", lambda size: zip_of(("a", bytes(size // 2)), ("b", bytes(size - size // 2)))),
        ("gz", lambda size: gzip.compress(bytes(size))),
        ("gz", lambda size: gzip.compress(bytes(size - 5)) + gzip.compress(bytes(5))),
    ],
    ids=["zip", "zip with two", "gz", "gz with two"],
)
def test_as_many_bytes_as_are_allowed_are_and_one_more_is_not(extension: str, made: Callable[[int], bytes]) -> None:
    allowed = Limits(bytes=200_000, ratio=1_000_000)
    assert is_safe(extension, made(200_000), allowed)
    assert not is_safe(extension, made(200_001), allowed)


@pytest.mark.parametrize("extension", ["zip", "gz"])
def test_as_many_times_its_size_as_is_allowed_is_and_a_byte_more_is_not(extension: str) -> None:
    def made(size: int) -> bytes:
        return zip_of(("a", bytes(size))) if extension == "zip" else gzip.compress(bytes(size))

    packed = len(made(1_000_000))
    exactly = next(size for size in range(packed * 100, 0, -1) if len(made(size)) * 100 <= size)
    assert len(made(exactly)) * 100 == exactly or len(made(exactly)) * 100 < exactly
    for size in range(exactly - 3, exactly + 4):
        content = made(size)
        assert is_safe(extension, content, Limits()) == (size <= 100 * len(content))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(
    ("extension", "wrap"),
    [
        ("zip", lambda inner: zip_of(("a", inner), method=zipfile.ZIP_STORED)),
        ("gz", gzip.compress),
        ("tar", lambda inner: tarred(("a", inner))),
    ],
    ids=["zip", "gz", "tar"],
)
def test_as_deep_as_is_allowed_is_and_one_deeper_is_not(
    extension: str, wrap: Callable[[bytes], bytes], depth: int
) -> None:
    assert is_safe(extension, nested(depth, wrap), Limits(depth=depth))
    assert not is_safe(extension, nested(depth + 1, wrap), Limits(depth=depth))


def test_an_archive_that_is_no_archive_further_on_counts_as_deep_as_it_begins() -> None:
    """What begins as an archive and is none cannot be read through."""
    assert not is_safe("zip", zip_of(("a", b"PK\3\4 is how it begins")), Limits())
    assert not is_safe("zip", zip_of(("a", b"\x1f\x8b and more")), Limits())
    assert is_safe("zip", zip_of(("a", PNG), ("b", b"PK is how it begins"), ("c", b"BZh is no bzip2")), Limits())


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    for filename, content in [("a.zip", nested(3)), *HOSTILE.values()]:
        with suppress(UnsafeArchive):
            looked_at(extension_of(filename), content, folder=tmp_path)
        assert list(tmp_path.iterdir()) == []


MEMORY: dict[str, Callable[[], tuple[str, bytes]]] = {
    "a zip with a long table by zip64": lambda: ("zip", long_table(10_000)),
    "a zip with a long table by zip64 and a long comment": lambda: ("zip", long_table(10_000, b"x" * 65_535)),
    "a zip in a zip with a long table by zip64": lambda: (
        "zip",
        zip_of(("n", noise(100_000)), ("a.zip", long_table(10_000))),
    ),
    "a tar with a map of an old sparse file": lambda: ("tar", old_sparse(1_500)),
    "a tar.gz with a map of an old sparse file": lambda: ("tgz", gzip.compress(old_sparse(1_500)) + padding()),
    "a tar with a map of a sparse file": lambda: ("tar", pax_sparse(60_000)),
    "a tar with heavy headers": lambda: ("tar", heavy_headers(8)),
    "a zip with a large file": lambda: ("zip", zip_of(("a", noise(4 * MIB)))),
    "a zip with a large zip": lambda: ("zip", zip_of(("a", zip_of(("a", noise(4 * MIB)))))),
    "a tar.gz with a large file": lambda: ("tgz", gzip.compress(tarred(("a", noise(4 * MIB))), 1)),
    "a large text": lambda: ("txt", b"0123456\n" * (MIB // 2)),
    "a text in one line": lambda: ("txt", b"\xc3\xa9" * 2 * MIB),
    "a tar with long names": lambda: ("tar", (member("L", b"a" * 60_000 + b"\0", b"L") + member("x", b"")) * 60 + END),
}


def padding() -> bytes:
    """So much that what is before it may unpack to some megabytes."""
    return gzip.compress(noise(100_000), 1)


@pytest.mark.parametrize("made", MEMORY.values(), ids=MEMORY)
def test_looking_takes_little_memory(made: Callable[[], tuple[str, bytes]]) -> None:
    """What these would take whole is a few megabytes here, and hundreds in a file of 50."""
    extension, content = made()
    with TemporaryFile() as file:
        file.write(content)
        size = len(content)
        del content
        tracemalloc.start()
        try:
            with suppress(UnsafeArchive):
                inspect(file, extension, size)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak < 3 * MIB


TIME: dict[str, Callable[[], tuple[str, bytes]]] = {
    "a gzip of many empty members": lambda: ("gz", gzip.compress(b"") * 50_000),
    "a tar with heavy headers": lambda: ("tar", heavy_headers(10)),
    "a zip with a long table by zip64": lambda: ("zip", long_table(20_000)),
    "a tar with a map of a sparse file": lambda: ("tar", pax_sparse(200_000)),
    "half a megabyte of brackets in a text": lambda: ("json", b"[" * (MIB // 2)),
    "a PDF of a megabyte of comments": lambda: ("pdf", b"%PDF-1.7\n" + b"%" * MIB),
    "a PNG of a megabyte of endings of zip archives": lambda: ("png", PNG + b"PK\5\6" * (MIB // 4)),
    "a zip whose comment is all endings": lambda: ("zip", zipped(Entry(b"a"), comment=b"PK\5\6" * 16_000)),
}


@pytest.mark.parametrize("made", TIME.values(), ids=TIME)
def test_looking_takes_at_most_as_long_as_a_second_for_5_megabytes(made: Callable[[], tuple[str, bytes]]) -> None:
    """Files may have 50 MiB, archives unpack to ten times that, and two at a time are looked into."""
    extension, content = made()
    began = time.thread_time()
    with suppress(UnsafeArchive):
        looked_at(extension, content)
    assert time.thread_time() - began < 1 / 5 * max(1, len(content) / MIB)
