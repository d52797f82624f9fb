"""One statement for all who ask at the same time: whoever asks while one is under way is in the next.

For numbers and for reads what group commit (writer.py) is for appends. A statement that is sent after somebody asked
sees all that was committed by then, so nobody is told less than by a statement of their own. Deliberately absent: what
is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MOST: Final = 64
"""So many are asked for in one statement: the next ones should not wait for long."""


class Batched(Generic[K, V]):
    """Asks for a key, together with whoever else asks."""

    def __init__(self, ask: Callable[[Sequence[K]], Awaitable[Sequence[V]]]) -> None:
        """`ask` answers each of several keys, in their order; what it raises, all of them are told."""
        self._ask = ask
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, key: K) -> V:
        """What there is for the key. Raises what `ask` does."""
        answer: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                found = await self._ask([key for key, _ in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is for those who wait
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), one in zip(batch, found, strict=True):
                if not answer.done():  # who asked may have gone
                    answer.set_result(one)
