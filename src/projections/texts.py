"""Words to search by: a ticket's own text and each comment, a row each.

Found is a ticket whose own text, or one of whose comments, has all that is asked for. Deliberately absent:
lists and their filters (tickets.py), which use what is here.
"""

from collections.abc import Sequence
from html import escape
from typing import Final
from uuid import UUID

from projections.projection import Projection, Row, Step
from tickets.connections import Pool
from tickets.events import CommentAdded, CommentDeleted, CommentEdited, Created, Edited

LOOKED_AT: Final = 200
"""Of what many texts have, so many tickets are ranked, and counted: the newest that fit the filters as well."""

FEW: Final = 1_000
"""So many texts are looked up, whatever else it might be."""

_ASKED: Final = 2.0
"""How much longer it takes to ask a ticket whether it has the words than to look one up that is known to have them."""

_SNIPPETS: Final = 3
_MARK: Final = ("\ue000", "\ue001")
"""Around a word that was found, until the rest has been escaped; characters for private use, by Unicode's word."""


def _rows(step: Step) -> Sequence[Row]:
    fact, ticket, position = step.fact, step.after, step.envelope.position
    if ticket is None:
        return ()
    match fact:
        case Created() | Edited():
            title = f"{ticket.number} {ticket.title}"
            return ((ticket.id, ticket.id, position, False, title, ticket.description),)
        case CommentAdded() | CommentEdited():
            said = fact.body
        case CommentDeleted():
            said = ""
        case _:
            return ()
    return ((fact.comment_id, ticket.id, position, fact.internal, "", said),)


TEXTS: Final = Projection(
    name="texts",
    columns=("text_id", "ticket_id", "position", "internal", "title", "said"),
    rows=_rows,
    newest_only=True,
    about=frozenset({Created, Edited, CommentAdded, CommentEdited, CommentDeleted}),
    row_type="texts_row",
)


async def expected(pool: Pool, q: str) -> int:
    """How many texts have what is asked for, as the database expects."""
    texts: int = await pool.fetchval("select read_model.texts_expected(websearch_to_tsquery('english', $1))", q)
    return texts


def is_common(texts: int, *, fitting: int, tickets: int) -> bool:
    """Whether looking up so many texts takes longer than asking the tickets, of which so many fit the filters."""
    asked = min(fitting, LOOKED_AT * tickets / max(texts, 1))
    return asked * _ASKED < texts


async def snippets(pool: Pool, ticket_ids: Sequence[UUID], q: str, *, internal: bool) -> dict[UUID, list[str]]:
    """For each ticket the best places that have what is asked for: HTML, with the words in <mark>."""
    rows = await pool.fetch(
        """select t.ticket_id, ts_headline('english', t.said, q, $4) as found
           from unnest($1::uuid[]) w(ticket_id), websearch_to_tsquery('english', $2) q,
             lateral (select x.ticket_id, trim(x.title || ' ' || x.said) as said from read_model.texts x
                      where x.ticket_id = w.ticket_id and x.words @@ q and (not x.internal or $3)
                      order by ts_rank(x.words, q) desc, x.position desc limit $5) t""",
        ticket_ids,
        q,
        internal,
        f"StartSel={_MARK[0]}, StopSel={_MARK[1]}, MaxWords=30, MinWords=12",
        _SNIPPETS,
    )
    found: dict[UUID, list[str]] = {ticket_id: [] for ticket_id in ticket_ids}
    for ticket_id, text in rows:
        found[ticket_id].append(escape(text).replace(_MARK[0], "<mark>").replace(_MARK[1], "</mark>"))
    return found
