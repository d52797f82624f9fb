"""Facts to stored bytes and back: eventsourcing's Mapper over msgspec.

The stored state of a fact is its whole JSON, so that what was hashed can be read on its own. Each topic
has one typed decoder; a topic that is no longer written has an entry in UPCASTERS that turns its old
JSON into the fact that is written today.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import Mapper, MapperDeserialisationError, StoredEvent, Transcoder

from tickets.events import FACTS, Fact

Upcaster = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
"""Takes the JSON object of an old topic; returns the topic after it and that topic's JSON object."""

UPCASTERS: Final[dict[str, Upcaster]] = {}
"""Old topics, each with its step to the next; a step at a time, so that a chain needs no shortcuts."""

_DECODERS: Final[dict[str, Callable[[bytes], Fact]]] = {
    fact.TOPIC: cast("msgspec.json.Decoder[Fact]", msgspec.json.Decoder(fact)).decode for fact in FACTS
}

_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading damaged bytes can raise, an upcaster that is given other than an object included."""

encode: Final = msgspec.json.Encoder().encode
"""A fact's stored bytes."""


def decode(topic: str, state: bytes) -> Fact:
    """The fact in these bytes. Raises MapperDeserialisationError, naming the topic."""
    try:
        decoder = _DECODERS.get(topic)
        return _upcast(topic, state) if decoder is None else decoder(state)
    except _UNREADABLE as error:
        raise MapperDeserialisationError(f"{topic} cannot be read: {error!r}") from error


def decode_all(rows: Iterable[Any]) -> list[Fact]:
    """The facts in rows of topic and state. Raises as `decode` does."""
    rows = list(rows)
    try:
        return [_DECODERS[topic](state) for topic, state in rows]
    except _UNREADABLE:
        return [decode(topic, state) for topic, state in rows]  # one is old, or broken and will be named


def _upcast(topic: str, state: bytes) -> Fact:
    fields: dict[str, Any] = msgspec.json.decode(state)
    while topic not in _DECODERS:
        if topic not in UPCASTERS:
            raise KeyError(f"no such topic as {topic}; was it written by a newer version?")
        topic, fields = UPCASTERS[topic](fields)
    return _DECODERS[topic](msgspec.json.encode(fields))


class _Json(Transcoder):
    def encode(self, obj: Any) -> bytes:
        return msgspec.json.encode(obj)

    def decode(self, data: bytes) -> Any:
        return msgspec.json.decode(data)


class FactMapper(Mapper[UUID]):
    """Lets the eventsourcing library's own recorders and tools store and read our facts."""

    def __init__(self) -> None:
        """Nothing to set: neither compressed nor encrypted, so that the record can be read for ever."""
        super().__init__(_Json())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        """The fact as the library stores it."""
        fact = cast("Fact", domain_event)
        return StoredEvent(fact.originator_id, fact.originator_version, fact.TOPIC, encode(fact))

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        """The fact that the library stored."""
        return cast("DomainEventProtocol[UUID]", decode(stored_event.topic, stored_event.state))
