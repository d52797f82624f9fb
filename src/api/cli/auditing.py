"""What auditors use: `import`, `verify`.

Deliberately absent: how facts are read and checked; this asks for it and shows it.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Final

import click

from api import servicenow
from api.checkpointing import Outside, trusted_key
from api.cli.terminal import catch_up, fail, open_database, print_json, progress, run, say, settings_or_fail
from api.files.storage import StorageAway
from api.servicenow_log import LogError
from api.settings import Settings
from projections import replay as lives
from tickets import proofs, verification
from tickets.checkpoints import BadCheckpoint, BadKey, Checkpoint, VerifierKey, verifier_key, verify_note
from tickets.connections import Connection, connected
from tickets.ledger import Ledger
from tickets.workers import WorkerDied


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
        with open_database(settings, read_models=True) as dsn:
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
@click.option("--since", type=click.IntRange(min=1), metavar="SIZE", help="Only what came after this checkpoint.")
@click.option("--ticket", metavar="ID|NUMBER", help="Only one ticket's facts, and that they are under the checkpoint.")
@click.option("--checkpoint", metavar="FILE|URL", help="Against this checkpoint, or all those in a folder or store.")
@click.option("--outside", is_flag=True, help="Against the checkpoints that are kept outside (CHECKPOINT_URL).")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Who may have signed, name+id+key; may be repeated.")
@click.option("--workers", type=click.IntRange(1, 64), help="How many processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def verify(
    *,
    since: int | None,
    ticket: str | None,
    checkpoint: str | None,
    outside: bool,
    keys: tuple[str, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Recompute every hash and seal and hold the checkpoints against them.

    Exits 1 with the first bad position where anything was tampered with.
    """
    if checkpoint is not None and outside:
        fail("--checkpoint and --outside cannot go together.")
    if ticket is not None and (since is not None or checkpoint is not None or outside):
        fail("--ticket cannot go together with --since, --checkpoint or --outside.")
    settings = settings_or_fail()
    where = settings.outside if outside else checkpoint

    async def verifying(dsn: str) -> verification.Verified:
        started = monotonic()
        async with connected(dsn) as connection:
            trusted = await _trusted(connection, settings, keys)
            if ticket is not None:
                seen = await _one_ticket(connection, dsn, ticket, trusted)
            else:
                trust = await _trust(connection, trusted, since, where)
                seen = await _all(connection, dsn, trust, workers or os.cpu_count() or 1)
        took = max(monotonic() - started, 0.001)
        say(f"{seen.facts:,} facts in {took:.1f} s, {seen.facts / took:,.0f}/s")
        return seen

    try:
        with open_database(settings) as dsn:
            seen: verification.Verified = run(verifying(dsn))
    except WorkerDied as error:
        fail(str(error.__doc__))
    if as_json:
        print_json(seen)
    elif (found := seen.finding) is not None:
        where = f"at position {found.position}" if found.until is None else f"from {found.position} to {found.until}"
        click.echo(f"TAMPERED {where}: {found.what}")
    elif ticket is not None:
        click.echo(f"{seen.facts:,} facts of the ticket are as they were signed. Checkpoint: {seen.head}")
    else:
        click.echo(
            f"{seen.facts:,} facts under {seen.seals:,} seals and {seen.checkpoints:,} checkpoints are as they were "
            f"written. Newest seal: {seen.head}"
        )
    sys.exit(0 if seen.finding is None else 1)


async def _all(connection: Connection, dsn: str, trust: verification.Trust, workers: int) -> verification.Verified:
    seen: verification.Verified | None = None
    with progress("verifying") as told:
        async for step in verification.verify(connection, dsn=dsn, workers=workers, trust=trust):
            if isinstance(step, verification.Verified):
                seen = step
            else:
                told(step.position, step.of)
    assert seen is not None  # noqa: S101 - a verification ends with what it saw
    return seen


async def _one_ticket(
    connection: Connection, dsn: str, ticket: str, trusted: Sequence[VerifierKey]
) -> verification.Verified:
    async with Ledger.open(dsn) as ledger:
        ticket_id = await lives.find_ticket(ledger, ticket)
    if ticket_id is None:
        fail(f"There is no ticket {ticket}.")
    seen = await verification.verify_stream(connection, ticket_id, trusted)
    if seen is None:
        fail(f"There is no ticket {ticket}, or no checkpoint yet.")
    return seen


async def _trusted(connection: Connection, settings: Settings, keys: Sequence[str]) -> list[VerifierKey]:
    """The keys that were named, or this installation's own."""
    try:
        trusted = [verifier_key(key) for key in keys]
    except BadKey as error:
        fail(f"--key: {error}.")
    own = None if trusted else trusted_key(settings)
    if own is not None:
        return [own]
    if not trusted and await connection.fetchval("select exists (select from ledger.checkpoints)"):
        fail("This installation has no key, so nothing says whose checkpoints these are: name the key with --key.")
    return trusted


async def _trust(
    connection: Connection, trusted: Sequence[VerifierKey], since: int | None, where: str | None
) -> verification.Trust:
    """What the ledger is held against."""
    kept, leaves_of = await _kept(trusted, where) if where is not None else ([], None)
    if kept:
        await _has(connection, kept[-1].size)
    begin = None
    if since is not None:
        named = {one.size: one for one in kept}.get(since) or await proofs.checkpoint_at(connection, since)
        if named is None:
            fail(f"There is no checkpoint at {since}.")
        try:
            begin = verify_note(named.note, *trusted)
        except BadCheckpoint as error:
            fail(f"The checkpoint at {since} is not to be trusted: {error}.")
    return verification.Trust(keys=trusted, since=begin, kept=kept, leaves_of=leaves_of)


async def _has(connection: Connection, size: int) -> None:
    """Give a checkpoint that was kept outside just now the moment that it takes to be in the database too."""
    for _ in range(20):
        if await connection.fetchval("select exists (select from ledger.checkpoints where size >= $1)", size):
            return
        await asyncio.sleep(0.1)


async def _kept(trusted: Sequence[VerifierKey], where: str) -> tuple[list[Checkpoint], verification.LeavesOf | None]:
    """The checkpoints in a file, or in a folder or store, and how to get their leaves."""
    url = where
    if "://" not in where:
        path = Path(where).absolute()  # noqa: ASYNC240 - nothing else goes on
        if path.is_file():
            return _kept_in(path, trusted)
        url = path.as_uri()
    try:
        store = Outside(url, make=False)
        with progress("reading checkpoints") as told:
            kept = []
            sizes = await store.sizes()
            for size in sizes:
                kept.append(verify_note(await store.note(size), *trusted))
                told(len(kept), len(sizes))
    except BadCheckpoint as error:
        fail(f"A checkpoint in {where} is not to be trusted: {error}.")
    except (ValueError, StorageAway) as error:
        fail(f"There are no checkpoints in {where}: {error}.")
    return kept, store.leaves


def _kept_in(path: Path, trusted: Sequence[VerifierKey]) -> tuple[list[Checkpoint], verification.LeavesOf]:
    """The checkpoint in a file, whose leaves may be beside it."""
    beside = path.with_suffix(".leaves")
    try:
        only = verify_note(path.read_text(errors="replace"), *trusted)
    except BadCheckpoint as error:
        fail(f"The checkpoint in {path} is not to be trusted: {error}.")

    async def leaves_of(size: int) -> bytes | None:
        return await asyncio.to_thread(beside.read_bytes) if size == only.size and beside.is_file() else None

    return [only], leaves_of


COMMANDS: Final = (import_, verify)
