"""Who asks at the same time: what is sent together, and what each is told.

Deliberately absent: what is asked; the tests of the ledger and of the read models have that.
"""

import asyncio
from collections.abc import Sequence

import pytest

from tickets.batching import Batched


class Asked:
    """Answers a number with its double, when it is let go, and notes what was asked together."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.go = asyncio.Event()
        self.fails = False

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.together.append(list(numbers))
        await self.go.wait()
        if self.fails:
            raise OSError("gone")
        return [2 * number for number in numbers]


async def _turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_while_one_is_asked_for_is_in_the_next_together_with_all_others() -> None:
    asked = Asked()
    batched = Batched(asked)
    first = asyncio.create_task(batched(1))
    await _turn()
    others = [asyncio.create_task(batched(number)) for number in (2, 3, 2)]
    await _turn()
    assert asked.together == [[1]]
    asked.go.set()
    assert await first == 2
    assert await asyncio.gather(*others) == [4, 6, 4]
    assert asked.together == [[1], [2, 3, 2]]


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    asked = Asked()
    batched = Batched(asked)
    leaving, staying = asyncio.create_task(batched(1)), asyncio.create_task(batched(2))
    await _turn()
    leaving.cancel()
    asked.go.set()
    assert await staying == 4
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_what_fails_is_told_to_all_who_were_in_it_and_not_to_the_next() -> None:
    asked = Asked()
    batched = Batched(asked)
    asked.fails = True
    asked.go.set()
    for outcome in await asyncio.gather(batched(1), batched(2), return_exceptions=True):
        assert isinstance(outcome, OSError)
    asked.fails = False
    assert await batched(3) == 6


async def test_of_very_many_so_many_are_asked_for_at_once_and_all_are_answered() -> None:
    asked = Asked()
    asked.go.set()
    batched = Batched(asked)
    assert await asyncio.gather(*(batched(number) for number in range(200))) == [2 * number for number in range(200)]
    assert max(map(len, asked.together)) == 64
