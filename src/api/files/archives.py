"""Looking into archives without unpacking them: each entry is read through where it lies, counted, and thrown away.

What an archive says of itself is not believed: tables and headers are bounded before they are read, and what
an entry is must be what the archive says that it is. Deliberately absent: kinds of files (inspection.py).
"""

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from errno import EINVAL
from operator import attrgetter
from pathlib import Path
from tarfile import GNUTYPE_LONGNAME, GNUTYPE_SPARSE, SOLARIS_XHDTYPE, XGLTYPE, XHDTYPE, TarInfo
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from msgspec import Struct

from api.files.streams import CHUNK, Checked, Counted, Gzip, Inflated, Part, Readable, Source

_HEAD: Final = 512
_BLOCK: Final = 512
_LONGEST_NAME: Final = 4_096
_HEADERS_AN_ENTRY: Final = 3
_HEADERS: Final = 4 * 1024 * 1024
_LARGEST_HEADER: Final = 16 * 1024
"""Of what a tar archive may say of an entry; one that is larger is after our memory."""
_ZIP_TAIL: Final = 22 + 65_535
_ZIP64_TAIL: Final = 56 + 20
_BYTES_AN_ENTRY: Final = 512
_ENCRYPTED: Final = 0x2041
_DESCRIBED: Final = 0x8
_LONGEST_DESCRIPTION: Final = 24
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


class UnsafeArchive(Exception):  # noqa: N818 - an answer, not an error
    """Opening the archive could do harm, or it cannot be told."""


def look_into(file: BinaryIO, size: int, limits: Limits, folder: Path | None = None) -> None:
    """Read an archive of so many bytes through. Raises UnsafeArchive.

    Zip archives that are inside others are read from a nameless file in `folder`.
    """
    looking = _Looking(limits, min(limits.bytes, limits.ratio * size), folder)
    kind = kind_of(file.read(_HEAD))
    if kind != "zip" and zipfile.is_zipfile(file):
        raise UnsafeArchive("it is a zip archive and something else at the same time")
    file.seek(0)
    try:
        if kind == "zip":
            looking.zip(file, 0)
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


def kind_of(head: bytes) -> str | None:
    """Which archive begins like this: zip, gz, tar; None if none that can be looked into."""
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
        self.headers = _HEADERS
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

    def inside(self, stream: Readable, depth: int) -> None:
        """Read through one entry; if it is an archive itself, look into it."""
        head = stream.read(_HEAD)
        kind = kind_of(head)
        sealed = next((name for magic, name in _SEALED.items() if head.startswith(magic)), None)
        if sealed is not None and (sealed != "bzip2" or head[4:10] in _BZIP2):
            raise UnsafeArchive(f"a {sealed} archive is in it, which is not looked into; send it as a zip or tar.gz")
        if kind is None:
            while stream.read(CHUNK):
                pass
            return
        if depth >= self.limits.depth:
            raise UnsafeArchive(f"more than {self.limits.depth} archives are inside each other")
        if kind == "zip":
            with TemporaryFile(dir=self.folder) as spooled:  # its table of contents is at its end
                spooled.write(head)
                while chunk := stream.read(CHUNK):
                    spooled.write(chunk)
                self.zip(spooled, depth + 1)
            return
        rest = Source(stream, head)
        if kind == "gz":
            self.gz(rest, depth + 1)
        else:
            self.tar(rest, depth + 1)

    def zip(self, file: BinaryIO, depth: int) -> None:
        """Look into a zip archive."""
        self._check_table(file)
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > self.bytes:
                self.count(self.bytes + 1)
            end, described = 0, False
            for info in sorted(infos, key=attrgetter("header_offset")):
                self.entry(info.orig_filename, *_names_in(info.extra))
                self._follows(info.header_offset - end, described)
                if info.flag_bits & _ENCRYPTED:
                    raise UnsafeArchive(f"{info.filename!r} in it is encrypted")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UnsafeArchive(f"{info.filename!r} in it is a link or a device")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeArchive(f"{info.filename!r} in it is compressed in a way that is not looked into")
                end, described = self._zipped(file, info, depth), bool(info.flag_bits & _DESCRIBED)
            self._follows(archive.start_dir - end, described)

    def _follows(self, gap: int, described: bool) -> None:  # noqa: FBT001 - a flag of the archive's
        """See to it that one thing comes after the other, but for a description where there is one."""
        if gap < 0 or gap > (_LONGEST_DESCRIPTION if described else 0):
            raise UnsafeArchive(
                "entries overlap in it, or there is something between them that its table does not name"
            )

    def _zipped(self, file: BinaryIO, info: zipfile.ZipInfo, depth: int) -> int:
        """Look into one entry of a zip archive, as it is where it lies; returns where it ends."""
        file.seek(info.header_offset)
        source = Source(file)
        magic, _, flags, method, *_, name_length, extra_length = struct.unpack("<4s5H3L2H", source.take(30))
        name, extra = source.take(name_length), source.take(extra_length)
        kept = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
        if magic != b"PK\x03\x04" or method != info.compress_type or name != kept or flags & _ENCRYPTED:
            raise UnsafeArchive(f"{info.filename!r} in it is something else than the table of contents says")
        for other in _names_in(extra):
            self._look_at_name(other)
        content: Readable = Part(source, info.compress_size)
        if method == zipfile.ZIP_DEFLATED:
            content = Inflated(content)
        checked = Checked(Counted(content, self.count), info)
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

    def gz(self, stream: Readable, depth: int) -> None:
        """Look into what gzip compressed."""
        self.inside(Counted(Gzip(stream, self.member), self.count), depth)

    def tar(self, stream: Readable, depth: int) -> None:
        """Look into a tar archive (POSIX.1-2001, pax), a header at a time; each is an entry, whatever it is for."""
        source, names, size, ahead = Source(stream), list[str](), None, 0
        while (block := source.take(_BLOCK)).strip(b"\0"):
            header = TarInfo.frombuf(block, "utf-8", "surrogateescape")
            length = header.size if size is None else size
            if length < 0:
                raise UnsafeArchive(f"{header.name!r} in it is less than nothing")
            if header.type in (GNUTYPE_LONGNAME, XHDTYPE, SOLARIS_XHDTYPE, XGLTYPE):
                ahead += 1
                self.headers -= header.size
                if self.headers < 0 or header.size > _LARGEST_HEADER or ahead > _HEADERS_AN_ENTRY:
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
                content = Part(source, length)
                self.inside(content, depth)
                content.skip()
                source.take(-length % _BLOCK)
            names, size, ahead = [], None, 0
        source.refuse_more()


def _names_in(extra: bytes) -> Iterator[str]:
    """The names that an entry's extra fields give it, in Unicode (APPNOTE.TXT, 4.6.9)."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == _UNICODE_PATH:
            yield extra[9 : 4 + length].decode("utf-8", "surrogateescape")
        extra = extra[4 + length :]


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
