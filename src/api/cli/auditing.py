"""What auditors use: `import`, `replay`, `verify`.

Deliberately absent: how facts are read and checked; this asks for it and shows it.
"""

import sys
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Final

import click
import msgspec
from msgspec import Meta

from api import servicenow
from api.cli.terminal import catch_up, fail, open_database, print_json, progress, run, say, settings_or_fail
from api.servicenow_log import LogError
from projections import replay as lives
from projections.history import Entry
from tickets import verification
from tickets.connections import connected
from tickets.ledger import Ledger


@click.group("import")
def import_() -> None:
    """The log of another system, as facts with their own times and actors."""


@import_.command("servicenow")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def import_servicenow(file: Path, *, as_json: bool) -> None:
    """The incident log of a ServiceNow instance (CSV, may be gzipped). Run again, it imports nothing twice."""
    settings, started = settings_or_fail(), monotonic()

    async def importing(dsn: str) -> servicenow.Report:
        async with Ledger.open(dsn) as ledger:
            with progress("importing rows") as told:
                report = await servicenow.import_log(ledger, file, settings.policy, told)
            took = max(monotonic() - started, 0.001)
            say(f"{report.facts:,} facts in {took:.1f} s, {report.facts / took:,.0f}/s")
            await catch_up(dsn, await ledger.head())
        return report

    try:
        with open_database(settings) as dsn:
            report: servicenow.Report = run(importing(dsn))
    except LogError as error:
        fail(str(error))
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{report.rows:,} rows of {report.incidents:,} incidents and {report.people:,} people: "
        f"{report.facts:,} facts added; {report.known:,} rows were known already"
    )
    for one in report.dirty:
        click.echo(f"line {one.line}, incident {one.number}: {one.what}")


@click.command()
@click.argument("ticket")
@click.option("--version", type=click.IntRange(min=1), help="Up to this version.")
@click.option("--as-of", "as_of", metavar="TIME", help="Up to this time, RFC 3339: 2026-01-31T12:00:00Z.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def replay(ticket: str, version: int | None, as_of: str | None, *, as_json: bool) -> None:
    """A ticket's life, by its id or number: fact by fact, with what each changed."""
    if version is not None and as_of is not None:
        fail("--version and --as-of cannot go together.")
    at = None if as_of is None else _moment(as_of)

    async def replaying(dsn: str) -> lives.Life | None:
        async with Ledger.open(dsn) as ledger:
            ticket_id = await lives.find_ticket(ledger, ticket)
            return None if ticket_id is None else await lives.replay(ledger, ticket_id, version=version, as_of=at)

    with open_database(settings_or_fail()) as dsn:
        life: lives.Life | None = run(replaying(dsn))
    if life is None:
        say(f"There is no ticket {ticket}, or it was not there at that version or time.")
        sys.exit(1)
    if as_json:
        print_json(life)
        return
    for one in life.history:
        click.echo(_told(one))
    click.echo(f"\n{life.ticket.number} at version {life.ticket.version}:")
    click.echo(msgspec.json.format(msgspec.json.encode(life.ticket), indent=2).decode())


def _moment(text: str) -> datetime:
    try:
        moment: datetime = msgspec.convert(text, Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError:
        fail(f"--as-of {text!r} is not a time with a zone, such as 2026-01-31T12:00:00Z.")
    return moment


def _told(one: Entry) -> str:
    """An entry as a person would tell it."""
    who = one.actor.username or str(one.actor.id)
    role = f" ({one.actor.role})" if one.actor.role else ""
    internally = ", internally" if one.metadata.get("internal") else ""
    lines = [f"v{one.version:<3} {one.occurred_at:%Y-%m-%d %H:%M:%S}  {one.action}  by {who}{role}{internally}"]
    if one.reason:
        lines.append(f'       because "{one.reason}"')
    for change in one.changes:
        was = "" if change.old is None else f"{_shown(change.old)} -> "
        lines.append(f"       {change.field}: {was}{_shown(change.new)}")
    if "sha256" in one.metadata:
        lines.append(f"       whose content has the SHA-256 {one.metadata['sha256']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    plain = msgspec.to_builtins(value)
    return "nothing" if plain is None else plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def verify(*, as_json: bool) -> None:
    """Recompute every hash and seal; exit 1 and the first bad position where anything was tampered with."""

    async def verifying(dsn: str) -> verification.Verified:
        async with connected(dsn) as connection:
            with progress("verifying") as told:
                async for step in verification.verify(connection):
                    if isinstance(step, verification.Verified):
                        return step
                    told(step.position, step.of)
        raise AssertionError("a verification ends with what it saw")

    with open_database(settings_or_fail()) as dsn:
        seen: verification.Verified = run(verifying(dsn))
    if as_json:
        print_json(seen)
    elif seen.finding is None:
        click.echo(
            f"{seen.facts:,} facts under {seen.seals:,} seals are as they were written. Newest seal: {seen.head}"
        )
    else:
        click.echo(f"TAMPERED at position {seen.finding.position}: {seen.finding.what}")
    sys.exit(0 if seen.finding is None else 1)


COMMANDS: Final = (import_, replay, verify)
