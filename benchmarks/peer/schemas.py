"""What goes over the peer's wire. Deliberately absent: tables (models.py)."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Category = Literal["INCIDENT", "SERVICE_REQUEST", "CHANGE_REQUEST", "PROBLEM", "QUESTION"]
Priority = Literal["P1", "P2", "P3", "P4"]
Environment = Literal["PRODUCTION", "STAGING", "TESTING", "DEVELOPMENT"]
Title = Annotated[str, StringConstraints(min_length=3, max_length=255)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=50)]


class Status(StrEnum):
    """Where a ticket can be."""

    NEW = "NEW"
    OPEN = "OPEN"
    IN_PROGRESS = "IN_PROGRESS"
    PENDING_INFO = "PENDING_INFO"
    ESCALATED = "ESCALATED"
    RESOLVED = "RESOLVED"
    CLOSED = "CLOSED"
    REOPENED = "REOPENED"


class Asked(BaseModel):
    """A body: a field that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class NewTicket(Asked):
    """A ticket to create."""

    title: Title
    description: Text
    category: Category
    priority: Priority = "P3"
    environment: Environment | None = None
    affected_service: Annotated[str, StringConstraints(max_length=255)] | None = None
    tags: Annotated[list[Tag], Field(max_length=20)] = []
    team: str | None = None


class Assignment(Asked):
    """Whom to give it to."""

    assignee_id: UUID | None
    team: str | None = None
    reason: str | None = None


class StatusChange(Asked):
    """Where to."""

    status: Status
    reason: str | None = None


class NewComment(Asked):
    """Something to say."""

    body: Text
    internal: bool = False


class Shown(BaseModel):
    """An answer, read off a row."""

    model_config = ConfigDict(from_attributes=True)


class TicketOut(Shown):
    """A ticket as it is shown."""

    id: UUID
    number: str
    version: int
    title: str
    description: str
    category: Category
    priority: Priority
    status: Status
    environment: Environment | None
    affected_service: str | None
    tags: list[str]
    requester_id: UUID
    assignee_id: UUID | None
    team: str | None
    resolution_notes: str | None
    response_due_at: datetime
    resolution_due_at: datetime
    responded_at: datetime | None
    comment_count: int
    created_at: datetime
    updated_at: datetime
    highlights: str | None = None


class TicketPage(BaseModel):
    """A page of a list."""

    items: list[TicketOut]
    page: int
    page_size: int
    total: int


class HistoryOut(Shown):
    """A change as it is shown."""

    id: int
    version: int
    action: str
    actor_id: UUID
    actor_name: str | None
    actor_role: str
    ip_address: str | None
    changes: list[dict[str, Any]]
    reason: str | None
    occurred_at: datetime


class HistoryPage(BaseModel):
    """A page of a ticket's history."""

    items: list[HistoryOut]
    page: int
    page_size: int
    total: int


class CommentOut(Shown):
    """A comment as it is shown."""

    id: UUID
    ticket_id: UUID
    body: str
    internal: bool
    author_id: UUID
    author_name: str | None
    author_role: str
    created_at: datetime
