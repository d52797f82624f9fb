"""Facts as they were stored once: every topic's promise that it can be read for ever.

golden_facts.json has the exact bytes, as text, frozen: a failure here means that stored history would be
read differently from now on. Then a new topic version and an upcaster are wanted, never another example
in place of an old one. Deliberately absent: random facts (test_properties.py).
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent

from tickets.events import (
    FACTS,
    Assigned,
    AttachmentAdded,
    AttachmentDeleted,
    AttachmentRefused,
    AttachmentScanned,
    By,
    Closed,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
    Created,
    Deleted,
    DueDatesMoved,
    Edited,
    Escalated,
    Fact,
    PersonSeen,
    Prioritized,
    Reopened,
    Resolved,
    Restored,
    StatusChanged,
)
from tickets.lifecycle import Status
from tickets.mapper import UPCASTERS, FactMapper, decode, decode_all, encode
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.values import Category, Environment, Scan

STORED: Final[dict[str, dict[str, str]]] = json.loads(
    Path(__file__).with_name("golden_facts.json").read_text(encoding="utf-8")
)
"""By what each is an example of: the topic and the state."""

STREAM: Final = UUID("0198a7c2-5d1e-7b3a-9c4f-2e6d8a1b0c3d")
REQUESTER: Final = UUID("3f1c9a52-7d84-4e0b-b6a1-90c2d5e8f714")
ENGINEER: Final = UUID("a2b4c6d8-1357-4924-8680-acebdf024681")
COMMENT: Final = UUID("0198a7c3-11aa-7c00-8d00-5eedc0ffee01")
FILE: Final = UUID("0198a7c3-22bb-7c00-8d00-5eedc0ffee02")
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
AT: Final = datetime(2026, 3, 2, 9, 0, 0, 123456, tzinfo=UTC)


def head(version: int, at: datetime = AT) -> dict[str, Any]:
    return {"originator_id": STREAM, "originator_version": version, "timestamp": at}


READ: Final[dict[str, Fact]] = {
    "created with all there is": Created(
        **head(1),
        number="TKT-2026-000042",
        title="Größter Ärger: 生产服务器宕机 🔥",
        description='Line one\nline "two"\ttabbed \\ slashed / and a \u2028 separator \u0001 and control',
        category=Category.INCIDENT,
        priority=Priority.P1,
        requester_id=REQUESTER,
        response_due_at=datetime(2026, 3, 2, 10, 0, 0, 123456, tzinfo=UTC),
        resolution_due_at=datetime(2026, 3, 2, 13, 0, 0, 123456, tzinfo=UTC),
        environment=Environment.PRODUCTION,
        affected_service="web-app-01",
        tags=("web", "größer", "🔥"),
        team="Plattform-Team",
    ),
    "created with what it needs": Created(
        **head(1, datetime(2026, 3, 2, 9, 0, tzinfo=UTC)),
        number="TKT-2026-1000000",
        title="VPN",
        description="?",
        category=Category.QUESTION,
        priority=Priority.P3,
        requester_id=REQUESTER,
        response_due_at=datetime(2026, 3, 2, 17, 0, tzinfo=UTC),
        resolution_due_at=datetime(2026, 3, 4, 9, 0, tzinfo=UTC),
        environment=None,
        affected_service=None,
        tags=(),
        team=None,
    ),
    "edited in every field": Edited(
        **head(2),
        title="Ünïcödé ☂",
        description="Another\r\ntext",
        category=Category.CHANGE_REQUEST,
        environment=Environment.STAGING,
        affected_service="db-01",
        tags=("b", "a"),
    ),
    "edited to take away what is optional": Edited(**head(3), environment=None, affected_service=None, tags=()),
    "edited in one field": Edited(**head(4), title="Shorter"),
    "prioritized": Prioritized(**head(5), priority=Priority.P4),
    "due dates moved": DueDatesMoved(
        **head(6),
        response_due_at=datetime(2026, 3, 3, 9, 0, 0, 123456, tzinfo=UTC),
        resolution_due_at=datetime(2026, 3, 7, 9, 0, 0, 1, tzinfo=UTC),
    ),
    "assigned to somebody in a team, with a reason": Assigned(
        **head(7), assignee_id=ENGINEER, team="Réseau", reason="Du kennst „das“ am besten."
    ),
    "assigned to nobody": Assigned(**head(8), assignee_id=None, team=None, reason=None),
    "status changed, with a reason": StatusChanged(**head(9), status=Status.PENDING_INFO, reason="Which server? 🤔"),
    "status changed": StatusChanged(**head(10), status=Status.IN_PROGRESS, reason=None),
    "escalated, with a reason": Escalated(**head(11), reason="Beyond us"),
    "escalated": Escalated(**head(12), reason=None),
    "resolved": Resolved(**head(13), resolution_notes="Neu gestartet ✅"),
    "resolved, nobody knows how": Resolved(**head(14), resolution_notes=None),
    "closed, with a reason": Closed(**head(15), reason="Alice is content"),
    "closed": Closed(**head(16), reason=None),
    "reopened, with a reason": Reopened(**head(17), reason="Wieder kaputt"),
    "reopened": Reopened(**head(18), reason=None),
    "deleted": Deleted(**head(19)),
    "restored": Restored(**head(2147483647)),
    "a comment added": CommentAdded(
        **head(20),
        comment_id=COMMENT,
        author=By(REQUESTER, "zoë", Role.END_USER),
        body="Seit dem Upgrade 🔥\r\n\tzwei „Fehler“ \u2028 \u0001 ",
    ),
    "an internal comment added by somebody of whom little is known": CommentAdded(
        **head(21), comment_id=COMMENT, author=By(ENGINEER, None, None), body="Kündigt bald?", internal=True
    ),
    "a comment edited": CommentEdited(**head(22), comment_id=COMMENT, body="Doch nicht", previous="Seit dem Upgrade"),
    "an internal comment edited": CommentEdited(
        **head(23), comment_id=COMMENT, body="…", previous="Kündigt bald?", internal=True
    ),
    "a comment deleted": CommentDeleted(**head(24), comment_id=COMMENT, previous='Was "stood" there'),
    "an internal comment deleted": CommentDeleted(**head(25), comment_id=COMMENT, previous="…", internal=True),
    "a file attached": AttachmentAdded(
        **head(26),
        attachment_id=FILE,
        uploaded_by=By(REQUESTER, "zoë", Role.END_USER),
        filename='Größe „7“ 🔥 "log".txt',
        content_type="text/plain",
        size=52_428_800,
        sha256=SHA256,
        scan=Scan.CLEAN,
    ),
    "a file attached by somebody of whom little is known, in quarantine": AttachmentAdded(
        **head(27),
        attachment_id=FILE,
        uploaded_by=By(ENGINEER, None, None),
        filename="a",
        content_type="application/zip",
        size=1,
        sha256=SHA256,
        scan=Scan.QUARANTINED,
    ),
    "a file attached where there is no scanner": AttachmentAdded(
        **head(28),
        attachment_id=FILE,
        uploaded_by=By(ENGINEER, "dev", Role.DEVOPS_ENGINEER),
        filename="shot.png",
        content_type="image/png",
        size=7,
        sha256=SHA256,
        scan=Scan.UNSCANNED,
    ),
    "a file taken away": AttachmentDeleted(**head(29), attachment_id=FILE, filename="shot.png"),
    "a file found clean": AttachmentScanned(**head(30), attachment_id=FILE, filename="shot.png", infected=None),
    "a file found infected": AttachmentScanned(
        **head(31), attachment_id=FILE, filename="shot.png", infected="Win.Test.EICAR_HDB-1"
    ),
    "a file refused": AttachmentRefused(
        **head(32), filename="прайс.zip", size=184, sha256=SHA256, infected="Win.Test.EICAR_HDB-1"
    ),
    "a person seen, with all that a token says": PersonSeen(
        **head(1), person_id=ENGINEER, username="jürgen", role=Role.DEVOPS_ENGINEER, teams=("Réseau", "web")
    ),
    "a person seen of whom nothing is known": PersonSeen(
        **head(2), person_id=ENGINEER, username=None, role=None, teams=()
    ),
}
"""By the same names: what each says."""

TOPICS: Final = {
    "ticket.created.v1": Created,
    "ticket.edited.v1": Edited,
    "ticket.prioritized.v1": Prioritized,
    "ticket.due_dates_moved.v1": DueDatesMoved,
    "ticket.assigned.v1": Assigned,
    "ticket.status_changed.v1": StatusChanged,
    "ticket.escalated.v1": Escalated,
    "ticket.resolved.v1": Resolved,
    "ticket.closed.v1": Closed,
    "ticket.reopened.v1": Reopened,
    "ticket.deleted.v1": Deleted,
    "ticket.restored.v1": Restored,
    "ticket.comment_added.v1": CommentAdded,
    "ticket.comment_edited.v1": CommentEdited,
    "ticket.comment_deleted.v1": CommentDeleted,
    "ticket.attachment_added.v1": AttachmentAdded,
    "ticket.attachment_deleted.v1": AttachmentDeleted,
    "ticket.attachment_scanned.v1": AttachmentScanned,
    "ticket.attachment_refused.v1": AttachmentRefused,
    "person.seen.v1": PersonSeen,
}
"""Every topic that may be in a ledger somewhere."""

CURRENT: Final = {fact.TOPIC for fact in FACTS}
"""The topics that are written today."""


@pytest.mark.parametrize("name", STORED)
def test_what_was_stored_once_still_says_the_same(name: str) -> None:
    topic, state = STORED[name]["topic"], STORED[name]["state"].encode()
    fact = decode(topic, state)
    assert type(fact) is type(READ[name])
    assert fact == READ[name]
    assert fact.timestamp.utcoffset() == timedelta()
    assert decode_all([(topic, state)]) == [READ[name]]


@pytest.mark.parametrize("name", [name for name, one in STORED.items() if one["topic"] in CURRENT])
def test_what_is_stored_today_is_what_was_stored_then_to_the_byte(name: str) -> None:
    assert encode(READ[name]).decode() == STORED[name]["state"]
    assert STORED[name]["topic"] == READ[name].TOPIC


@pytest.mark.parametrize("name", STORED)
def test_the_library_reads_what_was_stored_once_as_well(name: str) -> None:
    fact, (topic, state) = READ[name], (STORED[name]["topic"], STORED[name]["state"].encode())
    stored = StoredEvent(fact.originator_id, fact.originator_version, topic, state)
    assert FactMapper().to_domain_event(stored) == fact


def test_every_example_is_read_and_every_reading_has_its_example() -> None:
    assert STORED.keys() == READ.keys()


def test_every_topic_has_a_golden_example() -> None:
    assert {one["topic"] for one in STORED.values()} >= CURRENT


def test_every_topic_with_something_optional_has_an_example_with_it_and_one_without() -> None:
    for kind in FACTS:
        optional = {one.encode_name for one in msgspec.structs.fields(kind) if not one.required}
        there = [set(json.loads(one["state"])) & optional for one in STORED.values() if one["topic"] == kind.TOPIC]
        assert set().union(*there) == optional, kind.TOPIC
        assert set.intersection(*there) == set(), kind.TOPIC


def test_the_topics_are_those_that_were_promised() -> None:
    assert {fact.TOPIC: fact for fact in FACTS}.items() <= TOPICS.items()
    assert len({fact.TOPIC for fact in FACTS}) == len(FACTS)
    assert CURRENT | UPCASTERS.keys() == TOPICS.keys()


# Old topics


def test_an_old_topic_is_read_through_its_upcaster(monkeypatch: pytest.MonkeyPatch) -> None:
    def upcast(old: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        reason = old.pop("why")
        return "ticket.closed.v1", {**old, "reason": reason}

    monkeypatch.setitem(UPCASTERS, "ticket.closed.v0", upcast)
    old = STORED["closed, with a reason"]["state"].replace('"reason"', '"why"').encode()

    assert decode("ticket.closed.v0", old) == READ["closed, with a reason"]


def test_upcasters_make_a_chain_a_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def first(old: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        steps.append("first")
        return "ticket.shut.v2", {**old, "because": old["why"]}

    def second(old: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        steps.append("second")
        return "ticket.closed.v1", {**old, "reason": old["because"]}

    monkeypatch.setitem(UPCASTERS, "ticket.shut.v1", first)
    monkeypatch.setitem(UPCASTERS, "ticket.shut.v2", second)
    old = STORED["closed, with a reason"]["state"].replace('"reason"', '"why"').encode()

    assert decode("ticket.shut.v1", old) == READ["closed, with a reason"]
    assert steps == ["first", "second"]


def test_old_and_present_topics_are_read_together_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTERS, "ticket.shut.v1", lambda old: ("ticket.closed.v1", old))
    rows = [
        ("ticket.reopened.v1", STORED["reopened"]["state"].encode()),
        ("ticket.shut.v1", STORED["closed"]["state"].encode()),
        ("ticket.deleted.v1", STORED["deleted"]["state"].encode()),
    ]
    assert decode_all(iter(rows)) == [READ["reopened"], READ["closed"], READ["deleted"]]


def test_the_library_reads_old_topics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTERS, "ticket.shut.v1", lambda old: ("ticket.closed.v1", old))
    stored = StoredEvent(STREAM, 16, "ticket.shut.v1", STORED["closed"]["state"].encode())
    assert FactMapper().to_domain_event(stored) == READ["closed"]


def test_no_topic_that_is_written_today_has_an_upcaster() -> None:
    assert not CURRENT & UPCASTERS.keys()


# What cannot be read


@pytest.mark.parametrize("state", [STORED["closed"]["state"].encode(), b"{}", b"", b"\xff"])
def test_an_unknown_topic_cannot_be_read_and_is_named(state: bytes) -> None:
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.abducted\.v1 cannot be read"):
        decode("ticket.abducted.v1", state)
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.abducted\.v1 cannot be read"):
        FactMapper().to_domain_event(StoredEvent(STREAM, 1, "ticket.abducted.v1", state))


def test_an_upcaster_that_leads_nowhere_is_named_with_where_it_led(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTERS, "ticket.shut.v1", lambda old: ("ticket.abducted.v1", old))
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.shut\.v1 .*no such topic as ticket\.abducted\.v1"):
        decode("ticket.shut.v1", STORED["closed"]["state"].encode())


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        STORED["prioritized"]["state"].replace("P4", "P5").encode(),
        STORED["prioritized"]["state"].replace('"version":5', '"version":"five"').encode(),
        STORED["prioritized"]["state"].replace('"priority"', '"urgency"').encode(),
        STORED["prioritized"]["state"].replace('"at":"2026-03-02T', '"at":"2026-13-02T').encode(),
        STORED["prioritized"]["state"].encode() + b"}",
        b'{"nested":' + b"[" * 100_000,
    ],
    ids=[
        "nothing",
        "null",
        "no object",
        "torn off",
        "no text",
        "an unknown word",
        "another type",
        "another name",
        "no time",
        "more than there is",
        "nested without end",
    ],
)
def test_damaged_bytes_cannot_be_read_and_their_topic_is_named(state: bytes) -> None:
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.prioritized\.v1 cannot be read"):
        decode("ticket.prioritized.v1", state)
    good = ("ticket.deleted.v1", STORED["deleted"]["state"].encode())
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.prioritized\.v1 cannot be read"):
        decode_all([good, ("ticket.prioritized.v1", state)])


@pytest.mark.parametrize("state", [b"[]", b"null", b"{}", b"42"])
def test_an_old_topic_whose_bytes_are_damaged_cannot_be_read_and_is_named(
    monkeypatch: pytest.MonkeyPatch, state: bytes
) -> None:
    monkeypatch.setitem(UPCASTERS, "ticket.shut.v1", lambda old: ("ticket.closed.v1", {**old, "reason": old["why"]}))
    with pytest.raises(MapperDeserialisationError, match=r"^ticket\.shut\.v1 cannot be read"):
        decode("ticket.shut.v1", state)
