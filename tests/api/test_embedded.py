"""The database that comes with the service: shared by all on one folder, gone with the last, and nobody else's."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from api import embedded
from api.embedded import EmbeddedServerError, embedded_server
from tests.conftest import eventually
from tickets.connections import connect

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")

USER = """
import sys
from pathlib import Path
from api.embedded import embedded_server

with embedded_server(Path(sys.argv[1])) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


class User:
    """A process that uses the server of a folder until it is told to leave, or killed."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def dsn(self) -> str:
        """Where the server is; waits until it is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("postgresql://"), line
        return line

    def leave(self) -> None:
        self.process.communicate("", timeout=20)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=20)


@contextmanager
def users(data_dir: Path, count: int) -> Iterator[list[User]]:
    started = [User(data_dir) for _ in range(count)]
    try:
        yield started
    finally:
        for user in started:
            if user.process.poll() is None:
                user.kill()


def servers(data_dir: Path) -> list[int]:
    """The postmasters that run on this folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue  # it has ended meanwhile
        if words and words[0].endswith(b"/postgres") and str(data_dir / "postgres").encode() in words:
            found.append(int(process.name))
    return found


async def ask(dsn: str, query: str) -> object:
    connection = await connect(dsn, role=None)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def asking(dsn: str, query: str = "select 'here'") -> object:
    return asyncio.run(ask(dsn, query))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has been used before; at the end of each test nobody uses it any more."""
    folder = tmp_path_factory.mktemp("home") / "data"
    folder.parent.chmod(0o700)
    with embedded_server(folder):
        pass
    return folder


def test_all_who_start_at_once_share_one_server_and_the_last_to_leave_stops_it(data_dir: Path) -> None:
    assert servers(data_dir) == []
    with users(data_dir, 3) as (one, two, three):
        dsn = one.dsn
        assert [two.dsn, three.dsn] == [dsn, dsn]
        (server,) = servers(data_dir)
        one.leave()
        asking(dsn, "create table kept as select 42 as answer")
        with embedded_server(data_dir) as again:
            assert (again, servers(data_dir)) == (dsn, [server])
        two.leave()
        assert asking(dsn) == "here"
        assert servers(data_dir) == [server]
        three.leave()
    assert servers(data_dir) == []
    with embedded_server(data_dir) as dsn:
        assert asking(dsn, "select answer from kept") == 42, "what was written is there at the next start"
        asking(dsn, "drop table kept")
    assert servers(data_dir) == []


def test_one_that_is_killed_takes_nothing_from_the_other(data_dir: Path) -> None:
    with users(data_dir, 2) as (killed, other):
        dsn = killed.dsn
        assert other.dsn == dsn
        killed.kill()
        assert asking(dsn) == "here"
        assert len(servers(data_dir)) == 1
        other.leave()
    assert servers(data_dir) == [], "and the dead are not waited for"


def test_what_a_killed_one_left_running_is_taken_over_by_the_next(data_dir: Path) -> None:
    with users(data_dir, 1) as (only,):
        dsn = only.dsn
        only.kill()
    (left,) = servers(data_dir)
    with embedded_server(data_dir) as again:
        assert (again, servers(data_dir)) == (dsn, [left])
        assert asking(again) == "here"
    assert servers(data_dir) == []


def test_one_that_is_not_ready_yet_is_waited_for(data_dir: Path) -> None:
    """Who comes while another's server is still going through its log gets no refusal, and does not stop it."""
    with embedded_server(data_dir) as dsn:
        (server,) = servers(data_dir)
        number = data_dir / "postgres" / "postmaster.pid"
        said = number.read_text()
        lines = said.split("\n")
        assert lines[embedded._STATE].strip() == "ready"
        lines[embedded._STATE] = "starting"
        number.write_text("\n".join(lines))
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(embedded._start, data_dir / "postgres", embedded._socket_dir(data_dir), "")
            with pytest.raises(TimeoutError):
                coming.result(0.6)
            number.write_text(said)
            coming.result(10)
        assert servers(data_dir) == [server]
        assert asking(dsn) == "here"


def test_where_its_configuration_cannot_be_written_it_is_started_once_it_can(data_dir: Path) -> None:
    """A disk that is full is no reason to give up for good, and the configuration that was there is left whole."""
    with embedded_server(data_dir) as dsn:
        (server,) = servers(data_dir)
        configuration = data_dir / "postgres" / "postgresql.conf"
        was = configuration.read_text()
        in_the_way = configuration.with_name("postgresql.conf.new")
        in_the_way.mkdir()
        os.kill(server, signal.SIGKILL)
        time.sleep(1.5)
        assert servers(data_dir) == []
        assert configuration.read_text() == was
        in_the_way.rmdir()
        ends = time.monotonic() + 20
        while not servers(data_dir):
            assert time.monotonic() < ends
            time.sleep(0.1)
        embedded._wait_until_ready(data_dir / "postgres")
        assert asking(dsn) == "here"


async def test_a_server_that_was_killed_itself_is_started_again(data_dir: Path) -> None:
    async def gone() -> bool:
        return servers(data_dir) == []

    with users(data_dir, 1) as (one,):
        dsn = one.dsn
        await ask(dsn, "create table survives ()")
        (server,) = servers(data_dir)
        os.kill(server, signal.SIGQUIT)  # what `pg_ctl stop -m immediate` sends: no farewell, no checkpoint
        await eventually(gone)
        with embedded_server(data_dir) as again:
            assert again == dsn
            await ask(again, "drop table survives")
            one.leave()
            assert len(servers(data_dir)) == 1
    assert servers(data_dir) == []


def test_nobody_else_can_reach_it_and_no_folder_is_opened_to_anybody(data_dir: Path) -> None:
    parents = [data_dir, *data_dir.parents]
    before = [mode(folder) for folder in parents]
    assert before[:2] == [0o700, 0o700]
    with embedded_server(data_dir) as dsn:
        sockets = Path(parse_qs(urlsplit(dsn).query)["host"][0])
        assert sockets.is_relative_to(data_dir)
        assert mode(sockets) == 0o700
        assert sockets.stat().st_uid == os.geteuid()
        assert asking(dsn, "show listen_addresses") == ""
        assert asking(dsn, "show unix_socket_permissions") == "0700"
        assert mode(data_dir / "postgres") == 0o700
        assert [mode(folder) for folder in parents] == before
    assert [mode(folder) for folder in parents] == before


@pytest.mark.parametrize("what", ["a folder that others can enter", "a link to somewhere"])
def test_a_socket_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, what: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if what == "a link to somewhere":
        (data_dir / "run").symlink_to(tmp_path / "elsewhere")
    else:
        (data_dir / "run").mkdir()
        (data_dir / "run").chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="nobody else can enter"), embedded_server(data_dir):
        pass
    assert not (data_dir / "postgres").exists()


def test_a_long_path_and_the_remains_of_a_first_start_that_was_killed_do_no_harm(tmp_path: Path) -> None:
    data_dir = tmp_path / ("a folder with a ràther long náme " * 5) / "data"
    remains = data_dir / "postgres.new" / "base"
    remains.mkdir(parents=True)
    with embedded_server(data_dir) as dsn:
        assert asking(dsn) == "here"
        sockets = Path(parse_qs(urlsplit(dsn).query)["host"][0])
        assert sockets.parent == Path(tempfile.gettempdir())
        assert mode(sockets) == 0o700
        with users(data_dir, 1) as (other,):
            assert other.dsn == dsn, "whoever comes finds it"
            other.leave()
        assert asking(dsn) == "here"
    assert servers(data_dir) == []
    assert not sockets.exists()
    assert not (data_dir / "postgres.new").exists()
