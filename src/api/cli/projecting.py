"""The read models: `projections status`, `parked`, `retry`, `rebuild`, `check`.

Deliberately absent: how read models are made (projections/).
"""

import sys
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import click

from api.cli.terminal import catch_up, fail, open_database, print_json, progress, run, say, settings_or_fail
from projections import parking
from projections import rebuild as rebuilding
from projections.comparison import Compared, Difference
from projections.drift import Drift, put_right
from projections.parking import ParkedStream
from projections.replay import find_ticket
from projections.stalls import Process, Stall
from projections.status import read_status
from tickets.connections import connected
from tickets.ledger import Ledger
from tickets.workers import WorkerDied


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
        click.echo(f"ledger at {seen.ledger:,}; {_leads(seen.standing.leader)}")
        for one in seen.projections:
            click.echo(f"{one.name:<11} at {one.position:>12,}  {one.behind:>8,} behind  {one.parked} streams parked")
        if seen.standing.oldest_seconds:
            click.echo(f"the oldest fact that is not in all of them is {seen.standing.oldest_seconds:,.1f} s old")
        if seen.standing.stall is not None:
            click.echo(_told(seen.standing.stall))
        for one in seen.parked:
            click.echo(_parked(one))
        if seen.parked_in_all > len(seen.parked):
            click.echo(f"and {seen.parked_in_all - len(seen.parked):,} more: tickets projections parked")
    sys.exit(1 if seen.parked else 0)


def _leads(leader: Process | None) -> str:
    if leader is None:
        return "no runner leads: start the service"
    at = f" at {leader.client_address}" if leader.client_address else ""
    return f"a runner leads: {leader.application_name}{at}, the database's process {leader.pid}"


def _told(stall: Stall) -> str:
    since = "" if stall.since is None else f" since {stall.since:%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"STANDS STILL{since}" + (f": {' and '.join(stall.rows)} held" if stall.rows else "")]
    for one in stall.held_by:
        at = f" at {one.client_address}" if one.client_address else ""
        began = "" if one.since is None else f", since {one.since:%Y-%m-%d %H:%M:%S} UTC"
        state = "" if one.state is None else f", {one.state}"
        lines.append(f"  by process {one.pid} ({one.application_name or 'no name'}{at}){began}{state}: {one.statement}")
    return "\n".join(lines)


def _parked(one: ParkedStream) -> str:
    return (
        f"parked: {one.projection} {one.stream_id}{f' ({one.number})' if one.number else ''} "
        f"from {one.position} since {one.parked_at:%Y-%m-%d %H:%M:%S} UTC: {one.error}"
    )


@projections.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="How many at most.")
@click.option("--after", metavar="STREAM", type=click.UUID, help="Only those after this stream: the next of many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def parked(*, limit: int, after: UUID | None, as_json: bool) -> None:
    """What read models have given up on, why and since when, in the order of streams; exit 1 if there is anything."""

    async def reading(dsn: str) -> Any:
        async with connected(dsn, purpose="parked") as connection:
            # Of a stream that is named, all read models were told of.
            return await parking.read_parked(connection, limit=limit, after=None if after is None else (after, "~"))

    with open_database(settings_or_fail()) as dsn:
        seen: parking.Parked = run(reading(dsn))
    if as_json:
        print_json(seen)
    else:
        for one in seen.items:
            click.echo(_parked(one))
        click.echo(f"{len(seen.items):,} of {seen.total:,}" if seen.total else "Nothing is parked.")
    sys.exit(1 if seen.total else 0)


@projections.command()
@click.argument("names", nargs=-1, metavar="[TICKET]...")
@click.option("--all", "all_", is_flag=True, help="Everything that is parked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def retry(*, names: tuple[str, ...], all_: bool, as_json: bool) -> None:
    """Digest what is parked anew: tickets by id or number, streams by id; exit 1 if some still cannot be."""
    if bool(names) == all_:
        fail("Say which, by id or number, or --all.")

    async def retrying(dsn: str) -> list[parking.Retried]:
        async with connected(dsn, purpose="retry") as connection:
            if all_:
                return [one async for one in parking.retry_all(connection)]
            found = [await parking.find_parked(connection, name) for name in names]
            for name, stream_id in zip(names, found, strict=True):
                if stream_id is None:
                    fail(f"{name} is not parked. `tickets projections parked` tells what is.")
            return [await parking.retry(connection, one) for one in dict.fromkeys(found) if one is not None]

    with open_database(settings_or_fail()) as dsn:
        seen: list[parking.Retried] = run(retrying(dsn))
    if as_json:
        print_json(seen)
    else:
        for one in seen:
            if one.digested:
                click.echo(f"{one.stream_id}: level again in {', '.join(one.digested)}")
            for left in one.still:
                click.echo(_parked(left))
        click.echo(f"{len(seen):,} tried, {sum(bool(one.still) for one in seen):,} still parked")
    sys.exit(1 if any(one.still for one in seen) else 0)


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
            click.echo(f"{drift.projection:<11} {_differing(row)}: put right")
    if not found:
        click.echo("All is as it should be.")


def _differing(row: Difference) -> str:
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

    async def making(dsn: str) -> tuple[list[Compared], int]:
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
    except (rebuilding.AlreadyRunning, rebuilding.NotLevel, WorkerDied) as error:
        fail(str(error.__doc__))
    if as_json:
        print_json(compared)
    else:
        for one in compared:
            verdict = "as it should be" if one.clean else f"{one.missing} rows missing, {one.unexpected} unexpected"
            why = f": version {one.made_by} made them" if one.expected else "" if one.clean else ": drift"
            click.echo(f"{one.projection:<11} {one.rows:>10,} rows at {one.position:,}: {verdict}{why}")
            for row in one.differences:
                click.echo(f"           {_differing(row)}")
        took = max((datetime.now(UTC) - started).total_seconds(), 0.001)
        say(f"{facts:,} facts in {took:.1f} s, {facts / took:,.0f}/s")
    sys.exit(0 if swap or all(one.clean for one in compared) else 1)


COMMANDS: Final = (projections,)
