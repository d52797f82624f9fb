"""People, as far as the ledger knows them: who was seen, under which name, role and teams.

What a token says of its bearer is a fact when it is first seen and when it changes, so that the read
model of people can be rebuilt like every other. Deliberately absent: accounts and passwords; whoever
signs the tokens has those.
"""

import asyncio
from datetime import UTC, datetime
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from cachetools import LRUCache
from uuid_utils.compat import uuid7

from tickets.events import By, Metadata, PersonSeen
from tickets.ledger import Ledger
from tickets.permissions import Actor
from tickets.writer import Append

_NAMESPACE: Final = uuid5(NAMESPACE_URL, "urn:ticket-service:person")


def stream_of(person_id: UUID) -> UUID:
    """The stream that holds the facts about a person."""
    return uuid5(_NAMESPACE, str(person_id))


class People:
    """Notes who comes by. Remembers the most recent `size` people, so that most visits cost nothing."""

    def __init__(self, ledger: Ledger, *, size: int = 10_000) -> None:
        """Nobody has been seen by this process yet."""
        self._ledger = ledger
        self._known: LRUCache[UUID, Actor] = LRUCache(size)
        self._arriving: dict[UUID, asyncio.Lock] = {}

    async def saw(self, actor: Actor, *, request_id: str | None = None, ip_address: str | None = None) -> None:
        """Record what the token says of its bearer, unless the ledger says the same already.

        Raises what Ledger.append raises.
        """
        if self._known.get(actor.id) == actor:
            return
        async with self._arriving.setdefault(actor.id, asyncio.Lock()):
            try:
                while self._known.get(actor.id) != actor:
                    await self._record(actor, request_id, ip_address)
            finally:
                self._arriving.pop(actor.id, None)

    async def _record(self, actor: Actor, request_id: str | None, ip_address: str | None) -> None:
        stream = stream_of(actor.id)
        last = await self._ledger.last(stream)
        version = last.originator_version if last else 0
        teams = tuple(sorted(set(actor.teams)))
        if not isinstance(last, PersonSeen) or (last.username, last.role, last.teams) != (
            actor.username,
            actor.role,
            teams,
        ):
            command_id = uuid7()
            seen = PersonSeen(
                originator_id=stream,
                originator_version=version + 1,
                timestamp=datetime.now(UTC),
                person_id=actor.id,
                username=actor.username,
                role=actor.role,
                teams=teams,
            )
            about = Metadata(
                actor=By(actor.id, actor.username, actor.role),
                command_id=command_id,
                ip_address=ip_address,
                request_id=request_id,
            )
            outcome = await self._ledger.append(
                Append(command_id=command_id, stream_id=stream, expected_version=version, facts=((seen, about),))
            )
            if outcome.verdict == "conflict":
                return  # somebody else noted something just now: look again
        self._known[actor.id] = actor
