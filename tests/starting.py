"""Starts `tickets` as processes of their own that need not import it: forks of one that has, and waits.

Importing takes a second of processor time, and tests start the program 150 times. What is forked runs
`python -m api.cli` with its own arguments, environment and output, in a session of its own, and is killed as any
other. A few tests start it as people do, so that nothing hides behind what is imported already; with START_ANEW all do,
as in the long forms, whose figures are to be what people would see.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NoReturn, TypeAlias

_LONGEST = 1 << 17


class Started:
    """One of these processes, to be waited for and killed as a subprocess.Popen is."""

    def __init__(self, report: IO[bytes]) -> None:
        """`report` says the process's number and, once it has ended, how."""
        self._report, self._lock = report, threading.Lock()
        number = report.readline()
        assert number, "the process that forks has ended"
        self.pid = int(number)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("tickets", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(self._report.readline())
                    self._report.close()
        return self.returncode


def _fork(arguments: Sequence[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]) -> Started:
    """Start `tickets` with these arguments, in this environment and no other."""
    asked = json.dumps([arguments, dict(environment)]).encode()
    told, telling = os.pipe()
    try:
        socket.send_fds(_forking(), [asked], [out.fileno(), err.fileno(), telling])
    finally:
        os.close(telling)
    return Started(os.fdopen(told, "rb"))


def start_anew(
    arguments: Sequence[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """The same, started as people do."""
    program = [sys.executable, "-m", "api.cli", *arguments]
    return subprocess.Popen(program, env=environment, stdout=out, stderr=err, start_new_session=True)


Process: TypeAlias = "Started | subprocess.Popen[bytes]"

Starting = Callable[[Sequence[str], Mapping[str, str], IO[bytes], IO[bytes]], Process]
"""One of these two ways."""


def start(arguments: Sequence[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]) -> Process:
    """The way that most tests take: a fork, unless Python itself is to start in another way."""
    starting: Starting = start_anew if "START_ANEW" in os.environ or "PYTHONPATH" in environment else _fork
    return starting(arguments, environment, out, err)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], *, starting: Starting = start, timeout: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run `tickets` to its end; what subprocess.run gives, with the output as text."""
    with TemporaryFile() as out, TemporaryFile() as err:
        process = starting(arguments, environment, out, err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for one in (out, err):
            one.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read().decode(), err.read().decode())


@cache
def _forking() -> socket.socket:
    """The way to the process that forks, which ends when this is closed."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.starting", str(its.fileno())],
            cwd=Path(__file__).parents[1],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _fork_for(asks: socket.socket) -> None:
    """Import what there is, have litestar import and remember what it does at its first application, and then fork."""
    from api import app, cli  # noqa: F401, PLC0415 - only the process that forks
    from api.settings import PARTS, Settings  # noqa: PLC0415 - as above

    app._litestar(Settings(), PARTS)
    gc.collect()
    gc.freeze()
    while True:
        asked, files, _, _ = socket.recv_fds(asks, _LONGEST, 3)
        with suppress(ChildProcessError):  # none of those who wait for an end is left, or none has ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not asked:
            return
        if os.fork() == 0:
            asks.close()
            _see_to_its_end(*json.loads(asked), *files)
        for file in files:
            os.close(file)


def _see_to_its_end(arguments: list[str], environment: dict[str, str], out: int, err: int, telling: int) -> NoReturn:
    pid = os.fork()
    if pid == 0:
        os.close(telling)
        _become(arguments, environment, out, err)
    os.write(telling, b"%d\n" % pid)
    os.write(telling, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _become(arguments: list[str], environment: dict[str, str], out: int, err: int) -> NoReturn:
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tickets", *arguments]
    code: object = 0
    try:
        runpy.run_module("api.cli", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    # As multiprocessing ends its processes: taking down what the fork was made with takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined] # threads are waited for, as always
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(str(code or 0)))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as door:
        _fork_for(door)
