"""Whether a file is what its name says: kinds by extension and by content.

Deliberately absent: what is in archives (archives.py), viruses (scanning.py) and HTTP.
"""

import zipfile
from codecs import getincrementaldecoder
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import puremagic

from api.files.archives import Limits, UnsafeArchive, kind_of, look_into
from api.files.streams import CHUNK

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

_HEAD: Final = 512
_CONTROL: Final = bytes(sorted(set(range(32)) - {*b"\t\n\v\f\r\x1b"} | {127}))


class WrongKind(Exception):  # noqa: N818 - an answer, not an error
    """The file is of a kind that is not taken, or of another than its name says."""


def inspect(file: BinaryIO, extension: str, size: int, limits: Limits | None = None, folder: Path | None = None) -> str:
    """The media type of a file, of which `extension` is one of TYPES.

    Zip archives that are inside others are read from a nameless file in `folder`. Raises WrongKind,
    UnsafeArchive.
    """
    limits = limits or Limits()
    file.seek(0)
    head = file.read(CHUNK)
    file.seek(0)
    if extension in _TEXT:
        _read_text(file, extension, head)
    elif extension in _SNIFFED:
        _sniff(extension, head)
        if zipfile.is_zipfile(file):
            raise UnsafeArchive(f"it is a .{extension} and a zip archive at the same time")
    else:
        _look_into(file, extension, head, size, limits, folder)
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
        while chunk := file.read(CHUNK):
            _refuse_control(decoder.decode(chunk), extension)
        _refuse_control(decoder.decode(b"", final=True), extension)
    except UnicodeDecodeError:
        raise WrongKind(f"a .{extension} must be text in UTF-8 or UTF-16") from None


def _refuse_control(text: str, extension: str) -> None:
    plain = text.encode(errors="ignore")
    if len(plain.translate(None, _CONTROL)) != len(plain):
        raise WrongKind(f"a .{extension} must be text; there are control characters in it")


def _look_into(file: BinaryIO, extension: str, head: bytes, size: int, limits: Limits, folder: Path | None) -> None:
    wanted = {"gz": "gz", "tgz": "gz", "tar": "tar"}.get(extension, "zip")
    if kind_of(head) != wanted:
        raise WrongKind(f"its content is not what a .{extension} has")
    look_into(file, size, limits, folder)
    if extension in _OFFICE or extension in _OPEN_DOCUMENT:
        with zipfile.ZipFile(file) as archive:
            _check_document(archive, extension)


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
