"""How long a request may take: whatever the database does, it is answered in time.

Who is still sending has all the time that they need (files/receiving.py has its own patience), and so has who takes the
answer. Deliberately absent: how long a statement may take (tickets/connections.py).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from api.observing import Asgi
from api.settings import Settings
from tickets.errors import Refusal

_BEYOND_A_STATEMENT: Final = 1.1
"""A statement that takes too long says so itself, if it began early enough."""
_BEYOND_FRESHNESS_S: Final = 1.0


def answered_in_time(refusal: type[Refusal]) -> Callable[[Any], Asgi]:
    """A layer around an endpoint that ends it, where it takes too long, with this refusal."""

    def around(app: Any) -> Asgi:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            limit, now = _limit(scope["state"]["installation"].settings), asyncio.get_running_loop().time

            async def received() -> Any:
                deadline.reschedule(None)
                try:
                    return await receive()
                finally:
                    deadline.reschedule(now() + limit)

            async def sent(event: Any) -> None:
                deadline.reschedule(None)
                await send(event)

            try:
                async with asyncio.timeout(limit) as deadline:
                    await app(scope, received, sent)
            except TimeoutError:
                raise refusal from None

        return answer

    return around


def _limit(settings: Settings) -> float:
    return max(
        settings.database_timeout_ms / 1000 * _BEYOND_A_STATEMENT,
        settings.freshness_timeout_ms / 1000 + _BEYOND_FRESHNESS_S,
    )
