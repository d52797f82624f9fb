"""How every command talks: to people on standard error, to machines on standard output, and how it ends.

Deliberately absent: the commands.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Final, NoReturn

import asyncpg
import click
import msgspec
import uvloop
from msgspec import Meta
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

from api import logs
from api.database import apply_schema, bring_up, database
from api.embedded import EmbeddedServerError
from api.files.storage import StorageAway
from api.settings import Settings, SettingsError, read_settings
from projections.rebuild import AlreadyRunning
from projections.runner import catch_up_alone
from tickets.connections import CONNECTION_LOST, connected

err: Final = Console(stderr=True, highlight=False, emoji=False)


class _Time(click.ParamType["datetime"]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The moment that the text says."""
        try:
            moment: datetime = msgspec.convert(value, Annotated[datetime, Meta(tz=True)])
        except msgspec.ValidationError:
            self.fail(f"{value!r} is not a time with a zone, such as 2026-01-31T12:00:00Z.", param, ctx)
        return moment


TIME: Final = _Time()
"""A moment as an argument: RFC 3339, with a zone."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-/s")


@contextmanager
def progress(what: str, *, beside_output: bool = False) -> Iterator["_Told"]:
    """A bar with rate and time left, on a terminal; nothing elsewhere, nor where output would go through it."""
    hidden = not sys.stderr.isatty() or (beside_output and sys.stdout.isatty())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=hidden) as bar:
        yield _Told(bar, bar.add_task(what, total=None))


class _Told:
    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def __call__(self, done: int, of: int | None) -> None:
        self._bar.update(self._task, completed=done, total=of)


def fail(message: str) -> NoReturn:
    err.print(message, style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def say(message: str) -> None:
    err.print(message, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


@contextmanager
def output() -> Iterator[BinaryIO]:
    """Standard output for bytes. Where nobody reads on, the command ends there, quietly: they had enough."""
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the end, too
        sys.exit(0)


def run(main: Any) -> Any:
    """Run it; a database that is away is a sentence, not a traceback."""
    result: list[Any] = []

    async def collect() -> None:
        result.append(await main)

    # What was imported stays: the collector need not look at it again, nor at every 700th new object.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    try:
        uvloop.run(collect())
    except SettingsError as error:
        fail(str(error))
    except CONNECTION_LOST as error:
        fail(f"The database cannot be reached: {error}. Is DATABASE_URL right, and the server up?")
    except StorageAway as error:
        fail(f"Files cannot be kept: {error}. Is UPLOAD_DIR, or STORAGE_URL, right?")
    except asyncpg.InsufficientPrivilegeError as error:
        fail(f"The database refuses: {error}. Run `tickets schema` once as the owner of the database.")
    return result[0]


@contextmanager
def open_database(settings: Settings, *, read_models: bool = False) -> Iterator[str]:
    """The database's URL, with the ledger as this version has it; with `read_models`, those too."""
    try:
        with database(settings.database_url, settings.data_dir) as dsn:
            run(apply_schema(dsn))
            if read_models:
                run(_bring_up(dsn))
            yield dsn
    except EmbeddedServerError as error:
        fail(str(error))


async def _bring_up(dsn: str) -> None:
    with progress("making read models anew") as told:
        while True:
            try:
                async for step in bring_up(dsn):
                    told(step.facts, step.of)
            except AlreadyRunning:
                await asyncio.sleep(0.5)  # another process is at it
            else:
                return


def settings_or_fail() -> Settings:
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        fail(str(error))
    # What a person is shown is said by the command itself; `serve` logs as it is set.
    logs.configure_logging("WARNING", service=settings.service_name)
    return settings


async def catch_up(dsn: str, head: int) -> None:
    """Have the read models follow, where no service is running that does it."""
    async with connected(dsn) as connection:
        with progress("projecting facts") as told:
            await catch_up_alone(connection, projected=lambda position: told(position, head))
