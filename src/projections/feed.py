"""The event feed: every fact about a ticket in the order of the ledger, to each reader those that they may see.

What is read goes as far as all read models are, in the snapshot that it is read in: nothing can be skipped,
whatever is made anew meanwhile. `Tail` keeps the newest facts, read once for everybody who waits for more.
Deliberately absent: how they are shown and who is asking; the edge says that.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from msgspec import Struct

from projections.freshness import Freshness
from projections.runner import PROJECTIONS
from tickets.connections import CANNOT_CONNECT, Pool
from tickets.events import FACTS
from tickets.mapper import UPCASTERS

ABOUT_TICKETS: Final = "ticket."
"""What the topics of facts about tickets begin with; others, about people, are in no feed."""

TOPICS: Final[tuple[str, ...]] = tuple(
    sorted(topic for topic in {fact.TOPIC for fact in FACTS} | set(UPCASTERS) if topic.startswith(ABOUT_TICKETS))
)
"""The kinds of facts that can be in a feed, old ones too."""

LOOKED_AT: Final = 5_000
"""So many positions are gone through for one answer, however few of them are wanted."""

LARGEST: Final = 2 * 1024 * 1024
"""So many bytes of entries are in one answer, or a single one that is larger."""

_MANY: Final = 1_000
_REMEMBERED: Final = 4_096
_REMEMBERED_BYTES: Final = 16 * 1024 * 1024
_CHUNK: Final = 1_000
_ALONE_S: Final = 0.5
_PAUSE_S: Final = 0.2

_log: Final = structlog.get_logger(__name__)


class Happened(Struct, frozen=True, gc=False):
    """A fact about a ticket, as the read models tell it.

    `entry` is the line of the audit trail, JSON; it is None where the history could not digest the fact, and
    then only staff are told that there is one. So are number and requester where the ticket could not.
    """

    position: int
    ticket_id: UUID
    version: int
    topic: str
    occurred_at: datetime
    number: str | None
    requester_id: UUID | None
    internal: bool | None
    entry: bytes | None


class Wanted(Struct, frozen=True, kw_only=True):
    """Which facts: all that fit every one of these that is set."""

    visible_to: UUID | None = None
    """Only what this person may see: public facts about tickets that they requested."""
    ticket_id: UUID | None = None
    topics: frozenset[str] = frozenset()

    def fits(self, one: Happened) -> bool:
        """Whether this is one of them."""
        return (
            (not self.topics or one.topic in self.topics)
            and (self.ticket_id is None or one.ticket_id == self.ticket_id)
            and (self.visible_to is None or (one.requester_id == self.visible_to and one.internal is False))
        )


class Batch(Struct, frozen=True):
    """Some facts in order, and after which position the next ones come."""

    facts: Sequence[Happened]
    next_after: int
    reaches: int
    """How far all read models were."""

    @property
    def is_end(self) -> bool:
        """Whether there are no more yet."""
        return self.next_after >= self.reaches


class BeyondTheLedger(Exception):  # noqa: N818 - it says where the position is
    """There is no such position yet: it is of another ledger, or of this one before it was set back."""


def topics_of(name: str) -> frozenset[str]:
    """The topics that a name stands for: one, or all that begin with it (`ticket.comment_added`)."""
    return frozenset(topic for topic in TOPICS if topic == name or topic.startswith(f"{name}."))


async def read(pool: Pool, wanted: Wanted, after: int, limit: int) -> Batch:
    """The next facts after a position that fit, at most `limit`. Raises BeyondTheLedger.

    However few fit, the next position moves on: past all that was gone through for them.
    """
    many = wanted.visible_to is not None and wanted.ticket_id is None and await _many(pool, wanted.visible_to, after)
    way = _way(wanted, many=many)
    # Laterals with a limit are looked up one by one, whatever the planner expects of tables that grow.
    rows = await pool.fetch(
        f"""with reach as materialized (
              select case when count(*) = cardinality($3::text[]) then coalesce(min(position), 0) else 0 end as upto
              from read_model.checkpoints where projection = any($3)
            ), {way.places}, found as materialized (
              select f.*, coalesce(sum(octet_length(f.entry)) over before, 0) as so_far
              from (select e.*, t.number, t.requester_id, h.internal, h.entry from {way.events}
                    left join lateral (select h.internal, h.entry from read_model.history h
                                       where h.ticket_id = e.stream_id and h.position = e.position limit 1) h on true
                    left join lateral (select t.number, t.requester_id from read_model.tickets t
                                       where t.ticket_id = e.stream_id limit 1) t on true
                    where ($4::text[] is null and e.topic like 'ticket.%' or e.topic = any($4)){way.condition}
                    order by e.position limit $2::bigint + 1) f
              window before as (order by f.position rows between unbounded preceding and 1 preceding)
            )
            select (select position from ledger.head), (select upto from reach), (select upto from gone_through),
                   (select max(position) from found), f.position, f.stream_id, f.version, f.topic, f.occurred_at,
                   f.number, f.requester_id, f.internal, f.entry
            from (select) one left join found f on f.so_far < {LARGEST} order by f.position""",
        after,
        limit,
        list(PROJECTIONS),
        list(wanted.topics) or None,
        *(() if way.argument is None else (way.argument,)),
    )
    head, reaches, gone_through, last = rows[0][:4]
    if after > head:
        raise BeyondTheLedger(f"the ledger is at {head}")
    facts = [Happened(*row[4:]) for row in rows[:limit] if row[4] is not None]
    more = bool(facts) and facts[-1].position < last
    return Batch(facts, facts[-1].position if more else max(after, gone_through), reaches)


_EVENT: Final = "e.position, e.stream_id, e.version, e.topic, e.occurred_at from ledger.events e"


async def _many(pool: Pool, requester_id: UUID, after: int) -> bool:
    """Whether so many of somebody's tickets have something new that going along the ledger is shorter."""
    many: bool = await pool.fetchval(
        """select count(*) = $3 from (select from read_model.tickets
           where requester_id = $1 and not deleted and position > $2 limit $3) t""",
        requester_id,
        after,
        _MANY,
    )
    return many


class _Way(Struct, frozen=True):
    """How facts are gone through, by an index and bounded: pieces of the SQL in `read`, and its argument 5 if any."""

    places: str
    """The tables that it begins with: in the end `gone_through`, up to which position that was."""
    events: str
    """The facts there, as `e`."""
    argument: UUID | None
    condition: str = ""
    """What of them fits."""


def _way(wanted: Wanted, *, many: bool) -> _Way:
    if wanted.ticket_id is not None:
        return _through_a_ticket(wanted.ticket_id, wanted)
    if wanted.visible_to is None or many:
        return _through_the_ledger(wanted.visible_to)
    return _through_their_tickets(wanted.visible_to, wanted)


def _through_the_ledger(visible_to: UUID | None) -> _Way:
    return _Way(
        f"gone_through as materialized (select least(upto, $1::bigint + {LOOKED_AT}) as upto from reach)",
        f"""(select {_EVENT} where e.position > $1 and e.position <= (select upto from gone_through)
             order by e.position) e""",
        visible_to,
        "" if visible_to is None else " and t.requester_id = $5 and not h.internal",
    )


_BETWEEN: Final = "h.position > $1::bigint and h.position <= (select upto from reach)"


def _through_a_ticket(ticket_id: UUID, wanted: Wanted) -> _Way:
    told = f"select h.position from read_model.history h where h.ticket_id = $5 and {_BETWEEN}"
    if wanted.visible_to is not None:
        return _at(f"{told} and not h.internal", ticket_id, wanted)
    # What the history could not digest is told too, without an entry.
    parked = f"""select h.position from read_model.parked p
                 join ledger.events h on h.stream_id = p.stream_id and h.position >= p.position
                 where p.projection = 'history' and p.stream_id = $5 and {_BETWEEN}"""
    return _at(f"{told} union all {parked}", ticket_id, wanted)


def _through_their_tickets(requester_id: UUID, wanted: Wanted) -> _Way:
    # A ticket whose newest fact is known has nothing to add, unless its row could not follow.
    mine = """select t.ticket_id from read_model.tickets t where t.requester_id = $5 and {}
              and (t.position > $1 or t.ticket_id in (select p.stream_id from read_model.parked p))"""
    some = f"""select h.position
               from ({mine.format("not t.deleted")} union all {mine.format("t.deleted")}) mine,
               lateral (select h.position from read_model.history h
                        where h.ticket_id = mine.ticket_id and {_BETWEEN} and not h.internal
                        order by h.position limit {LOOKED_AT}) h"""
    return _at(some, requester_id, wanted)


def _at(positions: str, argument: UUID, wanted: Wanted) -> _Way:
    """At these positions, as many of them as are enough."""
    enough = str(LOOKED_AT) if wanted.topics else "$2::bigint + 1"
    return _Way(
        f"""places as materialized (select s.position from ({positions}) s order by s.position limit {enough}),
            gone_through as materialized (
              select case when count(*) < {enough} then (select upto from reach) else max(position) end as upto
              from places
            )""",
        f"places s cross join lateral (select {_EVENT} where e.position = s.position limit 1) e",
        argument,
    )


class Tail:
    """The newest facts, kept for those who wait for more: one query when there are some, however many wait."""

    def __init__(self, pool: Pool, freshness: Freshness) -> None:
        """Nothing is kept; `follow` does, as long as somebody waits."""
        self._pool = pool
        self._freshness = freshness
        self._facts: deque[Happened] = deque()
        self._bytes = 0
        self._begins = self._reaches = 0
        self._waiting: defaultdict[UUID | None, dict[asyncio.Future[None], tuple[Wanted, int]]] = defaultdict(dict)
        """By who waits, so that nobody is asked about other people's facts; staff, who see all, are None."""
        self._awaited = asyncio.Event()

    async def read(self, wanted: Wanted, after: int, limit: int, *, newest: int = 0) -> Batch:
        """As `read`, but without asking the database where what comes after the position is at hand.

        What is at hand must go as far as `newest`: it is not kept up while nobody waits.
        """
        if not (self._begins <= after < self._reaches and newest <= self._reaches):
            return await read(self._pool, wanted, after, limit)
        facts, size = list[Happened](), 0
        for one in self._after(after):
            if wanted.fits(one):
                if len(facts) == limit or size > LARGEST:
                    return Batch(facts, facts[-1].position, self._reaches)
                facts.append(one)
                size += len(one.entry or b"")
        return Batch(facts, self._reaches, self._reaches)

    def _after(self, position: int) -> Iterable[Happened]:
        newest: list[Happened] = []
        for one in reversed(self._facts):  # who waits has seen all but the last few
            if one.position <= position:
                break
            newest.append(one)
        return reversed(newest)

    async def wait(self, wanted: Wanted, after: int, timeout: float) -> None:
        """Wait until there is something after this position that fits, `timeout` seconds at most."""
        if after < self._begins:  # what comes next is not here; while read models are made anew, it is nowhere yet
            await asyncio.sleep(min(timeout, _PAUSE_S))
            return
        if any(map(wanted.fits, self._after(after))):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[wanted.visible_to]
        waiting[future] = (wanted, after)
        self._awaited.set()
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return
        finally:
            del waiting[future]
            if not waiting:
                self._waiting.pop(wanted.visible_to, None)

    async def follow(self) -> None:
        """Read what comes as long as somebody waits, until cancelled."""
        while True:
            if not self._waiting:
                self._awaited.clear()
                await self._awaited.wait()
                if self._freshness.projected - self._reaches > _REMEMBERED:
                    self._begin_at(self._freshness.projected)
            # Whoever came too late for what is here reads it by themselves.
            if not await self._freshness.wait_for(self._reaches + 1, _ALONE_S):
                continue
            try:
                found = await read(self._pool, Wanted(), self._reaches, _CHUNK)
            except (*CANNOT_CONNECT, BeyondTheLedger) as error:
                _log.warning("feed.interrupted", error=repr(error))
                self._begin_at(self._freshness.projected)
                await asyncio.sleep(_PAUSE_S)
            else:
                if found.next_after == self._reaches:  # the read models are being made anew
                    await asyncio.sleep(_PAUSE_S)
                self._take(found)

    def _begin_at(self, position: int) -> None:
        self._facts.clear()
        self._bytes, self._begins, self._reaches = 0, position, position
        for waiting in self._waiting.values():
            self._wake(waiting)

    def _take(self, found: Batch) -> None:
        self._facts.extend(found.facts)
        self._bytes += sum(len(one.entry or b"") for one in found.facts)
        self._reaches = found.next_after
        while len(self._facts) > _REMEMBERED or self._bytes > _REMEMBERED_BYTES:
            gone = self._facts.popleft()
            self._bytes -= len(gone.entry or b"")
            self._begins = gone.position
        concerned = defaultdict[UUID | None, list[Happened]](list, {None: list(found.facts)})
        for one in found.facts:
            concerned[one.requester_id].append(one)
        for who in concerned.keys() & self._waiting.keys():
            self._wake(self._waiting[who], concerned[who])

    def _wake(
        self, waiting: dict[asyncio.Future[None], tuple[Wanted, int]], facts: Sequence[Happened] | None = None
    ) -> None:
        """Let go on those who want one of these facts, or all."""
        for future, (wanted, after) in waiting.items():
            wakes = facts is None or any(one.position > after and wanted.fits(one) for one in facts)
            if wakes and not future.done():
                future.set_result(None)
