"""The refusals: every message can be filled wherever one is made, and reads as a sentence.

Where refusals are made is read off the source, so that a new place is held to it too. Deliberately absent:
the status code of each, which is the edge's.
"""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from string import Formatter

import pytest
from msgspec.structs import replace

from tests.tickets.given_when_then import (
    A_REQUEST,
    ALICE,
    BOB,
    COMMENT,
    DEV,
    MANAGER,
    NET_DEV,
    NOBODY_KNOWN,
    SENIOR,
    START,
    WORDS,
    Decision,
    a_ticket,
    commented,
    created,
    deleted,
    given,
)
from tickets import errors
from tickets.commands import AddComment, Assign, ChangeStatus, Delete, DeleteComment, Edit, EditComment, Restore
from tickets.errors import (
    Forbidden,
    IdempotencyKeyReused,
    IllegalTransition,
    InvalidCommand,
    LedgerUnavailable,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Refusal,
    ReopenWindowOver,
    TicketClosed,
    TicketDeleted,
    TooContended,
    UnknownAssignee,
    VersionMismatch,
)
from tickets.lifecycle import Status

SRC = Path(errors.__file__).parents[1]
KINDS: dict[str, type[Refusal]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, Refusal) and kind is not Refusal
}

SLUGS = {
    NotFound: "not-found",
    Forbidden: "forbidden",
    InvalidCommand: "invalid-command",
    IllegalTransition: "illegal-transition",
    ReopenWindowOver: "reopen-window-over",
    TicketClosed: "ticket-closed",
    TicketDeleted: "ticket-deleted",
    UnknownAssignee: "unknown-assignee",
    VersionMismatch: "version-mismatch",
    IdempotencyKeyReused: "idempotency-key-reused",
    TooContended: "too-contended",
    Overloaded: "overloaded",
    LedgerUnavailable: "ledger-unavailable",
    OutcomeUnknown: "outcome-unknown",
}

VERBS = {
    "create",
    "view",
    "update",
    "edit",
    "assign",
    "move",
    "change",
    "resolve",
    "close",
    "reopen",
    "delete",
    "restore",
}


def _wanted(kind: type[Refusal]) -> set[str]:
    """The details that the message has room for."""
    return {name for _, name, _, _ in Formatter().parse(kind.__doc__ or "") if name is not None}


def _makings() -> Iterator[tuple[str, type[Refusal], set[str]]]:
    """Everywhere in the source that a refusal is made: where, which, and with which details."""
    for module in sorted(SRC.rglob("*.py")):
        source = module.read_text()
        if not any(name in source for name in KINDS):
            continue  # most of them; to parse all takes each process a second
        found = list(ast.walk(ast.parse(source)))
        name = str(module.relative_to(SRC))
        called = {id(node.func) for node in found if isinstance(node, ast.Call)}
        for node in found:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                kind = KINDS[node.func.id]
                passed_on = any(keyword.arg is None for keyword in node.keywords)  # **refusal.details
                details = {keyword.arg or "" for keyword in node.keywords}
                yield f"{name}:{node.lineno}", kind, details | (_wanted(kind) if passed_on else set())
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in KINDS:
                yield f"{name}:{node.lineno}", KINDS[node.exc.id], set()
            elif isinstance(node, ast.Call) and not _asks_for_the_kind(node):
                for argument in node.args:  # a class that is handed on, to be made there without details
                    if isinstance(argument, ast.Name) and argument.id in KINDS and id(argument) not in called:
                        yield f"{name}:{node.lineno}", KINDS[argument.id], set()


def _asks_for_the_kind(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in {"isinstance", "issubclass"}


MAKINGS = list(_makings())


@pytest.mark.parametrize(
    ("where", "kind", "details"), MAKINGS, ids=[f"{where} {kind.__name__}" for where, kind, _ in MAKINGS]
)
def test_whoever_makes_a_refusal_gives_all_that_its_message_wants(
    where: str, kind: type[Refusal], details: set[str]
) -> None:
    assert _wanted(kind) <= details, f"{where} leaves the message of {kind.__name__} unfilled"


def test_every_kind_of_refusal_is_made_somewhere() -> None:
    assert {kind for _, kind, _ in MAKINGS} == set(KINDS.values())


def test_a_message_without_its_details_is_a_mistake_that_shows() -> None:
    with pytest.raises(KeyError, match="status"):
        IllegalTransition(to=Status.OPEN, allowed="OPEN")


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_message_is_the_docstring_and_a_sentence(kind: type[Refusal]) -> None:
    names = sorted(_wanted(kind))
    assert kind.__doc__
    assert kind.__doc__ is not Refusal.__doc__
    message = str(kind(**{name: f"<{name}>" for name in names}))
    for name in names:
        assert f"<{name}>" in message
    assert "{" not in message
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert message[0].isupper() or message[0] == "<" or message[0].isdigit()


def test_details_are_kept_as_they_are_even_those_that_no_message_shows() -> None:
    refusal = VersionMismatch(current_version=3, expected_version="2", events=[1, 2])
    assert refusal.details == {"current_version": 3, "expected_version": "2", "events": [1, 2]}
    assert "[1, 2]" not in str(refusal)


def test_braces_in_a_detail_are_text() -> None:
    refusal = InvalidCommand(field="title", message="{field} is {0.__class__} and {}")
    assert str(refusal) == "title: {field} is {0.__class__} and {}."


@pytest.mark.parametrize(("kind", "slug"), SLUGS.items(), ids=SLUGS.values())
def test_a_kind_has_its_name_as_urls_write_it(kind: type[Refusal], slug: str) -> None:
    assert kind.slug() == slug


def test_every_kind_has_a_slug_of_its_own() -> None:
    assert set(SLUGS) == set(KINDS.values())
    assert len({kind.slug() for kind in KINDS.values()}) == len(KINDS)


# What is really said


def _refused(decision: Decision) -> str:
    assert decision.refusal is not None
    return str(decision.refusal)


LATE = START + timedelta(days=8)

SAID: dict[str, Callable[[], Decision]] = {
    "There is nothing of that id, or it is not yours to see.": lambda: given().when(Edit(title="Another")),
    "Your role, END_USER, may not create tickets for somebody else.": lambda: given().when(
        replace(A_REQUEST, requester_id=BOB.id), by=ALICE
    ),
    "Your role, DEVOPS_ENGINEER, may not update this ticket.": lambda: a_ticket(Status.OPEN).when(
        Edit(title="Mine"), by=DEV
    ),
    "Your role, END_USER, may not assign this ticket.": lambda: a_ticket(Status.OPEN).when(
        Assign(team="web"), by=ALICE
    ),
    "Your role, DEVOPS_ENGINEER, may not assign a ticket to anybody but yourself.": lambda: a_ticket(Status.OPEN).when(
        Assign(assignee_id=NET_DEV.id), by=DEV
    ),
    "Your role, SENIOR_ENGINEER, may not assign a ticket to others than your teams and their members.": lambda: (
        a_ticket(Status.OPEN).when(Assign(assignee_id=NET_DEV.id), by=SENIOR)
    ),
    "Your role, DEVOPS_ENGINEER, may not reopen this ticket.": lambda: a_ticket(Status.CLOSED).when(
        ChangeStatus(status=Status.REOPENED), by=DEV
    ),
    "Your role, END_USER, may not delete this ticket.": lambda: a_ticket(Status.OPEN).when(Delete(), by=ALICE),
    "Your role, END_USER, may not restore this ticket.": lambda: a_ticket(Status.OPEN, deleted()).when(
        Restore(), by=ALICE
    ),
    "Your role, END_USER, may not comment internally on this ticket.": lambda: a_ticket(Status.OPEN).when(
        AddComment(body=WORDS, internal=True), by=ALICE
    ),
    "Your role, MANAGER, may not edit a comment on this ticket that somebody else wrote.": lambda: a_ticket(
        Status.OPEN, commented()
    ).when(EditComment(comment_id=COMMENT, body="Another"), by=MANAGER),
    "Your role, SENIOR_ENGINEER, may not delete a comment on this ticket that somebody else wrote.": lambda: a_ticket(
        Status.OPEN, commented()
    ).when(DeleteComment(comment_id=COMMENT), by=SENIOR),
    "reason: a resolution needs a reason: what was done.": lambda: a_ticket(Status.IN_PROGRESS).when(
        ChangeStatus(status=Status.RESOLVED)
    ),
    "assignee_id: say whom to assign: assignee_id, team or both; null for nobody.": lambda: a_ticket(Status.OPEN).when(
        Assign()
    ),
    "A ticket that is NEW cannot become CLOSED; from here it can become OPEN.": lambda: given(created()).when(
        ChangeStatus(status=Status.CLOSED)
    ),
    "A ticket that is RESOLVED cannot become OPEN; from here it can become CLOSED or REOPENED.": lambda: a_ticket(
        Status.RESOLVED
    ).when(ChangeStatus(status=Status.OPEN)),
    "The ticket was closed at 2026-03-02T09:00:00+00:00; it could be reopened until 2026-03-09T09:00:00+00:00. "
    "Create a new one that refers to it.": lambda: a_ticket(Status.CLOSED).when(
        ChangeStatus(status=Status.REOPENED), at=LATE
    ),
    "The ticket is closed and takes no command but reopen.": lambda: a_ticket(Status.CLOSED).when(Delete()),
    "The ticket is deleted and takes no command but restore.": lambda: a_ticket(Status.OPEN, deleted()).when(Delete()),
    "Nobody with the id 00000000-0000-0000-0000-0000000003e7 has been seen here; "
    "they are known once they have signed in.": lambda: a_ticket(Status.OPEN).when(Assign(assignee_id=NOBODY_KNOWN)),
    "The ticket is at version 2, not at 1.": lambda: a_ticket(Status.OPEN).when(Delete(), if_match=frozenset({1})),
}


@pytest.mark.parametrize(("sentence", "decision"), SAID.items(), ids=SAID)
def test_what_a_decision_refuses_it_says_in_a_sentence(sentence: str, decision: Callable[[], Decision]) -> None:
    assert _refused(decision()) == sentence


def test_every_refusal_that_a_decision_makes_is_heard_above() -> None:
    made_by_decisions = {kind for where, kind, _ in MAKINGS if where.startswith("tickets/commands.py")}
    assert made_by_decisions == {type(decision().refusal) for decision in SAID.values()}


@pytest.mark.parametrize("to", [Status.PENDING_INFO, Status.RESOLVED])
def test_that_a_step_is_not_allowed_is_said_with_a_verb(to: Status) -> None:
    said = _refused(a_ticket(Status.IN_PROGRESS).when(ChangeStatus(status=to, reason="Done."), by=ALICE))
    spoken = re.fullmatch(r"Your role, END_USER, may not (\w+)\b[\w ]* this ticket\.", said)
    assert spoken is not None, said
    assert spoken[1] in VERBS, said
