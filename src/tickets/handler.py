"""Load, decide, append: what happens to every command.

A ticket that was used recently is at hand in a bounded cache. A stale one costs a retry and never a wrong
decision: facts are only appended to the version that they were decided on, and a refusal is only given on
a state that was read from the ledger for it. Deliberately absent: rules (commands.py) and HTTP.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, cast
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
import structlog
from cachetools import LRUCache
from msgspec import Struct
from msgspec.structs import replace
from uuid_utils.compat import uuid7

from tickets import snapshots
from tickets.batching import Batched
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    Change,
    Command,
    Create,
    DeleteComment,
    EditComment,
    Policy,
    create,
    decide,
    scanned,
)
from tickets.connections import CONNECTION_LOST, OUT_OF_SERVICE
from tickets.errors import IdempotencyKeyReused, NotFound, Refusal, TooContended, VersionMismatch
from tickets.events import By, CommentAdded, CommentEdited, CommentFact, Metadata, PersonSeen, TicketEvent
from tickets.ledger import Ledger
from tickets.permissions import Actor, Assignee
from tickets.ticket import Ticket, fold
from tickets.values import Scan
from tickets.writer import Append, Outcome

_KEYS: Final = uuid5(NAMESPACE_URL, "urn:ticket-service:idempotency-key")
_EVENTS_SHOWN: Final = 100
_AWAY_OR_FULL: Final = (*CONNECTION_LOST, *OUT_OF_SERVICE)

_log: Final = structlog.get_logger(__name__)

SCANNER: Final = By(uuid5(NAMESPACE_URL, "urn:ticket-service:virus-scanner"), "virus scanner", None)
"""Who says of a file that waited whether it is clean."""

FindAssignee = Callable[[UUID], Awaitable[Assignee | None]]


class Asked(Struct, frozen=True, kw_only=True):
    """The circumstances of a command."""

    actor: Actor
    key: str | None = None
    """The Idempotency-Key."""
    if_match: frozenset[int] | None = None
    """The versions that the command is meant for; None is any."""
    ip_address: str | None = None
    request_id: str | None = None


class Answer(Struct, frozen=True):
    """What a command led to: the ticket after it and the position from which on everybody can know."""

    ticket: Ticket
    position: int
    facts: tuple[TicketEvent, ...] = ()
    """What the command added to the ledger."""
    replayed: bool = False
    """Whether this is the answer that was given to the same Idempotency-Key before."""


class Handler:
    """Handles commands against one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        find_assignee: FindAssignee,
        *,
        policy: Policy | None = None,
        cache_size: int = 10_000,
        attempts: int = 128,
    ) -> None:
        """`attempts` bounds how often a command is decided anew because others were first."""
        self._ledger = ledger
        self._find_assignee = find_assignee
        self.policy: Final = policy or Policy()
        self._cache: LRUCache[UUID, Ticket] = LRUCache(cache_size)
        ledger.on_reconnect(self._cache.clear)
        self._attempts = attempts
        self._snapshots = snapshots.finding(ledger.pool)
        self._number: Batched[None, int] = Batched(lambda waiting: ledger.ticket_numbers(len(waiting)))

    async def handle(self, command: Command, ticket_id: UUID | None, asked: Asked) -> Answer:
        """Do what the command asks, once.

        `ticket_id` is None for Create alone. Raises the refusals of commands.py, VersionMismatch,
        IdempotencyKeyReused, TooContended, and what Ledger.append raises.
        """
        command_id, fingerprint = _identified(command, ticket_id, asked)
        if asked.key is not None:
            first = await self._ledger.outcome(command_id)
            if first is not None:
                return await self._again(first, command_id, fingerprint)
        if isinstance(command, Create):
            return await self._create(command, asked, command_id, fingerprint)
        if ticket_id is None:
            raise NotFound
        return await self._change(command, ticket_id, asked, command_id, fingerprint)

    async def ticket(self, ticket_id: UUID, *, upto: int | None = None) -> Ticket | None:
        """A ticket read from the ledger, at its newest version or at `upto`."""
        kept = await snapshots.find(self._snapshots, ticket_id, upto=upto)
        return await self._read_on(ticket_id, kept, upto)

    async def consider(self, command: Change, ticket_id: UUID, asked: Asked, *, whole: bool) -> None:
        """Whether the command would be refused now; `whole` is whether there is all that belongs to it yet.

        What was done before with the same key is not refused, whatever happened since. Raises as `handle`.
        """
        if await self._was_done(command, ticket_id, asked, whole=whole):
            return
        ticket = await self._refreshed(ticket_id, self._cache.get(ticket_id))
        try:
            decide(
                ticket,
                command,
                actor=asked.actor,
                at=datetime.now(UTC),
                policy=self.policy,
                new_id=ticket_id,
                if_match=asked.if_match,
            )
        except Refusal as refusal:
            if not await self._was_done(command, ticket_id, asked, whole=whole):  # by now
                raise await self._explained(refusal, ticket_id, asked) from None

    async def _was_done(self, command: Change, ticket_id: UUID, asked: Asked, *, whole: bool) -> bool:
        """Whether there is an outcome for the key. Raises IdempotencyKeyReused where it is one of something else."""
        if asked.key is None:
            return False
        command_id, fingerprint = _identified(command, ticket_id, asked)
        first = await self._ledger.outcome(command_id)
        if first is not None and whole and first.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return first is not None

    async def note_scan(self, ticket_id: UUID, attachment_id: UUID, infected: str | None) -> None:
        """Note what the virus scanner says of a file that waited for it. Raises TooContended, as Ledger.append."""
        about = Metadata(actor=SCANNER, command_id=uuid7())
        for _ in range(self._attempts):
            ticket = await self._refreshed(ticket_id, self._cache.get(ticket_id))
            if ticket is None:
                return
            facts = scanned(ticket, attachment_id, infected, max(datetime.now(UTC), ticket.changed_at))
            if not facts:
                return
            outcome = await self._ledger.append(_appending(ticket_id, ticket.version, facts, about))
            if outcome.verdict == "appended":
                await self._done(facts, ticket, outcome)
                return
        raise TooContended(attempts=self._attempts)

    async def _create(self, command: Create, asked: Asked, command_id: UUID, fingerprint: bytes) -> Answer:
        ticket_id, at = uuid7(), datetime.now(UTC)
        # Refused before a number is drawn: a refusal should leave no gap.
        create(command, ticket_id=ticket_id, number="", actor=asked.actor, at=at, policy=self.policy)
        number = f"TKT-{at.year}-{await self._number(None):06d}"
        facts = create(command, ticket_id=ticket_id, number=number, actor=asked.actor, at=at, policy=self.policy)
        for _ in range(self._attempts):
            outcome = await self._append(ticket_id, 0, facts, asked, command_id, fingerprint)
            match outcome.verdict:
                case "appended":
                    return await self._done(facts, None, outcome)
                case "duplicate":
                    return await self._again(outcome, command_id, fingerprint)
                case "conflict":
                    continue  # the same key in the same batch: the next time it is a duplicate
        raise TooContended(attempts=self._attempts)

    async def _change(
        self, command: Change, ticket_id: UUID, asked: Asked, command_id: UUID, fingerprint: bytes
    ) -> Answer:
        new_id = uuid7() if isinstance(command, AddComment | Attach) else None
        assignee = await self._assignee(command, asked.actor)
        known = self._cache.get(ticket_id)
        fresh = known is None
        before = await self._refreshed(ticket_id, None) if known is None else known
        for _ in range(self._attempts):
            at = datetime.now(UTC)
            if before is not None:
                at = max(at, before.changed_at)  # a stream's time never runs backwards, whoever's clock does
            said = await self._said(before, command)
            try:
                facts = decide(
                    before,
                    command,
                    actor=asked.actor,
                    at=at,
                    policy=self.policy,
                    assignee=assignee,
                    new_id=new_id,
                    said=said,
                    if_match=asked.if_match,
                )
            except Refusal as refusal:
                if fresh:
                    # With a key, the same command may have been done meanwhile: that it cannot be done twice
                    # is then no refusal.
                    first = None if asked.key is None else await self._ledger.outcome(command_id)
                    if first is not None:
                        return await self._again(first, command_id, fingerprint)
                    raise await self._explained(refusal, ticket_id, asked) from None
                before, fresh = await self._refreshed(ticket_id, before), True
                continue
            assert before is not None  # noqa: S101 - decide refuses where there is no ticket
            if not facts and not fresh:
                before, fresh = await self._refreshed(ticket_id, before), True
                continue
            if not facts and asked.key is None:
                return Answer(before, await self._ledger.reaches(ticket_id))
            outcome = await self._append(ticket_id, before.version, facts, asked, command_id, fingerprint)
            match outcome.verdict:
                case "appended":
                    return await self._done(facts, before, outcome)
                case "duplicate":
                    return await self._again(outcome, command_id, fingerprint)
                case "conflict" if outcome.version < before.version:
                    # The ledger is behind what it was: another server took over and has not all of it.
                    self._cache.pop(ticket_id, None)
                    before, fresh = await self._refreshed(ticket_id, None), True
                case "conflict":
                    before, fresh = await self._caught_up(ticket_id, before, outcome.version), True
        raise TooContended(attempts=self._attempts)

    async def _append(
        self,
        ticket_id: UUID,
        version: int,
        facts: tuple[TicketEvent, ...],
        asked: Asked,
        command_id: UUID,
        fingerprint: bytes,
    ) -> Outcome:
        about = Metadata(
            actor=By(asked.actor.id, asked.actor.username, asked.actor.role),
            command_id=command_id,
            ip_address=asked.ip_address,
            request_id=asked.request_id,
        )
        return await self._ledger.append(_appending(ticket_id, version, facts, about, fingerprint))

    async def _done(self, facts: tuple[TicketEvent, ...], before: Ticket | None, outcome: Outcome) -> Answer:
        ticket = fold(facts, before)
        assert ticket is not None  # noqa: S101 - there is a fact or there was a ticket
        self._remember(ticket)
        await self._keep_if_worth_it(ticket, before.version if before else 0)
        return Answer(ticket, outcome.position, facts)

    async def _again(self, first: Outcome, command_id: UUID, fingerprint: bytes) -> Answer:
        """The answer that this command got the first time: the ticket as it was right after it."""
        if first.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        ticket = await self.ticket(first.stream_id, upto=first.version)
        if ticket is None:
            raise NotFound
        facts = await self._ledger.facts_of(command_id, first)
        return Answer(ticket, first.position, cast("tuple[TicketEvent, ...]", facts), replayed=True)

    async def _explained(self, refusal: Refusal, ticket_id: UUID, asked: Asked) -> Refusal:
        """The refusal with its position, and if it is that others were first, with what they did."""
        if isinstance(refusal, NotFound):  # of what is there and not the actor's nothing is told, not even that it is
            return refusal
        position = await self._ledger.reaches(ticket_id)
        if isinstance(refusal, VersionMismatch):
            refusal = VersionMismatch(**refusal.details, events=await self._since(ticket_id, asked))
        refusal.position = position
        return refusal

    async def _since(self, ticket_id: UUID, asked: Asked) -> list[dict[str, object]]:
        """What happened after the version that the command was meant for, as far as the actor may know."""
        oldest = min(asked.if_match or (), default=0)
        since = await self._ledger.load(ticket_id, after=oldest, upto=oldest + _EVENTS_SHOWN)
        return [
            {
                "version": one.fact.originator_version,
                "topic": one.fact.TOPIC,
                "occurred_at": one.fact.timestamp,
            }
            for one in since
            if asked.actor.is_staff or not (isinstance(one.fact, CommentFact) and one.fact.internal)
        ]

    async def _said(self, ticket: Ticket | None, command: Change) -> str:
        """What the comment says that the command is about; that it is not there, `decide` will find out."""
        if ticket is None or not isinstance(command, EditComment | DeleteComment):
            return ""
        comment = ticket.comments.get(command.comment_id)
        if comment is None:
            return ""
        (fact,) = await self._ledger.facts(ticket.id, after=comment.said_at - 1, upto=comment.said_at)
        assert isinstance(fact, CommentAdded | CommentEdited)  # noqa: S101 - evolve noted where it was said
        return fact.body

    async def _assignee(self, command: Command, actor: Actor) -> Assignee | None:
        if not isinstance(command, Assign) or not isinstance(command.assignee_id, UUID):
            return None
        if command.assignee_id == actor.id:
            return Assignee(id=actor.id, teams=actor.teams)
        return await self._find_assignee(command.assignee_id)

    async def _caught_up(self, ticket_id: UUID, ticket: Ticket, version: int) -> Ticket | None:
        """The ticket at `version` or later: at hand, where the winner came through this process."""
        known = self._cache.get(ticket_id)
        if known is not None and known.version >= version:
            return known
        return await self._refreshed(ticket_id, ticket)

    async def _refreshed(self, ticket_id: UUID, ticket: Ticket | None) -> Ticket | None:
        """The ticket at its newest version, read on from what is known of it."""
        ticket = await (self.ticket(ticket_id) if ticket is None else self._read_on(ticket_id, ticket))
        if ticket is not None:
            self._remember(ticket)
        return ticket

    async def _read_on(self, ticket_id: UUID, ticket: Ticket | None, upto: int | None = None) -> Ticket | None:
        known = ticket.version if ticket else 0
        facts = await self._ledger.facts(ticket_id, after=known, upto=upto)
        if facts and isinstance(facts[0], PersonSeen):
            return None  # the stream of a person is no ticket
        ticket = fold(cast("list[TicketEvent]", facts), ticket)
        if ticket is not None:
            await self._keep_if_worth_it(ticket, known)
        return ticket

    async def _keep_if_worth_it(self, ticket: Ticket, known: int) -> None:
        """Keep a snapshot now and then, so that nobody has to read many facts at once."""
        if ticket.version // snapshots.EVERY == known // snapshots.EVERY:
            return
        try:
            await snapshots.keep(self._ledger.pool, ticket)
        except _AWAY_OR_FULL as error:  # the command that it came with is done or will say so itself
            _log.warning("snapshot.not_kept", error=repr(error), ticket_id=str(ticket.id))

    def _remember(self, ticket: Ticket) -> None:
        known = self._cache.get(ticket.id)
        if known is None or known.version < ticket.version:
            self._cache[ticket.id] = ticket


def _identified(command: Command, ticket_id: UUID | None, asked: Asked) -> tuple[UUID, bytes]:
    """The command's id, and with a key what it asks for, so that the key is used for nothing else."""
    if asked.key is None:
        return uuid7(), b""
    fingerprint = sha256(msgspec.json.encode((type(command).__name__, ticket_id, _as_asked(command)))).digest()
    return uuid5(_KEYS, f"{asked.actor.id}:{asked.key}"), fingerprint


def _as_asked(command: Command) -> Command:
    """The command without what was found out about it: that may be another the second time."""
    return replace(command, scan=Scan.UNSCANNED, infected=None) if isinstance(command, Attach) else command


def _appending(
    ticket_id: UUID, version: int, facts: tuple[TicketEvent, ...], about: Metadata, fingerprint: bytes = b""
) -> Append:
    return Append(
        command_id=about.command_id,
        stream_id=ticket_id,
        expected_version=version,
        facts=tuple((fact, about) for fact in facts),
        fingerprint=fingerprint,
    )
