"""Roots and proofs of the ledger's Merkle tree, from the database.

Complete nodes over 256 entries and more are kept in ledger.tree, so that a proof in a ledger of millions of
facts takes a few ranges of leaves and a node a level. They are a cache: what is missing is made from the
leaves. Deliberately absent: the tree itself (merkle.py), and whether the leaves are right (verification.py).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from msgspec import Struct

from tickets.checkpoints import Checkpoint, parse
from tickets.connections import Connection, Pool
from tickets.merkle import (
    Piece,
    Span,
    consistency_spans,
    grown,
    inclusion_spans,
    joined,
    leaf_hash,
    node_hash,
    perfect,
    pieces,
    spans,
)

_KEPT: Final = 8
"""The lowest level of nodes that are kept: over 256 entries, a block."""

_BLOCK: Final = 1 << _KEPT
_BLOCKS_AT_ONCE: Final = 16
"""Hashing these holds the event loop up for some milliseconds."""

_Node = tuple[int, int]
"""The level and index of a complete subtree."""


class NotThere(LookupError):  # noqa: N818 - it says what is the matter
    """The ledger has fewer facts than the tree that was asked for."""


async def root_at(source: Pool | Connection, size: int) -> bytes:
    """The root of the tree over the first `size` facts. Raises NotThere."""
    return joined(await tree_at(source, size))


async def tree_at(source: Pool | Connection, size: int) -> list[Piece]:
    """The tree over the first `size` facts, in as few pieces as can be. Raises NotThere."""
    return (await _trees(source, [(0, size)]))[0]


async def inclusion(source: Pool | Connection, position: int, size: int) -> list[bytes]:
    """The path that proves that the fact at this position is in the tree over the first `size` facts.

    Raises ValueError where it is not among them, NotThere.
    """
    return await _hashes(source, inclusion_spans(position - 1, size))


async def consistency(source: Pool | Connection, first: int, second: int) -> list[bytes]:
    """The path that proves that the tree over `second` facts begins with all of the one over `first`.

    Raises ValueError where the first is not the smaller, NotThere.
    """
    return await _hashes(source, consistency_spans(first, second))


async def extend(source: Pool | Connection, size: int) -> None:
    """Keep the nodes that are complete within the first `size` facts, after those that are kept. Raises NotThere."""
    newest: int | None = await source.fetchval("select max(index) from ledger.tree where level = $1", _KEPT)
    start, end = 0 if newest is None else newest + 1, size >> _KEPT
    for first in range(start, end, _BLOCKS_AT_ONCE):
        await _keep_some(source, first, min(first + _BLOCKS_AT_ONCE, end))


# What is signed, and what is proven by it


class ProvenFact(Struct, frozen=True):
    """A fact, as it was hashed. `metadata` and `state` are the exact bytes, `occurred_at` has microseconds."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    occurred_at: str
    metadata: str
    state: str


class Inclusion(Struct, frozen=True):
    """That entry `index` is in the tree over `size` facts: RFC 9162, 2.1.3."""

    index: int
    size: int
    path: list[bytes]


class Proof(Struct, frozen=True):
    """A fact, its leaf, the leaf's path to a root, and the checkpoint that has this root."""

    fact: ProvenFact
    leaf: bytes
    inclusion: Inclusion
    checkpoint: str
    public_key: str


async def newest_checkpoint(source: Pool | Connection) -> Checkpoint | None:
    """The newest checkpoint in the database, as it says itself. Raises BadCheckpoint."""
    found = await checkpoints(source, before=2**63 - 1, limit=1)
    return found[0] if found else None


async def checkpoints(source: Pool | Connection, *, before: int, limit: int) -> list[Checkpoint]:
    """So many checkpoints over fewer facts than `before`, the newest first. Raises BadCheckpoint."""
    rows = await source.fetch(
        "select note from ledger.checkpoints where size < $1 order by size desc limit $2", before, limit
    )
    return [parse(note) for (note,) in rows]


async def count_checkpoints(source: Pool | Connection, upto: int) -> int:
    """How many checkpoints there are, if not more than this."""
    count: int = await source.fetchval("select count(*) from (select from ledger.checkpoints limit $1) c", upto)
    return count


async def checkpoint_at(source: Pool | Connection, size: int) -> Checkpoint | None:
    """The checkpoint over so many facts. Raises BadCheckpoint."""
    note: str | None = await source.fetchval("select note from ledger.checkpoints where size = $1", size)
    return None if note is None else parse(note)


async def proof(
    source: Pool | Connection, stream_id: UUID, version: int | None, checkpoint: Checkpoint, public_key: str
) -> Proof | None:
    """That a version of a stream, by default the newest that the checkpoint covers, is under it.

    None where the stream has no such version, or the checkpoint does not cover it.
    """
    row = await source.fetchrow(
        """select position, stream_id, version, topic, occurred_at, metadata, state, leaf from ledger.events
           where stream_id = $1 and version = coalesce($2, version) and position <= $3
           order by version desc limit 1""",
        stream_id,
        version,
        checkpoint.size,
    )
    if row is None:
        return None
    return Proof(
        fact=ProvenFact(
            row["position"],
            row["stream_id"],
            row["version"],
            row["topic"],
            in_microseconds(row["occurred_at"]),
            row["metadata"].decode(),
            row["state"].decode(),
        ),
        leaf=row["leaf"],
        inclusion=Inclusion(
            row["position"] - 1, checkpoint.size, await inclusion(source, row["position"], checkpoint.size)
        ),
        checkpoint=checkpoint.note,
        public_key=public_key,
    )


def in_microseconds(moment: datetime) -> str:
    """A time in RFC 3339, in UTC, always with six digits after the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


async def _hashes(source: Pool | Connection, wanted: Sequence[Span]) -> list[bytes]:
    """The hash over each of these ranges."""
    return [joined(tree) for tree in await _trees(source, wanted)]


async def _trees(source: Pool | Connection, wanted: Sequence[Span]) -> list[list[Piece]]:
    """What each of these ranges is made of."""
    parts = [list(spans(*one)) for one in wanted]
    nodes = {node for one in parts for node in one if node[0] >= _KEPT}
    blocks = {index << level >> _KEPT for one in parts for level, index in one if level < _KEPT}
    kept = await _kept(source, nodes)
    for level, index in nodes - kept.keys():
        kept[level, index] = await _computed(source, level, index)
    leaves = await _leaf_hashes(source, blocks)
    return [[_piece(node, kept, leaves) for node in one] for one in parts]


def _piece(node: _Node, kept: dict[_Node, bytes], leaves: dict[int, bytes]) -> Piece:
    level, index = node
    if level >= _KEPT:
        return Piece(level, index, kept[node])
    try:
        return Piece(level, index, perfect([leaves[at] for at in range(index << level, (index + 1) << level)]))
    except KeyError as error:
        raise NotThere(f"there is no fact at position {error.args[0] + 1}") from None


async def _computed(source: Pool | Connection, level: int, index: int) -> bytes:
    """A node from its leaves, where it is not kept. Raises NotThere."""
    tree: list[Piece] = []
    for start in range(index << level, (index + 1) << level, _BLOCK * _BLOCKS_AT_ONCE):
        end = min(start + _BLOCK * _BLOCKS_AT_ONCE, (index + 1) << level)
        grown(tree, pieces(start, [leaf_hash(leaf) for leaf in await _leaves(source, start, end)]))
    return joined(tree)


async def _leaves(source: Pool | Connection, start: int, end: int) -> list[bytes]:
    rows = await source.fetch(
        "select leaf from ledger.events where position > $1 and position <= $2 order by position", start, end
    )
    if len(rows) != end - start:
        raise NotThere(f"there are not {end} facts without a gap")
    return [leaf for (leaf,) in rows]


async def _kept(source: Pool | Connection, nodes: set[_Node]) -> dict[_Node, bytes]:
    if not nodes:
        return {}
    rows = await source.fetch(
        """select t.level, t.index, t.hash from unnest($1::smallint[], $2::bigint[]) w(level, index)
           join ledger.tree t on t.level = w.level and t.index = w.index""",
        [level for level, _ in nodes],
        [index for _, index in nodes],
    )
    return {(level, index): hash_ for level, index, hash_ in rows}


async def _leaf_hashes(source: Pool | Connection, blocks: set[int]) -> dict[int, bytes]:
    """The leaf hash of each entry of these blocks that is there."""
    if not blocks:
        return {}
    rows = await source.fetch(
        """select e.position, e.leaf from unnest($1::bigint[]) w(block)
           cross join lateral (select position, leaf from ledger.events
                               where position > w.block * $2 and position <= (w.block + 1) * $2) e""",
        list(blocks),
        _BLOCK,
    )
    return {position - 1: leaf_hash(leaf) for position, leaf in rows}


async def _keep_some(source: Pool | Connection, start: int, end: int) -> None:
    """Keep the nodes over these blocks, and those above that are complete with them. Raises NotThere."""
    leaves = await _leaves(source, start * _BLOCK, end * _BLOCK)
    found: dict[_Node, bytes] = {
        (_KEPT, start + n): perfect([leaf_hash(leaf) for leaf in leaves[n * _BLOCK : (n + 1) * _BLOCK]])
        for n in range(end - start)
    }
    level, first, last = _KEPT, start, end
    while last >> 1 > first >> 1:
        children = {(level, first - 1)} if first & 1 else set()
        below = found | await _kept(source, children)
        level, first, last = level + 1, first >> 1, last >> 1
        for index in range(first, last):
            left, right = below.get((level - 1, 2 * index)), below.get((level - 1, 2 * index + 1))
            if left is not None and right is not None:
                found[level, index] = node_hash(left, right)
    await source.execute(
        """insert into ledger.tree (level, index, hash) select * from unnest($1::smallint[], $2::bigint[], $3::bytea[])
           on conflict do nothing""",
        [level for level, _ in found],
        [index for _, index in found],
        list(found.values()),
    )
