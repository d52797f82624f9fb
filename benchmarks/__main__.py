"""`make bench`: runs the benchmarks, prints a table, keeps every round as JSON in results/.

Exits 0 unless what a benchmark measured was not right; being slow is shown, never failed.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path
from time import perf_counter
from typing import Final

import click
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from api import logs
from benchmarks.append import APPEND
from benchmarks.chart import chart
from benchmarks.conversation import CONVERSATION
from benchmarks.databases import Server, running_server
from benchmarks.footprint import FOOTPRINT
from benchmarks.live import LIVE
from benchmarks.machine import Machine, describe
from benchmarks.meanwhile import MEANWHILE
from benchmarks.measurement import Bench, Benchmark, Result, Round, result
from benchmarks.projecting import PROJECTING
from benchmarks.queries import QUERIES
from benchmarks.rebuild import REBUILD
from benchmarks.replay import REPLAY
from benchmarks.side_by_side import SIDE_BY_SIDE

RESULTS: Final = Path(__file__).parent / "results"
BENCHMARKS: Final = {
    one.name: one
    for one in (
        APPEND,
        REPLAY,
        LIVE,
        PROJECTING,
        REBUILD,
        MEANWHILE,
        QUERIES,
        CONVERSATION,
        SIDE_BY_SIDE,
        FOOTPRINT,
    )
}

_err: Final = Console(stderr=True, highlight=False, soft_wrap=True)


class Report(Struct, frozen=True):
    """Everything that a run found out."""

    machine: Machine
    quick: bool
    results: list[Result]
    wrong: dict[str, str]
    """What was not right, by benchmark."""


@click.command()
@click.option("--quick", is_flag=True, help="Short and rough: to see that it works.")
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Only this one; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Medians are over these.")
def main(*, quick: bool, only: tuple[str, ...], rounds: int) -> None:
    """Measure the ticket service."""
    logs.configure_logging("WARNING", service="benchmarks")
    RESULTS.mkdir(exist_ok=True)
    wanted = [one for one in BENCHMARKS.values() if not only or one.name in only]
    with (
        tempfile.TemporaryDirectory(dir=RESULTS, prefix=".run-") as name,
        running_server(os.environ.get("DATABASE_URL"), folder := Path(name)) as dsn,
    ):
        bench = Bench(server=Server(dsn), folder=folder, rounds=rounds, quick=quick, say=_say)
        report = uvloop.run(_run(bench, wanted))
    _keep(report)
    _show(report)
    sys.exit(1 if report.wrong else 0)


async def _run(bench: Bench, wanted: list[Benchmark]) -> Report:
    machine = describe(await bench.server.settings(), bench.folder)
    _say(f"{machine.cpu}, {machine.cores} cores; PostgreSQL {machine.postgresql}")
    results: list[Result] = []
    wrong: dict[str, str] = {}
    try:
        for one in wanted:
            try:
                results += await _rounds(bench, one)
            except AssertionError as error:
                traceback.print_exc()
                wrong[one.name] = str(error) or "see above"
    finally:
        await bench.server.drop_kept()
    return Report(machine, bench.quick, results, wrong)


async def _rounds(bench: Bench, benchmark: Benchmark) -> list[Result]:
    rounds: list[Round] = []
    started = perf_counter()
    _say(f"{benchmark.name} …")
    async for one in benchmark.measure(bench):
        rounds.append(one)
        told = ", ".join(f"{key} {_number(value)}" for key, value in one.items())
        _say(f"{benchmark.name} {len(rounds)}/{bench.rounds}, {perf_counter() - started:.0f} s: {told}")
    return [result(benchmark.name, figure, rounds) for figure in benchmark.figures if figure.key in rounds[0]]


def _keep(report: Report) -> None:
    document = msgspec.json.format(msgspec.json.encode(report), indent=2)
    for name in (f"{report.machine.at:%Y-%m-%dT%H-%M-%SZ}.json", "latest.json"):
        (RESULTS / name).write_bytes(document)
    picture = chart(report.results, "10000x64" if report.quick else "100000x64")
    if picture is not None:
        (RESULTS / "side-by-side.svg").write_text(picture)


def _show(report: Report) -> None:
    machine = report.machine
    table = Table(
        title=f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, "
        f"a flush takes {machine.flush_ms:g} ms; Python {machine.python}, "
        f"PostgreSQL {machine.postgresql['server_version']}, fsync {machine.postgresql['fsync']}, "
        f"synchronous_commit {machine.postgresql['synchronous_commit']}"
    )
    for heading in ("benchmark", "what", "figure", "unit", "target", "met"):
        table.add_column(heading, justify="right" if heading in ("figure", "target") else "left")
    for one in report.results:
        met = "" if one.met is None else "[green]met[/]" if one.met else "[red]missed[/]"
        table.add_row(one.benchmark, one.what, _number(one.value), one.unit, one.target or "", met)
    for name, what in report.wrong.items():
        table.add_row(name, f"[red]WRONG: {what}[/]", "", "", "", "")
    Console().print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _say(message: str) -> None:
    _err.print(message, markup=False)


if __name__ == "__main__":
    main()
