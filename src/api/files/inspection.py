"""Whether a file is what its name says, and harmless to open: kinds by content, archives looked into.

Archives are never unpacked: what is in them is read through once, counted, and thrown away. Deliberately
absent: viruses (scanning.py) and HTTP.
"""

import stat
import struct
import tarfile
import zipfile
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from errno import EINVAL
from operator import attrgetter
from pathlib import Path, PurePosixPath
from tarfile import GNUTYPE_LONGNAME, GNUTYPE_SPARSE, SOLARIS_XHDTYPE, XGLTYPE, XHDTYPE, TarInfo
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, Protocol

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
_BLOCK: Final = 512
_LONGEST_NAME: Final = 4_096
_HEADERS_AN_ENTRY: Final = 3
_LARGEST_HEADER: Final = 16 * 1024
"""Of what a tar archive may say of an entry; one that is larger is after our memory."""
_ZIP_TAIL: Final = 22 + 65_535
_ZIP64_TAIL: Final = 56 + 20
_BYTES_AN_ENTRY: Final = 512
_CONTROL: Final = bytes(sorted(set(range(32)) - {*b"\t\n\v\f\r\x1b"} | {127}))
_ENCRYPTED: Final = 0x2041
_UTF8: Final = 0x800
_UNICODE_PATH: Final = 0x7075
_BZIP2: Final = (b"1AY&SY", b"\x17rE8P\x90")
"""How a block of bzip2 begins, and the end where there is none: BZh alone may be a word."""
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
    matches = list(_matches(head))
    best = max((match.confidence for match in matches), default=0)
    found = {match.extension for match in matches if match.confidence == best}
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
    if kind != "zip" and zipfile.is_zipfile(file):
        raise UnsafeArchive(f"it is a .{extension} and a zip archive at the same time")
    file.seek(0)
    try:
        if kind == "zip":
            looking.zip(file, 0, extension)
        elif kind == "gz":
            looking.gz(file, 0)
        else:
            looking.tar(file, 0)
    except _UNREADABLE as error:
        raise UnsafeArchive(f"it cannot be read through: {error!r}") from None
    except OSError as error:
        if error.errno != EINVAL:  # what comes of places that no file has
            raise
        raise UnsafeArchive("it refers to places that it has not") from None


def _kind(head: bytes) -> str | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    try:
        TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return "tar"


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

    def entry(self, *names: str) -> None:
        """Take note of one more entry, and look at its names."""
        self.member()
        for name in names:
            self._look_at_name(name)

    def _look_at_name(self, name: str) -> None:
        parts = name.replace("\\", "/").split("/")
        if len(name) > _LONGEST_NAME:
            raise UnsafeArchive("an entry has a name that is longer than names are")
        if "\0" in name or (name and parts[0] == "") or ".." in parts or (len(parts[0]) > 1 and parts[0][1] == ":"):
            raise UnsafeArchive(f"an entry has the name {name!r}, which leads out of the folder it is unpacked to")

    def inside(self, stream: _Readable, depth: int) -> None:
        """Read through one entry; if it is an archive itself, look into it."""
        head = stream.read(_HEAD)
        kind = _kind(head)
        sealed = next((name for magic, name in _SEALED.items() if head.startswith(magic)), None)
        if sealed is not None and (sealed != "bzip2" or head[4:10] in _BZIP2):
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
        rest = _Source(stream, head)
        if kind == "gz":
            self.gz(rest, depth + 1)
        else:
            self.tar(rest, depth + 1)

    def zip(self, file: BinaryIO, depth: int, extension: str = "zip") -> None:
        """Look into a zip archive."""
        self._check_table(file)
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > self.bytes:
                self.count(self.bytes + 1)
            end = 0
            for info in sorted(infos, key=attrgetter("header_offset")):
                self.entry(info.orig_filename, *_names_in(info.extra))
                if info.header_offset < end:
                    raise UnsafeArchive(f"{info.filename!r} in it overlaps with another entry")
                if info.flag_bits & _ENCRYPTED:
                    raise UnsafeArchive(f"{info.filename!r} in it is encrypted")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UnsafeArchive(f"{info.filename!r} in it is a link or a device")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeArchive(f"{info.filename!r} in it is compressed in a way that is not looked into")
                end = self._zipped(file, info, depth)
            _check_document(archive, extension)

    def _zipped(self, file: BinaryIO, info: zipfile.ZipInfo, depth: int) -> int:
        """Look into one entry of a zip archive, as it is where it lies; returns where it ends."""
        file.seek(info.header_offset)
        source = _Source(file)
        magic, _, flags, method, *_, name_length, extra_length = struct.unpack("<4s5H3L2H", source.take(30))
        name, extra = source.take(name_length), source.take(extra_length)
        kept = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
        if magic != b"PK\x03\x04" or method != info.compress_type or name != kept or flags & _ENCRYPTED:
            raise UnsafeArchive(f"{info.filename!r} in it is something else than the table of contents says")
        for other in _names_in(extra):
            self._look_at_name(other)
        content: _Readable = _Part(source, info.compress_size)
        if method == zipfile.ZIP_DEFLATED:
            content = _Inflated(content)
        checked = _Checked(_Counted(content, self), info)
        self.inside(checked, depth)
        checked.finish()
        return info.header_offset + 30 + len(name) + len(extra) + info.compress_size

    def _check_table(self, file: BinaryIO) -> None:
        """Look at how long the table of contents says it is, before somebody reads all of it into memory."""
        size = file.seek(0, 2)
        file.seek(max(0, size - _ZIP_TAIL - _ZIP64_TAIL))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise UnsafeArchive("it has no table of contents: it was cut off")
        *_, entries, length, _, _ = struct.unpack("<4s4H2LH", tail[at : at + 22])
        if tail[at - 20 : at - 16] == b"PK\x06\x07" and at >= _ZIP64_TAIL:
            *_, entries, length, _ = struct.unpack("<4sQ2H2L4Q", tail[at - _ZIP64_TAIL : at - 20])
        if entries > self.entries or length > self.entries * _BYTES_AN_ENTRY:
            raise UnsafeArchive(f"more than {self.limits.entries:,} entries are in it")
        file.seek(0)

    def member(self) -> None:
        """Take note of one more entry that has no name."""
        self.entries -= 1
        if self.entries < 0:
            raise UnsafeArchive(f"more than {self.limits.entries:,} entries are in it")

    def gz(self, stream: _Readable, depth: int) -> None:
        """Look into what gzip compressed."""
        self.inside(_Counted(_Gzip(stream, self), self), depth)

    def tar(self, stream: _Readable, depth: int) -> None:
        """Look into a tar archive (POSIX.1-2001, pax), a header at a time; each is an entry, whatever it is for."""
        source, names, size, ahead = _Source(stream), list[str](), None, 0
        while (block := source.take(_BLOCK)).strip(b"\0"):
            header = TarInfo.frombuf(block, "utf-8", "surrogateescape")
            length = header.size if size is None else size
            if length < 0:
                raise UnsafeArchive(f"{header.name!r} in it is less than nothing")
            if header.type in (GNUTYPE_LONGNAME, XHDTYPE, SOLARIS_XHDTYPE, XGLTYPE):
                ahead += 1
                if header.size > _LARGEST_HEADER or ahead > _HEADERS_AN_ENTRY:
                    raise UnsafeArchive("a header in it is larger than headers are, or there are too many")
                said = source.take(header.size, _BLOCK)
                if header.type == GNUTYPE_LONGNAME:
                    names.append(said.rstrip(b"\0").decode("utf-8", "surrogateescape"))
                elif header.type != XGLTYPE:
                    further, size = _extended(said)
                    names += further
                elif _extended(said) != ([], None):
                    raise UnsafeArchive("a header in it says of all entries what can be of one only")
                continue
            self.entry(header.name, *names)
            if not (header.isreg() or header.isdir()) or header.type == GNUTYPE_SPARSE:
                raise UnsafeArchive(
                    f"{header.name!r} in it is a link, a device, sparse, or something that nobody knows"
                )
            if header.isreg():
                content = _Part(source, length)
                self.inside(content, depth)
                content.skip()
                source.take(-length % _BLOCK)
            names, size, ahead = [], None, 0
        source.refuse_more()


class _Gzip:
    """What gzip compressed, one member after the other (RFC 1952), each of them an entry."""

    def __init__(self, stream: _Readable, looking: _Looking) -> None:
        self._stream = stream
        self._looking = looking
        self._compressed = b""
        self._member: Any = None

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises zlib.error, EOFError."""
        while True:
            if not self._compressed:
                self._compressed = self._stream.read(_CHUNK)
            if self._member is None:
                self._compressed = self._compressed.lstrip(b"\0")  # padding
                if not self._compressed:
                    return b""
                self._looking.member()
                self._member = zlib.decompressobj(wbits=31)
            data: bytes = self._member.decompress(self._compressed, size)
            ended = self._member.eof
            if not ended and not self._compressed and not data:
                raise EOFError("it was cut off")
            self._compressed = self._member.unused_data if ended else self._member.unconsumed_tail
            if ended:
                self._member = None
            if data:
                return data


class _Inflated:
    """What was deflated (RFC 1951), all of it and nothing behind it."""

    def __init__(self, stream: _Readable) -> None:
        self._stream = stream
        self._compressed = b""
        self._inflating: Any = zlib.decompressobj(wbits=-15)

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises zlib.error, EOFError, ValueError."""
        while not self._inflating.eof:
            if not self._compressed:
                self._compressed = self._stream.read(_CHUNK)
            data: bytes = self._inflating.decompress(self._compressed, size)
            if not data and not self._compressed:
                raise EOFError("it was cut off")
            self._compressed = self._inflating.unconsumed_tail
            if data:
                return data
        if self._inflating.unused_data or self._stream.read(1):
            raise ValueError("there is something behind an entry")
        return b""


class _Checked:
    """What an entry of a zip archive is, held against what the archive says that it is."""

    def __init__(self, stream: _Readable, info: zipfile.ZipInfo) -> None:
        self._stream = stream
        self._info = info
        self._size = 0
        self._sum = 0

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._size += len(data)
        self._sum = zlib.crc32(data, self._sum)
        return data

    def finish(self) -> None:
        """Read what is left. Raises UnsafeArchive where it is not what the archive says."""
        while self.read():
            pass
        if (self._size, self._sum) != (self._info.file_size, self._info.CRC):
            raise UnsafeArchive(f"{self._info.filename!r} in it is not what the archive says that it is")


def _names_in(extra: bytes) -> Iterator[str]:
    """The names that an entry's extra fields give it, in Unicode (APPNOTE.TXT, 4.6.9)."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == _UNICODE_PATH:
            yield extra[9 : 4 + length].decode("utf-8", "surrogateescape")
        extra = extra[4 + length :]


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


class _Source:
    """A stream of which so many bytes are taken, all of them or it was cut off."""

    def __init__(self, stream: _Readable, head: bytes = b"") -> None:
        self._stream = stream
        self._head = head

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)

    def take(self, size: int, multiple: int = 1) -> bytes:
        """So many bytes, and what is missing to a multiple skipped. Raises EOFError."""
        data = bytearray()
        padded = size + -size % multiple
        while len(data) < padded:
            more = self.read(padded - len(data))
            if not more:
                raise EOFError("it was cut off")
            data += more
        return bytes(data[:size])

    def refuse_more(self) -> None:
        """See to it that nothing but zeros comes."""
        while more := self.read():
            if more.strip(b"\0"):
                raise UnsafeArchive("there is something behind its end")


class _Part:
    """So many bytes of a source."""

    def __init__(self, source: _Source, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int = _CHUNK) -> bytes:
        """At most so many bytes; none at the end. Raises EOFError."""
        if not self._left:
            return b""
        data = self._source.read(min(size, self._left))
        if not data:
            raise EOFError("it was cut off")
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read what is left."""
        while self.read():
            pass


def _extended(said: bytes) -> tuple[list[str], int | None]:
    """The names and size that an extended header gives the next entry. Raises UnsafeArchive, ValueError."""
    names, size = list[str](), None
    while said:
        length, _, _ = said.partition(b" ")
        record, said = said[: int(length)], said[int(length) :]
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n") or int(length) <= len(length):
            raise ValueError("a header in it is damaged")
        if key.startswith(b"GNU.sparse"):
            raise UnsafeArchive("a sparse file is in it")
        if key == b"path":
            names.append(value.decode("utf-8", "surrogateescape"))
        if key == b"size":
            size = int(value)
    return names, size


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
