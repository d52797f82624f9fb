"""The audit log of a ServiceNow instance, as facts: `tickets import servicenow`.

A row of the log is a snapshot of one incident after one update. What it says happened is what differs from
the row before it; each row that differs becomes one command, with the row's own time and actor. The
command's id follows from the row, so the ledger's own rule that a command is accepted once makes an import
repeatable: started again, after a kill or with a longer log, it adds what is not there yet.

History is recorded as it was and never refused by today's rules. Deliberately absent: reading other
systems live; this reads a file.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace

from api.servicenow_log import UNKNOWN, Dirty, LogError, Row, read_log
from tickets.commands import Policy, reschedule
from tickets.events import (
    Assigned,
    By,
    Closed,
    Created,
    Edited,
    Fact,
    Metadata,
    PersonSeen,
    Prioritized,
    Reopened,
    Resolved,
    StatusChanged,
    TicketEvent,
)
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.people import stream_of
from tickets.sla import Priority, due
from tickets.ticket import Ticket, evolve, fold
from tickets.values import Category
from tickets.writer import Append

_OVER: Final = (Status.RESOLVED, Status.CLOSED)
_IN_FLIGHT: Final = 256
_CHUNK: Final = 512


class Report(Struct, kw_only=True):
    """What an import did."""

    rows: int = 0
    incidents: int = 0
    people: int = 0
    facts: int = 0
    """Facts added now."""
    known: int = 0
    """Rows that an earlier import had brought already."""
    dirty: list[Dirty]


Told = Callable[[int, int], None]


async def import_log(ledger: Ledger, path: Path, policy: Policy, told: Told = lambda _done, _of: None) -> Report:
    """Record the log's incidents and people. `told` hears how many rows are done, of how many.

    Raises LogError, and what Ledger.append raises.
    """
    log = await asyncio.to_thread(read_log, path)
    incidents = log.incidents
    report = Report(rows=sum(map(len, incidents.values())), incidents=len(incidents), dirty=log.dirty)
    report.people = await _record_people(ledger, incidents, report)
    lives = iter(incidents.items())
    done = 0

    async def work(life: tuple[str, list[Row]], known: set[UUID]) -> None:
        nonlocal done
        await _record(ledger, *life, known, policy, report)
        done += len(life[1])
        told(done, report.rows)

    while chunk := list(islice(lives, _CHUNK)):
        known = await ledger.known([_command_id(number, row) for number, rows in chunk for row in rows])
        await _all([partial(work, life, known) for life in chunk])
    return report


def person_id(label: str) -> UUID:
    """The id of a person of the log."""
    return uuid5(NAMESPACE_URL, f"servicenow:{label}")


def ticket_id(number: str) -> UUID:
    """The id of the ticket that an incident becomes."""
    return uuid5(NAMESPACE_URL, f"servicenow:incident:{number}")


def ticket_number(number: str) -> str:
    """The number of the ticket that an incident becomes."""
    return f"INC{number}"


def _command_id(number: str, row: Row) -> UUID:
    return uuid5(NAMESPACE_URL, f"servicenow:incident:{number}:{row.change}:{row.at:%Y%m%d%H%M}")


async def _record(
    ledger: Ledger, number: str, rows: Sequence[Row], known: set[UUID], policy: Policy, report: Report
) -> None:
    """Record what is not there yet of one incident's life."""
    stream = ticket_id(number)
    ticket: Ticket | None = None
    if known:
        ticket = await _stored(ledger, stream) if any(_command_id(number, row) in known for row in rows) else None
    before: Row | None = None
    for row in rows:
        command_id = _command_id(number, row)
        if command_id in known:
            report.known += 1
            before = _filled(row, before)
            continue
        version = ticket.version if ticket else 0
        facts: list[tuple[Fact, Metadata]] = []
        if ticket is None:
            created = _created(stream, number, row, policy)
            facts.append((created, _about(row.opened_by or row.actor, command_id, number, row)))
            ticket = evolve(created, None)
        happened, ticket = _happened(ticket, before, row, policy)
        about = _about(row.actor, command_id, number, row)
        facts += [(fact, about) for fact in happened]
        before = _filled(row, before)
        if not facts:
            continue
        outcome = await ledger.append(
            Append(command_id=command_id, stream_id=stream, expected_version=version, facts=tuple(facts))
        )
        if outcome.verdict == "conflict":
            raise LogError(f"{ticket_number(number)} was changed while it was imported; run the import again")
        report.facts += len(facts) if outcome.verdict == "appended" else 0


async def _stored(ledger: Ledger, stream: UUID) -> Ticket | None:
    ticket: Ticket | None = None
    for fact in await ledger.facts(stream):
        ticket = evolve(fact, ticket)  # type: ignore[arg-type] # the stream of a ticket has a ticket's facts
    return ticket


def _filled(row: Row, before: Row | None) -> Row:
    """The row, with the status before where its own is none."""
    return replace(row, status=before.status) if row.status is None and before is not None else row


def _created(stream: UUID, number: str, row: Row, policy: Policy) -> Created:
    at = min(row.opened_at, row.at)
    priority = row.priority or Priority.P3
    target = policy.targets[priority]
    tags = dict(tag.rsplit(" ", 1) for tag in row.tags)
    return Created(
        originator_id=stream,
        originator_version=1,
        timestamp=at,
        number=ticket_number(number),
        title=f"Incident in category {tags.get('category', UNKNOWN)}, {tags.get('subcategory', UNKNOWN)}",
        description="\n".join(
            (
                f"Imported from ServiceNow: incident {ticket_number(number)}.",
                *(f"{word}: {value}" for word, value in tags.items()),
            )
        ),
        category=Category.INCIDENT,
        priority=priority,
        requester_id=person_id(row.caller or row.opened_by or UNKNOWN),
        response_due_at=due(at, target.response),
        resolution_due_at=due(at, target.resolution),
        affected_service=row.affected_service,
        tags=row.tags,
    )


def _happened(ticket: Ticket, before: Row | None, row: Row, policy: Policy) -> tuple[tuple[TicketEvent, ...], Ticket]:
    """The facts between the row before (None: the creation) and this one, and the ticket after them."""
    start, at = ticket, max(row.at, ticket.changed_at)
    facts: list[TicketEvent] = []

    def happened(kind: type[TicketEvent], **fields: object) -> None:
        nonlocal ticket
        version = ticket.version + 1
        fact = kind(originator_id=ticket.id, originator_version=version, timestamp=at, **fields)  # type: ignore[arg-type] # fields are each kind's own
        facts.append(fact)
        ticket = evolve(fact, ticket)

    if before is not None and (before.tags, before.affected_service) != (row.tags, row.affected_service):
        happened(Edited, tags=row.tags, affected_service=row.affected_service)
    if before is not None and row.priority is not None and row.priority is not before.priority:
        happened(Prioritized, priority=row.priority)
    if (row.team, row.assignee) != ((before.team, before.assignee) if before else (None, None)):
        assignee = None if row.assignee is None else person_id(row.assignee)
        happened(Assigned, assignee_id=assignee, team=row.team)
    if row.status is not None and row.status is not (before.status if before else Status.NEW):
        _change_status(ticket, row, row.status, happened)
    moved = reschedule(start, tuple(facts), at, policy.targets)
    return (*facts, *moved), fold(moved, ticket) or ticket


def _change_status(ticket: Ticket, row: Row, status: Status, happened: Callable[..., None]) -> None:
    code = None if row.closed_code is None else f"Closed with code {row.closed_code}"
    if status is Status.RESOLVED:
        happened(Resolved, resolution_notes=code)
    elif status is Status.CLOSED:
        happened(Closed, reason=code)
    else:
        if ticket.status in _OVER:
            happened(Reopened)
        happened(StatusChanged, status=status)


def _about(label: str | None, command_id: UUID, number: str, row: Row) -> Metadata:
    source = {"system": "servicenow", "incident": number, "line": str(row.line)}
    return Metadata(actor=_by(label), command_id=command_id, source=source)


def _by(label: str | None) -> By:
    """Somebody of the log; which role they had is not known."""
    return By(person_id(label or UNKNOWN), label, None)


async def _record_people(ledger: Ledger, incidents: dict[str, list[Row]], report: Report) -> int:
    """Record everybody who is named, with the teams that they had tickets in; returns how many there are."""
    teams: dict[str, set[str]] = defaultdict(set)
    for rows in incidents.values():
        for row in rows:
            for label in (row.caller, row.opened_by, row.actor, row.assignee):
                if label is not None:
                    teams[label].update(())
            if row.assignee is not None and row.team is not None:
                teams[row.assignee].add(row.team)
    streams = {label: stream_of(person_id(label)) for label in teams}
    last = await ledger.last_of(list(streams.values()))
    now = datetime.now(UTC)

    async def record(label: str) -> None:
        stream, seen = streams[label], last.get(streams[label])
        known = set(seen.teams) if isinstance(seen, PersonSeen) else set()
        if isinstance(seen, PersonSeen) and (seen.role is not None or teams[label] <= known):
            return  # their token says it better, or nothing is new
        version = 0 if seen is None else seen.originator_version
        command_id = uuid5(NAMESPACE_URL, f"servicenow:person:{label}:{version}")
        fact = PersonSeen(
            originator_id=stream,
            originator_version=version + 1,
            timestamp=now,
            person_id=person_id(label),
            username=label,
            role=None,
            teams=tuple(sorted(known | teams[label])),
        )
        about = Metadata(actor=_by(label), command_id=command_id, source={"system": "servicenow"})
        outcome = await ledger.append(
            Append(command_id=command_id, stream_id=stream, expected_version=version, facts=((fact, about),))
        )
        report.facts += 1 if outcome.verdict == "appended" else 0

    await _all([partial(record, label) for label in teams])
    return len(teams)


async def _all(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do them, so many at a time that commits are well filled. The first error ends it."""
    left = iter(jobs)

    async def work() -> None:
        for job in left:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_IN_FLIGHT):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
