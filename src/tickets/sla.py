"""Priorities, how fast each wants an answer, and when that is.

Pure functions of times. Deliberately absent: a clock; whoever asks brings the time. Business calendars
would live here: `due` is the one place that adds a target to a moment.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct


class Priority(StrEnum):
    """How urgent a ticket is; P1 is the most urgent."""

    P1 = "P1"
    P2 = "P2"
    P3 = "P3"
    P4 = "P4"


class Target(Struct, frozen=True):
    """How soon a ticket wants its first response and its resolution."""

    response: timedelta
    resolution: timedelta


TARGETS: Final[dict[Priority, Target]] = {
    Priority.P1: Target(timedelta(hours=1), timedelta(hours=4)),
    Priority.P2: Target(timedelta(hours=4), timedelta(hours=12)),
    Priority.P3: Target(timedelta(hours=8), timedelta(hours=48)),
    Priority.P4: Target(timedelta(hours=24), timedelta(hours=120)),
}
"""The targets unless the installation sets its own."""


def due(start: datetime, target: timedelta, paused: timedelta = timedelta()) -> datetime:
    """When something started at `start` is due, the clock having stood still for `paused`."""
    return start + target + paused


def breach_at(due_at: datetime, stopped_at: datetime | None) -> datetime | None:
    """From when on a deadline counts as missed, or None if the clock stopped in time.

    While the clock runs (`stopped_at` is None) that is the deadline itself, so whether it is missed at
    any moment is `moment > breach_at`, without an event having to say so.
    """
    if stopped_at is not None and stopped_at <= due_at:
        return None
    return due_at
