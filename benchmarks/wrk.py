"""wrk as the load generator: a closed loop over requests that were made ready before.

Deliberately absent: open loops and answers that are looked into; load.py has those.
"""

import asyncio
import shutil
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

_SCRIPT: Final = Path(__file__).parent / "replay.lua"


class Wrk(Struct, frozen=True, kw_only=True):
    """What came of it: every answer counts, and how many of them were of 400 or above, or did not come at all."""

    answered: int
    seconds: float
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


def is_there() -> bool:
    """Whether this machine has wrk."""
    return shutil.which("wrk") is not None


async def wrk(url: str, requests: Sequence[bytes], folder: Path, *, connections: int, seconds: float) -> Wrk:
    """Send these over and over, on so many connections for so long, from one thread."""
    file = folder / "requests"
    with file.open("wb") as out:
        for one in requests:
            out.write(b"%d\n%b" % (len(one), one))
    process = await asyncio.create_subprocess_exec(
        "wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={seconds:g}s",
        "--timeout=30s",
        f"--script={_SCRIPT}",
        url,
        "--",
        str(file),
        stdout=PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return msgspec.json.decode(said.strip().splitlines()[-1], type=Wrk)
