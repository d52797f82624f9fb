"""A ticket's past, folded off the ledger: what it, its history, comments and attachments were at a version.

And what that can be asked: what differs between two versions, and who made each field what it is. What an entry,
a comment or an attachment looks like is said by its read model, whose rows are made here of the facts up to then.
Deliberately absent: who may see it; `internal` is whether what only staff may know of counts.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from msgspec import Struct

from projections import history
from projections.attachments import ATTACHMENTS
from projections.comments import COMMENTS
from projections.cursors import Stretch
from projections.history import Action, Change
from projections.projection import Envelope, Projection, Row, Step, decode_metadata
from tickets.events import By, PersonSeen, TicketEvent
from tickets.ledger import Ledger
from tickets.ticket import Ticket, evolve, fold

_ACTORS_SHOWN: Final = 100
"""So many people are named between two versions."""

FIELDS: Final = (*history.FIELDS, "comment_count", "attachment_count")
"""All that a ticket shows and that facts change, and how much was said of it and came with it."""

T = TypeVar("T")


class Diff(Struct, frozen=True, rename={"from_version": "from", "to_version": "to"}):
    """What differs between two versions of a ticket, and who was at work between them."""

    from_version: int
    to_version: int
    changes: list[Change]
    versions: int
    """How many facts lie between: those after the one version, up to the other."""
    actors: list[By]
    """Who they are by, in the order of each one's first, a hundred at most. None is named for what only staff
    may know of, unless that is asked for."""


class Blamed(Struct, frozen=True):
    """What made a field what it is."""

    field: str
    value: Any
    since: datetime
    version: int
    position: int
    actor: By
    command_id: UUID


class Blame(Struct, frozen=True):
    """What made each field of a ticket what it is at a version."""

    version: int
    items: list[Blamed]


async def steps(ledger: Ledger, ticket_id: UUID, *, upto: int | None = None) -> list[Step]:
    """Each fact of a ticket up to a version with the ticket before and after it; empty if it was not there then."""
    found: list[Step] = []
    before: Ticket | None = None
    for recorded in await ledger.load(ticket_id, upto=upto):
        if isinstance(recorded.fact, PersonSeen):
            return []  # the stream of a person is no ticket
        fact = recorded.fact
        after = evolve(fact, before)
        envelope = Envelope(recorded.position, recorded.recorded_at, decode_metadata(recorded.metadata))
        found.append(Step(fact, envelope, before, after))
        before = after
    return found


async def tickets_at(ledger: Ledger, ticket_ids: Sequence[UUID], at: datetime) -> dict[UUID, Ticket]:
    """The tickets as they were at a time; those that were not there yet are missing."""
    facts = await ledger.facts_at(ticket_ids, at)
    folded = {ticket_id: fold(cast("list[TicketEvent]", own)) for ticket_id, own in facts.items()}
    return {ticket_id: ticket for ticket_id, ticket in folded.items() if ticket is not None}


def history_then(lived: Sequence[Step], wanted: history.Wanted) -> Stretch:
    """A page of the audit trail as it was after these steps; whose ticket it is, is seen to."""
    internal, actions = wanted.visible_to is None, set(wanted.actions or Action)
    fitting = [
        (step.envelope.position, step)
        for step in lived
        if (internal or not _is_internal(step)) and history.ACTIONS[type(step.fact)] in actions
    ]
    shown, next_after = _page(fitting, wanted.after, wanted.page_size)
    return Stretch([history.HISTORY.rows(step)[0][-1] for step in shown], len(fitting), next_after)


def comments_then(lived: Sequence[Step], *, internal: bool, after: int = 0, page_size: int = 20) -> Stretch:
    """A page of the comments as they were after these steps; otherwise as comments.read.

    Those that were there are known to the ticket, with the fact that each one's text stands in.
    """
    said = [(one.version, lived[one.said_at - 1]) for one in _after(lived[-1]).comments.values()]
    of_status = [
        (step.fact.originator_version, step)
        for step in lived
        if step.before is not None and step.before.status is not _after(step).status
    ]
    there = sorted((*said, *of_status), key=itemgetter(0))
    there = [(version, step) for version, step in there if internal or not _is_internal(step)]
    shown, next_after = _page(there, after, page_size)
    return Stretch([COMMENTS.rows(step)[0][-1] for step in shown], len(there), next_after)


def attachments_then(lived: Sequence[Step], *, after: int = 0, page_size: int = 20) -> Stretch:
    """A page of the attachments as they were after these steps; otherwise as attachments.read."""
    there = [
        (version, doc)
        for _, _, _, version, _, _, deleted_at, doc in _standing(ATTACHMENTS, lived)
        if deleted_at is None
    ]
    shown, next_after = _page(there, after, page_size)
    return Stretch(shown, len(there), next_after)


def diff(lived: Sequence[Step], start: int, *, internal: bool) -> Diff:
    """What differs between the version `start` and the last of these steps."""
    between = lived[start:]
    then, now = _after(lived[start - 1]), _after(lived[-1])
    actors: dict[UUID, By] = {}
    for step in between:
        if internal or not _is_internal(step):
            actor = step.envelope.metadata.actor
            actors.setdefault(actor.id, actor)
    return Diff(
        from_version=start,
        to_version=len(lived),
        changes=_changes(then, now, internal=internal),
        versions=len(between),
        actors=list(actors.values())[:_ACTORS_SHOWN],
    )


def blame(lived: Sequence[Step], *, internal: bool) -> Blame:
    """Which of these steps made each field what it is after the last; what never changed, the first."""
    made, was = [lived[0]] * len(FIELDS), _values(_after(lived[0]), internal=internal)
    for step in lived[1:]:
        now = _values(_after(step), internal=internal)
        for place, (old, new) in enumerate(zip(was, now, strict=True)):
            if old is not new and old != new:
                made[place] = step
        was = now
    return Blame(
        version=len(lived),
        items=[
            Blamed(
                field=field,
                value=value,
                since=by.fact.timestamp,
                version=by.fact.originator_version,
                position=by.envelope.position,
                actor=by.envelope.metadata.actor,
                command_id=by.envelope.metadata.command_id,
            )
            for field, value, by in zip(FIELDS, was, made, strict=True)
        ],
    )


def _values(ticket: Ticket, *, internal: bool) -> tuple[Any, ...]:
    """The values of FIELDS."""
    said = ticket.public_comments + ticket.internal_comments * internal
    return (*history.shown(ticket), said, len(ticket.attachments))


def _changes(before: Ticket, after: Ticket, *, internal: bool) -> list[Change]:
    was, now = _values(before, internal=internal), _values(after, internal=internal)
    return [Change(field, old, new) for field, old, new in zip(FIELDS, was, now, strict=True) if old != new]


def _standing(one: Projection, lived: Sequence[Step]) -> Sequence[Row]:
    """The rows that are left in the end, in the order of their first."""
    return list({row[0]: row for step in lived for row in one.rows(step)}.values())


def _page(there: Sequence[tuple[int, T]], after: int, page_size: int) -> tuple[list[T], int | None]:
    """Some of what is there, each with its place and in that order; and after which place the next ones come."""
    start = bisect_right(there, after, key=itemgetter(0))
    shown = there[start : start + page_size]
    return [one for _, one in shown], shown[-1][0] if len(there) > start + page_size else None


def _is_internal(step: Step) -> bool:
    return getattr(step.fact, "internal", False)


def _after(step: Step) -> Ticket:
    assert step.after is not None  # noqa: S101 - these are steps of a ticket
    return step.after
