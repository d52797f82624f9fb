"""Processes that work beside this one: programs of ours that answer questions, one JSON line for one.

They are told their job in the first line, take questions on standard input and answer in order on standard
output. They end when no more can come, also where whoever started them was killed. Deliberately absent:
what they do.
"""

import asyncio
import gc
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

_AHEAD: Final = 2
"""So many questions are with a worker, so that it need not wait for the next."""
_LONGEST: Final = 1 << 26

Question = TypeVar("Question", bound=Struct)
Job = TypeVar("Job", bound=Struct)


class WorkerDied(Exception):  # noqa: N818 - it says what happened
    """A process that worked for this one ended before it was done. Why is said above, if at all."""


async def answered(
    module: str, job: Struct, questions: Iterable[Question], kind: Any, count: int
) -> AsyncGenerator[tuple[Question, Any]]:
    """Have so many processes run this module for a job; each question with its answer, of this kind, as they come.

    Raises WorkerDied.
    """
    remaining = iter(questions)
    told: asyncio.Queue[tuple[Question, Any] | None] = asyncio.Queue()
    decoder = msgspec.json.Decoder(kind)
    processes: list[Process] = []
    talking: list[asyncio.Task[None]] = []
    try:
        for _ in range(count):
            processes.append(
                await create_subprocess_exec(sys.executable, "-m", module, stdin=PIPE, stdout=PIPE, limit=_LONGEST)
            )
            talking.append(asyncio.create_task(_talk(processes[-1], job, remaining, decoder, told)))
        going = count
        while going:
            one = await told.get()
            if one is None:
                going -= 1
            else:
                yield one
        for task in talking:
            task.result()
    finally:
        for task in talking:
            task.cancel()
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@contextmanager
def asked(job: type[Job], question: Any) -> Iterator[tuple[Job, Iterator[Any], Callable[[Struct], None]]]:
    """The other side, in a program that is such a process: its job, the questions as they come, and where answers go.

    Only answers go to its standard output: all else that is printed, to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)  # hardly anything here is in a circle
    decoder = msgspec.json.Decoder(question)
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)

        def tell(answer: Struct) -> None:
            try:
                answers.write(msgspec.json.encode(answer) + b"\n")
            except BrokenPipeError:
                raise SystemExit(1) from None  # whoever asked was killed: there is nobody left to tell anything

        yield (
            msgspec.json.decode(sys.stdin.buffer.readline(), type=job),
            map(decoder.decode, iter(sys.stdin.buffer.readline, b"")),
            tell,
        )


async def _talk(
    process: Process,
    job: Struct,
    remaining: Iterator[Question],
    decoder: msgspec.json.Decoder[Any],
    told: asyncio.Queue[tuple[Question, Any] | None],
) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    asked: deque[Question] = deque()
    try:
        await _tell(process, job)
        for question in islice(remaining, _AHEAD):
            asked.append(question)
            await _tell(process, question)
        while asked:
            answer = decoder.decode(await process.stdout.readuntil())
            for question in islice(remaining, 1):
                asked.append(question)
                await _tell(process, question)
            told.put_nowait((asked.popleft(), answer))
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise WorkerDied from error
    finally:
        told.put_nowait(None)


async def _tell(process: Process, what: Struct) -> None:
    assert process.stdin is not None  # noqa: S101 - as above
    process.stdin.write(msgspec.json.encode(what) + b"\n")
    await process.stdin.drain()
