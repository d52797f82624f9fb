"""A long load at 60 % of what the service can do: whether memory, open files or latencies grow with the hours.

    python -m tests.faults.soak --minutes 60 --out soak.json

The load is that of benchmarks/load.py, an open loop in a process of its own. Caches fill at first, so the first quarter
is not counted. Beside it, 8 KB are synced to the same disk ten times a second, and a little work is done once a second:
no commit waits less than the one does, and where the other takes longer, so does everything, whoever's fault that is.
Deliberately absent: judging; the figures are told.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Event, Thread
from time import monotonic, thread_time

import click
import msgspec
from msgspec import Struct

from api.database import apply_schema
from api.embedded import embedded_server
from benchmarks.load import Load, Tokens, elsewhere, work_on_tickets
from benchmarks.machine import Machine, describe, flush_ms
from benchmarks.measurement import percentile
from benchmarks.serving import everybody, running_service

CONNECTIONS = 64
SHARE = 0.6
WINDOWS = 24
"""Of how many windows of time there are figures."""


class Window(Struct, frozen=True, kw_only=True):
    """A stretch of the load, and how the process was at its end."""

    minute: float
    rate: float
    refused: int
    """What was not answered with success."""
    p50_ms: float
    p99_ms: float
    flush_ms: float
    """The slowest synced write of the ten a second beside it."""
    work_ms: float
    """What the same work took of a processor's time, as a rule."""
    memory_mb: float
    """As a rule: what is being answered comes and goes."""
    files: int


class Soak(Struct, frozen=True, kw_only=True):
    """What a soak shows."""

    machine: Machine
    maximum: float
    asked: float
    minutes: float
    memory_mb_per_hour: float
    files_more: int
    p99_drift: float
    """How many times the p99 of the last quarter is that of the second."""
    windows: list[Window]


def slope(points: list[tuple[float, float]]) -> float:
    """By how much the second rises for one of the first, by least squares; 0 where there is but one."""
    middle, level = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - level) for x, y in points) / spread if spread else 0.0


def process_at(port: int) -> Path:
    """The folder in /proc of the service that listens there."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if b"--port" in words and str(port).encode() in words:
                return process
    raise LookupError(f"nobody listens at {port}")


def memory_mb(process: Path) -> float:
    """What the process has in memory of its own and of files."""
    (line,) = (one for one in (process / "status").read_text().splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


class Beside(Struct):
    """What was measured beside the load."""

    flushes_ms: list[float]
    works_ms: list[float]
    memory_mb: list[float]


@contextmanager
def watching(process: Path, folder: Path) -> Iterator[Beside]:
    """Watch a process, the disk that this folder is on, and the processor, until it is left."""
    seen, leaving = Beside([], [], []), Event()

    def watch() -> None:
        with TemporaryFile(dir=folder) as file:
            for turn in count():
                file.seek(0)
                seen.flushes_ms.append(flush_ms(file))
                if turn % 10 == 0:
                    seen.works_ms.append(_work_ms())
                    seen.memory_mb.append(memory_mb(process))
                if leaving.wait(0.1):
                    return

    thread = Thread(target=watch, name="watching")
    thread.start()
    try:
        yield seen
    finally:
        leaving.set()
        thread.join()


def _work_ms() -> float:
    started = thread_time()
    sum(range(200_000))
    return (thread_time() - started) * 1_000


async def _window(port: int, tokens: Tokens, rate: float | None, seconds: float, began: float, folder: Path) -> Window:
    load = Load(ports=(port,), connections=CONNECTIONS, rate=rate, warm_up_s=min(5, seconds / 4), seconds=seconds)
    process = process_at(port)
    with watching(process, folder) as seen:
        answered = await elsewhere(work_on_tickets, load, tokens)
    return Window(
        minute=round((monotonic() - began) / 60, 2),
        rate=round(answered.rate, 1),
        refused=sum(count for status, count in answered.statuses.items() if status >= 300),
        p50_ms=round(percentile(answered.latencies_ms, 50), 2),
        p99_ms=round(percentile(answered.latencies_ms, 99), 2),
        flush_ms=round(max(seen.flushes_ms), 1),
        work_ms=round(median(seen.works_ms), 2),
        memory_mb=round(median(seen.memory_mb), 2),
        files=len(list((process / "fd").iterdir())),
    )


async def soak(minutes: float, folder: Path, dsn: str) -> Soak:
    """Ask for so many minutes, and measure."""
    await apply_schema(dsn)
    machine = describe({"embedded": "as it comes"}, folder)
    async with running_service(dsn, folder) as port:
        tokens, began = await everybody(port), monotonic()
        seconds = max(5.0, minutes * 60 / WINDOWS)
        maximum = (await _window(port, tokens, None, min(20, seconds), began, folder)).rate
        windows, began = list[Window](), monotonic()
        while monotonic() < began + minutes * 60:
            windows.append(await _window(port, tokens, maximum * SHARE, seconds, began, folder))
            _tell(windows)
    counted = windows[len(windows) // 4 :]
    quarter = max(1, len(windows) // 4)
    return Soak(
        machine=machine,
        maximum=maximum,
        asked=round(maximum * SHARE, 1),
        minutes=round((monotonic() - began) / 60, 1),
        memory_mb_per_hour=round(slope([(one.minute / 60, one.memory_mb) for one in counted]), 2),
        files_more=counted[-1].files - counted[0].files,
        p99_drift=round(median(w.p99_ms for w in counted[-quarter:]) / median(w.p99_ms for w in counted[:quarter]), 2),
        windows=windows,
    )


def _tell(windows: list[Window]) -> None:
    if len(windows) == 1:
        click.echo("  minute    rate/s  refused   p50 ms   p99 ms  flush ms  work ms  memory MB  files")
    one = windows[-1]
    click.echo(
        f"{one.minute:8.2f} {one.rate:9.1f} {one.refused:8} {one.p50_ms:8.2f} {one.p99_ms:8.2f} "
        f"{one.flush_ms:9.1f} {one.work_ms:8.2f} {one.memory_mb:10.2f} {one.files:6}"
    )


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=60, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go, as JSON.")
def main(minutes: float, out: Path | None) -> None:
    """Load the service for long, and tell whether anything grows."""
    with TemporaryDirectory(prefix="tickets-soak-") as folder, embedded_server(Path(folder) / "data") as dsn:
        found = asyncio.run(soak(minutes, Path(folder), dsn))
    click.echo(
        f"At {found.asked:g}/s of {found.maximum:g}/s for {found.minutes:g} minutes: memory "
        f"{found.memory_mb_per_hour:+g} MB an hour after the first quarter, open files {found.files_more:+}, "
        f"p99 {found.p99_drift:g} times that of the beginning"
    )
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


if __name__ == "__main__":
    main()
