"""Proofs from the database: those of the tree over the leaves, whatever of it is kept, and few rows for each."""

from collections.abc import AsyncIterator
from hashlib import sha256
from random import Random

import pytest

from tickets import merkle
from tickets.connections import Connection, connect
from tickets.proofs import NotThere, consistency, extend, inclusion, root_at

FACTS = 256 * 9 + 77
"""Nine complete blocks and a part of one: nodes of levels 8 to 11."""

LEAVES = [sha256(b"%d" % n).digest() for n in range(FACTS)]
SIZES = [1, 2, 255, 256, 257, 511, 512, 768, 1000, 1024, 2047, 2048, 2304, 2305, FACTS]


@pytest.fixture
async def tree(dsn: str, owner: Connection) -> AsyncIterator[Connection]:
    """A service's connection to a ledger that has these leaves, and nothing kept of their tree."""
    await owner.execute(
        """insert into ledger.events (position, stream_id, version, topic, occurred_at, recorded_at, command_id,
                                      metadata, state, leaf)
           select n, gen_random_uuid(), 1, 'x', now(), now(), gen_random_uuid(), '', '', leaf
           from unnest($1::bytea[]) with ordinality l(leaf, n)""",
        LEAVES,
    )
    connection = await connect(dsn)
    yield connection
    await connection.close()


async def kept(connection: Connection) -> dict[tuple[int, int], bytes]:
    return {(row[0], row[1]): row[2] for row in await connection.fetch("select level, index, hash from ledger.tree")}


async def test_roots_and_proofs_are_those_of_the_leaves(tree: Connection) -> None:
    luck = Random(7)  # noqa: S311 - not for secrets
    for size in SIZES:
        top = merkle.root(LEAVES[:size])
        assert await root_at(tree, size) == top
        for position in {1, size, luck.randint(1, size), luck.randint(1, size)}:
            path = await inclusion(tree, position, size)
            assert merkle.verify_inclusion(LEAVES[position - 1], position - 1, size, path, top)
    for first in SIZES:
        for second in SIZES[SIZES.index(first) :]:
            path = await consistency(tree, first, second)
            roots = merkle.root(LEAVES[:first]), merkle.root(LEAVES[:second])
            assert merkle.verify_consistency(first, second, *roots, path)


async def test_the_empty_tree_has_its_root(tree: Connection) -> None:
    assert await root_at(tree, 0) == merkle.EMPTY
    assert await consistency(tree, 0, 5) == []


async def test_every_complete_node_is_kept_and_no_other(tree: Connection) -> None:
    for size in (100, 300, 900, 1024, FACTS, FACTS):
        await extend(tree, size)
        expected = {
            (level, index): merkle.root(LEAVES[index << level : (index + 1) << level])
            for level in range(8, 12)
            for index in range(size >> level)
        }
        assert await kept(tree) == expected


@pytest.mark.parametrize("hole", ["true", "level = 8 and index % 2 = 1", "level > 8", "index = 0"])
async def test_what_is_not_kept_is_made_of_the_leaves(tree: Connection, owner: Connection, hole: str) -> None:
    await extend(tree, FACTS)
    await owner.execute(f"delete from ledger.tree where {hole}")
    top = merkle.root(LEAVES)
    assert await root_at(tree, FACTS) == top
    for position in (1, 600, 2304, FACTS):
        path = await inclusion(tree, position, FACTS)
        assert merkle.verify_inclusion(LEAVES[position - 1], position - 1, FACTS, path, top)


async def test_a_proof_reads_a_few_blocks_and_a_node_a_level(tree: Connection, owner: Connection) -> None:
    await extend(tree, FACTS)
    await owner.execute("delete from ledger.tree where level = 8 and index between 2 and 7")
    await owner.execute("set session_replication_role = replica")
    await owner.execute("delete from ledger.events where position > 512 and position <= 2304")
    path = await inclusion(tree, 300, FACTS)
    assert merkle.verify_inclusion(LEAVES[299], 299, FACTS, path, merkle.root(LEAVES))


@pytest.mark.parametrize("size", [FACTS + 1, 256 * 10, 10**9])
async def test_there_is_no_tree_over_facts_that_are_not_there(tree: Connection, size: int) -> None:
    with pytest.raises(NotThere):
        await root_at(tree, size)
    with pytest.raises(ValueError, match="no entry"):
        await inclusion(tree, size + 1, size)


async def test_nodes_can_be_added_to_and_not_changed_by_the_service(tree: Connection) -> None:
    await extend(tree, FACTS)
    for statement in ("update ledger.tree set hash = ''", "delete from ledger.tree", "truncate ledger.tree"):
        with pytest.raises(Exception, match="permission denied"):
            await tree.execute(statement)
