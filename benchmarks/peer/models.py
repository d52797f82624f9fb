"""The peer's tables. Deliberately absent: what goes over the wire (schemas.py)."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Sequence,
    String,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables."""


NUMBERS = Sequence("ticket_numbers", metadata=Base.metadata)


class Ticket(Base):
    """A ticket as it is now."""

    __tablename__ = "tickets"
    __table_args__ = (
        Index("tickets_by_creation", "created_at", "id"),
        Index("tickets_by_status", "status", "priority", "created_at", "id"),
        Index("tickets_by_assignee", "assignee_id", "created_at"),
        Index("tickets_by_requester", "requester_id", "created_at"),
        Index("tickets_by_team", "team", "created_at"),
        Index("tickets_by_words", "words", postgresql_using="gin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(20), unique=True)
    version: Mapped[int] = mapped_column(Integer)
    title: Mapped[str] = mapped_column(String(255))
    description: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(String(20))
    priority: Mapped[str] = mapped_column(String(2))
    status: Mapped[str] = mapped_column(String(20))
    environment: Mapped[str | None] = mapped_column(String(20))
    affected_service: Mapped[str | None] = mapped_column(String(255))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(50)))
    requester_id: Mapped[UUID]
    assignee_id: Mapped[UUID | None]
    team: Mapped[str | None] = mapped_column(String(100))
    resolution_notes: Mapped[str | None] = mapped_column(Text)
    response_due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    resolution_due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    responded_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    comment_count: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    words: Mapped[Any] = mapped_column(
        TSVECTOR,
        Computed("to_tsvector('english', number || ' ' || title || ' ' || description)", persisted=True),
        deferred=True,
    )

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - it is how SQLAlchemy is told


class History(Base):
    """A change of a ticket."""

    __tablename__ = "history"
    __table_args__ = (Index("history_by_ticket", "ticket_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    ticket_id: Mapped[UUID] = mapped_column(ForeignKey("tickets.id"))
    version: Mapped[int] = mapped_column(Integer)
    action: Mapped[str] = mapped_column(String(30))
    actor_id: Mapped[UUID]
    actor_name: Mapped[str | None] = mapped_column(String(100))
    actor_role: Mapped[str] = mapped_column(String(30))
    ip_address: Mapped[str | None] = mapped_column(String(45))
    changes: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    reason: Mapped[str | None] = mapped_column(Text)
    occurred_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Comment(Base):
    """What somebody said of a ticket."""

    __tablename__ = "comments"
    __table_args__ = (
        Index("comments_by_ticket", "ticket_id", "created_at"),
        Index("comments_by_words", "words", postgresql_using="gin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    ticket_id: Mapped[UUID] = mapped_column(ForeignKey("tickets.id"))
    author_id: Mapped[UUID]
    author_name: Mapped[str | None] = mapped_column(String(100))
    author_role: Mapped[str] = mapped_column(String(30))
    body: Mapped[str] = mapped_column(Text)
    internal: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    words: Mapped[Any] = mapped_column(
        TSVECTOR, Computed("to_tsvector('english', body)", persisted=True), deferred=True
    )
