"""Files to upload, good ones and hostile ones, made here byte by byte: not a test.

Zip archives are put together from records, so that they can say of themselves what is not so. GOOD, RENAMED
and HOSTILE are the tables: what the file is, what it is called, and for the bad ones how it is refused.
"""

import base64
import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

from api.files.inspection import TYPES

SYMLINK, DEVICE, PIPE, PLAIN = 0o120777, 0o060666, 0o010666, 0o100644
UNICODE_PATH, ZIP64 = 0x7075, 0x0001
STORED, DEFLATED, AES = 0, 8, 99
KIB, MIB = 1024, 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not get smaller, the same every time."""
    return Random(seed).randbytes(size)  # noqa: S311 - not for secrets


# Zip


class Entry(NamedTuple):
    """An entry of a zip archive, and what is said of it: what is None is said as it is."""

    name: bytes
    content: bytes = b""
    method: int = STORED
    flags: int = 0
    local_flags: int | None = None
    local_name: bytes | None = None
    says_size: int | None = None
    says_packed: int | None = None
    crc: int | None = None
    mode: int = PLAIN
    extra: bytes = b""
    says_at: int | None = None
    at: int | None = None
    """Where its own header is; given, no header is written: it shares another's."""


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def zipped(
    *entries: Entry,
    says_entries: int | None = None,
    says_length: int | None = None,
    says_start: int | None = None,
    before: bytes = b"",
    comment: bytes = b"",
    zip64: bool = False,
) -> bytes:
    """A zip archive of just these, with a table of contents that says what it is told to."""
    body, table = bytearray(before), bytearray()
    for entry in entries:
        packed = deflated(entry.content) if entry.method == DEFLATED else entry.content
        at = len(body) if entry.at is None else entry.at
        size = len(entry.content) if entry.says_size is None else entry.says_size
        length = len(packed) if entry.says_packed is None else entry.says_packed
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        name = entry.name if entry.local_name is None else entry.local_name
        flags = entry.flags if entry.local_flags is None else entry.local_flags
        facts = (0, 0, crc, length, size)
        if entry.at is None:
            body += struct.pack(
                "<4s3H2H3L2H", b"PK\3\4", 20, flags, entry.method, *facts, len(name), len(entry.extra)
            ) + (name + entry.extra + packed)
        table += struct.pack(
            "<4s4B4H3L5H2L",
            *(b"PK\1\2", 20, 3, 20, 0, entry.flags, entry.method, *facts, len(entry.name), len(entry.extra)),
            *(0, 0, 0, (entry.mode << 16) & 0xFFFFFFFF, at if entry.says_at is None else entry.says_at),
        )
        table += entry.name + entry.extra
    end = bytearray()
    if zip64:
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *[len(entries)] * 2, len(table), len(body))
        end += struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(table), 1)
    end += struct.pack(
        "<4s4H2LH",
        *(b"PK\5\6", 0, 0, *[len(entries) if says_entries is None else says_entries] * 2),
        len(table) if says_length is None else says_length,
        len(body) if says_start is None else says_start,
        len(comment),
    )
    return bytes(body + table + end) + comment


def zip_of(*contents: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive as everybody makes them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in contents:
            archive.writestr(name, content)
    return made.getvalue()


def streamed_zip(*contents: tuple[str, bytes]) -> bytes:
    """A zip archive as who cannot seek makes them: lengths are behind what they are of; zip64 in each header."""

    class Onwards(io.RawIOBase):
        def __init__(self) -> None:
            self.made = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes, /) -> int:  # type: ignore[override] # of all there is, it gets bytes
            self.made += data
            return len(data)

    onwards = Onwards()
    with zipfile.ZipFile(onwards, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents:
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    return onwards.made


def nested(depth: int, wrap: Callable[[bytes], bytes] | None = None, core: bytes = b"at the heart of it\n") -> bytes:
    """An archive with so many more inside each other."""
    wrap = wrap or (lambda content: zip_of(("inner.zip", content), method=zipfile.ZIP_STORED))
    made = core
    for _ in range(depth + 1):
        made = wrap(made)
    return made


def crowded(count: int) -> bytes:
    """A zip archive with so many empty entries."""
    return zipped(*(Entry(b"%d" % number) for number in range(count)))


def long_table(count: int, comment: bytes = b"") -> bytes:
    """A zip archive whose short ending says that there is one entry, and whose zip64 one has so many."""
    entries = [Entry(b"a"), *[Entry(b"a", at=0)] * (count - 1)]
    archive = zipped(*entries, zip64=True, says_entries=1, says_length=47, comment=comment)
    assert zipfile.is_zipfile(io.BytesIO(archive))
    return archive


def overlapping(entries: int, size: int) -> bytes:
    """David Fifield's, in short: all entries are the same bytes, so that little unpacks to much."""
    content = bytes(size)
    first = Entry(b"0", content, method=DEFLATED)
    again = Entry(
        b"0", method=DEFLATED, at=0, says_size=size, says_packed=len(deflated(content)), crc=zlib.crc32(content)
    )
    return zipped(first, *[again] * (entries - 1))


def office(extension: str) -> bytes:
    folder = {"docx": "word/document.xml", "xlsx": "xl/workbook.xml", "pptx": "ppt/presentation.xml"}[extension]
    return zip_of(("[Content_Types].xml", b"<Types/>"), ("_rels/.rels", b"<Relationships/>"), (folder, b"<x/>"))


def open_document(extension: str, kind: str | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("mimetype", kind or TYPES[extension])
        archive.writestr("content.xml", "<x/>", zipfile.ZIP_DEFLATED)
    return made.getvalue()


# Tar


def block(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    """One header."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made.tobuf(tarfile.GNU_FORMAT)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return block(name, kind, len(content)) + content + bytes(-len(content) % 512)


END: Final = bytes(1024)
"""Of a tar archive."""


def tarred(*contents: tuple[str, bytes]) -> bytes:
    return b"".join(member(name, content) for name, content in contents) + END


def pax(records: Iterable[tuple[str, str]], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of pax: records before a member."""
    made = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        made += str(length).encode() + rest
    return member("pax", made, kind)


def resealed(header: bytes, at: int, value: bytes) -> bytes:
    """A header of tar with something else in it, and the sum that belongs to it."""
    made = bytearray(header)
    made[at : at + len(value)] = value
    made[148:156] = b" " * 8
    made[148:155] = b"%06o\0" % sum(made)
    return bytes(made)


def old_sparse(blocks: int, *, more: bool = True) -> bytes:
    """GNU's first form of a sparse file, with a map of so many blocks; with `more` it ends where it should go on."""
    pairs = b"%011o " % 70_000 * 42
    chain = [pairs + (b"\1" if more or number < blocks - 1 else b"\0") + bytes(7) for number in range(blocks)]
    return resealed(block("sparse", tarfile.GNUTYPE_SPARSE), 482, b"\1") + b"".join(chain)


def pax_sparse(numbers: int) -> bytes:
    """The newest form of a sparse file, with a map of so many numbers."""
    about = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "1"}
    return pax(about.items()) + member("s", b"%d\n" % (numbers // 2) + b"3000\n" * numbers) + END


def heavy_headers(members: int) -> bytes:
    """A tar archive of empty files, each with nearly 64 KiB of records before it."""
    one = pax((f"{number:04x}", "1") for number in range(7_000)) + block("f")
    return one * members + END


# The rest

PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GIF: Final = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
WEBP: Final = base64.b64decode("UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA")
JPEG: Final = base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////////////////////////////////////////////////////////////////////"
    "////////////wgALCAABAAEBAREA/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABPxA="
)
PDF: Final = (
    b"%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"
)
EXE: Final = b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff\0\0" + bytes(44) + b"\x80\0\0\0" + bytes(64) + b"PE\0\0\x64\x86"
ELF: Final = b"\x7fELF\2\1\1" + bytes(57)
SEVEN_ZIP: Final = b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24)
RAR: Final = b"Rar!\x1a\x07\x01\0" + bytes(24)
WAV: Final = b"RIFF" + struct.pack("<L", 136) + b"WAVEfmt " + bytes(128)
AVI: Final = b"RIFF" + struct.pack("<L", 136) + b"AVI LIST" + bytes(128)
TEXT: Final = "Größe: 5 €, 日本語 🔥\r\n\tdone\n".encode()

GOOD: Final[dict[str, bytes]] = {
    "csv": b"a,b\r\n1,2\r\n",
    "docx": office("docx"),
    "eml": b"From: a@example.org\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n",
    "gif": GIF,
    "gz": gzip.compress(TEXT),
    "jpeg": JPEG,
    "jpg": JPEG,
    "json": b'{"a": [1, 2]}',
    "log": b"2026-01-01 \x1b[31mERROR\x1b[0m disk full\n",
    "md": b"# Title\n\n* one\n",
    "odp": open_document("odp"),
    "ods": open_document("ods"),
    "odt": open_document("odt"),
    "pdf": PDF,
    "png": PNG,
    "pptx": office("pptx"),
    "tar": tarred(("logs/a.txt", TEXT), ("logs/b.txt", b"x" * 512), ("c", b"")),
    "tgz": gzip.compress(tarred(("logs/a.txt", TEXT))),
    "txt": TEXT,
    "webp": WEBP,
    "xlsx": office("xlsx"),
    "xml": b'<?xml version="1.0"?>\n<a/>\n',
    "yaml": b"a: 1\n",
    "yml": b"a:\n  - 1\n",
    "zip": zip_of(("logs/a.txt", TEXT), ("logs/", b""), ("b.png", PNG)),
}
"""A valid one of each type that is taken."""

ALSO_GOOD: Final[dict[str, tuple[str, bytes]]] = {
    "UTF-16, little end first": ("a.txt", b"\xff\xfe" + "é".encode("utf-16-le")),
    "UTF-16, big end first": ("a.csv", b"\xfe\xff" + "é".encode("utf-16-be")),
    "UTF-8 with a mark": ("a.csv", b"\xef\xbb\xbfa,b"),
    "one byte": ("a.txt", b"a"),
    "text that begins as other files do": ("a.txt", b"BM, MZ, PK and GIF are letters"),
    "a document called zip": ("a.zip", GOOD["docx"]),
    "three zips inside a zip": ("a.zip", nested(3)),
    "three gzips inside a gzip": ("a.gz", nested(3, gzip.compress)),
    "three tars inside a tar": ("a.tar", nested(3, lambda inner: tarred(("a.tar", inner)))),
    "zip in gzip in tar in zip": (
        "a.zip",
        zip_of(("a.tar", tarred(("a.gz", gzip.compress(zip_of(("a.txt", TEXT)))))), method=zipfile.ZIP_STORED),
    ),
    "an empty zip": ("a.zip", zipped()),
    "a zip with a comment": ("a.zip", zipped(Entry(b"a", b"b"), comment=b"hello")),
    "a zip with the longest comment": ("a.zip", zipped(Entry(b"a", b"b"), comment=b"x" * 65_535)),
    "a zip that was streamed, with zip64 headers": ("a.zip", streamed_zip(("a.txt", TEXT), ("b.txt", b"b"))),
    "a zip with a zip64 ending": ("a.zip", zipped(Entry(b"a", b"b"), zip64=True)),
    "a zip with 2,000 entries": ("a.zip", crowded(2_000)),
    "a zip with names in UTF-8": ("a.zip", zip_of(("日本語/🔥.txt", TEXT))),
    "a zip with odd names": ("a.zip", zip_of(("..a/...b/c..", TEXT), ("a..b", b""), ("-rf", b""), ("ab:c", b""))),
    "an archive of what is squeezed as well as allowed": ("a.zip", zip_of(("a", bytes(90_000) + noise(1_000)))),
    "two members of gzip": ("a.gz", gzip.compress(b"a") + gzip.compress(b"b")),
    "padded gzip": ("a.gz", gzip.compress(b"a") + bytes(100)),
    "a tar of pax": ("a.tar", pax([("path", "日本語.txt"), ("mtime", "1.5")]) + member("x", TEXT) + END),
    "a tar with a long name": (
        "a.tar",
        member("L", b"a" * 200 + b"\0", tarfile.GNUTYPE_LONGNAME) + member("x", b"") + END,
    ),
    "a tar with folders": ("a.tar", block("a/", tarfile.DIRTYPE) + member("a/b", TEXT) + END),
    "a tar padded to 10 KiB": ("a.tar", tarred(("a", TEXT)) + bytes(10 * KIB)),
}

WRONG, UNSAFE = (415, "unsupported-media-type"), (422, "unsafe-archive")

RENAMED: Final[dict[str, tuple[str, bytes]]] = {
    **{
        f"{real} called {called}": (f"a.{called}", GOOD[real])
        for real, called in [
            *[
                ("png", other)
                for other in ("gif", "jpg", "jpeg", "pdf", "webp", "txt", "json", "zip", "tar", "gz", "docx")
            ],
            *[("gif", other) for other in ("png", "txt", "csv", "zip")],
            *[("jpg", other) for other in ("png", "txt", "md", "tgz")],
            *[("webp", other) for other in ("png", "log")],
            *[("pdf", other) for other in ("png", "txt", "xml", "yaml", "eml", "docx", "odt")],
            *[
                ("txt", other)
                for other in ("png", "jpg", "gif", "webp", "pdf", "zip", "tar", "gz", "tgz", "docx", "odt")
            ],
            *[
                ("zip", other)
                for other in ("docx", "xlsx", "pptx", "odt", "ods", "odp", "tar", "gz", "png", "txt", "pdf")
            ],
            *[("tar", other) for other in ("zip", "gz", "tgz", "txt", "docx")],
            *[("gz", other) for other in ("tar", "zip", "txt")],
            *[("docx", other) for other in ("xlsx", "pptx", "odt")],
            *[("odt", other) for other in ("ods", "odp", "docx")],
        ]
    },
    "an exe called png": ("a.png", EXE),
    "an exe called txt": ("a.txt", EXE),
    "an exe called zip": ("a.zip", EXE),
    "an ELF called log": ("a.log", ELF),
    "7z called zip": ("a.zip", SEVEN_ZIP),
    "RAR called zip": ("a.zip", RAR),
    "bzip2 called gz": ("a.gz", bz2.compress(TEXT)),
    "xz called gz": ("a.gz", lzma.compress(TEXT)),
    "WAV called webp": ("a.webp", WAV),
    "AVI called webp": ("a.webp", AVI),
    "half a magic number": ("a.png", PNG[:4]),
    "GIF without a version": ("a.gif", b"GIF8"),
    "what comes before a PDF": ("a.pdf", b"junk\n" + PDF),
    "an exe before a zip": ("a.zip", zipped(Entry(b"a", b"b"), before=EXE)),
    "an exe before a PNG": ("a.png", EXE + PNG),
    "Latin-1": ("a.txt", "Größe".encode("latin-1")),
    "UTF-8 that is cut off": ("a.txt", "€".encode()[:2]),
    "UTF-8 of a surrogate": ("a.txt", b"a\xed\xa0\x80"),
    "overlong UTF-8": ("a.txt", b"a\xc0\x80"),
    "UTF-16 without a mark": ("a.txt", "hello".encode("utf-16-le")),
    "half a character of UTF-16": ("a.txt", b"\xff\xfea"),
    "half a pair of UTF-16": ("a.txt", b"\xff\xfe\x00\xd8"),
    "UTF-32": ("a.txt", "hello".encode("utf-32")),
    "NUL in text": ("a.csv", b"a,b\0c"),
    "NUL behind 64 KiB of text": ("a.log", b"a" * 70_000 + b"\0"),
    "NUL in UTF-16": ("a.txt", b"\xff\xfe\0\0"),
    "an OpenDocument that says it is something else": ("a.odt", open_document("odt", "text/html")),
    "an OpenDocument with a type that is long": ("a.odt", open_document("odt", "x" * 5_000)),
    "an Office document without its folder": ("a.docx", zip_of(("[Content_Types].xml", b""), ("other", b""))),
    "an empty zip called docx": ("a.docx", zipped()),
}
"""Each is answered as WRONG."""


def _cut() -> Iterable[tuple[str, tuple[str, bytes]]]:
    for extension in ("docx", "odt", "zip", "tgz", "gz", "xlsx"):
        whole = GOOD[extension]
        for name, length in {"by a byte": len(whole) - 1, "in half": len(whole) // 2, "to 12 bytes": 12}.items():
            yield f"{extension} cut {name}", (f"a.{extension}", whole[:length])
    yield "tar cut inside a file", ("a.tar", member("a", noise(2_000))[:1_500])
    yield "tar cut inside the second header", ("a.tar", (member("a", TEXT) + block("b"))[:1_300])


def _names() -> Iterable[tuple[str, tuple[str, bytes]]]:
    for name in (
        *("../evil", "a/../../evil", "..", "a/..", "/etc/passwd", "//server/share", "\\\\server\\share", "\\evil"),
        *("..\\evil", "a\\..\\..\\evil", "C:\\evil", "c:evil", "C:/evil", "a.txt\0.exe", "/"),
    ):
        content = b"" if name.endswith("/") else TEXT
        yield f"zip with {name!r}", ("a.zip", zipped(Entry(name.encode(), content)))
        yield (
            f"zip with {name!r} in it in a tgz",
            (
                "a.tgz",
                gzip.compress(tarred(("a.zip", zipped(Entry(name.encode(), content))))),
            ),
        )
        if "\0" not in name and name != "/":
            yield f"tar with {name!r}", ("a.tar", tarred((name, TEXT)))
    yield "docx with '../evil'", ("a.docx", zip_of(("[Content_Types].xml", b""), ("word/a", b""), ("../evil", b"")))
    yield "tar with '..' by pax", ("a.tar", pax([("path", "../evil")]) + member("a", TEXT) + END)
    yield (
        "tar with '..' by pax for all",
        (
            "a.tar",
            pax([("path", "../evil")], tarfile.XGLTYPE) + member("a", TEXT) + END,
        ),
    )
    yield (
        "tar with '..' by a long name",
        (
            "a.tar",
            member("L", b"../" * 60 + b"evil\0", tarfile.GNUTYPE_LONGNAME) + member("a", TEXT) + END,
        ),
    )
    long = member("L", b"../evil\0", tarfile.GNUTYPE_LONGNAME)
    yield (
        "tar with '..' by a long name, and another by pax",
        (
            "a.tar",
            long + pax([("path", "a")]) + member("a", TEXT) + END,
        ),
    )
    yield (
        "tar with '..' by pax, and another by a long name",
        (
            "a.tar",
            pax([("path", "../evil")]) + member("L", b"a\0", tarfile.GNUTYPE_LONGNAME) + member("a", TEXT) + END,
        ),
    )
    yield (
        "zip with '..' as its name in Unicode",
        (
            "a.zip",
            zipped(
                Entry(
                    b"a.txt",
                    TEXT,
                    extra=struct.pack("<HHBL", UNICODE_PATH, 15, 1, zlib.crc32(b"a.txt")) + b"../../evil",
                )
            ),
        ),
    )
    yield "zip with '..' in front of a file only", ("a.zip", zipped(Entry(b"a/evil", TEXT, local_name=b"../evi")))
    yield "zip with '..' in front of a folder only", ("a.zip", zipped(Entry(b"ab/", local_name=b"../")))


def _links() -> Iterable[tuple[str, tuple[str, bytes]]]:
    for named, mode in {"a link": SYMLINK, "a device": DEVICE, "a pipe": PIPE}.items():
        yield f"zip with {named}", ("a.zip", zipped(Entry(b"a", b"/etc/passwd", mode=mode)))
    for named, kind in {
        "a symbolic link": tarfile.SYMTYPE,
        "a hard link": tarfile.LNKTYPE,
        "a device": tarfile.BLKTYPE,
        "a terminal": tarfile.CHRTYPE,
        "a pipe": tarfile.FIFOTYPE,
        "an unknown kind": b"Z",
    }.items():
        made = member("a", TEXT) + block("b", kind, link="/etc/passwd") + END
        yield f"tar with {named}", ("a.tar", made)
        yield f"tar.gz with {named}", ("a.tgz", gzip.compress(made))
        yield f"tar with {named} in a zip", ("a.zip", zip_of(("a.tar", made), method=zipfile.ZIP_STORED))
    link = block("b", tarfile.SYMTYPE, link="/etc/passwd") + END
    yield "tar with a link behind a broken header", ("a.tar", member("a", TEXT) + b"\1" * 512 + link)
    yield "tar with a link behind its end", ("a.tar", tarred(("a", TEXT)) + link)
    yield (
        "tar of the seventh edition with a link in a zip",
        (
            "a.zip",
            zip_of(("a.tar", resealed(link[:512], 257, bytes(8)) + link[512:]), method=zipfile.ZIP_STORED),
        ),
    )


def _hidden() -> Iterable[tuple[str, tuple[str, bytes]]]:
    for name, content in {
        "7z": SEVEN_ZIP,
        "RAR": RAR,
        "bzip2": bz2.compress(TEXT),
        "bzip2 that begins with nothing": bz2.compress(b"") + bz2.compress(TEXT),
        "xz": lzma.compress(TEXT),
        "Zstandard": b"\x28\xb5\x2f\xfd" + bytes(20),
        "a cabinet": b"MSCF" + bytes(20),
    }.items():
        yield f"{name} in a zip", ("a.zip", zip_of(("a.bin", content), method=zipfile.ZIP_STORED))
        yield f"{name} in a tar", ("a.tar", tarred(("a.bin", content)))
        yield f"{name} in a gzip", ("a.gz", gzip.compress(content))
    for flag, bit in {"encrypted": 0x1, "strongly encrypted": 0x41, "a hidden table": 0x2000}.items():
        yield f"zip: {flag}", ("a.zip", zipped(Entry(b"a", TEXT, flags=bit)))
    yield "zip: AES", ("a.zip", zipped(Entry(b"a", noise(60), method=AES, flags=1, extra=b"\1\x99\7\0\2\0AE\3\0\0")))
    yield "zip: AES that does not say so", ("a.zip", zipped(Entry(b"a", noise(60), method=AES)))
    yield "zip: encrypted, says the file's own header", ("a.zip", zipped(Entry(b"a", TEXT, local_flags=1)))
    yield (
        "docx: encrypted",
        (
            "a.docx",
            zipped(Entry(b"[Content_Types].xml"), Entry(b"word/document.xml", noise(60), flags=1)),
        ),
    )
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, 9, 12345):
        packed = zip_of(("a", TEXT), method=method) if method in {12, 14} else zipped(Entry(b"a", TEXT, method=method))
        yield f"zip: method {method}", ("a.zip", packed)


def _lies() -> Iterable[tuple[str, tuple[str, bytes]]]:
    much, little = bytes(MIB), b"only this"
    yield "zip: says it is smaller", ("a.zip", zipped(Entry(b"a", much, method=DEFLATED, says_size=10)))
    yield (
        "zip: says it is smaller, and the sum agrees",
        (
            "a.zip",
            zipped(Entry(b"a", much, method=DEFLATED, says_size=10, crc=zlib.crc32(much[:10]))),
        ),
    )
    yield "zip: says it is larger", ("a.zip", zipped(Entry(b"a", little, method=DEFLATED, says_size=100)))
    yield "zip: says it is 4 GiB", ("a.zip", zipped(Entry(b"a", little, method=DEFLATED, says_size=0xFFFFFFFE)))
    yield (
        "zip: says zip64's 2^63",
        (
            "a.zip",
            zipped(Entry(b"a", little, says_size=0xFFFFFFFF, extra=struct.pack("<HHQ", ZIP64, 8, 1 << 63))),
        ),
    )
    yield "zip: says it is less packed", ("a.zip", zipped(Entry(b"a", noise(500), method=DEFLATED, says_packed=100)))
    yield "zip: says it is more packed", ("a.zip", zipped(Entry(b"a", noise(500), says_packed=9_000, says_size=9_000)))
    yield "zip: a wrong sum", ("a.zip", zipped(Entry(b"a", little, crc=1)))
    yield (
        "zip: damaged inside",
        ("a.zip", zipped(Entry(b"a", noise(500))).replace(noise(500)[:2], b"xx")),
    )
    yield "zip: a table that begins too late", ("a.zip", zipped(Entry(b"a"), says_start=5_000))
    yield "zip: a table that begins too early", ("a.zip", zipped(Entry(b"a"), Entry(b"b"), says_start=3))
    yield "zip: a table that is longer than the file", ("a.zip", zipped(Entry(b"a"), says_length=5_000))
    yield (
        "zip: an entry behind the end",
        ("a.zip", zipped(Entry(b"a", says_at=9_999))),
    )
    yield (
        "zip: an entry at zip64's 2^62",
        (
            "a.zip",
            zipped(Entry(b"a", says_at=0xFFFFFFFF, extra=struct.pack("<HHQ", ZIP64, 8, 1 << 62))),
        ),
    )
    yield "zip: a name that its own header does not have", ("a.zip", zipped(Entry(b"a", local_name=b"b")))
    yield "zip: only an ending, and no zip", ("a.zip", b"PK\3\4" + noise(200))
    yield "tar: a size below nothing", ("a.tar", block("a", size=-1) + tarred(("b", TEXT)))
    yield "tar: a size of -512", ("a.tar", block("a", size=-512) + tarred(("b", TEXT)))
    yield "tar: a size beyond its end", ("a.tar", block("a", size=1 << 40) + END)
    yield "tar: a size of 2^70 by pax", ("a.tar", pax([("size", str(1 << 70))]) + block("a") + END)
    yield "gzip: a wrong sum", ("a.gz", GOOD["gz"][:-8] + bytes(4) + GOOD["gz"][-4:])
    yield "gzip: something behind it", ("a.gz", GOOD["gz"] + b"junk")


def _bombs() -> Iterable[tuple[str, tuple[str, bytes]]]:
    zeros = bytes(2 * MIB)
    packed = gzip.compress(zeros)
    bomb = zip_of(("a", zeros))
    tar_bomb = gzip.compress(tarred(("a", zeros)))
    yield "zip of zeros", ("a.zip", bomb)
    yield "gzip of zeros", ("a.gz", packed)
    yield "tar.gz of zeros", ("a.tgz", tar_bomb)
    yield "zip of zeros in a zip", ("a.zip", zip_of(("a.zip", bomb)))
    yield "zip of zeros in a gzip", ("a.gz", gzip.compress(bomb))
    yield "gzip of zeros in a zip", ("a.zip", zip_of(("a.gz", packed)))
    yield "gzip of zeros in a gzip", ("a.gz", gzip.compress(packed))
    yield "tar.gz of zeros in a zip", ("a.zip", zip_of(("a.tgz", tar_bomb)))
    yield "gzip of zeros in a tar", ("a.tar", tarred(("a.gz", packed)))
    yield "docx with zeros", ("a.docx", zip_of(("[Content_Types].xml", b""), ("word/document.xml", zeros)))
    yield (
        "zips of zeros, sixteen in a zip",
        ("a.zip", zip_of(*((f"{n}.zip", zip_of(("a", zeros[:MIB]))) for n in range(16)))),
    )
    yield "zip of zeros that says it is small", ("a.zip", zipped(Entry(b"a", zeros, method=DEFLATED, says_size=1_000)))
    yield "zip of one file many times", ("a.zip", overlapping(500, 100_000))
    yield "zip in itself, many deep", ("a.zip", nested(40))
    yield "gzip in itself, many deep", ("a.gz", nested(40, gzip.compress))
    yield "four zips inside a zip", ("a.zip", nested(4))
    yield "four gzips inside a gzip", ("a.gz", nested(4, gzip.compress))
    yield "four tars inside a tar", ("a.tar", nested(4, lambda inner: tarred(("a.tar", inner))))
    yield (
        "four archives inside each other, of all kinds",
        ("a.zip", zip_of(("a.tgz", gzip.compress(tarred(("z", nested(1))))))),
    )
    yield "zip with 2,001 entries", ("a.zip", crowded(2_001))
    yield "zip with 20,000 entries", ("a.zip", crowded(20_000))
    yield "zip with 2,001 entries in two", ("a.zip", zip_of(("a.zip", crowded(1_000)), ("b.zip", crowded(1_000))))
    yield "zip with 2,001 entries that says one", ("a.zip", zipped(*[Entry(b"a")] * 2_001, says_entries=1))
    yield "two zips one behind the other", ("a.zip", zipped(Entry(b"../x", b"b")) + zipped(Entry(b"a", b"b")))
    yield (
        "zip with something before its first entry",
        ("a.zip", zipped(Entry(b"a", b"b"), before=b"PK\3\4" + bytes(99))),
    )
    yield "zip with 5,000 entries by zip64", ("a.zip", long_table(5_000))
    yield "zip with 20,000 entries by zip64", ("a.zip", long_table(20_000))
    yield "zip with 20,000 entries by zip64 and the longest comment", ("a.zip", long_table(20_000, b"x" * 65_535))
    yield "tar with 2,001 entries", ("a.tar", block("a") * 2_001 + END)
    yield (
        "tar.gz with 2,001 entries",
        ("a.tgz", gzip.compress(member("a", noise(20_000)) + block("b") * 2_000)),
    )
    yield "tar with a huge header of pax", ("a.tar", block("a", tarfile.XHDTYPE, MIB) + bytes(MIB) + END)
    yield "tar with a header of pax of 1 TiB", ("a.tar", block("a", tarfile.XHDTYPE, 1 << 40) + END)
    yield "tar with a huge name", ("a.tar", member("L", b"a" * MIB, tarfile.GNUTYPE_LONGNAME) + block("a") + END)
    yield (
        "tar with a chain of long names",
        ("a.tar", member("L", b"a\0", tarfile.GNUTYPE_LONGNAME) * 5_000 + block("a") + END),
    )
    yield (
        "tar with a chain of headers for all",
        ("a.tar", pax([("comment", "x")], tarfile.XGLTYPE) * 5_000 + block("a") + END),
    )
    yield "tar with a sparse file of old", ("a.tar", old_sparse(2, more=False) + END)
    yield "tar with a sparse file of old without end", ("a.tar", old_sparse(2_000))
    yield "tar with a sparse file", ("a.tar", pax_sparse(2_000))
    yield "tar with a sparse file in a zip", ("a.zip", zip_of(("a.tar", pax_sparse(20)), method=zipfile.ZIP_STORED))


def _two_at_once() -> Iterable[tuple[str, tuple[str, bytes]]]:
    ending = zip_of(("evil.js", TEXT))
    for extension in ("png", "gif", "jpg", "pdf", "webp"):
        yield f"{extension} and zip", (f"a.{extension}", GOOD[extension] + ending)
        yield (
            f"{extension} and zip with a comment",
            (
                f"a.{extension}",
                zipped(Entry(b"evil.js", TEXT), before=GOOD[extension], comment=b"x" * 5_000),
            ),
        )
    yield "gzip and zip", ("a.gz", GOOD["gz"] + ending)
    yield "tar and zip", ("a.tar", GOOD["tar"] + ending)


HOSTILE: Final[dict[str, tuple[str, bytes]]] = {
    **dict(_cut()),
    **dict(_names()),
    **dict(_links()),
    **dict(_hidden()),
    **dict(_lies()),
    **dict(_bombs()),
    **dict(_two_at_once()),
}
"""Each is answered as UNSAFE."""
