"""The event feed: CloudEvents, a batch at a time, waited for, or as a stream of server-sent events.

A reader keeps the position that it has got to, and nothing is kept for it here: killed, it goes on from there.
Deliberately absent: which facts these are (projections/feed.py).
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import msgspec
import structlog
from litestar import get
from litestar.types import ASGIApp
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from api.observing import FEED_POLLS, FEED_STREAMS
from api.openapi import answers
from api.problems import InvalidRequest, Problem
from api.queries.answering import FEED, document, visible_ticket
from api.requests import ApiRequest, Installation, header, installation, query
from projections.feed import TOPICS, Batch, BeyondTheLedger, Happened, Tail, Wanted, topics_of
from projections.history import Entry, without_addresses
from tickets.connections import CANNOT_CONNECT

_SSE: Final = "text/event-stream"
_WAIT: Final = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(?P<seconds>[0-9]{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)
_AT_ONCE: Final = 100
"""So many events are read, and sent, at a time where there is no end to them."""
_RETRY_MS: Final = 1_000
"""After so long a client opens its stream again, by its own word at most; service starts take longer than that."""

_log: Final = structlog.get_logger(__name__)


class EventsQuery(Struct, frozen=True, kw_only=True):
    """Which events, and after what."""

    after: Annotated[
        int, Meta(ge=0, le=2**62, description="The position after which to begin: 0, or an earlier `next_after`.")
    ] = 0
    limit: Annotated[int, Meta(ge=1, le=1_000, description="How many at most; a stream has no end.")] = 100
    type: tuple[Annotated[str, Meta(description="A topic, or how some begin: `ticket.comment_added`.")], ...] = ()
    ticket_id: UUID | None = None


EVENT_QUERIES: Final[dict[str, type[Struct]]] = {"listEvents": EventsQuery}
"""The parameters of each operation here."""


class CloudEvent(Struct, frozen=True):
    """A fact as CloudEvents 1.0 has it. Of `dataschema` there is none: it would have to say where we are."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(description="The position in the ledger; `sequence` is the same, to be sorted as text.")]
    source: Annotated[str, Meta(description="To be read relative to where the feed is.")]
    type: Annotated[str, Meta(description="The fact's topic.")]
    subject: Annotated[UUID, Meta(description="The ticket.")]
    time: datetime
    datacontenttype: Literal["application/json"]
    sequence: str
    ticketversion: int
    data: Annotated[
        Entry | None,
        Meta(description="The line of the audit trail. To staff null, where the history could not digest the fact."),
    ]
    ticketnumber: str | UnsetType = UNSET


class EventList(Struct):
    """Some events, in the order of the ledger."""

    items: list[CloudEvent]
    next_after: Annotated[int, Meta(description="What to send as `after` for what comes next.")]
    end_of_stream: Annotated[bool, Meta(description="Whether there is nothing more yet; otherwise ask again at once.")]


_encode: Final = msgspec.json.Encoder().encode


class EventStream(Struct, frozen=True):
    """An answer that goes on until the token expires, the client goes, or the service stops."""

    served: Installation
    wanted: Wanted
    first: Batch
    begins: int
    seconds: float
    """How long the token is good."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it (ASGI)."""
        headers = {"Content-Type": _SSE, "Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}
        headers["Ledger-Position"] = str(self.first.reaches)
        sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "http.response.start", "status": 200, "headers": sent}
        if scope["state"].get("head"):
            await send(start)
        else:
            async with self.served.streams, _over(receive, self.served.stopping) as over:
                with FEED_STREAMS.track_inprogress():
                    await send(start)
                    if not await self._stream(send, over):
                        return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, send: Any, over: "asyncio.Task[None]") -> bool:
        """Send what comes; whether it ended in order, and not because nobody takes it."""
        patience = 2 * self.served.settings.feed_heartbeat_seconds
        async with aclosing(self._chunks(over)) as chunks:
            async for chunk in chunks:
                sending = asyncio.ensure_future(send({"type": "http.response.body", "body": chunk, "more_body": True}))
                await asyncio.wait({sending, over}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    sending.cancel()
                    return False
                sending.result()
        return True

    async def _chunks(self, over: "asyncio.Task[None]") -> AsyncGenerator[bytes]:
        now = asyncio.get_running_loop().time
        tail, every, ends = self.served.tail, self.served.settings.feed_heartbeat_seconds, now() + self.seconds
        found, told, due = self.first, self.begins, now() + every
        yield b"retry: %d\n\n" % _RETRY_MS
        try:
            while not over.done() and now() < ends:
                if found.facts:
                    yield b"".join(b"id: %d\ndata: %b\n\n" % (one.position, self._event(one)) for one in found.facts)
                    told, due = found.facts[-1].position, now() + every
                elif now() >= due:
                    # An id alone is no event, but the client goes on from there: what is not for it is not
                    # gone through again.
                    yield b"id: %d\n\n" % found.next_after if found.next_after > told else b":\n\n"
                    told, due = found.next_after, now() + every
                if found.is_end:
                    await _more(tail, self.wanted, found.next_after, min(due, ends) - now(), over)
                found = await tail.read(self.wanted, found.next_after, _AT_ONCE)
        except (*CANNOT_CONNECT, BeyondTheLedger) as error:
            _log.warning("feed.stream_ended", error=repr(error))  # the client comes again, and is told then

    def _event(self, one: Happened) -> bytes:
        return event(self.served, self.wanted, one)


def event(served: Installation, wanted: Wanted, one: Happened) -> bytes:
    """A fact as the reader may see it, JSON."""
    data = one.entry
    if data is not None and wanted.visible_to is not None:
        data = without_addresses(data)
    return _encode(
        CloudEvent(
            specversion="1.0",
            id=str(one.position),
            source=f"{served.settings.api_v1_prefix}/events",
            type=one.topic,
            subject=one.ticket_id,
            time=one.occurred_at,
            datacontenttype="application/json",
            sequence=f"{one.position:019d}",
            ticketversion=one.version,
            data=None if data is None else cast("Entry", Raw(data)),
            ticketnumber=UNSET if one.number is None else one.number,
        )
    )


@get(
    "/events",
    operation_id="listEvents",
    responses=answers(200, EventList, "Some events; with `Accept: text/event-stream`, all that come, as they come."),
    **FEED,
)
async def list_events(request: ApiRequest) -> ASGIApp:
    """What happened to the tickets that the caller may see, each fact once and in order."""
    served, asked = installation(request), query(request, EventsQuery)
    streamed = _wants_stream(header(request, b"accept") or "")
    wanted = Wanted(
        visible_to=None if request.user.is_staff else request.user.id,
        ticket_id=asked.ticket_id,
        topics=_topics(asked.type),
    )
    if wanted.ticket_id is not None:
        await visible_ticket(request, wanted.ticket_id)
    last = _last_event_id(request) if streamed else None
    after = asked.after if last is None else last
    try:
        newest = served.freshness.projected
        found = await served.tail.read(wanted, after, _AT_ONCE if streamed else asked.limit, newest=newest)
    except BeyondTheLedger as error:
        raise InvalidRequest("after" if last is None else "Last-Event-ID", f"is no position yet: {error}") from None
    left = served.tokens.seconds_left(header(request, b"authorization") or "")
    if streamed:
        if served.streams.locked():
            raise Problem("overloaded", f"There are {served.settings.feed_streams} streams open; no more at once.")
        return EventStream(served, wanted, found, after, left)
    headers = {"Vary": "Accept"}
    seconds = _wait(header(request, b"prefer"), served.settings.feed_wait_seconds)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
        if not found.facts and found.is_end and not request.scope["state"].get("head"):
            found = await _waited_for(request, wanted, found, asked.limit, min(seconds, left))
    items = b",".join(event(served, wanted, one) for one in found.facts)
    end = b"true" if found.is_end else b"false"
    body = b'{"items":[%b],"next_after":%d,"end_of_stream":%b}' % (items, found.next_after, end)
    return document(body, found.reaches, headers)


EVENT_QUERY_ROUTES: Final = (list_events,)
"""All queries about events."""


async def _waited_for(request: ApiRequest, wanted: Wanted, found: Batch, limit: int, seconds: float) -> Batch:
    """The next batch with something in it, or after so long, an empty one."""
    served, now = installation(request), asyncio.get_running_loop().time
    if served.polls.locked():
        raise Problem("overloaded", f"There are {served.settings.feed_polls} waiting already; no more at once.")
    ends = now() + seconds
    async with served.polls, _over(request.receive, served.stopping) as over:
        with FEED_POLLS.track_inprogress():
            while not found.facts and found.is_end and not over.done() and now() < ends:
                await _more(served.tail, wanted, found.next_after, ends - now(), over)
                found = await served.tail.read(wanted, found.next_after, limit)
    return found


async def _more(tail: Tail, wanted: Wanted, after: int, seconds: float, over: "asyncio.Task[None]") -> None:
    """Return when there is something that fits after this position, after so long, or when it is over."""
    waiting = asyncio.create_task(tail.wait(wanted, after, seconds))
    try:
        await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


@asynccontextmanager
async def _over(receive: Any, stopping: asyncio.Event) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that is done when the client has gone or the service stops."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def either() -> None:
        tasks = [asyncio.create_task(gone()), asyncio.create_task(stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    over = asyncio.create_task(either())
    try:
        yield over
    finally:
        over.cancel()


def _topics(names: tuple[str, ...]) -> frozenset[str]:
    found = frozenset[str]()
    for name in names:
        topics = topics_of(name)
        if not topics:
            raise InvalidRequest("type", f"is no kind of event; there are {', '.join(TOPICS)}")
        found |= topics
    return found


def _last_event_id(request: ApiRequest) -> int | None:
    sent = (header(request, b"last-event-id") or "").strip()
    if not sent:
        return None
    if not (sent.isascii() and sent.isdigit() and len(sent) < 19):
        raise InvalidRequest("Last-Event-ID", "must be the id of an event, as an earlier answer gave it")
    return int(sent)


def _wait(prefer: str | None, longest: int) -> int | None:
    """How long to wait for more (RFC 7240, 4.3), within bounds; a preference that is none is left alone."""
    found = _WAIT.search(prefer or "")
    return None if found is None else min(int(found["seconds"]), longest)


def _wants_stream(accept: str) -> bool:
    """Whether events as they come are wanted rather than JSON (RFC 9110, 12.5.1)."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (one.strip().lower() for one in part.split(";"))
        weight = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        weights[kind] = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 1.0
    return weights.get(_SSE, 0) > weights.get("application/json", 0)
