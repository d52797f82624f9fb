"""Whether a file is what its name says, and harmless to open: kinds by content, archives looked into.

Archives are never unpacked: what is in them is read through once, counted, and thrown away. Deliberately
absent: viruses (scanning.py) and HTTP.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import BinaryIO, Final, Protocol

import puremagic
from msgspec import Struct

TYPES: Final[dict[str, str]] = {
    "csv": "text/csv",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "eml": "message/rfc822",
    "gif": "image/gif",
    "gz": "application/gzip",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "log": "text/plain",
    "md": "text/markdown",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odt": "application/vnd.oasis.opendocument.text",
    "pdf": "application/pdf",
    "png": "image/png",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "tar": "application/x-tar",
    "tgz": "application/gzip",
    "txt": "text/plain",
    "webp": "image/webp",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "application/xml",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "zip": "application/zip",
}
"""The media type of each extension that can be allowed."""

_TEXT: Final = frozenset({"csv", "eml", "json", "log", "md", "txt", "xml", "yaml", "yml"})
_SNIFFED: Final = frozenset({"gif", "jpeg", "jpg", "pdf", "png", "webp"})
_OFFICE: Final = {"docx": "word/", "xlsx": "xl/", "pptx": "ppt/"}
"""What an Office document has a folder for."""
_OPEN_DOCUMENT: Final = frozenset({"odt", "ods", "odp"})

_CHUNK: Final = 64 * 1024
_HEAD: Final = 512
_LARGEST_HEADER: Final = 64 * 1024
"""In a tar archive; one that says it is larger is after our memory."""
_ZIP_TAIL: Final = 22 + 65_535
_BYTES_AN_ENTRY: Final = 512
_CONTROL: Final = bytes(sorted(set(range(32)) - {*b"\t\n\v\f\r\x1b"} | {127}))
_SEALED: Final = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"MSCF": "cabinet",
    b"!<arch>\n": "ar",
}
"""Archives that cannot be looked into, by what they begin with."""

_UNREADABLE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
    struct.error,
    UnicodeError,
    OverflowError,
    IndexError,
    KeyError,
    RuntimeError,
)
"""What the readers of archives raise where one is damaged."""


class Limits(Struct, frozen=True):
    """How much there may be in an archive, all that is nested in it included."""

    entries: int = 2_000
    bytes: int = 500 * 1024 * 1024
    ratio: int = 100
    depth: int = 3
    """How many archives may be inside each other, the outermost not counted."""


class WrongKind(Exception):  # noqa: N818 - an answer, not an error
    """The file is of a kind that is not taken, or of another than its name says."""


class UnsafeArchive(Exception):  # noqa: N818 - as above
    """Opening the archive could do harm, or it cannot be told."""


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def inspect(file: BinaryIO, extension: str, size: int, limits: Limits | None = None, folder: Path | None = None) -> str:
    """The media type of a file, of which `extension` is one of TYPES.

    Zip archives that are inside others are read from a nameless file in `folder`. Raises WrongKind,
    UnsafeArchive.
    """
    limits = limits or Limits()
    looking = _Looking(limits, min(limits.bytes, limits.ratio * size), folder)
    file.seek(0)
    head = file.read(_CHUNK)
    file.seek(0)
    if extension in _TEXT:
        _read_text(file, extension, head)
    elif extension in _SNIFFED:
        _sniff(extension, head)
        if zipfile.is_zipfile(file):
            raise UnsafeArchive(f"it is a .{extension} and a zip archive at the same time")
    else:
        _look_into(file, extension, head, looking)
    return TYPES[extension]


def extension_of(filename: str) -> str:
    """What is after the last dot, in lower case; empty if there is none."""
    return PurePosixPath(filename).suffix[1:].lower()


def _sniff(extension: str, head: bytes) -> None:
    found = {match.extension for match in _matches(head)}
    if f".{extension}" not in found:
        raise WrongKind(f"its content is not what a .{extension} has{_hint(found)}")


def _matches(head: bytes) -> Iterable[puremagic.PureMagicWithConfidence]:
    try:
        return puremagic.magic_string(head)
    except puremagic.PureError:  # older ones raise where newer ones find nothing
        return ()


def _hint(found: Iterable[str]) -> str:
    known = sorted({one[1:] for one in found} & (_SNIFFED | {"zip", "exe", "7z", "gz"}))
    return f"; it looks like {' or '.join(known)}" if known else ""


def _read_text(file: BinaryIO, extension: str, head: bytes) -> None:
    found = {match.extension[1:] for match in _matches(head)} & _SNIFFED
    if found:
        raise WrongKind(f"its content is not what a .{extension} has; it looks like {' or '.join(sorted(found))}")
    decoder = getincrementaldecoder("utf-8")()
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        decoder = getincrementaldecoder("utf-16")()
    try:
        while chunk := file.read(_CHUNK):
            _refuse_control(decoder.decode(chunk), extension)
        _refuse_control(decoder.decode(b"", final=True), extension)
    except UnicodeDecodeError:
        raise WrongKind(f"a .{extension} must be text in UTF-8 or UTF-16") from None


def _refuse_control(text: str, extension: str) -> None:
    plain = text.encode(errors="ignore")
    if len(plain.translate(None, _CONTROL)) != len(plain):
        raise WrongKind(f"a .{extension} must be text; there are control characters in it")


def _look_into(file: BinaryIO, extension: str, head: bytes, looking: "_Looking") -> None:
    kind = _kind(head)
    wanted = {"gz": "gz", "tgz": "gz", "tar": "tar"}.get(extension, "zip")
    if kind != wanted:
        raise WrongKind(f"its content is not what a .{extension} has")
    try:
        if kind == "zip":
            looking.zip(file, 0, extension)
        elif kind == "gz":
            looking.gz(file, 0)
        else:
            looking.tar(file, 0)
    except _UNREADABLE as error:
        raise UnsafeArchive(f"it cannot be read through: {error!r}") from None


def _kind(head: bytes) -> str | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    if head[257:262] == b"ustar":
        return "tar"
    return None


class _Looking:
    """One look into an archive and whatever is in it, with what may still come."""

    def __init__(self, limits: Limits, allowed: int, folder: Path | None) -> None:
        self.limits = limits
        self.entries = limits.entries
        self.bytes = allowed
        self.allowed = allowed
        self.folder = folder

    def count(self, size: int) -> None:
        """Take note of so many bytes."""
        self.bytes -= size
        if self.bytes < 0:
            raise UnsafeArchive(
                f"more than {self.allowed:,} bytes are in it: over {self.limits.ratio} times its size, "
                f"or over {self.limits.bytes:,}"
            )

    def entry(self, name: str) -> None:
        """Take note of one more entry, and look at its name."""
        self.entries -= 1
        if self.entries < 0:
            raise UnsafeArchive(f"more than {self.limits.entries:,} entries are in it")
        parts = name.replace("\\", "/").split("/")
        if "\0" in name or parts[0] == "" or ".." in parts or (len(parts[0]) > 1 and parts[0][1] == ":"):
            raise UnsafeArchive(f"an entry has the name {name!r}, which leads out of the folder it is unpacked to")

    def inside(self, stream: _Readable, depth: int) -> None:
        """Read through one entry; if it is an archive itself, look into it."""
        head = stream.read(_HEAD)
        kind = _kind(head)
        sealed = next((name for magic, name in _SEALED.items() if head.startswith(magic)), None)
        if sealed is not None and (sealed != "bzip2" or head[4:10] == b"1AY&SY"):
            raise UnsafeArchive(f"a {sealed} archive is in it, which is not looked into; send it as a zip or tar.gz")
        if kind is None:
            while stream.read(_CHUNK):
                pass
            return
        if depth >= self.limits.depth:
            raise UnsafeArchive(f"more than {self.limits.depth} archives are inside each other")
        if kind == "zip":
            with TemporaryFile(dir=self.folder) as spooled:  # its table of contents is at its end
                spooled.write(head)
                while chunk := stream.read(_CHUNK):
                    spooled.write(chunk)
                self.zip(spooled, depth + 1)
            return
        rest = _Forward(head, stream)
        if kind == "gz":
            self.gz(rest, depth + 1)
        else:
            self.tar(rest, depth + 1)
        rest.drain()

    def zip(self, file: BinaryIO, depth: int, extension: str = "zip") -> None:
        """Look into a zip archive."""
        self._check_table(file)
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > self.bytes:
                self.count(self.bytes + 1)
            for info in infos:
                self.entry(info.orig_filename)
                if info.flag_bits & 0x2041:
                    raise UnsafeArchive(f"{info.filename!r} in it is encrypted")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UnsafeArchive(f"{info.filename!r} in it is a link or a device")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeArchive(f"{info.filename!r} in it is compressed in a way that is not looked into")
                if not info.is_dir():
                    with archive.open(info) as stream:
                        self.inside(_Counted(stream, self), depth)
            _check_document(archive, extension)

    def _check_table(self, file: BinaryIO) -> None:
        """Look at how long the table of contents says it is, before somebody reads all of it into memory."""
        size = file.seek(0, 2)
        file.seek(max(0, size - _ZIP_TAIL))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise UnsafeArchive("it has no table of contents: it was cut off")
        *_, entries, length, _, _ = struct.unpack("<4s4H2LH", tail[at : at + 22])
        if entries > self.entries or length > self.entries * _BYTES_AN_ENTRY:
            raise UnsafeArchive(f"more than {self.limits.entries:,} entries are in it")
        file.seek(0)

    def gz(self, stream: _Readable, depth: int) -> None:
        """Look into what gzip compressed."""
        with gzip.GzipFile(mode="rb", fileobj=stream) as content:  # type: ignore[call-overload] # it only reads
            self.entries -= 1
            self.inside(_Counted(content, self), depth)

    def tar(self, stream: _Readable, depth: int) -> None:
        """Look into a tar archive."""
        with tarfile.open(fileobj=_Forward(b"", stream), mode="r:") as archive:  # type: ignore[call-overload] # it only reads
            for member in archive:
                self.entry(member.name)
                if member.issparse() or not (member.isreg() or member.isdir()):
                    raise UnsafeArchive(f"{member.name!r} in it is a link, a device or sparse")
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    self.inside(content, depth)


class _Counted:
    """What is unpacked of an archive, counted."""

    def __init__(self, stream: _Readable, looking: _Looking) -> None:
        self._stream = stream
        self._looking = looking

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._looking.count(len(data))
        return data


class _Forward:
    """A stream that can only be read onwards, with the little of a file that the archives' readers ask for."""

    def __init__(self, head: bytes, stream: _Readable) -> None:
        self._head = head
        self._stream = stream
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end."""
        if size < 0 or size > _LARGEST_HEADER:
            raise UnsafeArchive("a header in it is larger than headers are")
        data, self._head = self._head[:size], self._head[size:]
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._at += len(data)
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        """Onwards to a position."""
        if whence != 0 or position < self._at:
            raise UnsafeArchive("it refers back to what was before")
        while self._at < position and self.read(min(_CHUNK, position - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        """How far it is."""
        return self._at

    def drain(self) -> None:
        """Read what is left."""
        while self.read(_CHUNK):
            pass


def _check_document(archive: zipfile.ZipFile, extension: str) -> None:
    """Whether a zip archive is the document that its name says."""
    names = archive.namelist()
    if extension in _OFFICE and not (
        "[Content_Types].xml" in names and any(name.startswith(_OFFICE[extension]) for name in names)
    ):
        raise WrongKind(f"its content is not what a .{extension} has")
    if extension in _OPEN_DOCUMENT:
        kind = archive.getinfo("mimetype") if "mimetype" in names else None
        if kind is None or kind.file_size > _HEAD or archive.read(kind).decode("ascii", "replace") != TYPES[extension]:
            raise WrongKind(f"its content is not what a .{extension} has")
