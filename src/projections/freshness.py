"""How far the read models are, as far as this process knows, and waiting until they are far enough.

Told by NOTIFY and by the runner of this process, and it looks by itself as well, because a notification
can be lost. Deliberately absent: deciding how long to wait, and what to do when that was too short.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from projections.runner import CHANNEL, PROJECTIONS
from tickets.connections import CANNOT_CONNECT, Connection
from tickets.ledger import Ledger

_POLL: Final = 0.5

_log: Final = structlog.get_logger(__name__)


class Freshness:
    """The newest position that every read model has reached."""

    def __init__(self, ledger: Ledger) -> None:
        """Nothing is known yet; `watch` finds out."""
        self._ledger = ledger
        self.projected = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        """Those who wait, each with the position that they wait for; whoever goes takes itself out."""

    def reached(self, position: int) -> None:
        """Note that all read models have come this far, and let go on whoever waits for that."""
        if position <= self.projected:
            return
        self.projected = position
        for future, wanted in self._waiting.items():
            if wanted <= position and not future.done():
                future.set_result(None)

    async def wait_for(self, position: int, timeout: float) -> bool:
        """Wait until the read models have this position, `timeout` seconds at most; whether they have."""
        if position <= self.projected:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = position
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            del self._waiting[future]
        return True

    async def watch(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        """Follow ledger and read models until cancelled."""
        while True:
            try:
                connection = await connect()
            except CANNOT_CONNECT as error:
                _log.warning("freshness.unreachable", error=repr(error))
                await asyncio.sleep(_POLL)
                continue
            try:
                await connection.add_listener("ledger", lambda _c, _p, _n, at: self._ledger.heard_of(int(str(at))))
                await connection.add_listener(CHANNEL, lambda _c, _p, _n, at: self.reached(int(str(at))))
                while True:
                    await self.look(connection)
                    await asyncio.sleep(_POLL)
            except CANNOT_CONNECT as error:
                _log.warning("freshness.interrupted", error=repr(error))
                await asyncio.sleep(_POLL)
            finally:
                if not connection.is_closed():
                    connection.terminate()

    async def look(self, connection: Connection) -> None:
        """Ask the database how far ledger and read models are."""
        head, projected = await connection.fetchrow(
            """select (select position from ledger.head),
                      (select case when count(*) = $2 then min(position) else 0 end
                       from read_model.checkpoints where projection = any($1))""",
            list(PROJECTIONS),
            len(PROJECTIONS),
        ) or (0, 0)
        self._ledger.heard_of(head)
        self.reached(projected)
