"""Files as facts: what the write side takes of them, and what the read models make of it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from msgspec.structs import replace

from projections import attachments, tickets
from projections.attachments import AttachmentView
from projections.history import Entry, Wanted, reading
from projections.projection import decode_metadata
from tests.conftest import eventually
from tests.projections.test_runner import assert_all_is_as_it_should_be, level, running
from tickets import snapshots
from tickets.commands import Attach, ChangeStatus, Create, Delete, Detach
from tickets.connections import Connection
from tickets.errors import Forbidden, IdempotencyKeyReused, NotFound, TicketClosed, TicketDeleted, VersionMismatch
from tickets.events import AttachmentAdded, AttachmentRefused
from tickets.handler import SCANNER, Asked, Handler
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.permissions import Actor, Role
from tickets.values import Category, Scan

ADA = Actor(id=uuid4(), role=Role.ADMIN, username="ada")
UMA = Actor(id=uuid4(), role=Role.END_USER, username="uma")
ONE, TWO = "11" * 32, "22" * 32
A_FILE = Attach(filename="proxy.log", content_type="text/plain", size=7, sha256=ONE, scan=Scan.CLEAN)
WAITING = replace(A_FILE, filename="waiting.log", sha256=TWO, scan=Scan.QUARANTINED)


async def nobody(_person_id: UUID) -> None:
    return None


@pytest.fixture
async def handler(ledger: Ledger, dsn: str, owner: Connection) -> AsyncIterator[Handler]:
    """With a runner behind it; ends with everything as it should be."""
    async with running(ledger, dsn):
        yield Handler(ledger, nobody)
        await eventually(lambda: level(owner))
    await assert_all_is_as_it_should_be(dsn, owner)


async def a_ticket(handler: Handler, by: Actor = UMA) -> UUID:
    made = Create(title="Server down", description="…", category=Category.INCIDENT)
    return (await handler.handle(made, None, Asked(actor=by))).ticket.id


async def attach(handler: Handler, ticket_id: UUID, file: Attach = A_FILE, **asked: Any) -> UUID:
    answer = await handler.handle(file, ticket_id, Asked(**{"actor": ADA, **asked}))
    (fact,) = answer.facts
    assert isinstance(fact, AttachmentAdded)
    return fact.attachment_id


async def history(ledger: Ledger, ticket_id: UUID) -> list[Entry]:
    found = await reading(ledger.pool)(Wanted(ticket_id=ticket_id, page_size=100))
    assert found is not None
    return [msgspec.json.decode(doc, type=Entry) for doc in found.docs]


# The write side


async def test_the_same_key_is_the_same_command_whatever_the_scanner_says_the_second_time(handler: Handler) -> None:
    ticket_id = await a_ticket(handler)
    first = await attach(handler, ticket_id, WAITING, key="one")
    for again in (replace(WAITING, scan=Scan.CLEAN), replace(WAITING, infected="Eicar")):
        answer = await handler.handle(again, ticket_id, Asked(actor=ADA, key="one"))
        assert answer.replayed
        assert [fact.attachment_id for fact in answer.facts if isinstance(fact, AttachmentAdded)] == [first]
    with pytest.raises(IdempotencyKeyReused):
        await handler.handle(A_FILE, ticket_id, Asked(actor=ADA, key="one"))


async def test_what_would_be_refused_can_be_known_before_there_is_a_file(handler: Handler, ledger: Ledger) -> None:
    ticket_id = await a_ticket(handler)
    head = await ledger.head()
    await handler.consider(A_FILE, ticket_id, Asked(actor=UMA), whole=False)
    with pytest.raises(NotFound):
        await handler.consider(A_FILE, uuid4(), Asked(actor=ADA), whole=False)
    with pytest.raises(NotFound):
        await handler.consider(A_FILE, ticket_id, Asked(actor=replace(UMA, id=uuid4())), whole=True)
    with pytest.raises(VersionMismatch):
        await handler.consider(A_FILE, ticket_id, Asked(actor=UMA, if_match=frozenset({7})), whole=True)
    assert await ledger.head() == head
    await attach(handler, ticket_id, key="one")
    await handler.handle(Delete(), ticket_id, Asked(actor=ADA))
    await handler.consider(WAITING, ticket_id, Asked(actor=ADA, key="one"), whole=False)
    await handler.consider(A_FILE, ticket_id, Asked(actor=ADA, key="one"), whole=True)
    with pytest.raises(IdempotencyKeyReused):
        await handler.consider(WAITING, ticket_id, Asked(actor=ADA, key="one"), whole=True)
    with pytest.raises(TicketDeleted):
        await handler.consider(A_FILE, ticket_id, Asked(actor=ADA, key="two"), whole=True)


async def test_what_is_done_meanwhile_with_the_same_key_is_not_refused_beforehand(handler: Handler) -> None:
    ticket_id = await a_ticket(handler)
    for number in range(30):
        ticket = await handler.ticket(ticket_id)
        assert ticket is not None
        asked = Asked(actor=ADA, key=f"{number}", if_match=frozenset({ticket.version}))
        await asyncio.gather(
            handler.handle(A_FILE, ticket_id, asked),
            *(handler.consider(A_FILE, ticket_id, asked, whole=whole) for whole in (True, False) * 4),
        )


async def test_a_file_is_taken_away_by_who_brought_it_or_who_may_update_the_ticket(handler: Handler) -> None:
    ticket_id = await a_ticket(handler)
    engineer = Actor(id=uuid4(), role=Role.DEVOPS_ENGINEER)
    mine = await attach(handler, ticket_id, actor=engineer)
    theirs = await attach(handler, ticket_id, actor=ADA)
    with pytest.raises(Forbidden):
        await handler.handle(Detach(attachment_id=theirs), ticket_id, Asked(actor=engineer))
    await handler.handle(Detach(attachment_id=mine), ticket_id, Asked(actor=engineer))
    after = (await handler.handle(Detach(attachment_id=theirs), ticket_id, Asked(actor=UMA))).ticket
    assert not after.attachments


async def test_the_scanners_verdict_is_noted_once_also_on_a_ticket_that_is_closed(
    handler: Handler, ledger: Ledger
) -> None:
    ticket_id = await a_ticket(handler)
    waiting, bad = await attach(handler, ticket_id, WAITING), await attach(handler, ticket_id, WAITING)
    for status in (Status.OPEN, Status.IN_PROGRESS, Status.RESOLVED, Status.CLOSED):
        await handler.handle(ChangeStatus(status=status, reason="so"), ticket_id, Asked(actor=ADA))
    with pytest.raises(TicketClosed):
        await handler.handle(A_FILE, ticket_id, Asked(actor=ADA))
    elsewhere = Handler(ledger, nobody)
    for _ in range(2):
        await elsewhere.note_scan(ticket_id, waiting, None)
        await handler.note_scan(ticket_id, bad, "Eicar")
        await handler.note_scan(ticket_id, uuid4(), "Eicar")
        await handler.note_scan(uuid4(), bad, "Eicar")
    ticket = await handler.ticket(ticket_id)
    assert ticket is not None
    assert (ticket.version, ticket.status) == (9, Status.CLOSED)
    assert (ticket.attachments[waiting].scan, ticket.attachments[waiting].infected) == (Scan.CLEAN, None)
    assert (ticket.attachments[bad].scan, ticket.attachments[bad].infected) == (Scan.QUARANTINED, "Eicar")
    about = [decode_metadata(one.metadata).actor for one in await ledger.load(ticket_id, after=7)]
    assert about == [SCANNER, SCANNER]
    assert SCANNER.role is None


async def test_a_snapshot_keeps_the_files(handler: Handler, ledger: Ledger) -> None:
    ticket_id = await a_ticket(handler)
    await attach(handler, ticket_id)
    await attach(handler, ticket_id, WAITING)
    ticket = await handler.ticket(ticket_id)
    assert ticket is not None
    await snapshots.keep(ledger.pool, ticket)
    assert await snapshots.find(snapshots.finding(ledger.pool), ticket_id) == ticket


# The read models


async def test_files_are_listed_in_the_order_they_came_a_page_at_a_time(
    handler: Handler, ledger: Ledger, owner: Connection
) -> None:
    ticket_id, other = await a_ticket(handler), await a_ticket(handler)
    ids = [await attach(handler, ticket_id, replace(A_FILE, filename=f"{number}.log")) for number in range(5)]
    await attach(handler, other)
    await handler.handle(Detach(attachment_id=ids.pop(1)), ticket_id, Asked(actor=ADA))
    await eventually(lambda: level(owner))
    found: list[AttachmentView] = []
    after: int | None = 0
    while after is not None:
        page = await attachments.read(ledger.pool, ticket_id, after=after, page_size=3)
        assert page.total == 4
        found += [msgspec.json.decode(doc, type=AttachmentView) for doc in page.docs]
        after = page.next_after
    assert [one.id for one in found] == ids
    assert [one.filename for one in found] == ["0.log", "2.log", "3.log", "4.log"]
    assert {(one.ticket_id, one.uploaded_by.username, one.size) for one in found} == {(ticket_id, "ada", 7)}
    assert await attachments.find(ledger.pool, ids[0]) == found[0]
    ticket = await tickets.find(tickets.finding(ledger.pool), ticket_id, internal=False)
    assert ticket is not None
    assert msgspec.json.decode(ticket.doc)["attachment_count"] == 4


async def test_a_deleted_file_is_found_by_nobody_but_its_ticket_is_known(
    handler: Handler, ledger: Ledger, owner: Connection
) -> None:
    ticket_id = await a_ticket(handler)
    gone = await attach(handler, ticket_id)
    await handler.handle(Detach(attachment_id=gone), ticket_id, Asked(actor=ADA))
    await eventually(lambda: level(owner))
    assert await attachments.find(ledger.pool, gone) is None
    assert await attachments.ticket_of(ledger.pool, gone) == ticket_id
    assert await attachments.ticket_of(ledger.pool, uuid4()) is None


async def test_those_that_wait_for_the_scanner_are_told_longest_first(
    handler: Handler, ledger: Ledger, owner: Connection
) -> None:
    ticket_id = await a_ticket(handler)
    ids = [await attach(handler, ticket_id, WAITING) for _ in range(4)]
    await attach(handler, ticket_id)
    await handler.note_scan(ticket_id, ids[0], None)
    await handler.note_scan(ticket_id, ids[1], "Eicar")
    await handler.handle(Detach(attachment_id=ids[2]), ticket_id, Asked(actor=ADA))
    last = await attach(handler, ticket_id, WAITING)
    await eventually(lambda: level(owner))
    assert [one.id for _, one in await attachments.waiting(ledger.pool, 10)] == [ids[3], last]
    ((position, first),) = await attachments.waiting(ledger.pool, 1)
    assert first.id == ids[3]
    assert [one.id for _, one in await attachments.waiting(ledger.pool, 10, position)] == [last]


async def test_a_content_is_named_as_long_as_an_attachment_has_it_and_for_the_retention_after(
    handler: Handler, ledger: Ledger, owner: Connection
) -> None:
    ticket_id = await a_ticket(handler)
    first, second = await attach(handler, ticket_id), await attach(handler, ticket_id)
    await attach(handler, ticket_id, WAITING)

    async def named(retention: timedelta) -> set[str]:
        await eventually(lambda: level(owner))
        return await attachments.named(ledger.pool, [ONE, TWO, "33" * 32], retention)

    await handler.handle(Detach(attachment_id=first), ticket_id, Asked(actor=ADA))
    assert await named(timedelta()) == {ONE, TWO}
    await handler.handle(Detach(attachment_id=second), ticket_id, Asked(actor=ADA))
    assert await named(timedelta(days=1)) == {ONE, TWO}
    assert await named(timedelta()) == {TWO}


async def test_the_history_tells_what_happened_to_files(handler: Handler, ledger: Ledger, owner: Connection) -> None:
    ticket_id = await a_ticket(handler)
    one = await attach(handler, ticket_id, WAITING)
    await handler.note_scan(ticket_id, one, None)
    two = await attach(handler, ticket_id, WAITING)
    await handler.note_scan(ticket_id, two, "Eicar")
    refused = await handler.handle(replace(A_FILE, infected="Eicar"), ticket_id, Asked(actor=UMA))
    assert [type(fact) for fact in refused.facts] == [AttachmentRefused]
    await handler.handle(Detach(attachment_id=one), ticket_id, Asked(actor=ADA))
    await eventually(lambda: level(owner))
    told = [
        (line.action, line.actor.username, [(c.field, c.old, c.new) for c in line.changes], line.reason)
        for line in await history(ledger, ticket_id)
    ]
    assert told[1:] == [
        ("ATTACHMENT_ADDED", "ada", [("attachment", None, "waiting.log")], None),
        ("UPDATE", "virus scanner", [("attachment.scan", "quarantined", "clean")], None),
        ("ATTACHMENT_ADDED", "ada", [("attachment", None, "waiting.log")], None),
        ("UPDATE", "virus scanner", [("attachment.scan", "quarantined", "infected with Eicar")], None),
        ("UPDATE", "uma", [], "proxy.log was not taken: Eicar is in it"),
        ("ATTACHMENT_DELETED", "ada", [("attachment", "waiting.log", None)], None),
    ]
    (added, cleared, _, condemned, bad, gone) = (await history(ledger, ticket_id))[1:]
    assert added.metadata == {"attachment_id": str(one), "filename": "waiting.log", "sha256": TWO}
    assert cleared.metadata == {"attachment_id": str(one), "filename": "waiting.log"}
    assert condemned.metadata == {"attachment_id": str(two), "filename": "waiting.log"}
    assert (cleared.actor, cleared.ip_address) == (SCANNER, None)
    assert bad.metadata == {"filename": "proxy.log", "sha256": ONE, "infected": "Eicar"}
    assert gone.metadata == {"attachment_id": str(one), "filename": "waiting.log"}
