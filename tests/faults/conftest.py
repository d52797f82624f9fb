"""What the faults have in common: a seed that can be given again, and figures that are told where somebody looks.

Deliberately absent: the clients (clients.py), and faults.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import randbelow

import pytest

from tests.conftest import room_for_a_server
from tests.faults import clusters
from tests.faults.clusters import Cluster

SEED = int(os.environ.get("SEED") or randbelow(1_000_000))
"""What chance there is follows from it; `SEED=… make faults` repeats a run as far as processes can be repeated."""

MANY, BACK_S = 20, 3.0
"""Of so many recoveries, 95 % take less than so many seconds."""

Tell = Callable[[str], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Says a line on the terminal in the long form, and where a test failed."""

    def telling(line: str) -> None:
        if request.config.get_verbosity() >= 0:
            with capsys.disabled():
                print(f"\n  {line}", end="", flush=True)  # noqa: T201 - it is what the long form is for
        else:
            print(line)  # noqa: T201 - shown where the test fails

    telling(f"SEED={SEED}")
    return telling


@pytest.fixture
def chance(tell: Tell) -> random.Random:  # noqa: ARG001 - whoever takes chances has told the seed
    """The chance of this test."""
    return random.Random(SEED)  # noqa: S311 - nothing is kept secret with it


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a cluster that has the schema, of which others are copies."""
    with room_for_a_server(tmp_path_factory) as folder:
        clusters.make(folder)
        yield folder


@pytest.fixture
def cluster(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A PostgreSQL of this test's own."""
    with room_for_a_server(tmp_path_factory) as folder, clusters.copied(original, folder) as copy:
        yield copy


def limits(*, long: bool) -> tuple[float, float]:
    """Within how many seconds each request is answered, and the service good again once there is no fault any more.

    The short form shares its machine with other tests, and is about the truth.
    """
    return (5.0, 10.0) if long else (15.0, 60.0)


def assert_back_in_time(recoveries: Sequence[float]) -> None:
    """Of many recoveries, nearly all took less than three seconds."""
    assert len(recoveries) < MANY or percentile(recoveries, 0.95) < BACK_S


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[max(0, min(len(values) - 1, round(share * len(values)) - 1))]
