"""Refusals wait until the body that was refused has come: who is still sending hears no answer.

Within bounds; who sends on and on, or nothing, is answered all the same. Deliberately absent: bodies that
are wanted (requests.py, files/receiving.py).
"""

import asyncio
from typing import Any, Final

from api.observing import Asgi

_LONGEST: Final = 16 * 1024 * 1024


def after_its_body(app: Asgi, *, longest: int, patience: float) -> Asgi:
    """The application, whose refusals wait for what is left of the request.

    For `longest` bytes where that is all there are, as was said beforehand; at most `patience` seconds.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await app(scope, receive, send)
            return
        more = True

        async def received() -> Any:
            nonlocal more
            event = await receive()
            more = event["type"] == "http.request" and event["more_body"]
            return event

        async def sent(event: Any) -> None:
            if event["type"] == "http.response.start" and event["status"] >= 400 and more:
                await _drain(scope["headers"])
            await send(event)

        async def _drain(headers: Any) -> None:
            length = dict(headers).get(b"content-length", b"")
            left = longest if length.isdigit() and int(length) <= longest else _LONGEST
            try:
                async with asyncio.timeout(patience):
                    while more and left > 0:
                        left -= len((await received()).get("body", b""))
            except TimeoutError:
                return

        await app(scope, received, sent)

    return answer
