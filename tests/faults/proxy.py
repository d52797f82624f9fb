"""A network that can be bad: a TCP proxy that delays, slices, resets, swallows and refuses.

Deliberately absent: any idea of what goes through it.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Mode = Literal["open", "silent", "refusing"]


class Proxy:
    """Passes on between who connects to its port and what `target` opens, as badly as it is told to."""

    def __init__(self, target: Callable[[], Awaitable[Streams]]) -> None:
        self.latency = 0.0
        """Seconds that each piece is held back, in both directions."""
        self.slice = 65_536
        """How many bytes a piece has at most."""
        self.port = 0
        self.accepted = 0
        self._target = target
        self._mode: Mode = "open"
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._there: set[asyncio.StreamWriter] = set()
        """Of these, those to the target."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Whoever is connected is reset, and whoever comes is refused."""
        self._mode = "refusing"
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.sleep(0)

    def swallow(self) -> None:
        """Nothing goes through any more and nobody is told: connections stay, new ones are accepted."""
        self._mode = "silent"
        self._passing.clear()

    def reset(self) -> None:
        """Cut everybody off with a reset."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                if raw.family != socket.AF_UNIX:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def heal(self) -> None:
        """Be a good network again. What was swallowed for is not resumed: who waits there waits in vain."""
        self.latency, self.slice = 0.0, 65_536
        if self._mode == "refusing":
            await self.listen()
        elif self._mode == "silent":
            # Those who wait for the old one do so for ever; on the other side it is noticed that they are gone.
            self._passing = asyncio.Event()
            self._passing.set()
            for writer in self._there:
                writer.transport.abort()
        self._mode = "open"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        passing = self._passing
        other: asyncio.StreamWriter | None = None
        try:
            await passing.wait()
            there, other = await self._target()
            self._writers.add(other)
            self._there.add(other)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, other, passing))
                both.create_task(self._pass_on(there, writer, passing))
        except* OSError:
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    self._writers.discard(one)
                    self._there.discard(one)
                    one.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        while piece := await source.read(65_536):
            size = self.slice
            for start in range(0, len(piece), size):
                await passing.wait()
                if self.latency:
                    await asyncio.sleep(self.latency)
                sink.write(piece[start : start + size])
                await sink.drain()
                if size < 65_536:
                    await asyncio.sleep(0)  # so that each piece is sent by itself
        await passing.wait()
        sink.close()


@asynccontextmanager
async def proxied(target: Callable[[], Awaitable[Streams]]) -> AsyncIterator[Proxy]:
    """A proxy that listens."""
    proxy = Proxy(target)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
