"""The peer's service: `uvicorn benchmarks.peer.app:app`, with DATABASE_URL and JWT_SECRET_KEY as its settings."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import jwt
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy import ColumnElement, func, select, union
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.peer.models import NUMBERS, Base, Comment, History, Ticket
from benchmarks.peer.schemas import (
    Assignment,
    Category,
    CommentOut,
    HistoryOut,
    HistoryPage,
    NewComment,
    NewTicket,
    Priority,
    Status,
    StatusChange,
    TicketOut,
    TicketPage,
)

TRANSITIONS: dict[Status, set[Status]] = {
    Status.NEW: {Status.OPEN},
    Status.OPEN: {Status.IN_PROGRESS, Status.PENDING_INFO},
    Status.IN_PROGRESS: {Status.RESOLVED, Status.ESCALATED, Status.PENDING_INFO},
    Status.PENDING_INFO: {Status.OPEN, Status.IN_PROGRESS},
    Status.ESCALATED: {Status.IN_PROGRESS, Status.RESOLVED},
    Status.RESOLVED: {Status.CLOSED, Status.REOPENED},
    Status.CLOSED: {Status.REOPENED},
    Status.REOPENED: {Status.OPEN, Status.IN_PROGRESS, Status.PENDING_INFO},
}
SLA_HOURS = {"P1": (1, 4), "P2": (4, 12), "P3": (8, 48), "P4": (24, 120)}
STAFF = {"DEVOPS_ENGINEER", "SENIOR_ENGINEER", "TEAM_LEAD", "MANAGER", "ADMIN"}

engine = create_async_engine(
    os.environ["DATABASE_URL"], pool_size=int(os.environ.get("POOL_SIZE", "20")), max_overflow=0, pool_timeout=30
)
new_session = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make the tables that are not there."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(title="Tickets", lifespan=lifespan)
bearer = HTTPBearer()


class User(BaseModel):
    """Who asks."""

    sub: UUID
    role: str
    username: str | None = None


async def session() -> AsyncIterator[AsyncSession]:
    """A session of this request's own."""
    async with new_session() as one:
        yield one


def user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> User:
    """Who asks, by the token."""
    try:
        claims = jwt.decode(credentials.credentials, os.environ["JWT_SECRET_KEY"], algorithms=["HS256"])
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "bad token") from error
    return User.model_validate(claims)


DB = Annotated[AsyncSession, Depends(session)]
Me = Annotated[User, Depends(user)]


def staff(me: User) -> None:
    """Refuse those who are not."""
    if me.role not in STAFF:
        raise HTTPException(403, "staff only")


async def visible(db: AsyncSession, ticket_id: UUID, me: User, *, lock: bool = False) -> Ticket:
    """The ticket, if there is one for this person."""
    ticket = await db.get(Ticket, ticket_id, with_for_update=lock)
    if ticket is None or (me.role == "END_USER" and ticket.requester_id != me.sub):
        raise HTTPException(404, "no such ticket")
    return ticket


def note(
    db: AsyncSession,
    ticket: Ticket,
    me: User,
    request: Request,
    action: str,
    reason: str | None,
    changes: dict[str, Any],
) -> None:
    """Set the fields, with a row of history."""
    listed = []
    for field, new in changes.items():
        old = getattr(ticket, field)
        setattr(ticket, field, new)
        if old != new:
            listed.append({"field": field, "old": shown(old), "new": shown(new)})
    ticket.updated_at = datetime.now(UTC)
    db.add(
        History(
            ticket_id=ticket.id,
            version=ticket.version + 1,
            action=action,
            actor_id=me.sub,
            actor_name=me.username,
            actor_role=me.role,
            ip_address=request.client.host if request.client else None,
            changes=listed,
            reason=reason,
            occurred_at=ticket.updated_at,
        )
    )


def shown(value: object) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


@app.get("/health")
async def health(db: DB) -> dict[str, str]:
    """Whether the database answers."""
    await db.scalar(select(1))
    return {"status": "ok"}


@app.post("/api/v1/tickets", status_code=201)
async def create_ticket(asked: NewTicket, db: DB, me: Me, request: Request) -> TicketOut:
    """Create a ticket."""
    now = datetime.now(UTC)
    number = await db.scalar(NUMBERS.next_value().select())
    respond, resolve = SLA_HOURS[asked.priority]
    ticket = Ticket(
        **asked.model_dump(),
        id=uuid4(),
        number=f"TKT-{now.year}-{number:06d}",
        status=Status.NEW,
        requester_id=me.sub,
        response_due_at=now + timedelta(hours=respond),
        resolution_due_at=now + timedelta(hours=resolve),
        created_at=now,
        updated_at=now,
    )
    db.add(ticket)
    await db.flush()
    created = [{"field": name, "old": None, "new": shown(value)} for name, value in asked.model_dump().items()]
    db.add(
        History(
            ticket_id=ticket.id,
            version=1,
            action="CREATED",
            actor_id=me.sub,
            actor_name=me.username,
            actor_role=me.role,
            ip_address=request.client.host if request.client else None,
            changes=created,
            occurred_at=now,
        )
    )
    await db.commit()
    return TicketOut.model_validate(ticket)


@app.get("/api/v1/tickets/{ticket_id}")
async def get_ticket(ticket_id: UUID, db: DB, me: Me) -> TicketOut:
    """One ticket."""
    return TicketOut.model_validate(await visible(db, ticket_id, me))


@app.get("/api/v1/tickets")
async def list_tickets(
    db: DB,
    me: Me,
    q: str | None = None,
    status: Annotated[list[Status] | None, Query()] = None,
    priority: Annotated[list[Priority] | None, Query()] = None,
    category: Annotated[list[Category] | None, Query()] = None,
    assignee_id: UUID | None = None,
    team: str | None = None,
    page: Annotated[int, Query(ge=1)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> TicketPage:
    """A page of tickets, newest first, or those that were searched for, best first."""
    wanted: list[ColumnElement[bool]] = []
    if me.role == "END_USER":
        wanted.append(Ticket.requester_id == me.sub)
    if status:
        wanted.append(Ticket.status.in_(status))
    if priority:
        wanted.append(Ticket.priority.in_(priority))
    if category:
        wanted.append(Ticket.category.in_(category))
    if assignee_id:
        wanted.append(Ticket.assignee_id == assignee_id)
    if team:
        wanted.append(Ticket.team == team)
    order: Sequence[Any] = (Ticket.created_at.desc(), Ticket.id.desc())
    if q:
        asked = func.websearch_to_tsquery("english", q)
        said = select(Comment.ticket_id).where(Comment.words.op("@@")(asked))
        if me.role == "END_USER":
            said = said.where(Comment.internal.is_(False))
        wanted.append(Ticket.id.in_(union(select(Ticket.id).where(Ticket.words.op("@@")(asked)), said)))
        order = (func.ts_rank(Ticket.words, asked).desc(), *order)
    found = select(Ticket).where(*wanted)
    total = await db.scalar(select(func.count()).select_from(Ticket).where(*wanted)) or 0
    rows = await db.scalars(found.order_by(*order).limit(page_size).offset((page - 1) * page_size))
    items = [TicketOut.model_validate(row) for row in rows]
    if q:
        await highlight(db, items, q, internal=me.role != "END_USER")
    return TicketPage(items=items, page=page, page_size=page_size, total=total)


async def highlight(db: AsyncSession, items: list[TicketOut], q: str, *, internal: bool) -> None:
    """Show what was found of each: of the ticket itself or, where it is a comment that was found, of one."""
    asked = func.websearch_to_tsquery("english", q)
    ids = [one.id for one in items]
    own = select(Ticket.id, func.ts_headline("english", Ticket.description, asked)).where(
        Ticket.id.in_(ids), Ticket.words.op("@@")(asked)
    )
    said = select(Comment.ticket_id, func.ts_headline("english", Comment.body, asked)).where(
        Comment.ticket_id.in_(ids), Comment.words.op("@@")(asked)
    )
    if not internal:
        said = said.where(Comment.internal.is_(False))
    found: dict[UUID, str] = dict((await db.execute(said.distinct(Comment.ticket_id))).tuples().all())
    found |= dict((await db.execute(own)).tuples().all())
    for one in items:
        one.highlights = found.get(one.id)


@app.get("/api/v1/tickets/{ticket_id}/history")
async def get_history(
    ticket_id: UUID,
    db: DB,
    me: Me,
    page: Annotated[int, Query(ge=1)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> HistoryPage:
    """A page of a ticket's history, oldest first."""
    await visible(db, ticket_id, me)
    of_it = History.ticket_id == ticket_id
    total = await db.scalar(select(func.count()).select_from(History).where(of_it)) or 0
    rows = await db.scalars(
        select(History).where(of_it).order_by(History.id).limit(page_size).offset((page - 1) * page_size)
    )
    return HistoryPage(
        items=[HistoryOut.model_validate(row) for row in rows], page=page, page_size=page_size, total=total
    )


@app.put("/api/v1/tickets/{ticket_id}/assign")
async def assign(ticket_id: UUID, asked: Assignment, db: DB, me: Me, request: Request) -> TicketOut:
    """Give it to somebody."""
    staff(me)
    ticket = await visible(db, ticket_id, me, lock=True)
    if ticket.status == Status.CLOSED:
        raise HTTPException(409, "the ticket is closed")
    changes: dict[str, Any] = {"assignee_id": asked.assignee_id, "team": asked.team}
    if ticket.status == Status.NEW:
        changes["status"] = Status.OPEN
    note(db, ticket, me, request, "ASSIGNMENT_CHANGE", asked.reason, changes)
    await db.commit()
    return TicketOut.model_validate(ticket)


@app.patch("/api/v1/tickets/{ticket_id}/status")
async def change_status(ticket_id: UUID, asked: StatusChange, db: DB, me: Me, request: Request) -> TicketOut:
    """Take a step of the workflow."""
    staff(me)
    ticket = await visible(db, ticket_id, me, lock=True)
    if asked.status not in TRANSITIONS[Status(ticket.status)]:
        raise HTTPException(409, f"no step from {ticket.status} to {asked.status}")
    changes: dict[str, Any] = {"status": asked.status}
    if asked.status is Status.RESOLVED:
        changes["resolution_notes"] = asked.reason
    if asked.status is Status.IN_PROGRESS and ticket.responded_at is None:
        changes["responded_at"] = datetime.now(UTC)
    note(db, ticket, me, request, "STATUS_CHANGE", asked.reason, changes)
    await db.commit()
    return TicketOut.model_validate(ticket)


@app.post("/api/v1/tickets/{ticket_id}/comments", status_code=201)
async def comment(ticket_id: UUID, asked: NewComment, db: DB, me: Me, request: Request) -> CommentOut:
    """Say something of it."""
    ticket = await visible(db, ticket_id, me, lock=True)
    if asked.internal:
        staff(me)
    said = Comment(
        id=uuid4(),
        ticket_id=ticket_id,
        author_id=me.sub,
        author_name=me.username,
        author_role=me.role,
        body=asked.body,
        internal=asked.internal,
        created_at=datetime.now(UTC),
    )
    db.add(said)
    note(db, ticket, me, request, "COMMENT_ADDED", None, {"comment_count": ticket.comment_count + 1})
    await db.commit()
    return CommentOut.model_validate(said)
