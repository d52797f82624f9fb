"""What the figures were measured on: without it they say nothing."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from time import perf_counter
from typing import IO, Final

from msgspec import Struct

_PACKAGES: Final = ("asyncpg", "eventsourcing", "granian", "litestar", "msgspec", "psycopg", "uvloop")


class Machine(Struct, frozen=True, kw_only=True):
    """The machine, and what runs on it."""

    at: datetime
    cpu: str
    cores: int
    memory_gib: float
    load_before: float
    """How many processes wanted a core in the minute before: more than a few tenths, and figures are noisy."""
    flush_ms: float
    """How long a write of 8 KiB takes until it is on disk: the floor of every durable commit."""
    system: str
    python: str
    postgresql: dict[str, str]
    packages: dict[str, str]
    commit: str | None


def describe(postgresql: dict[str, str], folder: Path) -> Machine:
    """This machine, with the settings of its database server, and the disk that `folder` is on."""
    return Machine(
        at=datetime.now(UTC),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        load_before=round(os.getloadavg()[0], 2),
        flush_ms=round(_flush_ms(folder), 3),
        system=platform.platform(),
        python=platform.python_version(),
        postgresql=postgresql,
        packages={name: version(name) for name in _PACKAGES},
        commit=_commit(),
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _flush_ms(folder: Path) -> float:
    """The median of 100."""
    with TemporaryFile(dir=folder) as file:
        return median(flush_ms(file) for _ in range(100))


def flush_ms(file: IO[bytes]) -> float:
    """How long it takes until 8 KB more of the file are on disk, in milliseconds."""
    started = perf_counter()
    file.write(bytes(8_192))
    file.flush()
    os.fdatasync(file.fileno())
    return (perf_counter() - started) * 1_000


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    here = str(Path(__file__).parent)
    found = subprocess.run([git, "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
