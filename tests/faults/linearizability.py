"""Whether a history of operations on tickets can have happened one after the other, each between its two ends.

A ticket is a register with a version: each write sets a value of its own and makes the next version, each read shows a
version and the value at it. That is all that the checker knows; it imports nothing of the product. Deliberately absent:
making histories (clients.py), and what a ticket is beside its version and that value.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Literal


@dataclass(frozen=True)
class Operation:
    """One operation as its client saw it; times are of one clock for all clients."""

    kind: Literal["read", "write"]
    ticket: str
    value: str | None
    """What a write was to set, unlike that of any other write; what a read showed."""
    invoked: float
    returned: float
    """When its last answer came; never (`inf`) where none did."""
    outcome: Literal["acknowledged", "refused", "unknown"]
    version: int | None = None
    """The version that a write made or a read showed; what a refusal called the current one."""
    expected: int | None = None
    """The version that a write was meant for (If-Match)."""
    positions: tuple[int, int] | None = None
    """Of a read: how far it was to reach at least, and how far it did (Ledger-Position)."""


def violations(history: Iterable[Operation], recorded: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """What is wrong with a history, a sentence each; nothing, where it is linearizable.

    `recorded` has the values of each ticket in the order of its versions, as the ledger has them in the end.
    """
    found: list[str] = []
    tickets: dict[str, list[Operation]] = defaultdict(list)
    for one in history:
        tickets[one.ticket].append(one)
    for ticket, operations in tickets.items():
        at: dict[int, str] = {}
        found += [f"{ticket}: {problem}" for problem in _of_values(operations, at)]
        found += [f"{ticket}: {problem}" for problem in _of_order(operations)]
        if recorded is None:
            found += [f"{ticket}: {problem}" for problem in _of_gaps(operations, at)]
        else:
            found += [f"{ticket}: {problem}" for problem in _of_record(operations, at, recorded.get(ticket, ()))]
    return found


def _of_values(operations: Sequence[Operation], at: dict[int, str]) -> Iterable[str]:
    """Each version has one value, each value one version, and what was refused has none."""
    versions: dict[str, int] = {}
    refused = {one.value for one in operations if one.kind == "write" and one.outcome == "refused"}
    for one in operations:
        if one.outcome == "refused" and one.expected is not None and one.version == one.expected:
            yield f"{_told(one)} was meant for that version, and refused"
        if one.outcome != "acknowledged":
            continue
        if one.version is None or one.value is None:
            yield f"{_told(one)} was acknowledged without a version or a value"
            continue
        if at.setdefault(one.version, one.value) != one.value:
            yield f"version {one.version} is {at[one.version]!r} and {one.value!r}"
        if versions.setdefault(one.value, one.version) != one.version:
            yield f"{one.value!r} was made twice: it is at version {versions[one.value]} and {one.version}"
        if one.kind == "read" and one.value in refused:
            yield f"{one.value!r} was refused, and is read at version {one.version}"
        if one.kind == "write" and one.expected is not None and one.version != one.expected + 1:
            yield f"{_told(one)} was meant for version {one.expected}"
        if one.positions is not None and one.positions[1] < one.positions[0]:
            yield f"{_told(one)} reaches to {one.positions[1]}, and was to reach to {one.positions[0]}"


def _of_order(operations: Sequence[Operation]) -> Iterable[str]:
    """What was over before another began has no later version: nothing is stale, nothing written in the past."""
    ended: list[tuple[float, int, Operation]] = []
    newest: Operation | None = None
    for number, one in enumerate(sorted(operations, key=lambda one: one.invoked)):
        while ended and ended[0][0] < one.invoked:
            over = heappop(ended)[2]
            if newest is None or (over.version or 0) > (newest.version or 0):
                newest = over
        if one.version is None:
            continue
        if newest is not None and newest.version is not None:
            if one.kind == "write" and one.outcome == "acknowledged":
                if one.version <= newest.version:
                    yield f"{_told(one)} was made after {_told(newest)} was over"
            elif one.version < newest.version:
                yield f"{_told(one)} is stale: {_told(newest)} was over before it began"
        if one.returned != inf:
            heappush(ended, (one.returned, number, one))


def _of_gaps(operations: Sequence[Operation], at: Mapping[int, str]) -> Iterable[str]:
    """A version that nobody made can only be one of the writes whose fate is not known."""
    missing = sorted(set(range(1, max(at, default=0) + 1)) - set(at))
    known = set(at.values())
    unknown = {one.value for one in operations if one.kind == "write" and one.outcome == "unknown"} - known
    if len(missing) > len(unknown):
        yield f"nobody made the versions {missing}, and there are only {len(unknown)} writes of unknown fate"


def _of_record(operations: Sequence[Operation], at: Mapping[int, str], record: Sequence[str]) -> Iterable[str]:
    """The ledger has what was acknowledged where it was said to be, each once, and nothing that was not asked for."""
    for version, value in sorted(at.items()):
        kept = record[version - 1] if 0 < version <= len(record) else None
        if kept != value:
            yield f"version {version} was {value!r}, and in the ledger it is {kept!r}"
    if len(set(record)) < len(record):
        twice = sorted({value for value in record if record.count(value) > 1})
        yield f"the ledger has {twice} more than once"
    writes = {one.value: one.outcome for one in operations if one.kind == "write"}
    for version, value in enumerate(record, 1):
        if writes.get(value, "refused") == "refused":
            yield f"the ledger has {value!r} at version {version}, which was refused or never asked for"


def _told(one: Operation) -> str:
    return f"{'reading' if one.kind == 'read' else 'writing'} {one.value!r} ({one.outcome}, version {one.version})"
