"""Where everything is put together, served, and taken down again.

Deliberately absent: reading settings and starting a database; those come in.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import structlog
from cachetools import TTLCache
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server
from litestar import Litestar, Response, Router, route
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from api import openapi
from api.auth import Tokens
from api.checkpointing import Checkpointer
from api.commands import BODIES, COMMAND_ROUTES
from api.draining import after_its_body
from api.files.housekeeping import keep_house
from api.files.receiving import ENVELOPE
from api.files.storage import Storage
from api.files.taking import Files
from api.observing import BEHIND, DRIFTED, LEDGER_POSITION, OLDEST, PARKED, PROJECTED_POSITION, WAITING, Asgi, observed
from api.problems import HANDLERS, allow
from api.queries import QUERIES, QUERY_ROUTES
from api.queries.system import explain_problem, health, metrics, ready
from api.requests import Installation
from api.settings import PARTS, Part, Settings
from projections import history, people, tickets
from projections.drift import Sampler
from projections.feed import Tail
from projections.freshness import Freshness
from projections.runner import Runner
from projections.stalls import Watch
from tickets.connections import Pool, connect
from tickets.handler import FindAssignee, Handler
from tickets.ledger import Ledger
from tickets.people import People
from tickets.permissions import Assignee

_LONGEST_HEADERS: Final = 64 * 1024
_DRAINING_S: Final = 10.0
_BATCH_PATIENCE_S: Final = 8.0
"""How long the runner waits for one of its statements: longer than requests do, for many facts at once."""
_ASSIGNEE_REMEMBERED_S: Final = 5.0

_log: Final = structlog.get_logger(__name__)


@asynccontextmanager
async def application(
    settings: Settings, dsn: str, stopping: asyncio.Event, parts: Collection[Part] = PARTS
) -> AsyncIterator[Asgi]:
    """The application on a database that has the schema, with all that runs behind it.

    Once `stopping` is set, nobody is kept waiting for facts to come.
    """
    timeout = settings.database_timeout_ms / 1000
    async with Ledger.open(
        dsn,
        queue_limit=settings.command_queue_limit,
        pool_size=settings.database_pool_size,
        timeout=timeout,
    ) as ledger:
        freshness = Freshness(ledger)
        runner = (
            Runner(
                ledger,
                lambda: connect(dsn, timeout=timeout, statement_timeout=_BATCH_PATIENCE_S, purpose="runner"),
            )
            if "projections" in parts
            else None
        )
        checkpointer = (
            None
            if runner is None
            else Checkpointer(settings, lambda: connect(dsn, timeout=timeout, purpose="checkpointer"))
        )
        served = Installation(
            settings=settings,
            tokens=Tokens(settings),
            ledger=ledger,
            handler=Handler(
                ledger,
                _finding_assignees(ledger.pool),
                policy=settings.policy,
                cache_size=settings.ticket_cache_size,
            ),
            people=People(ledger),
            tickets=tickets.finding(ledger.pool),
            histories=history.reading(ledger.pool),
            freshness=freshness,
            watch=Watch(),
            sampler=Sampler(dsn, seconds=settings.drift_sample_seconds, found=DRIFTED.set),
            tail=Tail(ledger.pool, freshness),
            polls=asyncio.Semaphore(settings.feed_polls),
            streams=asyncio.Semaphore(settings.feed_streams),
            stopping=stopping,
            files=Files(
                settings, dsn, Storage(settings.upload_dir or settings.data_dir / "uploads", settings.storage_url)
            ),
            checkpointer=checkpointer,
        )
        LEDGER_POSITION.set_function(lambda: ledger.newest)
        PROJECTED_POSITION.set_function(lambda: freshness.projected)
        WAITING.set_function(lambda: ledger.waiting)
        BEHIND.set_function(lambda: max(0, ledger.newest - freshness.projected))
        OLDEST.set_function(lambda: 0 if served.watch.seen is None else served.watch.seen.oldest_seconds)
        PARKED.set_function(lambda: 0 if served.watch.seen is None else served.watch.seen.parked)
        await ledger.head()
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(
                    freshness.watch(
                        lambda: connect(dsn, timeout=timeout, statement_timeout=timeout, purpose="freshness")
                    )
                ),
                background.create_task(served.watch.run(lambda: connect(dsn, timeout=timeout, purpose="watch"))),
            ]
            if "queries" in parts:
                tasks.append(background.create_task(served.tail.follow()))
            if checkpointer is not None:
                tasks.append(background.create_task(checkpointer.run()))
            if runner is not None:
                runner.on_projected.append(freshness.reached)
                background.create_task(runner.run())
                tasks.append(background.create_task(served.sampler.run(runner)))
                tasks.append(
                    background.create_task(keep_house(settings, served.files, runner, served.handler, ledger.pool, dsn))
                )
            try:
                app = after_its_body(
                    _litestar(settings, parts),
                    longest=settings.max_file_size_mb * 1024 * 1024 + ENVELOPE,
                    patience=settings.upload_timeout_ms / 1000,
                )
                yield observed(_furnished(app, served))
            finally:
                if runner is not None:
                    runner.stop()
                for task in tasks:
                    task.cancel()


def _litestar(settings: Settings, parts: Collection[Part]) -> Asgi:
    routes: list[ControllerRouterHandler] = [health, ready, metrics, explain_problem]
    halves = (*COMMAND_ROUTES * ("commands" in parts), *QUERY_ROUTES * ("queries" in parts))
    if halves:
        routes.append(Router(settings.api_v1_prefix, route_handlers=[*_options(halves), *halves]))
    return Litestar(
        [*routes, *openapi.documentation(routes, QUERIES, BODIES, "Ticket Service", settings.service_version)],
        exception_handlers=HANDLERS,
        openapi_config=None,
        request_max_body_size=None,  # requests.py reads bodies, and knows the limit
        logging_config=None,
    )


def _options(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """OPTIONS for each path; litestar's own names the methods of one of a path's handlers, not of all."""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    return [_option(path, allow(found)) for path, found in methods.items()]


def _option(path: str, allowed: str) -> HTTPRouteHandler:
    @route(path, http_method="OPTIONS", status_code=204, include_in_schema=False, sync_to_thread=False)
    def options() -> Response[None]:
        return Response(None, status_code=204, headers={"Allow": allowed})

    return options


def _furnished(app: Asgi, served: Installation) -> Asgi:
    """Have every request bring what it is served with; HEAD is GET without the body (RFC 9110, 9.3.2)."""

    async def furnish(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["state"]["installation"] = served
            scope["state"]["headers"] = dict(scope["headers"])
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
                scope["state"]["head"] = True
        await app(scope, receive, send)

    return furnish


def _finding_assignees(pool: Pool) -> FindAssignee:
    """People, as the read model knows them, remembered for a moment: the same few are assigned all day."""
    remembered: TTLCache[UUID, Assignee] = TTLCache(1_000, _ASSIGNEE_REMEMBERED_S)

    async def find(person_id: UUID) -> Assignee | None:
        found = remembered.get(person_id) or await people.find(pool, person_id)
        if found is not None:
            remembered[person_id] = found
        return found

    return find


async def serve(app: Asgi, host: str, port: int, stopping: asyncio.Event, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was accepted.

    `stopping` is set when that begins, `started` is called once it listens.
    """
    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        backlog=1024,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=_LONGEST_HEADERS, header_read_timeout=10_000),
        websockets=False,
        log_level=LogLevels.error,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(stopping.wait())
    loop.call_later(0.05, lambda: None if serving.done() else started())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        server.stop()  # type: ignore[no-untyped-call] # granian has no annotation there
    try:
        async with asyncio.timeout(_DRAINING_S):
            await serving
    except TimeoutError:
        _log.warning("serve.not_drained", after_s=_DRAINING_S)
    finally:
        waiting.cancel()
