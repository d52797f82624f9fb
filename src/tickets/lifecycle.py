"""Where a ticket can be in its life, and the steps between.

Deliberately absent: who may take a step (permissions.py) and what a step does (commands.py).
"""

from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """The state of a ticket, in the order of the workflow."""

    NEW = "NEW"
    OPEN = "OPEN"
    IN_PROGRESS = "IN_PROGRESS"
    PENDING_INFO = "PENDING_INFO"
    ESCALATED = "ESCALATED"
    RESOLVED = "RESOLVED"
    CLOSED = "CLOSED"
    REOPENED = "REOPENED"


TRANSITIONS: Final[dict[Status, tuple[Status, ...]]] = {
    Status.NEW: (Status.OPEN,),
    Status.OPEN: (Status.IN_PROGRESS, Status.PENDING_INFO),
    Status.IN_PROGRESS: (Status.RESOLVED, Status.ESCALATED, Status.PENDING_INFO),
    Status.PENDING_INFO: (Status.OPEN, Status.IN_PROGRESS),
    Status.ESCALATED: (Status.IN_PROGRESS, Status.RESOLVED),
    Status.RESOLVED: (Status.CLOSED, Status.REOPENED),
    Status.CLOSED: (Status.REOPENED,),
    Status.REOPENED: (Status.OPEN, Status.IN_PROGRESS, Status.PENDING_INFO),
}
"""The steps that the workflow has. A closed ticket reopens only within the reopen window."""
