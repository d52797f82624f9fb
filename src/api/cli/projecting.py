"""The read models: `projections status`, `rebuild`, `check`.

Deliberately absent: how read models are made (projections/).
"""

import sys
from datetime import UTC, datetime
from typing import Any, Final

import click

from api.cli.terminal import catch_up, fail, open_database, print_json, progress, run, say, settings_or_fail
from projections import rebuild as rebuilding
from projections.drift import Drift, put_right
from projections.replay import find_ticket
from projections.status import read_status
from tickets.connections import connected
from tickets.ledger import Ledger


@click.group()
def projections() -> None:
    """The read models: how far they are, making them anew, holding them against the ledger."""


@projections.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def status(*, as_json: bool) -> None:
    """How far each read model is behind the ledger, and what is parked; exit 1 if something is."""

    async def reading(dsn: str) -> Any:
        async with connected(dsn) as connection:
            return await read_status(connection)

    with open_database(settings_or_fail()) as dsn:
        seen = run(reading(dsn))
    if as_json:
        print_json(seen)
    else:
        click.echo(
            f"ledger at {seen.ledger:,}; {'a runner leads' if seen.led else 'no runner leads: start the service'}"
        )
        for one in seen.projections:
            click.echo(f"{one.name:<10} at {one.position:>12,}  {one.behind:>8,} behind  {one.parked} streams parked")
        for one in seen.parked:
            click.echo(f"parked: {one.projection} {one.stream_id} from {one.position}: {one.error}")
    sys.exit(1 if seen.parked else 0)


_WORKERS: Final = click.option(
    "--workers", type=click.IntRange(1, 64), help="How many processes make them; by default one a core."
)


@projections.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_WORKERS
@click.option("--only", multiple=True, metavar="TICKET", help="Only the rows of this ticket, by id or number.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def rebuild(*, names: tuple[str, ...], workers: int | None, only: tuple[str, ...], as_json: bool) -> None:
    """Make read models anew beside the live ones and swap them in; reads and writes go on meanwhile."""
    if only and (names or workers):
        fail("--only cannot go together with names or --workers: it puts every read model of a ticket right.")
    if only:
        _put_right(only, as_json=as_json)
    else:
        _made_anew(names, swap=True, workers=workers, as_json=as_json)


def _put_right(only: tuple[str, ...], *, as_json: bool) -> None:
    async def putting(dsn: str) -> list[Drift]:
        found: list[Drift] = []
        async with Ledger.open(dsn) as ledger, connected(dsn) as connection:
            for one in only:
                ticket_id = await find_ticket(ledger, one)
                if ticket_id is None or not await ledger.facts(ticket_id, upto=1):
                    fail(f"There is no ticket {one}.")
                found += await put_right(connection, ticket_id)
        return found

    with open_database(settings_or_fail(), read_models=True) as dsn:
        found: list[Drift] = run(putting(dsn))
    if as_json:
        print_json(found)
        return
    for drift in found:
        for row in drift.differences:
            click.echo(f"{drift.projection:<10} {_told(row)}: put right")
    if not found:
        click.echo("All is as it should be.")


def _told(row: rebuilding.Difference) -> str:
    fields = f": {', '.join(row.fields)}" if row.fields else ""
    return f"{' '.join(row.key.values())} {row.what}{fields}"


@projections.command()
@_WORKERS
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def check(*, workers: int | None, as_json: bool) -> None:
    """Hold every read model against the ledger; exit 1 if one is not what follows from it."""
    _made_anew((), swap=False, workers=workers, as_json=as_json)


def _made_anew(names: tuple[str, ...], *, swap: bool, workers: int | None, as_json: bool) -> None:
    started = datetime.now(UTC)

    async def making(dsn: str) -> tuple[list[rebuilding.Compared], int]:
        facts, compared = 0, []
        async with connected(dsn) as connection:
            head = await connection.fetchval("select position from ledger.head")
        await catch_up(dsn, head)
        with progress("rebuilding" if swap else "checking") as told:
            async for step in rebuilding.rebuild(dsn, names, swap=swap, workers=workers):
                if isinstance(step, rebuilding.Progress):
                    facts = step.facts
                    told(step.facts, step.of)
                else:
                    compared.append(step)
        return compared, facts

    try:
        with open_database(settings_or_fail(), read_models=True) as dsn:
            compared, facts = run(making(dsn))
    except rebuilding.UnknownProjection as error:
        fail(f"There is no read model called {error}.")
    except (rebuilding.AlreadyRunning, rebuilding.NotLevel, rebuilding.WorkerDied) as error:
        fail(str(error.__doc__))
    if as_json:
        print_json(compared)
    else:
        for one in compared:
            verdict = "as it should be" if one.clean else f"{one.missing} rows missing, {one.unexpected} unexpected"
            why = f": version {one.made_by} made them" if one.expected else "" if one.clean else ": drift"
            click.echo(f"{one.projection:<10} {one.rows:>10,} rows at {one.position:,}: {verdict}{why}")
            for row in one.differences:
                click.echo(f"           {_told(row)}")
        took = max((datetime.now(UTC) - started).total_seconds(), 0.001)
        say(f"{facts:,} facts in {took:.1f} s, {facts / took:,.0f}/s")
    sys.exit(0 if swap or all(one.clean for one in compared) else 1)


COMMANDS: Final = (projections,)
