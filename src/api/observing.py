"""What an operator sees of requests: one canonical line each, metrics, request ids.

The outermost layer of the application. Deliberately absent: what went wrong inside a request; whoever
finds that logs it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from time import perf_counter
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge, Histogram
from uuid_utils import uuid7

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]

REQUESTS: Final = Counter("http_requests_total", "Requests answered.", ("method", "route", "status"))
SECONDS: Final = Histogram(
    "http_request_seconds",
    "How long answering took.",
    ("method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
LEDGER_POSITION: Final = Gauge("ledger_position", "The newest position of the ledger that this process knows of.")
PROJECTED_POSITION: Final = Gauge("projected_position", "How far all read models have come.")
WAITING: Final = Gauge("ledger_waiting_commands", "Commands that wait for the next commit.")
BEHIND: Final = Gauge("projections_behind", "Facts that are not in all read models yet.")
OLDEST: Final = Gauge("projections_oldest_seconds", "How old the oldest of them is.")
PARKED: Final = Gauge("projections_parked", "Streams that some read model has given up on.")
DRIFTED: Final = Gauge("projections_drifted_tickets", "Tickets whose rows are not what their facts say.")
FEED_POLLS: Final = Gauge("feed_polls", "Requests that wait for events.")
FEED_STREAMS: Final = Gauge("feed_streams", "Open streams of events.")

_METHODS: Final = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


@lru_cache(1_000)
def _measured(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """The two series that a request counts in: looking them up by labels each time costs more than counting."""
    return REQUESTS.labels(method, route, status), SECONDS.labels(method, route)


_CLIENT_GONE: Final = 499
"""In the log, for a client that did not wait for its answer; nginx's number."""

_SANE_ID: Final = re.compile(rb"^[A-Za-z0-9._:/+=-]{1,128}$")


def observed(app: Asgi) -> Asgi:
    """The application, with a request id on every request and a line and a measurement for it."""
    log = structlog.get_logger("http")

    async def observe(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, method = perf_counter(), scope["method"]
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:
            # So the server says that the client went away. The task is this request's own and ends here either way;
            # handed on, it would be logged with a traceback.
            status = status or _CLIENT_GONE
        finally:
            took = perf_counter() - started
            route = scope.get("path_template") or "unknown"
            counted = method if method in _METHODS else "other"  # whatever a client makes up is not a series
            count, seconds = _measured(counted, route, status)
            count.inc()
            seconds.observe(took)
            log.info(
                "request",
                method=method,
                path=scope["path"],
                status=status,
                ms=round(took * 1000, 2),
                request_id=request_id,
                actor=str(user.id) if (user := scope.get("user")) else None,
            )

    return observe


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.match(value):
            return bytes(value).decode()
    return uuid7().hex
