"""Tickets as people would make them: facts of realistic size, and lives of six to seven facts.

All facts come from the write side's own decisions, so that what is measured is what the service writes.
The luck is seeded: every run works on the same texts.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import chain, count, cycle
from random import Random
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from tickets.commands import Assign, Create, Edit, Policy, create, decide
from tickets.commands import ChangeStatus as Move
from tickets.events import By, Created, Metadata, TicketEvent
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.people import People
from tickets.permissions import Actor, Assignee, Role
from tickets.sla import Priority
from tickets.ticket import Ticket, fold
from tickets.values import Category, Environment
from tickets.writer import Append

USERS: Final = tuple(Actor(id=UUID(int=100 + n), role=Role.END_USER, username=f"user-{n}") for n in range(8))
ENGINEERS: Final = tuple(
    Actor(id=UUID(int=200 + n), role=Role.SENIOR_ENGINEER, username=f"engineer-{n}", teams=("Web Platform",))
    for n in range(4)
)
LEADS: Final = tuple(
    Actor(id=UUID(int=300 + n), role=Role.TEAM_LEAD, username=f"lead-{n}", teams=("Web Platform",)) for n in range(2)
)

_Change = Edit | Assign | Move

START: Final = datetime(2026, 3, 2, 9, tzinfo=UTC)
_POLICY: Final = Policy()
_TITLES: Final = (
    "Checkout answers 502 since the deployment this morning",
    "VPN drops every few minutes on the third floor",
    "Nightly export of invoices stopped at row 41,000",
    "Access to the reporting database for a new colleague",
    "Müller GmbH cannot log in: „Sitzung abgelaufen“",
    "Certificate of the mail gateway runs out on Friday",
)
_SENTENCES: Final = (
    "Since about nine o'clock the page takes more than thirty seconds, and then there is an error.",
    "It worked yesterday evening; nothing was changed on our side that we know of.",
    "Three colleagues see the same, two others in the same room do not.",
    "The log says: connection reset by peer, and a little later: pool timeout after 30000 ms.",
    "A restart helped for ten minutes, then it was back.",
    "Customers are waiting, so please call me as soon as you know more: extension 4711.",
    "I have attached what the browser shows, and the trace id from the footer of the page.",
)
_SERVICES: Final = ("web-app-01", "billing", "mail-gateway", "vpn", "reporting")
_numbers: Final = count(1)
_TAGS: Final = ("web", "network", "urgent", "customer", "database")


def seeded(seed: int) -> Random:
    """The same luck at every run."""
    return Random(seed)  # noqa: S311 - nothing here is secret


def asked_for(luck: Random) -> Create:
    """A request for something, as a person would write it."""
    return Create(
        title=luck.choice(_TITLES),
        description=" ".join(luck.choices(_SENTENCES, k=luck.randint(2, 6))),
        category=luck.choice(list(Category)),
        priority=luck.choice(list(Priority)),
        environment=luck.choice(list(Environment)),
        affected_service=luck.choice(_SERVICES),
        tags=tuple(luck.sample(_TAGS, k=luck.randint(0, 3))),
    )


def created(asked: Create, actor: Actor, at: datetime) -> Created:
    """The first fact of a new ticket."""
    number = f"TKT-{at.year}-{next(_numbers):06d}"
    return create(asked, ticket_id=uuid7(), number=number, actor=actor, at=at, policy=_POLICY)[0]


def appending(facts: tuple[TicketEvent, ...], actor: Actor) -> Append:
    """The append of one command's facts, with the metadata that a request over HTTP leaves."""
    first = facts[0]
    command_id = uuid7()
    about = Metadata(
        actor=By(actor.id, actor.username, actor.role),
        command_id=command_id,
        ip_address="192.0.2.17",
        request_id=command_id.hex,
    )
    return Append(
        command_id=command_id,
        stream_id=first.originator_id,
        expected_version=first.originator_version - 1,
        facts=tuple((fact, about) for fact in facts),
        fingerprint=sha256(command_id.bytes).digest(),
    )


def life(luck: Random, at: datetime) -> Iterator[Append]:
    """A ticket's life, an append a command: most are closed in the end, some wait, some are escalated."""
    user, engineer, lead = luck.choice(USERS), luck.choice(ENGINEERS), luck.choice(LEADS)
    first = created(asked_for(luck), user, at)
    yield appending((first,), user)
    ticket = fold((first,))
    for actor, command in _what_happens(luck, user, engineer, lead):
        at += timedelta(minutes=luck.randint(1, 600))
        facts = _decided(ticket, command, actor, at, engineer)
        if facts:
            yield appending(facts, actor)
            ticket = fold(facts, ticket)


def begun(ticket: Ticket | None, at: datetime) -> tuple[TicketEvent, ...]:
    """What assigning a new ticket adds: it is open then."""
    given = Assign(assignee_id=ENGINEERS[0].id, team="Web Platform", reason="You know that one best.")
    return _decided(ticket, given, LEADS[0], at, ENGINEERS[0])


def _what_happens(luck: Random, user: Actor, engineer: Actor, lead: Actor) -> Iterator[tuple[Actor, _Change]]:
    yield lead, Assign(assignee_id=engineer.id, team="Web Platform", reason="You know that one best.")
    if luck.random() < 0.15:
        yield user, Edit(description="It is worse than I wrote: " + luck.choice(_SENTENCES))
    if luck.random() < 0.1:
        yield lead, Edit(priority=luck.choice(list(Priority)))
    if luck.random() < 0.05:
        return
    yield engineer, Move(status=Status.IN_PROGRESS)
    if luck.random() < 0.15:
        yield engineer, Move(status=Status.PENDING_INFO, reason="Which browser is it?")
        yield engineer, Move(status=Status.IN_PROGRESS)
    if luck.random() < 0.05:
        yield engineer, Move(status=Status.ESCALATED, reason="The provider has to look at that.")
    if luck.random() < 0.05:
        return
    yield engineer, Move(status=Status.RESOLVED, reason="The pool was too small; doubled it. " + _SENTENCES[4])
    if luck.random() < 0.9:
        yield lead, Move(status=Status.CLOSED)


_ROUND: Final[tuple[_Change, ...]] = (
    Move(status=Status.IN_PROGRESS),
    Edit(description=_SENTENCES[0] + " " + _SENTENCES[1], tags=("web",)),
    Assign(assignee_id=ENGINEERS[0].id, team="Web Platform", reason="Back to you."),
    Edit(priority=Priority.P1),
    Move(status=Status.PENDING_INFO, reason="Which browser is it?"),
    Move(status=Status.IN_PROGRESS),
    Assign(assignee_id=ENGINEERS[1].id, team="Databases"),
    Edit(title=_TITLES[1], affected_service=None),
    Edit(title=_TITLES[0], affected_service="billing", description=_SENTENCES[2]),
    Move(status=Status.ESCALATED, reason="The provider has to look at that."),
    Edit(priority=Priority.P3),
    Move(status=Status.RESOLVED, reason="The pool was too small; doubled it."),
    Move(status=Status.REOPENED, reason="It is back."),
)


def long_life(facts: int) -> list[TicketEvent]:
    """One ticket's facts of all kinds but the rarest, that many: work, waiting, escalation, reopening, again."""
    at = START
    lived: list[TicketEvent] = [created(asked_for(seeded(1)), USERS[0], at)]
    ticket = fold(lived)
    for command in chain((Assign(assignee_id=ENGINEERS[0].id),), cycle(_ROUND)):
        if len(lived) >= facts:
            break
        at += timedelta(minutes=7)
        assignee = ENGINEERS[1] if isinstance(command, Assign) and command.team == "Databases" else ENGINEERS[0]
        follow = _decided(ticket, command, LEADS[0], at, assignee)
        ticket = fold(follow, ticket)
        lived += follow
    return lived[:facts]


def _decided(
    ticket: Ticket | None, command: _Change, actor: Actor, at: datetime, assignee: Actor
) -> tuple[TicketEvent, ...]:
    who = Assignee(id=assignee.id, teams=assignee.teams)
    return decide(ticket, command, actor=actor, at=at, policy=_POLICY, assignee=who)


async def fill(dsn: str, tickets: int, *, at_once: int = 256) -> None:
    """Fill a ledger with the lives of so many tickets, that many of them going on at the same time."""
    luck = seeded(2)
    starts = iter(sorted(START + timedelta(seconds=luck.randint(0, 30 * 86_400)) for _ in range(tickets)))
    async with Ledger.open(dsn) as ledger:
        people = People(ledger)
        for actor in (*USERS, *ENGINEERS, *LEADS):
            await people.saw(actor)

        async def living() -> None:
            for at in starts:
                for one in life(luck, at):
                    outcome = await ledger.append(one)
                    assert outcome.verdict == "appended", outcome

        await asyncio.gather(*(living() for _ in range(at_once)))
