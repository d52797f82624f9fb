"""The Merkle tree over the facts, RFC 9162 section 2.1 with SHA-256: roots, proofs, and checking them.

An entry is the 32 bytes of a fact's leaf (integrity.py); entry i is the fact at position i + 1. Ranges of
entries are half open. Pure functions over bytes. Deliberately absent: where the entries and nodes are
(proofs.py), and who vouches for a root (checkpoints.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct

EMPTY: Final = sha256(b"").digest()
"""The root of a tree without entries."""

Span = tuple[int, int]
"""From the first entry up to but not including the second."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry at the bottom of the tree."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above two others."""
    return sha256(b"\x01" + left + right).digest()


def root(entries: Iterable[bytes]) -> bytes:
    """The root of the tree that has these entries."""
    return joined(pieces(0, [leaf_hash(entry) for entry in entries]))


class Piece(Struct, frozen=True):
    """A complete subtree: the 2**level entries from index * 2**level on."""

    level: int
    index: int
    hash: bytes


def spans(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The fewest complete subtrees that make up a range, in order, each as its level and index."""
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        yield level, start >> level
        start += 1 << level


def pieces(start: int, hashes: Sequence[bytes]) -> list[Piece]:
    """The fewest complete subtrees over leaf hashes that begin with that of entry `start`."""
    found: list[Piece] = []
    at = 0
    for level, index in spans(start, start + len(hashes)):
        size = 1 << level
        found.append(Piece(level, index, perfect(hashes[at : at + size])))
        at += size
    return found


def perfect(hashes: Sequence[bytes]) -> bytes:
    """The hash over 2**n hashes."""
    while len(hashes) > 1:
        pairs = iter(hashes)
        hashes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return hashes[0]


def grown(tree: list[Piece], more: Iterable[Piece]) -> None:
    """Add to the pieces of a tree, which come to as few as can be, those that follow."""
    for piece in more:
        tree.append(piece)
        while len(tree) > 1 and tree[-1].level == tree[-2].level and tree[-1].index & 1:
            right, left = tree.pop(), tree.pop()
            tree.append(Piece(left.level + 1, left.index >> 1, node_hash(left.hash, right.hash)))


def joined(tree: Sequence[Piece]) -> bytes:
    """The root of the tree that these pieces are, as few as can be."""
    if not tree:
        return EMPTY
    found = tree[-1].hash
    for piece in reversed(tree[:-1]):
        found = node_hash(piece.hash, found)
    return found


def inclusion_spans(index: int, size: int) -> list[Span]:
    """The ranges whose hashes prove that an entry is in a tree, in the order of the proof (2.1.3.1).

    Raises ValueError where the tree has no such entry.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} has no entry {index}")
    found: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]


def consistency_spans(first: int, second: int) -> list[Span]:
    """The ranges whose hashes prove that a tree is what became of a smaller one (2.1.4.1).

    Raises ValueError where the first is not the smaller.
    """
    if not 0 <= first <= second:
        raise ValueError(f"a tree of {second} did not come of one of {first}")
    if first in (0, second):
        return []
    found: list[Span] = []
    start, end, whole = 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start, whole = middle, False
    if not whole:
        found.append((start, end))
    return found[::-1]


def _split(size: int) -> int:
    """The largest power of two that is smaller."""
    return 1 << ((size - 1).bit_length() - 1)


def verify_inclusion(entry: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path proves that this is entry `index` of the tree with that size and root (2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf_hash(entry)
    for one in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(one, found)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, one)
        position, last = position >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the path proves that the second tree begins with all of the first (2.1.4.2).

    Of an empty tree everything came, and it takes no path to say so.
    """
    if not 0 <= first <= second:
        return False
    if first in (0, second):
        return not path and first_root == (second_root if first else EMPTY) and (second > 0 or second_root == EMPTY)
    hashes = list(path) if first & (first - 1) else [first_root, *path]
    if not path:
        return False
    position, last = first - 1, second - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(one, old), node_hash(one, new)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, one)
        position, last = position >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root
