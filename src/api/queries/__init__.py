"""The half of the REST API that only looks."""

from typing import Final

from msgspec import Struct

from api.queries.conversation import CONVERSATION_QUERIES, CONVERSATION_QUERY_ROUTES
from api.queries.events import EVENT_QUERIES, EVENT_QUERY_ROUTES
from api.queries.ledger import LEDGER_QUERIES, LEDGER_QUERY_ROUTES
from api.queries.past import PAST_QUERIES, PAST_QUERY_ROUTES
from api.queries.tickets import TICKET_QUERIES, TICKET_QUERY_ROUTES

QUERY_ROUTES: Final = (
    *TICKET_QUERY_ROUTES,
    *CONVERSATION_QUERY_ROUTES,
    *PAST_QUERY_ROUTES,
    *EVENT_QUERY_ROUTES,
    *LEDGER_QUERY_ROUTES,
)
"""All queries."""

QUERIES: Final[dict[str, type[Struct]]] = {
    **TICKET_QUERIES,
    **CONVERSATION_QUERIES,
    **PAST_QUERIES,
    **EVENT_QUERIES,
    **LEDGER_QUERIES,
}
"""The parameters of each operation."""
