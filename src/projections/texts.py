"""Words to search by: a ticket's own text and each comment, a row each.

Found is a ticket whose own text, or one of whose comments, has all that is asked for. Deliberately absent:
lists and their filters (lists.py), which use what is here.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

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


def best(texts: str) -> str:
    """SQL: the `rank` of a ticket, and the ids of its `best` texts, out of a query for text_id, position and rank."""
    # The offset has each text ranked once, whatever is made of it.
    return f"""max(r.rank)::float8 as rank,
               (array_agg(r.text_id order by r.rank desc, r.position desc))[:{_SNIPPETS}] as best
               from ({texts} offset 0) r"""


def snippets(found: str, query: str) -> str:
    """SQL: the texts with these ids, where they have what is asked for, marked, as an array; for `shown`."""
    marked = f"StartSel={_MARK[0]}, StopSel={_MARK[1]}, MaxWords=30, MinWords=12"
    return f"""array(select ts_headline('english', trim(x.title || ' ' || x.said), {query}, '{marked}')
        from unnest({found}) with ordinality b (text_id, n) join read_model.texts x using (text_id) order by b.n)"""


def asked(query: str) -> str:
    """SQL: whether one of few texts `x` has the words: it is looked at, and not all that have them are looked up."""
    return f"(x.words @@ {query}) is true"


def shown(snippet: str) -> str:
    """A snippet as HTML, with the words in <mark>."""
    return escape(snippet).replace(_MARK[0], "<mark>").replace(_MARK[1], "</mark>")
