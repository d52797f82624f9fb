"""That the soak measures what it says; the soak itself runs for an hour (soak.py)."""

import os
import time
from pathlib import Path

import pytest

from tests.faults.soak import memory_mb, process_at, slope, watching


def test_a_slope_is_what_rises_for_each_hour() -> None:
    assert slope([(0, 100), (1, 104), (2, 108)]) == pytest.approx(4)
    assert slope([(0, 100), (1, 90), (2, 110), (3, 100)]) == pytest.approx(2)
    assert slope([(1, 5)]) == 0


def test_memory_is_seen_to_grow_where_it_does() -> None:
    before = memory_mb(Path(f"/proc/{os.getpid()}"))
    kept = b"x" * (64 << 20)
    assert memory_mb(Path(f"/proc/{os.getpid()}")) > before + 50, len(kept)


def test_where_nobody_listens_nothing_is_measured() -> None:
    with pytest.raises(LookupError):
        process_at(1)


def test_the_disk_and_the_processor_are_asked_meanwhile_how_long_they_take(tmp_path: Path) -> None:
    with watching(Path(f"/proc/{os.getpid()}"), tmp_path) as seen:
        time.sleep(0.5)
    assert 1 <= len(seen.flushes_ms) <= 6
    assert min(seen.flushes_ms) > 0
    assert min(seen.works_ms) > 0
    assert min(seen.memory_mb) > 20, "a Python"
    assert not list(tmp_path.iterdir())
