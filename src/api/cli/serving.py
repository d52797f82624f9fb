"""Running the service: `serve`, and what goes with it: `token`, `schema`.

Deliberately absent: putting the service together (app.py).
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NoReturn
from uuid import UUID, uuid5

import click

from api import logs
from api.cli.terminal import fail, open_database, run, say, settings_or_fail
from api.settings import PARTS, Part, Settings
from tickets.permissions import Role

_DEMO: Final = UUID("6f0e7a52-2f6e-5b0c-9a53-0d2f7c0a3f10")
"""The namespace of the people whose tokens `serve` shows, so that they are the same at every start."""


@click.command()
@click.option("--host", help="The address to listen on (SERVICE_HOST).")
@click.option("--port", type=click.IntRange(1, 65_535), help="The port to listen on (SERVICE_PORT).")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Run only this part; may be repeated.")
def serve(host: str | None, port: int | None, only: tuple[Part, ...]) -> None:
    """Run the service: everything in one process, or the parts that --only names."""
    from api import app  # noqa: PLC0415 - the web framework takes long to import, and only this needs it

    settings = settings_or_fail()
    logs.configure_logging(settings.log_level, service=settings.service_name)
    host, port = host or settings.service_host, port or settings.service_port

    _refuse_taken_port(host, port)

    async def serving(dsn: str) -> None:
        stopping = asyncio.Event()
        async with app.application(settings, dsn, stopping, only or PARTS) as asgi:
            await app.serve(asgi, host, port, stopping, lambda: _welcome(settings, host, port))

    with _terminating(), open_database(settings, read_models=True) as dsn:
        run(serving(dsn))


def _refuse_taken_port(host: str, port: int) -> None:
    """The server would share a port with whoever listens there already, and each get some of the requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fail(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port or SERVICE_PORT.")


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
    say(f"Ticket Service runs at {base} ({where}); the documentation is at {base}/docs")
    if settings.jwt_secret_key is not None or not settings.signs_tokens:
        return  # somebody else's key: tokens for trying it out would be tokens for real, in the log
    from api import auth  # noqa: PLC0415 - as in `token`

    say("Tokens for trying it out, good for 12 hours:")
    token = ""
    for role, name in ((Role.END_USER, "uma"), (Role.SENIOR_ENGINEER, "sam"), (Role.ADMIN, "ada")):
        token = auth.make_token(settings, role=role, sub=uuid5(_DEMO, name), username=name, teams=("Network",))
        say(f"\n{role.value} {name}:\n{token}")
    curl = (
        f"curl -s {base}{settings.api_v1_prefix}/tickets -H 'Authorization: Bearer {token}' "
        "-H 'Content-Type: application/json' "
        """-d '{"title": "Server down", "description": "It does not respond", "category": "INCIDENT"}'"""
    )
    say(f"\nTry it:\n{curl}\n")


@click.command()
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--sub", type=click.UUID, help="The person's id; by default one that follows from the name.")
@click.option("--username", help="The person's name; by default the role in lower case.")
@click.option("--team", "teams", multiple=True, help="A team of theirs; may be repeated.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True, max=24 * 365), default=12, show_default=True)
def token(role: str, sub: UUID | None, username: str | None, teams: tuple[str, ...], hours: float) -> None:
    """A token signed with this installation's key."""
    from api import auth  # noqa: PLC0415 - only who makes tokens needs what makes them

    settings = settings_or_fail()
    if not settings.signs_tokens:
        fail(
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


@click.command()
def schema() -> None:
    """Apply schema.sql, as the owner of the database, and make read models of another shape or version anew.

    `serve` does it by itself where it may. Whoever runs goes on meanwhile.
    """
    with open_database(settings_or_fail(), read_models=True):
        say("The database is as this version has it.")


COMMANDS: Final = (serve, token, schema)
