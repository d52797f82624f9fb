"""PostgreSQL servers of a test's own, to be killed, cut off, filled up and started again.

They are copies of one that was made and has the schema, which is cheaper than making each. Deliberately absent: what
is done to them.
"""

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from api import embedded
from api.database import apply_schema
from tests.api.test_embedded import servers
from tickets.connections import connect


class Cluster:
    """A server on a folder, driven as the service drives its own."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        self.folder, self.pgdata, self._configuration = folder, folder / "postgres", configuration
        self.sockets = embedded._socket_dir(folder)

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.sockets))}"

    def start(self) -> None:
        embedded._start(self.pgdata, self.sockets, self._configuration)

    def stop(self, mode: str = "fast") -> None:
        if embedded._running(self.pgdata):
            embedded._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}", "--pgdata", str(self.pgdata))

    def kill(self, chance: random.Random) -> int:
        """End it and all of its processes at once, in whatever order; how many there were."""
        processes = [one for postmaster in servers(self.folder) for one in (postmaster, *_children(postmaster))]
        chance.shuffle(processes)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return len(processes)


def _children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and (process / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(process.name))
    return found


async def _with_schema(dsn: str) -> None:
    await apply_schema(dsn)
    connection = await connect(dsn, role=None)
    try:
        await connection.execute("checkpoint")
    finally:
        await connection.close()


def make(folder: Path) -> None:
    """A cluster with the schema, stopped, of which others are copies."""
    with embedded.embedded_server(folder, extra_configuration="fsync = off\n") as dsn:
        asyncio.run(_with_schema(dsn))


@contextmanager
def copied(original: Path, folder: Path, configuration: str = "", *, started: bool = True) -> Iterator[Cluster]:
    """A server on a copy; it is stopped in the end, if it still runs."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(original / "postgres", folder / "postgres")
    cluster = Cluster(folder, configuration)
    try:
        if started:
            cluster.start()
        yield cluster
    finally:
        cluster.stop("immediate")
