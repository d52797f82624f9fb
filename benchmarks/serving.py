"""`tickets serve` as a process of its own, as it comes, with a log line for every request; and the peer."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

import httpx
from msgspec import Struct

from api.auth import make_token
from api.settings import Settings
from benchmarks.lives import ENGINEERS, LEADS, USERS
from benchmarks.load import Tokens
from tickets.permissions import Actor

KEY: Final = "a-key-for-benchmarks-only-which-is-long-enough"
"""What tokens are signed with."""

_ROOT: Final = Path(__file__).parent.parent


def token(actor: Actor) -> str:
    """A token that the service takes."""
    settings = Settings(jwt_secret_key=KEY)
    return make_token(settings, role=actor.role, sub=actor.id, username=actor.username, teams=actor.teams)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served(Struct, frozen=True):
    """A process that answers on a port of this machine."""

    port: int
    pid: int
    started_s: float
    """How long it took until it did."""


@asynccontextmanager
async def running(program: Sequence[str], port: int, folder: Path, **variables: str) -> AsyncIterator[Served]:
    """A Python program that serves, from when its /health is good."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    log = folder / f"served-{port}.log"
    began = perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it is started once and waited for by its answers
            [sys.executable, "-m", *program, "--port", str(port)],
            env=inherited | variables | {"JWT_SECRET_KEY": KEY},
            stdout=output,
            stderr=output,
            cwd=_ROOT,
        )
    try:
        await _until_it_answers(process, port, log)
        yield Served(port, process.pid, perf_counter() - began)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


def service(folder: Path, dsn: str = "", *parts: str) -> "AbstractAsyncContextManager[Served]":
    """`tickets serve` with these parts, or everything; without `dsn` with a database of its own in that folder."""
    program = ("api.cli", "serve", *(f"--only={part}" for part in parts))
    variables = {"DATABASE_URL": dsn} if dsn else {}
    return running(program, free_port(), folder, DATA_DIR=str(folder), **variables)


@asynccontextmanager
async def running_service(dsn: str, folder: Path, *parts: str) -> AsyncIterator[int]:
    """The port of a service on this database that runs these parts, or everything."""
    async with service(folder, dsn, *parts) as served:
        yield served.port


def peer(folder: Path, dsn: str) -> "AbstractAsyncContextManager[Served]":
    """The peer on this database: one process, the quick event loop and parser, no log of requests."""
    quick = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
    program = ("uvicorn", "benchmarks.peer.app:app", *quick)
    return running(program, free_port(), folder, DATABASE_URL=for_sqlalchemy(dsn))


def for_sqlalchemy(dsn: str) -> str:
    """The URL as SQLAlchemy wants it."""
    return dsn.replace("postgresql://", "postgresql+asyncpg://", 1)


async def everybody(port: int) -> Tokens:
    """Tokens for all users, engineers and leads, each of whom the service has seen."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for actor in (*USERS, *ENGINEERS, *LEADS):
            headers = {"Authorization": f"Bearer {token(actor)}"}
            answer = await client.get("/api/v1/tickets", params={"page_size": 1}, headers=headers)
            assert answer.status_code == 200, answer.text
    return Tokens(
        users=[token(actor) for actor in USERS],
        engineers=[(actor.id, token(actor)) for actor in ENGINEERS],
        leads=[token(actor) for actor in LEADS],
    )


async def _until_it_answers(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    async with httpx.AsyncClient(timeout=1) as client:
        for _ in range(400):
            if process.poll() is None:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/health")).is_success:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
    said = await asyncio.to_thread(log.read_text, errors="replace")
    raise AssertionError(f"the service did not start:\n{said[-3000:]}")
