"""The command line: `tickets`.

Output for people goes to a terminal, JSON for machines to standard output with --json; everything else
goes to standard error. Exit codes: 0 done, 1 a finding, 2 wrong usage. Deliberately absent: what the
commands do; this is how they are asked for.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn
from uuid import UUID, uuid5

import asyncpg
import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from api import app, auth, logs
from api.database import apply_schema, database
from api.embedded import EmbeddedServerError
from api.settings import Settings, SettingsError, read_settings
from projections import rebuild as rebuilding
from projections.status import read_status
from tickets import integrity
from tickets.ledger import CONNECTION_LOST, connect
from tickets.permissions import Role

_DEMO: Final = UUID("6f0e7a52-2f6e-5b0c-9a53-0d2f7c0a3f10")
"""The namespace of the people whose tokens `serve` shows, so that they are the same at every start."""

_err: Final = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-/s")


@contextmanager
def _progress(what: str) -> Iterator["_Told"]:
    """A bar with rate and time left, on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield _Told(bar, bar.add_task(what, total=None))


class _Told:
    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def __call__(self, done: int, of: int) -> None:
        self._bar.update(self._task, completed=done, total=of)


def _fail(message: str) -> NoReturn:
    _err.print(message, style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def _say(message: str) -> None:
    _err.print(message, markup=False, soft_wrap=True)


def _json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def _run(main: Any) -> Any:
    """Run it; a database that is away is a sentence, not a traceback."""
    result: list[Any] = []

    async def collect() -> None:
        result.append(await main)

    try:
        app.run(collect())
    except CONNECTION_LOST as error:
        _fail(f"The database cannot be reached: {error}. Is DATABASE_URL right, and the server up?")
    except asyncpg.InsufficientPrivilegeError as error:
        _fail(f"The database refuses: {error}. Run `tickets schema` once as the owner of the database.")
    return result[0]


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    try:
        with database(settings.database_url, settings.data_dir) as dsn:
            _run(apply_schema(dsn))
            yield dsn
    except EmbeddedServerError as error:
        _fail(str(error))


def _settings() -> Settings:
    try:
        return read_settings(os.environ)
    except SettingsError as error:
        _fail(str(error))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Ticket Service: an immutable ledger, replayable history, fast read models."""


@main.command()
@click.option("--host", help="The address to listen on (SERVICE_HOST).")
@click.option("--port", type=click.IntRange(1, 65_535), help="The port to listen on (SERVICE_PORT).")
@click.option("--only", multiple=True, type=click.Choice(app.PARTS), help="Run only this part; may be repeated.")
def serve(host: str | None, port: int | None, only: tuple[app.Part, ...]) -> None:
    """Run the service: everything in one process, or the parts that --only names."""
    settings = _settings()
    logs.configure_logging(settings.log_level, service=settings.service_name)
    host, port = host or settings.service_host, port or settings.service_port

    async def serving(dsn: str) -> None:
        async with app.application(settings, dsn, only or app.PARTS) as asgi:
            await app.serve(asgi, host, port, lambda: _welcome(settings, host, port))

    with _terminating(), _database(settings) as dsn:
        _run(serving(dsn))


@contextmanager
def _terminating() -> Iterator[None]:
    """Have SIGTERM end the process by an exception while nobody else handles it, so that all is taken down."""

    def leave(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _welcome(settings: Settings, host: str, port: int) -> None:
    base = f"http://{host}:{port}"
    where = "PostgreSQL at DATABASE_URL" if settings.database_url else f"embedded PostgreSQL in {settings.data_dir}"
    _say(f"Ticket Service runs at {base} ({where}); the documentation is at {base}/docs")
    if not settings.signs_tokens:
        return
    _say("Tokens for trying it out, good for 12 hours:")
    token = ""
    for role, name in ((Role.END_USER, "uma"), (Role.SENIOR_ENGINEER, "sam"), (Role.ADMIN, "ada")):
        token = auth.make_token(settings, role=role, sub=uuid5(_DEMO, name), username=name, teams=("Network",))
        _say(f"\n{role.value} {name}:\n{token}")
    curl = (
        f"curl -s {base}{settings.api_v1_prefix}/tickets -H 'Authorization: Bearer {token}' "
        "-H 'Content-Type: application/json' "
        """-d '{"title": "Server down", "description": "It does not respond", "category": "INCIDENT"}'"""
    )
    _say(f"\nTry it:\n{curl}\n")


@main.command()
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--sub", type=click.UUID, help="The person's id; by default one that follows from the name.")
@click.option("--username", help="The person's name; by default the role in lower case.")
@click.option("--team", "teams", multiple=True, help="A team of theirs; may be repeated.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True, max=24 * 365), default=12, show_default=True)
def token(role: str, sub: UUID | None, username: str | None, teams: tuple[str, ...], hours: float) -> None:
    """A token signed with this installation's key."""
    settings = _settings()
    if not settings.signs_tokens:
        _fail(
            "This installation does not sign tokens: they come from "
            f"{settings.auth_service_url or 'whoever has the private key'}."
        )
    name = username or role.lower()
    click.echo(
        auth.make_token(
            settings,
            role=Role(role),
            sub=sub or uuid5(_DEMO, name),
            username=name,
            teams=teams,
            valid=timedelta(hours=hours),
        )
    )


@main.command()
def schema() -> None:
    """Apply schema.sql, as the owner of the database; `serve` does it by itself where it may."""
    settings = _settings()
    try:
        with database(settings.database_url, settings.data_dir) as dsn:
            _say("The schema has been applied." if _run(apply_schema(dsn)) else "The schema is up to date.")
    except EmbeddedServerError as error:
        _fail(str(error))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def verify(*, as_json: bool) -> None:
    """Recompute every hash and seal; exit 1 and the first bad position where anything was tampered with."""

    async def verifying(dsn: str) -> integrity.Verified:
        connection = await connect(dsn)
        try:
            with _progress("verifying") as told:
                async for step in integrity.verify(connection):
                    if isinstance(step, integrity.Verified):
                        return step
                    told(step.position, step.of)
        finally:
            await connection.close()
        raise AssertionError("a verification ends with what it saw")

    with _database(_settings()) as dsn:
        seen: integrity.Verified = _run(verifying(dsn))
    if as_json:
        _json(seen)
    elif seen.finding is None:
        click.echo(
            f"{seen.facts:,} facts under {seen.seals:,} seals are as they were written. Newest seal: {seen.head}"
        )
    else:
        click.echo(f"TAMPERED at position {seen.finding.position}: {seen.finding.what}")
    sys.exit(0 if seen.finding is None else 1)


@main.group()
def projections() -> None:
    """The read models: how far they are, making them anew, holding them against the ledger."""


@projections.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def status(*, as_json: bool) -> None:
    """How far each read model is behind the ledger, and what is parked; exit 1 if something is."""

    async def reading(dsn: str) -> Any:
        connection = await connect(dsn)
        try:
            return await read_status(connection)
        finally:
            await connection.close()

    with _database(_settings()) as dsn:
        seen = _run(reading(dsn))
    if as_json:
        _json(seen)
    else:
        click.echo(
            f"ledger at {seen.ledger:,}; {'a runner leads' if seen.led else 'no runner leads: start the service'}"
        )
        for one in seen.projections:
            click.echo(f"{one.name:<10} at {one.position:>12,}  {one.behind:>8,} behind  {one.parked} streams parked")
        for one in seen.parked:
            click.echo(f"parked: {one.projection} {one.stream_id} from {one.position}: {one.error}")
    sys.exit(1 if seen.parked else 0)


@projections.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def rebuild(*, names: tuple[str, ...], as_json: bool) -> None:
    """Make read models anew beside the live ones and swap them in; reads and writes go on meanwhile."""
    _made_anew(names, swap=True, as_json=as_json)


@projections.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def check(*, as_json: bool) -> None:
    """Hold every read model against the ledger; exit 1 if one is not what follows from it."""
    _made_anew((), swap=False, as_json=as_json)


def _made_anew(names: tuple[str, ...], *, swap: bool, as_json: bool) -> None:
    started = datetime.now(UTC)

    async def making(dsn: str) -> tuple[list[rebuilding.Compared], int]:
        facts, compared = 0, []
        connection, reader = await connect(dsn), await connect(dsn)
        try:
            with _progress("rebuilding" if swap else "checking") as told:
                async for step in rebuilding.rebuild(connection, reader, names, swap=swap):
                    if isinstance(step, rebuilding.Progress):
                        facts = step.facts
                        told(step.facts, step.of)
                    else:
                        compared.append(step)
        finally:
            await connection.close()
            await reader.close()
        return compared, facts

    try:
        with _database(_settings()) as dsn:
            compared, facts = _run(making(dsn))
    except rebuilding.UnknownProjection as error:
        _fail(f"There is no read model called {error}.")
    except (rebuilding.AlreadyRunning, rebuilding.NotLevel) as error:
        _fail(str(error.__doc__))
    if as_json:
        _json(compared)
    else:
        for one in compared:
            verdict = "as it should be" if one.clean else f"{one.missing} rows missing, {one.unexpected} unexpected"
            click.echo(f"{one.projection:<10} {one.rows:>10,} rows at {one.position:,}: {verdict}")
        took = max((datetime.now(UTC) - started).total_seconds(), 0.001)
        _say(f"{facts:,} facts in {took:.1f} s, {facts / took:,.0f}/s")
    sys.exit(0 if swap or all(one.clean for one in compared) else 1)


if __name__ == "__main__":
    main()
