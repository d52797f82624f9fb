"""What a ticket is about: the words a client chooses from, and how long its texts may be.

Deliberately absent: status, role and priority, which have rules of their own and live with them.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta


class Category(StrEnum):
    """What kind of request a ticket is."""

    INCIDENT = "INCIDENT"
    SERVICE_REQUEST = "SERVICE_REQUEST"
    CHANGE_REQUEST = "CHANGE_REQUEST"
    PROBLEM = "PROBLEM"
    QUESTION = "QUESTION"


class Environment(StrEnum):
    """Where the matter is."""

    PRODUCTION = "PRODUCTION"
    STAGING = "STAGING"
    TESTING = "TESTING"
    DEVELOPMENT = "DEVELOPMENT"


MAX_TAGS: Final = 20

Title = Annotated[str, Meta(min_length=3, max_length=255)]
Description = Annotated[str, Meta(min_length=1, max_length=20_000)]
ServiceName = Annotated[str, Meta(min_length=1, max_length=255)]
TeamName = Annotated[str, Meta(min_length=1, max_length=100)]
Tag = Annotated[str, Meta(min_length=1, max_length=50)]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)]
Reason = Annotated[str, Meta(min_length=1, max_length=20_000)]
CommentBody = Annotated[str, Meta(min_length=1, max_length=20_000)]


class Scan(StrEnum):
    """What is known of a file's harmlessness."""

    CLEAN = "clean"
    UNSCANNED = "unscanned"
    """There is no scanner."""
    QUARANTINED = "quarantined"
    """The scanner was away, or found something: nobody gets it."""
