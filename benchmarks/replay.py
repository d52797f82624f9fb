"""What replaying a ticket costs a fact: stored bytes to facts to state, beside the library's way.

One ticket with 10,000 facts of eleven kinds. Ours is measured from bytes in memory, and from the database.
The comparison is the library as its documentation shows it: an Aggregate with an event for each of our
kinds, with the same fields, stored by its Mapper and JSONTranscoder, and replayed by its own
`project_aggregate`; it is driven through the same life, so that both replay the same number of the same
events. A round takes the median of five replays of each, in turn, and both must end in the same state.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from statistics import median
from time import perf_counter
from typing import Any, Final, cast
from uuid import UUID

from eventsourcing.application import project_aggregate
from eventsourcing.domain import Aggregate, CanMutateAggregate, event
from eventsourcing.persistence import DatetimeAsISO, JSONTranscoder, Mapper, StoredEvent, UUIDAsHex
from msgspec import UNSET
from msgspec.structs import asdict

from benchmarks.lives import LEADS, appending, long_life
from benchmarks.measurement import Bench, Benchmark, Figure, Round, Target
from tickets import mapper
from tickets.events import Created, TicketEvent
from tickets.ledger import Ledger
from tickets.ticket import Ticket, fold

_FACTS: Final = 10_000
_REPLAYS: Final = 5
_FACTS_A_COMMAND: Final = 50


class LibraryTicket(Aggregate):
    """A ticket as the library's documentation would have it: methods that are events."""

    status: str

    @event("Created")
    def __init__(
        self,
        number: str,
        title: str,
        description: str,
        category: str,
        priority: str,
        requester_id: UUID,
        response_due_at: datetime,
        resolution_due_at: datetime,
        environment: str | None,
        affected_service: str | None,
        tags: list[str],
        team: str | None,
    ) -> None:
        self.number, self.title, self.description = number, title, description
        self.category, self.priority, self.requester_id = category, priority, requester_id
        self.response_due_at, self.resolution_due_at = response_due_at, resolution_due_at
        self.environment, self.affected_service, self.tags, self.team = environment, affected_service, tags, team
        self.status = "NEW"
        self.assignee_id: UUID | None = None
        self.resolution_notes: str | None = None

    @event("Edited")
    def edited(self, changed: dict[str, Any]) -> None:
        """Some fields are different."""
        self.__dict__.update(changed)

    @event("Prioritized")
    def prioritized(self, priority: str) -> None:
        """It is more or less urgent."""
        self.priority = priority

    @event("DueDatesMoved")
    def due_dates_moved(self, response_due_at: datetime, resolution_due_at: datetime) -> None:
        """It is due at another time."""
        self.response_due_at, self.resolution_due_at = response_due_at, resolution_due_at

    @event("Assigned")
    def assigned(self, assignee_id: UUID | None, team: str | None, reason: str | None) -> None:  # noqa: ARG002 - kept
        """Somebody else looks at it."""
        self.assignee_id, self.team = assignee_id, team

    @event("StatusChanged")
    def status_changed(self, status: str, reason: str | None) -> None:  # noqa: ARG002 - kept with the event
        """Work goes on."""
        self.status = status

    @event("Escalated")
    def escalated(self, reason: str | None) -> None:  # noqa: ARG002 - as above
        """Somebody else must look at it."""
        self.status = "ESCALATED"

    @event("Resolved")
    def resolved(self, resolution_notes: str | None) -> None:
        """It was dealt with."""
        self.status, self.resolution_notes = "RESOLVED", resolution_notes

    @event("Reopened")
    def reopened(self, reason: str | None) -> None:  # noqa: ARG002 - as above
        """It is back."""
        self.status, self.resolution_notes = "REOPENED", None


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    lived = long_life(_FACTS)
    stored = [(fact.TOPIC, mapper.encode(fact)) for fact in lived]
    library_mapper = _library_mapper()
    library_stored = _library_stored(library_mapper, lived)
    async with bench.server.fresh() as dsn, Ledger.open(dsn) as ledger:
        for n in range(0, _FACTS, _FACTS_A_COMMAND):
            await ledger.append(appending(tuple(lived[n : n + _FACTS_A_COMMAND]), LEADS[0]))
        stream = lived[0].originator_id

        async def from_database() -> Ticket | None:
            return fold(cast("list[TicketEvent]", await ledger.facts(stream)))

        async def from_memory() -> Ticket | None:
            return fold(cast("list[TicketEvent]", mapper.decode_all(stored)))

        async def by_library() -> LibraryTicket | None:
            events = (library_mapper.to_domain_event(one) for one in library_stored)
            aggregate: LibraryTicket | None = project_aggregate(None, events)
            return aggregate

        for _ in range(bench.rounds):
            memory, ticket = await _microseconds(from_memory)
            library, theirs = await _microseconds(by_library)
            database, again = await _microseconds(from_database)
            assert ticket is not None
            assert theirs is not None
            assert ticket == again == fold(lived)
            assert ticket.version == theirs.version == _FACTS
            assert (ticket.title, ticket.status, ticket.assignee_id, ticket.resolution_due_at) == (
                theirs.title,
                theirs.status,
                theirs.assignee_id,
                theirs.resolution_due_at,
            )
            yield {"memory": memory, "database": database, "library": library, "ratio": library / memory}


async def _microseconds(replay: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """What a replay costs a fact, and what it came to."""
    took, outcome = [], None
    for _ in range(_REPLAYS):
        started = perf_counter()
        outcome = await replay()
        took.append(perf_counter() - started)
    return median(took) / _FACTS * 1e6, outcome


def _library_mapper() -> Mapper[UUID]:
    transcoder = JSONTranscoder()
    transcoder.register(UUIDAsHex())
    transcoder.register(DatetimeAsISO())
    return Mapper(transcoder)


def _library_stored(library_mapper: Mapper[UUID], lived: list[TicketEvent]) -> list[StoredEvent]:
    """The same life as the library stores it."""
    ticket: LibraryTicket | None = None
    for fact in lived:
        said = {
            name: value
            for name, value in asdict(fact).items()
            if name not in ("originator_id", "originator_version", "timestamp") and value is not UNSET
        }
        name = type(fact).__name__
        if isinstance(fact, Created):
            ticket = LibraryTicket(**{**said, "tags": list(fact.tags)})
            continue
        assert ticket is not None
        if name == "Edited":
            said = {"changed": {key: list(value) if key == "tags" else value for key, value in said.items()}}
        method = "".join("_" * c.isupper() + c.lower() for c in name).lstrip("_")
        getattr(ticket, method)(**said)
    assert ticket is not None
    events = cast("list[CanMutateAggregate[UUID]]", list(ticket.collect_events()))
    assert len(events) == len(lived)
    return [library_mapper.to_stored_event(one) for one in events]


REPLAY: Final = Benchmark(
    "replay",
    (
        Figure("memory", f"{_FACTS:,} facts, stored bytes to state", "µs/fact", Target("<=", 4)),
        Figure("database", f"{_FACTS:,} facts, database to state", "µs/fact", Target("<=", 4)),
        Figure("library", "the library's aggregate and mapper, stored bytes to state", "µs/event"),
        Figure("ratio", "library / ours, stored bytes to state", "x"),
    ),
    _measure,
)
