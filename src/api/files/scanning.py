"""The virus scanner: clamd, asked over its socket.

Deliberately absent: what follows from its verdict.
"""

from typing import BinaryIO, Final
from urllib.parse import urlsplit

from clamav_client.clamd import ClamdError, ClamdNetworkSocket, ClamdUnixSocket

_TIMEOUT_S: Final = 30


class ScannerAway(Exception):  # noqa: N818 - it says what is the matter
    """The scanner cannot be reached, or did not want to look at the file."""


def scan(url: str, file: BinaryIO) -> str | None:
    """The name of what is in the file, None if nothing is. Raises ScannerAway; ValueError for a URL that is none."""
    scanner = clamd_at(url)
    file.seek(0)
    try:
        status, found = scanner.instream(file)["stream"]
    except (ClamdError, OSError, KeyError) as error:
        raise ScannerAway(repr(error)) from error
    if status == "ERROR":
        raise ScannerAway(found)
    return found if status == "FOUND" else None


def answers(url: str) -> bool:
    """Whether the scanner is there."""
    try:
        clamd_at(url).ping()
    except (ClamdError, OSError):
        return False
    return True


def clamd_at(url: str) -> ClamdNetworkSocket:
    """A connection to be made to `tcp://host:port` or `unix:///path`. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return ClamdUnixSocket(path=parts.path, timeout=_TIMEOUT_S)
    if parts.scheme == "tcp" and parts.hostname and parts.path in ("", "/"):
        return ClamdNetworkSocket(host=parts.hostname, port=parts.port or 3310, timeout=_TIMEOUT_S)
    raise ValueError("must be tcp://host:port or unix:///path")
