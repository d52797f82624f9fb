"""The Merkle tree: the vectors of Certificate Transparency's own tests, the RFC's definitions, and no forgery."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickets.merkle import (
    EMPTY,
    Piece,
    consistency_spans,
    grown,
    inclusion_spans,
    joined,
    leaf_hash,
    node_hash,
    pieces,
    root,
    spans,
    verify_consistency,
    verify_inclusion,
)

ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
"""The roots over the first 0, 1, … 8 of them, as in the tests of google/certificate-transparency."""

PATHS = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
    (1, 5): (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
CONSISTENCY = {
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}

trees = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70, unique=True)


def defined(entries: Sequence[bytes]) -> bytes:
    """MTH, word by word as the RFC has it (2.1.1)."""
    if not entries:
        return EMPTY
    if len(entries) == 1:
        return leaf_hash(entries[0])
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return node_hash(defined(entries[:split]), defined(entries[split:]))


def inclusion(entries: Sequence[bytes], index: int) -> list[bytes]:
    return [defined(entries[start:end]) for start, end in inclusion_spans(index, len(entries))]


def consistency(entries: Sequence[bytes], first: int) -> list[bytes]:
    return [defined(entries[start:end]) for start, end in consistency_spans(first, len(entries))]


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8 % len(value)] ^= 1 << bit % 8
    return bytes(changed)


# Known vectors


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert root(ENTRIES[:size]) == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_paths_are_those_of_certificate_transparency(index: int, size: int) -> None:
    path = [bytes.fromhex(text) for text in PATHS[index, size]]
    assert inclusion(ENTRIES[:size], index) == path
    assert verify_inclusion(ENTRIES[index], index, size, path, ROOTS[size])


@pytest.mark.parametrize(("first", "second"), CONSISTENCY)
def test_consistency_is_that_of_certificate_transparency(first: int, second: int) -> None:
    path = [bytes.fromhex(text) for text in CONSISTENCY[first, second]]
    assert consistency(ENTRIES[:second], first) == path
    assert verify_consistency(first, second, ROOTS[first], ROOTS[second], path)


# Properties


@given(trees)
def test_the_root_is_the_rfcs(entries: list[bytes]) -> None:
    assert root(entries) == defined(entries)


@given(trees, st.lists(st.integers(0, 70)))
def test_a_tree_that_grew_piece_by_piece_is_the_same(entries: list[bytes], cuts: list[int]) -> None:
    tree: list[Piece] = []
    at = 0
    for cut in (*sorted(cut for cut in cuts if cut <= len(entries)), len(entries)):
        grown(tree, pieces(at, [leaf_hash(entry) for entry in entries[at:cut]]))
        at = cut
        assert joined(tree) == defined(entries[:at])


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_a_range_is_made_up_of_complete_subtrees(start: int, length: int) -> None:
    at = start
    for level, index in spans(start, start + length):
        assert index << level == at
        at += 1 << level
    assert at == start + length


@given(trees, st.data())
def test_every_inclusion_is_proven_and_nothing_else(entries: list[bytes], data: st.DataObject) -> None:
    size, top = len(entries), defined(entries)
    index = data.draw(st.integers(0, size - 1))
    path = inclusion(entries, index)
    assert verify_inclusion(entries[index], index, size, path, top)
    bit = data.draw(st.integers(0, 255))
    assert not verify_inclusion(flipped(entries[index], bit), index, size, path, top)
    assert not verify_inclusion(entries[index], index, size, path, flipped(top, bit))
    for n in range(len(path)):
        assert not verify_inclusion(
            entries[index], index, size, [*path[:n], flipped(path[n], bit), *path[n + 1 :]], top
        )
        assert not verify_inclusion(entries[index], index, size, path[:n] + path[n + 1 :], top)
    assert not verify_inclusion(entries[index], index, size, [*path, top], top)
    for other in range(size):
        assert other == index or not verify_inclusion(entries[index], other, size, path, top)
        smaller = defined(entries[:other])
        assert not verify_inclusion(entries[index], index, other, path, smaller), "roots belong to their sizes"
    assert not verify_inclusion(entries[index], -1, size, path, top)
    assert not verify_inclusion(entries[index], size, size, path, top)


@given(trees, st.data())
def test_every_consistency_is_proven_and_nothing_else(entries: list[bytes], data: st.DataObject) -> None:
    second, new = len(entries), defined(entries)
    first = data.draw(st.integers(1, second))
    old, path = defined(entries[:first]), consistency(entries, first)
    assert verify_consistency(first, second, old, new, path)
    bit = data.draw(st.integers(0, 255))
    assert not verify_consistency(first, second, flipped(old, bit), new, path)
    assert not verify_consistency(first, second, old, flipped(new, bit), path)
    for n in range(len(path)):
        assert not verify_consistency(first, second, old, new, [*path[:n], flipped(path[n], bit), *path[n + 1 :]])
        assert not verify_consistency(first, second, old, new, path[:n] + path[n + 1 :])
    assert not verify_consistency(first, second, old, new, [*path, new])
    changed = [*entries[: first - 1], flipped(entries[first - 1], bit), *entries[first:]]
    assert not verify_consistency(first, second, old, defined(changed), consistency(changed, first))
    for other in range(1, second + 1):
        assert other == first or not verify_consistency(other, second, defined(entries[:other]), new, path)


def test_everything_follows_from_nothing() -> None:
    assert verify_consistency(0, 8, EMPTY, ROOTS[8], [])
    assert not verify_consistency(0, 8, ROOTS[1], ROOTS[8], [])
    assert not verify_consistency(0, 8, EMPTY, ROOTS[8], [EMPTY])
    assert not verify_consistency(8, 7, ROOTS[8], ROOTS[7], [])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no entry"):
        inclusion_spans(index, size)


def test_a_tree_did_not_come_of_a_larger_one() -> None:
    with pytest.raises(ValueError, match="did not come"):
        consistency_spans(4, 3)
