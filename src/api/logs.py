"""Where log lines go, and what they look like.

Deliberately absent: what is logged; whoever finds something says so.
"""

import asyncio
import logging
import sys
from typing import Any, BinaryIO

import msgspec
import structlog


def configure_logging(level: str, *, service: str) -> None:
    """Log to standard error: readable on a terminal, JSON otherwise."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    if terminal:
        renderers: list[Any] = [structlog.dev.ConsoleRenderer()]
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        renderers = [structlog.processors.format_exc_info, _service(service), _json]
        lines = _Lines(sys.stderr.buffer)
        factory = lambda *_: lines  # noqa: E731 - structlog wants a function, and this is all that it does
    structlog.configure(
        processors=shared + renderers,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # Libraries that log by the standard library: only what an operator must see.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )


class _Lines:
    """Writes lines as they come; those of one turn of the event loop together, which under load are dozens."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[bytes] = []

    def msg(self, line: bytes) -> None:
        self._waiting += (line, b"\n")
        if len(self._waiting) > 2:
            return  # it goes with those that wait already
        try:
            asyncio.get_running_loop().call_soon(self._write)
        except RuntimeError:  # there is no loop
            self._write()

    debug = info = warning = error = critical = exception = msg

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._file.write(b"".join(waiting))
        self._file.flush()


def _service(name: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service"] = name
        return event

    return add


def _json(_logger: Any, _method: str, event: dict[str, Any]) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)
