"""A ticket's life read off the ledger, fact by fact, with what each changed: for audits.

Works without any read model being up to date. Deliberately absent: how it is shown.
"""

from datetime import datetime
from typing import cast
from uuid import UUID

from msgspec import Struct

from projections.history import Entry, entry
from projections.projection import Envelope, decode_metadata
from projections.tickets import TicketView, view
from tickets.events import TicketEvent
from tickets.ledger import Ledger
from tickets.ticket import Ticket, evolve


class Life(Struct, frozen=True):
    """A ticket as it was at a moment, and how it came to that."""

    ticket: TicketView
    history: list[Entry]


async def replay(
    ledger: Ledger, ticket_id: UUID, *, version: int | None = None, as_of: datetime | None = None
) -> Life | None:
    """The life of a ticket up to a version, a time, or now; None if it was not there then."""
    upto = version if as_of is None else await ledger.version_at(ticket_id, as_of)
    ticket: Ticket | None = None
    history: list[Entry] = []
    for recorded in await ledger.load(ticket_id, upto=upto):
        fact = cast("TicketEvent", recorded.fact)
        after = evolve(fact, ticket)
        envelope = Envelope(recorded.position, recorded.recorded_at, decode_metadata(recorded.metadata))
        history.append(entry(fact, envelope, ticket, after))
        ticket = after
    if ticket is None or (version is not None and ticket.version != version):
        return None
    return Life(view(ticket, as_of or ticket.updated_at, internal=True), history)


async def find_ticket(ledger: Ledger, id_or_number: str) -> UUID | None:
    """The id of a ticket named by its id or its number."""
    try:
        return UUID(id_or_number)
    except ValueError:
        found: UUID | None = await ledger.pool.fetchval(
            "select ticket_id from read_model.tickets where number = $1", id_or_number
        )
        return found
