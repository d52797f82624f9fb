"""Snapshots on a real database: what is kept is what the facts say, and nobody depends on it."""

from uuid import UUID, uuid4

import pytest

from tests.tickets.given_when_then import A_REQUEST
from tickets import snapshots
from tickets.commands import AddComment, Attach, ChangeStatus, DeleteComment, Detach, EditComment
from tickets.connections import Connection
from tickets.handler import Asked, Handler
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.permissions import Actor, Assignee, Role
from tickets.ticket import Ticket, fold
from tickets.values import Scan

ADA = Actor(id=uuid4(), role=Role.ADMIN, username="ada")
BOB = Actor(id=uuid4(), role=Role.ADMIN, username=None)
WAITING = Attach(filename="a.log", content_type="text/plain", size=7, sha256="11" * 32, scan=Scan.QUARANTINED)


async def nobody(_person: UUID) -> Assignee | None:
    return None


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "EVERY", 4)


async def a_long_life(ledger: Ledger) -> Ticket:
    """A ticket with comments that stand, were put differently and were taken back, and files as many ways."""
    at_work = Handler(ledger, nobody)
    ticket = (await at_work.handle(A_REQUEST, None, Asked(actor=ADA))).ticket
    for n in range(9):
        said = AddComment(body=f"said {n}", internal=n % 2 == 0)
        added = await at_work.handle(said, ticket.id, Asked(actor=BOB if n in (4, 5) else ADA))
        (comment, *_) = (one for one in added.ticket.comments if one not in ticket.comments)
        ticket = added.ticket
        if n == 3:
            ticket = (await at_work.handle(DeleteComment(comment_id=comment), ticket.id, Asked(actor=ADA))).ticket
        if n == 5:
            edit = EditComment(comment_id=comment, body="said better")
            ticket = (await at_work.handle(edit, ticket.id, Asked(actor=BOB))).ticket
        if n % 2:
            ticket = (await at_work.handle(WAITING, ticket.id, Asked(actor=ADA))).ticket
    cleared, infected, gone, _ = sorted(ticket.attachments)
    await at_work.note_scan(ticket.id, cleared, None)
    await at_work.note_scan(ticket.id, infected, "Eicar")
    await at_work.handle(Detach(attachment_id=gone), ticket.id, Asked(actor=ADA))
    return (await at_work.handle(ChangeStatus(status=Status.OPEN), ticket.id, Asked(actor=ADA))).ticket


async def test_what_was_kept_and_the_facts_since_make_the_same_ticket(ledger: Ledger, owner: Connection) -> None:
    ticket = await a_long_life(ledger)
    assert ticket == fold(await ledger.facts(ticket.id))  # type: ignore[arg-type] # all are about a ticket
    kept = await snapshots.find(snapshots.finding(ledger.pool), ticket.id)
    assert kept is not None
    assert ticket.version - 4 < kept.version <= ticket.version
    assert [(file.scan, file.infected) for _, file in sorted(kept.attachments.items())] == [
        (Scan.CLEAN, None),
        (Scan.QUARANTINED, "Eicar"),
        (Scan.QUARANTINED, None),
    ]
    assert kept == fold(await ledger.facts(ticket.id, upto=kept.version))  # type: ignore[arg-type] # as above
    assert await Handler(ledger, nobody).ticket(ticket.id) == ticket
    assert await owner.fetchval("select count(*) from ledger.snapshots") == 1


async def test_an_earlier_version_is_not_read_from_a_later_snapshot(ledger: Ledger) -> None:
    ticket = await a_long_life(ledger)
    for version in range(1, ticket.version + 1):
        then = await Handler(ledger, nobody).ticket(ticket.id, upto=version)
        assert then == fold(await ledger.facts(ticket.id, upto=version))  # type: ignore[arg-type] # as above


async def test_what_other_code_kept_is_not_looked_at_and_is_kept_anew(
    ledger: Ledger, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = await a_long_life(ledger)
    await owner.execute("update ledger.snapshots set state = 'nonsense', made_by = 'somebody else'")
    assert await snapshots.find(snapshots.finding(ledger.pool), ticket.id) is None
    monkeypatch.setattr(snapshots, "EVERY", 1)
    assert await Handler(ledger, nobody).ticket(ticket.id) == ticket
    assert await snapshots.find(snapshots.finding(ledger.pool), ticket.id) == ticket


async def test_without_any_snapshot_nothing_is_lost(ledger: Ledger, owner: Connection) -> None:
    ticket = await a_long_life(ledger)
    await owner.execute("truncate ledger.snapshots")
    again = await Handler(ledger, nobody).handle(AddComment(body="still here"), ticket.id, Asked(actor=ADA))
    assert again.ticket.version == ticket.version + 1
