"""The queries about the ledger itself: what is signed of it, and proofs.

Deliberately absent: what proofs are made of (tickets/proofs.py), and checking them: that is for who asks.
"""

from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Annotated, Final
from uuid import UUID

from litestar import get
from msgspec import Meta, Struct

from api.checkpointing import trusted_key
from api.openapi import answers
from api.problems import InvalidRequest, Problem
from api.queries.answering import QUERY, Listed, NoQuery, Number, PageQuery, document, encode, page, visible_ticket
from api.requests import Answer, ApiRequest, Installation, installation, query
from projections.lists import TOTALS_EXACT_UPTO
from tickets import proofs
from tickets.checkpoints import Checkpoint
from tickets.errors import Forbidden, NotFound
from tickets.proofs import Proof

Size = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class ConsistencyQuery(Struct, frozen=True, kw_only=True):
    """The sizes of two checkpoints; by default the newest, and the one before it."""

    first: Size | None = None
    second: Size | None = None


class ProofQuery(Struct, frozen=True, kw_only=True):
    """Which version; by default the newest that is under a checkpoint."""

    version: Number | None = None


LEDGER_QUERIES: Final[dict[str, type[Struct]]] = {
    "getLedger": NoQuery,
    "listCheckpoints": PageQuery,
    "getConsistency": ConsistencyQuery,
    "getProof": ProofQuery,
}
"""The parameters of each operation here."""


class LedgerView(Struct, frozen=True):
    """How large the ledger is, its newest seal in hexadecimal, and what was last signed of it, by whom."""

    size: int
    seal: str
    checkpoint: str | None
    """The newest note."""
    public_key: str | None
    """The verifier key of who signs; null where this process does not know it."""


class CheckpointView(Struct, frozen=True):
    """What was signed: so many facts have this root; and the note that says so."""

    size: int
    root: bytes
    time: datetime
    note: str


class CheckpointList(Listed):
    """A page of checkpoints, the newest first."""

    items: list[CheckpointView]


class Consistency(Struct, frozen=True):
    """That the second checkpoint's facts begin with all of the first's: RFC 9162, 2.1.4."""

    first: CheckpointView
    second: CheckpointView
    path: list[bytes]


@get("/ledger", operation_id="getLedger", responses=answers(200, LedgerView, "The ledger."), **QUERY)
async def get_ledger(request: ApiRequest) -> Answer:
    """How large the ledger is, and the newest checkpoint: keep it, and nothing before it can change unseen."""
    query(request, NoQuery)
    served = installation(request)
    newest = await proofs.newest_checkpoint(served.ledger.pool)
    size, seal = await served.ledger.newest_seal()
    key = trusted_key(served.settings)
    view = LedgerView(size, seal.hex(), None if newest is None else newest.note, None if key is None else str(key))
    return document(encode(view), size, {})


@get(
    "/ledger/checkpoints",
    operation_id="listCheckpoints",
    responses=answers(200, CheckpointList, "A page of checkpoints."),
    **QUERY,
)
async def list_checkpoints(request: ApiRequest) -> Answer:
    """What was signed of the ledger, the newest first."""
    served, wanted = installation(request), query(request, PageQuery)
    before = int(wanted.cursor) if wanted.cursor is not None else 2**63 - 1
    pool = served.ledger.pool
    found = await proofs.checkpoints(pool, before=before, limit=wanted.page_size + 1)
    shown = found[: wanted.page_size]
    total = await proofs.count_checkpoints(pool, TOTALS_EXACT_UPTO + 1)
    about = {
        "page": None if wanted.cursor is not None else 1,
        "page_size": wanted.page_size,
        "total": min(total, TOTALS_EXACT_UPTO),
        "total_is_exact": total <= TOTALS_EXACT_UPTO,
        "next_cursor": str(shown[-1].size) if len(found) > len(shown) else None,
    }
    return page(request, [encode(_view(one)) for one in shown], about, served.ledger.newest)


@get(
    "/ledger/consistency",
    operation_id="getConsistency",
    responses=answers(200, Consistency, "The proof."),
    **QUERY,
)
async def get_consistency(request: ApiRequest) -> Answer:
    """That between two checkpoints facts were only added; by default between the newest and the one before it."""
    served, wanted = installation(request), query(request, ConsistencyQuery)
    pool = served.ledger.pool
    second = await (
        proofs.newest_checkpoint(pool) if wanted.second is None else proofs.checkpoint_at(pool, wanted.second)
    )
    if second is None:
        raise NotFound
    if wanted.first is None:
        first = next(iter(await proofs.checkpoints(pool, before=second.size, limit=1)), second)
    elif (named := await proofs.checkpoint_at(pool, wanted.first)) is not None:
        first = named
    else:
        raise NotFound
    if first.size > second.size:
        raise InvalidRequest("first", "must be the smaller of the two")
    path = await proofs.consistency(pool, first.size, second.size)
    return document(encode(Consistency(_view(first), _view(second), path)), served.ledger.newest, {})


_PROOF: Final = answers(200, Proof, "The proof.")


@get("/tickets/{ticket_id:uuid}/proof", operation_id="getProof", responses=_PROOF, **QUERY)
async def get_proof(request: ApiRequest, ticket_id: UUID) -> Answer:
    """That a fact of the ticket is in the ledger as it was signed: the fact, its path, the checkpoint. For staff."""
    served, wanted = installation(request), query(request, ProofQuery)
    await visible_ticket(request, ticket_id)
    if not request.user.is_staff:
        raise Forbidden(role=request.user.role, permission="ask for", what="proofs: they hold all that is recorded")
    checkpoint, key = await proofs.newest_checkpoint(served.ledger.pool), trusted_key(served.settings)
    if checkpoint is not None and key is not None:
        found = await proofs.proof(served.ledger.pool, ticket_id, wanted.version, checkpoint, str(key))
        if found is not None:
            return document(encode(found), served.ledger.newest, {})
    if (
        wanted.version is not None
        and await served.ledger.load(ticket_id, after=wanted.version - 1, upto=wanted.version) == []
    ):
        raise NotFound
    raise _not_yet(served, checkpoint)


LEDGER_QUERY_ROUTES: Final = (get_ledger, list_checkpoints, get_consistency, get_proof)
"""All queries about the ledger itself."""


def _view(one: Checkpoint) -> CheckpointView:
    return CheckpointView(one.size, one.root, one.time, one.note)


def _not_yet(served: Installation, checkpoint: Checkpoint | None) -> Problem:
    every = timedelta(seconds=served.settings.checkpoint_seconds)
    now = datetime.now(UTC)
    wait = max(1, ceil(((now if checkpoint is None else checkpoint.time + every) - now).total_seconds()) + 1)
    covered = 0 if checkpoint is None else checkpoint.size
    return Problem(
        "not-under-checkpoint",
        f"The newest checkpoint covers the facts up to position {covered}; the next is due in {wait} s.",
        {"Retry-After": str(wait)},
    )
