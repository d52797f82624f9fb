"""Tickets' lives read off the ledger, fact by fact, with what each changed: for audits.

Works without any read model being up to date: those only say which ticket has a number, and which tickets fit a
filter. Lives come in the order of the tickets' ids, so many at a time, so that however many there are take no
more memory than the longest. Deliberately absent: how it is shown (telling.py).
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Final, cast
from uuid import UUID

from msgspec import Struct

from projections.history import Entry, entry
from projections.lists import Filter, ids_of
from projections.projection import Step
from projections.runner import INDIGESTIBLE, step_of
from projections.tickets import TicketView, view
from tickets.connections import Connection
from tickets.ledger import Ledger, Stored, read_these, streams
from tickets.ticket import Ticket

_FACTS_AT_A_TIME: Final = 4_000


class Life(Struct, frozen=True):
    """A ticket as it was at a moment, and how it came to that."""

    ticket: TicketView
    history: list[Entry]


class Unreadable(Struct, frozen=True):
    """A fact that cannot be read, or does not follow in its stream: its ticket is told as it was before it."""

    position: int
    version: int
    why: Exception


class Moment(Struct, frozen=True):
    """Until when tickets are followed: a place in the ledger, and of each a version or a time."""

    position: int
    version: int | None = None
    as_of: datetime | None = None


class Followed(Struct):
    """A ticket as far as it was followed; None where not even its first fact can be read."""

    id: UUID
    facts: Sequence[Stored]
    steps: list[Step]
    unreadable: Unreadable | None

    @property
    def ticket(self) -> Ticket | None:
        """The ticket as it then was."""
        return self.steps[-1].after if self.steps else None

    def shown(self, at: Moment) -> TicketView | None:
        """The ticket as it then was, as the API shows it."""
        ticket = self.ticket
        return None if ticket is None else view(ticket, at.as_of or ticket.updated_at, internal=True)

    def life(self, at: Moment) -> Life | None:
        """What there is to tell."""
        shown = self.shown(at)
        if shown is None:
            return None
        return Life(shown, [entry(one.fact, one.envelope, one.before, cast("Ticket", one.after)) for one in self.steps])


async def replay(
    ledger: Ledger, ticket_id: UUID, *, version: int | None = None, as_of: datetime | None = None
) -> Life | None:
    """The life of a ticket up to a version, a time, or now; None if it was not there then.

    Raises what reading a fact raised that cannot be read.
    """
    at = Moment(2**63 - 1, version, as_of)
    for one in _followed(await read_these(ledger.pool, [ticket_id], upto=at.position), at):
        if one.unreadable is not None:
            raise one.unreadable.why
        return one.life(at)
    return None


async def follow(
    connection: Connection, at: Moment, wanted: Sequence[UUID] | Filter | None = None
) -> AsyncIterator[Followed]:
    """The tickets that are named, that fit now, or all, in the order of their ids, as far as `at`.

    Those that were not there then are left out. Needs a transaction.
    """
    found = ids_of(connection, wanted) if isinstance(wanted, Filter) else streams(connection, wanted)
    async for some in _portions(found):
        for one in _followed(await read_these(connection, some, upto=at.position), at):
            yield one


async def _portions(found: AsyncIterator[tuple[UUID, int]]) -> AsyncIterator[list[UUID]]:
    some, facts = list[UUID](), 0
    async for stream_id, count in found:
        if some and facts + count > _FACTS_AT_A_TIME:
            yield some
            some, facts = [], 0
        some.append(stream_id)
        facts += count
    if some:
        yield some


def _until(facts: Sequence[Stored], at: Moment) -> Sequence[Stored]:
    """Those up to the moment; none where the ticket has no such version yet."""
    if at.version is not None:
        return facts[: at.version] if len(facts) >= at.version else ()
    if at.as_of is not None:
        last = max((place for place, one in enumerate(facts, 1) if one.occurred_at <= at.as_of), default=0)
        return facts[:last]
    return facts


def _followed(stored: Sequence[Stored], at: Moment) -> Iterator[Followed]:
    for stream_id, facts in groupby(stored, key=attrgetter("stream_id")):
        if until := _until(list(facts), at):
            one = _folded(stream_id, until)
            if one.ticket is not None or one.unreadable is not None:  # the others are people
                yield one


def _folded(stream_id: UUID, facts: Sequence[Stored]) -> Followed:
    steps: list[Step] = []
    for one in facts:
        try:
            steps.append(step_of(one, steps[-1].after if steps else None))
        except INDIGESTIBLE as error:
            return Followed(stream_id, facts, steps, Unreadable(one.position, one.version, error))
    return Followed(stream_id, facts, steps, None)


async def find_ticket(ledger: Ledger, id_or_number: str) -> UUID | None:
    """The id of a ticket named by its id or its number."""
    try:
        return UUID(id_or_number)
    except ValueError:
        found: UUID | None = await ledger.pool.fetchval(
            "select ticket_id from read_model.tickets where number = $1", id_or_number
        )
        return found
