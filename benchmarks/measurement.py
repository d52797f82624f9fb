"""What a benchmark is: the figures that it promises, and rounds that each give a value for every figure.

Deliberately absent: any measuring, and how results are shown (__main__.py).
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from msgspec import Struct

from benchmarks.databases import Server


class Target(Struct, frozen=True):
    """What a figure should be."""

    sign: Literal[">=", "<=", "<"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether this value is as it should be."""
        match self.sign:
            case ">=":
                return value >= self.bound
            case "<=":
                return value <= self.bound
            case "<":
                return value < self.bound


class Figure(Struct, frozen=True):
    """Something that each round gives a value for. Without a target it is for information."""

    key: str
    what: str
    unit: str
    target: Target | None = None


class Bench(Struct, frozen=True, kw_only=True):
    """What a benchmark has to work with."""

    server: Server
    folder: Path
    rounds: int
    quick: bool
    say: Callable[[str], None]


Round = Mapping[str, float]
"""A value for each of the figures, by key; a quick one leaves some out."""


class Benchmark(Struct, frozen=True):
    """A benchmark; `measure` yields `bench.rounds` rounds and raises AssertionError where one is not right."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[Bench], AsyncIterator[Round]]


class Result(Struct, frozen=True):
    """What came of one figure. `value` is the median of the rounds."""

    benchmark: str
    key: str
    what: str
    unit: str
    value: float
    rounds: tuple[float, ...]
    target: str | None
    met: bool | None


def result(benchmark: str, figure: Figure, rounds: Sequence[Round]) -> Result:
    """The median of a figure over the rounds, held against its target."""
    values = tuple(one[figure.key] for one in rounds)
    value, target = median(values), figure.target
    return Result(
        benchmark=benchmark,
        key=figure.key,
        what=figure.what,
        unit=figure.unit,
        value=value,
        rounds=values,
        target=None if target is None else f"{target.sign} {target.bound:g}",
        met=None if target is None else target.met(value),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]
