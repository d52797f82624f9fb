"""The deadline of a request: who waits for nothing is refused in time, who is slow themselves is not.

Deliberately absent: what makes a request wait (test_connection_faults.py).
"""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from api.deadlines import answered_in_time
from api.settings import Settings
from tickets.errors import OutcomeUnknown

QUICK = Settings(database_timeout_ms=100, freshness_timeout_ms=0)
SLOWER_S = 1.3
"""Longer than a request may take with these settings."""


async def asked(app: Any, receive: Any) -> list[Any]:
    """What is sent by an endpoint that has a deadline."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)
        await asyncio.sleep(SLOWER_S / 2)  # a client that takes its time

    scope = {"type": "http", "state": {"installation": SimpleNamespace(settings=QUICK)}}
    await answered_in_time(OutcomeUnknown)(app)(scope, receive, send)
    return sent


async def nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def slow() -> Any:
    await asyncio.sleep(SLOWER_S)
    return await nothing()


async def test_who_waits_for_what_never_comes_is_refused() -> None:
    async def stuck(_scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.Event().wait()

    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        await asked(stuck, nothing)
    assert time.monotonic() - began < 5


async def test_who_sends_and_takes_slowly_is_waited_for() -> None:
    async def echo(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            await send({"type": "http.response.body"})

    assert len(await asked(echo, slow)) == 3


async def test_after_a_slow_body_the_deadline_is_there_again() -> None:
    async def stuck(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        await asyncio.Event().wait()

    with pytest.raises(OutcomeUnknown):
        await asked(stuck, slow)
