"""What all tests stand on: a real PostgreSQL, a fresh database for each test, the real service over HTTP.

The server is the embedded one, in a folder of its own, or the one that DATABASE_URL names. The schema is
applied once, to a template that each test's database is a clone of.
"""

import asyncio
import gc
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, settings

from api.auth import make_token
from api.database import apply_schema
from api.embedded import embedded_server
from api.settings import Settings
from tests.starting import Process, Starting, start, start_anew
from tickets.connections import Connection, connect
from tickets.ledger import Ledger
from tickets.permissions import Role

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Everything here is plain HTTP on the loopback: loading certificates for each client takes 40 ms."""

KEY = "a-key-for-tests-only-which-is-long-enough"

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("tests")


ON_DISK = "ON_DISK" in os.environ
"""Whether servers are on a disk and synchronise, as they come, however long that takes: for `make faults`."""
_ROOM = 2 * 1024**3
"""Bytes free in memory that a server of tests may ask for: its log, its buffers, and a database or two."""


def with_database(dsn: str, name: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that tests may make databases on."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    # What tests kill is the service, never the machine: nothing here depends on the disk's own durability.
    configuration = "" if ON_DISK else "fsync = off\nmax_wal_size = 256MB\n"
    with (
        room_for_a_server(tmp_path_factory) as folder,
        embedded_server(folder, extra_configuration=configuration) as dsn,
    ):
        yield dsn


@contextmanager
def room_for_a_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory, if there is room and nobody wants a disk.

    A database of its own for each test is 300 files made and removed: 25 ms in memory, 80 to 400 on a disk.
    """
    memory = Path("/dev/shm")  # noqa: S108 - the folder in it is made with a name of its own, and this user alone may enter
    if not ON_DISK and memory.is_dir() and shutil.disk_usage(memory).free >= _ROOM:
        with TemporaryDirectory(dir=memory, prefix="tickets-tests-") as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("data")


@contextmanager
def executing(dsn: str) -> Iterator[Callable[[str], None]]:
    """For statements one after the other on one connection: a new one for each costs 8 ms of a processor."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        connection = runner.run(connect(dsn, role=None, timeout=30))
        try:
            yield lambda statement: runner.run(_done(connection.execute(statement)))
        finally:
            runner.run(connection.close())


async def _done(statement: Awaitable[str]) -> None:
    await statement


_EXECUTES: dict[str, Callable[[str], None]] = {}
"""For each template, what makes and drops its databases."""


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """The name of a database that has the schema and that nobody is connected to."""
    name = f"tickets_template_{uuid4().hex[:12]}"
    with executing(server) as execute:
        execute(f"create database {name}")
        asyncio.run(apply_schema(with_database(server, name)))
        _EXECUTES[name] = execute
        yield name
        execute(f"drop database {name} with (force)")


@contextmanager
def fresh_database(server: str, template: str) -> Iterator[str]:
    name = f"tickets_test_{uuid4().hex[:12]}"
    _EXECUTES[template](f"create database {name} template {template} strategy file_copy")
    try:
        yield with_database(server, name)
    finally:
        _EXECUTES[template](f"drop database {name} with (force)")


@pytest.fixture
def dsn(server: str, template: str) -> Iterator[str]:
    """The URL of a database of this test's own, with the schema and nothing in it."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture
async def ledger(dsn: str) -> AsyncIterator[Ledger]:
    async with Ledger.open(dsn) as opened:
        yield opened


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[Connection]:
    """A connection as the owner of the database, who may do more than the service."""
    connection = await connect(dsn, role=None)
    yield connection
    await connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def token(role: Role, sub: UUID, *, username: str | None = None, teams: tuple[str, ...] = ()) -> str:
    return make_token(Settings(jwt_secret_key=KEY), role=role, sub=sub, username=username, teams=teams)


class Service:
    """A running `tickets serve`, and people who talk to it."""

    def __init__(self, process: Process, url: str, dsn: str, log: Path) -> None:
        self.process, self.url, self.dsn, self.log = process, url, dsn, log

    def client(
        self,
        role: Role = Role.ADMIN,
        sub: UUID | None = None,
        *,
        teams: tuple[str, ...] = (),
        username: str | None = None,
    ) -> httpx.Client:
        """Somebody with that role; its `.sub` header-free identity is in the token. Close it, or use `with`."""
        bearer = token(role, sub or uuid4(), username=username, teams=teams)
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {bearer}"}, timeout=30, verify=NO_CERTIFICATES
        )

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


def start_service(dsn: str, folder: Path, *arguments: str, **environment: str) -> Service:
    """Start `tickets serve` on a free port and wait until it answers."""
    return _started(start, dsn, folder, arguments, environment)


def _started(
    starting: Starting, dsn: str, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> Service:
    port = free_port()
    log = folder / f"service-{port}.log"
    variables = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
        "DATABASE_URL": dsn,
        "DATA_DIR": str(folder),
        "JWT_SECRET_KEY": KEY,
        **environment,
    }
    if environment.get("DATABASE_URL") == "":
        del variables["DATABASE_URL"]
    with log.open("wb") as output:
        process = starting(["serve", "--port", str(port), *arguments], variables, output, output)
    url = f"http://127.0.0.1:{port}"
    for _ in range(750):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(
                ("127.0.0.1", port), 1
            ).close()  # a request each time would cost more than the start
            if httpx.get(f"{url}/health", timeout=1, verify=NO_CERTIFICATES).status_code == 200:
                return Service(process, url, dsn, log)
        except (OSError, httpx.TransportError):
            time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"the service did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running_service(dsn: str, folder: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    service = start_service(dsn, folder, *arguments, **environment)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def service(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that all tests share, started as people do. Its tickets are everybody's: look only at your own."""
    with fresh_database(server, template) as dsn:
        running = _started(start_anew, dsn, tmp_path_factory.mktemp("service"), (), {"CHECKPOINT_SECONDS": "5"})
        yield running
        running.stop()


@pytest.fixture
def own_service(dsn: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services on this test's own database; they are stopped at its end."""
    started: list[Service] = []

    def start(*arguments: str, **environment: str) -> Service:
        started.append(start_service(dsn, tmp_path, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.stop()


NEW_TICKET: dict[str, Any] = {
    "title": "Production server down",
    "description": "Web server not responding",
    "category": "INCIDENT",
    "priority": "P1",
}


async def eventually(check: Callable[[], Awaitable[bool]], timeout: float = 10) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + timeout
    while not await check():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        await asyncio.sleep(0.02)


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: much of what tests do is wait."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_sessionstart(session: pytest.Session) -> None:
    """Each process imports a share of the tests first: what pytest makes of them in a new checkout is kept for all."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and session.config.args == session.config.getini("testpaths"):
        root, workers = Path(__file__).parents[1], int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        for path in sorted(root.glob("tests/**/test_*.py"))[int(worker) :: workers]:
            import_module(".".join(path.relative_to(root).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """The thousands of tests that were collected stay: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()
