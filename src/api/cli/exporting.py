"""What an auditor takes along: `audit export`.

Deliberately absent: what a bundle is and how it is made (projections/bundle.py), and how it is checked
(projections/verify_bundle.py).
"""

import asyncio
import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from api.checkpointing import Checkpointer
from api.cli.terminal import TIME, fail, open_database, print_json, progress, run, say, settings_or_fail
from api.settings import Settings
from projections import bundle, verify_bundle
from projections import replay as lives
from tickets import proofs
from tickets.checkpoints import (
    BadCheckpoint,
    BadKey,
    Checkpoint,
    VerifierKey,
    make_key,
    read_key,
    verifier,
    verify_note,
)
from tickets.connections import connect, connected
from tickets.ledger import Ledger, last_positions, recorded_before

_OFTEN_S: Final = 0.1
_PATIENCE_S: Final = 30.0
"""How much longer than usual a checkpoint may take, where another process signs."""


class _Place(click.ParamType["int | datetime"]):
    name = "time or position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        """The position, or the moment."""
        return int(value) if str(value).isdecimal() and len(value) < 19 else TIME.convert(value, param, ctx)


@click.group()
def audit() -> None:
    """What an auditor takes along."""


@audit.command()
@click.argument("tickets", nargs=-1, metavar="[TICKET]...")
@click.option("--since", type=_Place(), help="The facts after this position, or recorded from this time on.")
@click.option("--until", type=_Place(), help="With --since: up to this position, or recorded up to this time.")
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The bundle to make: a zip.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def export(
    tickets: tuple[str, ...],
    *,
    since: int | datetime | None,
    until: int | datetime | None,
    out: Path,
    as_json: bool,
) -> None:
    """All facts of these tickets, or of a stretch of the ledger, with their proofs and the program that checks them.

    It has everything, internal comments and addresses too: mind whom you give it to.
    """
    if bool(tickets) == (since is not None) or (until is not None and since is None):
        raise click.UsageError("Name tickets, or say --since when, and --until when if not until now.")
    if out.exists():
        fail(f"{out} is there already.")
    settings = settings_or_fail()
    key = _key(settings)

    async def exporting(dsn: str) -> bundle.Exported:
        async with Ledger.open(dsn) as ledger:
            scope, upto = await _scope(ledger, tickets, since, until)
        checkpoint = await _covering(dsn, settings, verifier(key, settings.origin), upto)
        async with connected(dsn) as connection, connection.transaction():
            await proofs.extend(connection, checkpoint.size)
            with progress("exporting facts") as told:
                try:
                    return await bundle.export(connection, out, scope, checkpoint, key, told)
                except (ConnectionError, TimeoutError):
                    raise
                except OSError as error:
                    raise _CannotWrite(f"{out} cannot be written: {error.strerror}.") from error

    try:
        with open_database(settings) as dsn:
            made: bundle.Exported = run(exporting(dsn))
            _checked(out, made)
    except bundle.NotAsWritten as error:
        say(str(error))
        sys.exit(1)
    except (_NoCheckpoint, _CannotWrite) as error:
        fail(str(error))
    if as_json:
        print_json(made)
    else:
        click.echo(
            f"{out}: {made.facts:,} facts under the checkpoint over "
            f"{made.checkpoint:,} facts; checked, and good.\nSHA-256 {made.sha256}\nCheck it with: "
            f"python verify.py {out.name} --key '{made.key}'"
        )


async def _scope(
    ledger: Ledger, tickets: tuple[str, ...], since: int | datetime | None, until: int | datetime | None
) -> tuple[list[UUID] | bundle.Stretch, int]:
    """What is to be exported, and the last position of it."""
    head = await ledger.head()
    if since is None:
        found = {name: await lives.find_ticket(ledger, name) for name in tickets}
        last = await last_positions(ledger.pool, [one for one in found.values() if one is not None])
        if missing := [name for name, one in found.items() if one not in last]:
            fail(f"There is no ticket {', '.join(missing)}.")
        return sorted(last), max(last.values())
    after = since if isinstance(since, int) else await recorded_before(ledger.pool, since)
    upto = head if until is None else until
    if isinstance(upto, datetime):
        upto = await recorded_before(ledger.pool, upto + timedelta.resolution)
    if not after < upto <= head:
        fail(f"There are no facts after {after} up to {upto}: the ledger ends at {head}.")
    return bundle.Stretch(after, upto), upto


def _checked(out: Path, made: bundle.Exported) -> None:
    """What is handed out is checked with the program that goes along."""
    with progress("checking facts") as told, out.open("rb") as file:
        verdict = verify_bundle.check(file, verify_bundle.read_key(made.key), told)
    if not verdict.good:
        out.unlink()
        raise bundle.NotAsWritten(f"What was exported does not hold: {verdict.found}. Run `tickets verify`.")


class _NoCheckpoint(Exception):  # noqa: N818 - it says what is missing
    """There is no checkpoint over what is to be exported."""


class _CannotWrite(Exception):  # noqa: N818 - as above
    """The bundle cannot be written."""


def _key(settings: Settings) -> Ed25519PrivateKey:
    """The key that checkpoints are signed with, made if there is none yet."""
    try:
        if settings.checkpoint_key_file is None:
            make_key(settings.checkpoint_key)
        key = read_key(settings.checkpoint_key)
    except (BadKey, OSError) as error:
        fail(f"The key of checkpoints is not usable: {error}")
    if not isinstance(key, Ed25519PrivateKey):
        fail(f"{settings.checkpoint_key} is the public half alone: export where checkpoints are signed.")
    return key


async def _covering(dsn: str, settings: Settings, by: VerifierKey, position: int) -> Checkpoint:
    """The newest checkpoint, and where it does not reach that far, one that is signed now, by whoever signs."""
    async with connected(dsn) as connection:
        found = await proofs.newest_checkpoint(connection)
        if found is None or found.size < position:
            say(f"Waiting for a checkpoint over {position:,} facts.")
            signer = Checkpointer(replace(settings, checkpoint_seconds=_OFTEN_S), partial(connect, dsn))
            signing = asyncio.create_task(signer.run(), name="checkpoints")
            try:
                async with asyncio.timeout(settings.checkpoint_seconds + _PATIENCE_S):
                    while found is None or found.size < position:
                        await asyncio.sleep(_OFTEN_S)
                        found = await proofs.newest_checkpoint(connection)
            except TimeoutError:
                raise _NoCheckpoint(f"No checkpoint over {position:,} facts came: {signer.health}.") from None
            finally:
                signing.cancel()
                await asyncio.gather(signing, return_exceptions=True)
        try:
            return verify_note(found.note, by)
        except BadCheckpoint as error:
            raise _NoCheckpoint(f"The newest checkpoint is not of this installation's key: {error}.") from error


COMMANDS: Final = (audit,)
