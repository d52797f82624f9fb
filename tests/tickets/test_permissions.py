"""Every role with every command on every ticket, cell by cell, and what a cell cannot say as sentences.

The tables are written from the contract, not from GRANTS. A cell reads:

    yes       it is done
    nothing   it is granted, and there is nothing to do
    no        seen but not allowed: Forbidden
    hidden    not yours to see: NotFound
    gone      allowed, but the ticket is deleted: TicketDeleted
    unknown   allowed, but nobody knows the assignee: UnknownAssignee

Deliberately absent: what the state of a ticket allows, but for deletion (test_workflow.py).
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from msgspec.structs import replace

from tests.tickets.given_when_then import (
    A_REQUEST,
    ADMIN,
    ALICE,
    BOB,
    DEV,
    LATER,
    LEAD,
    MANAGER,
    NET_DEV,
    NOBODY_KNOWN,
    NOTES,
    SENIOR,
    SHA256,
    START,
    WEB_DEV,
    WORDS,
    Given,
    assigned,
    attached,
    commented,
    created,
    deleted,
    given,
    told,
    way_to,
)
from tickets.commands import (
    AddComment,
    Assign,
    Attach,
    ChangeStatus,
    Command,
    Delete,
    DeleteComment,
    Detach,
    Edit,
    EditComment,
    Policy,
    Restore,
    may,
    steps,
)
from tickets.errors import (
    Forbidden,
    NotFound,
    Refusal,
    ReopenWindowOver,
    TicketClosed,
    TicketDeleted,
    UnknownAssignee,
    VersionMismatch,
)
from tickets.events import (
    Assigned,
    AttachmentAdded,
    AttachmentDeleted,
    Closed,
    CommentAdded,
    CommentDeleted,
    CommentEdited,
    Created,
    Deleted,
    Edited,
    Reopened,
    Resolved,
    Restored,
    StatusChanged,
    TicketEvent,
)
from tickets.lifecycle import Status
from tickets.permissions import GRANTS, Actor, Permission, Role

ACTORS = {actor.role: actor for actor in (ALICE, DEV, SENIOR, LEAD, MANAGER, ADMIN)}
"""One of each role. DEV, SENIOR and LEAD are in the team web."""

RELATIONS = ("own", "assigned", "team", "other", "gone own", "gone other")
"""What the actor has to do with the ticket: requested it, is assigned to it, is in its team, nothing; and
two tickets that are deleted, one requested by the actor and one by somebody else."""

VIEW = """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   yes       hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      yes       yes
SENIOR_ENGINEER   yes      yes       yes      yes      yes       yes
TEAM_LEAD         yes      yes       yes      yes      yes       yes
MANAGER           yes      yes       yes      yes      yes       yes
ADMIN             yes      yes       yes      yes      yes       yes
"""

TABLES = {
    "edit": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "change status": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "resolve": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "close": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "reopen": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "delete": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         no       no        no       no       no        no
MANAGER           no       no        no       no       no        no
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "restore": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         no       no        no       no       no        no
MANAGER           no       no        no       no       no        no
ADMIN             nothing  nothing   nothing  nothing  yes       yes
""",
    "assign to oneself": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   yes      nothing   yes      yes      gone      gone
SENIOR_ENGINEER   yes      nothing   yes      yes      gone      gone
TEAM_LEAD         yes      nothing   yes      yes      gone      gone
MANAGER           yes      nothing   yes      yes      gone      gone
ADMIN             yes      nothing   yes      yes      gone      gone
""",
    "assign to a member of the team web": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "assign to a member of the team network": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "assign to the requester bob, who is in no team": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "assign to somebody unknown": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   unknown  unknown   unknown  unknown  gone      gone
TEAM_LEAD         unknown  unknown   unknown  unknown  gone      gone
MANAGER           unknown  unknown   unknown  unknown  gone      gone
ADMIN             unknown  unknown   unknown  unknown  gone      gone
""",
    "assign to the team web": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   yes      yes       nothing  yes      gone      gone
TEAM_LEAD         yes      yes       nothing  yes      gone      gone
MANAGER           yes      yes       nothing  yes      gone      gone
ADMIN             yes      yes       nothing  yes      gone      gone
""",
    "assign to the team network": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "assign to oneself and the team network": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "take it from whoever has it": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   nothing  yes       nothing  nothing  gone      gone
TEAM_LEAD         nothing  yes       nothing  nothing  gone      gone
MANAGER           nothing  yes       nothing  nothing  gone      gone
ADMIN             nothing  yes       nothing  nothing  gone      gone
""",
    "comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "comment internally": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "edit one's own comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "edit somebody's comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         no       no        no       no       no        no
MANAGER           no       no        no       no       no        no
ADMIN             no       no        no       no       no        no
""",
    "edit one's own internal comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "edit somebody's internal comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         no       no        no       no       no        no
MANAGER           no       no        no       no       no        no
ADMIN             no       no        no       no       no        no
""",
    "edit a comment that is not there": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
SENIOR_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
TEAM_LEAD         hidden   hidden    hidden   hidden   hidden    hidden
MANAGER           hidden   hidden    hidden   hidden   hidden    hidden
ADMIN             hidden   hidden    hidden   hidden   hidden    hidden
""",
    "delete one's own comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "delete somebody's comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          no       hidden    hidden   hidden   no        hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "delete one's own internal comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "delete somebody's internal comment": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   no       no        no       no       no        no
SENIOR_ENGINEER   no       no        no       no       no        no
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "delete a comment that is not there": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
SENIOR_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
TEAM_LEAD         hidden   hidden    hidden   hidden   hidden    hidden
MANAGER           hidden   hidden    hidden   hidden   hidden    hidden
ADMIN             hidden   hidden    hidden   hidden   hidden    hidden
""",
    "attach a file": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "take away one's own file": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   yes      yes       yes      yes      gone      gone
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "take away somebody's file": """
                  own      assigned  team     other    gone own  gone other
END_USER          yes      hidden    hidden   hidden   gone      hidden
DEVOPS_ENGINEER   no       yes       no       no       no        no
SENIOR_ENGINEER   yes      yes       yes      yes      gone      gone
TEAM_LEAD         yes      yes       yes      yes      gone      gone
MANAGER           yes      yes       yes      yes      gone      gone
ADMIN             yes      yes       yes      yes      gone      gone
""",
    "take away a file that is not there": """
                  own      assigned  team     other    gone own  gone other
END_USER          hidden   hidden    hidden   hidden   hidden    hidden
DEVOPS_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
SENIOR_ENGINEER   hidden   hidden    hidden   hidden   hidden    hidden
TEAM_LEAD         hidden   hidden    hidden   hidden   hidden    hidden
MANAGER           hidden   hidden    hidden   hidden   hidden    hidden
ADMIN             hidden   hidden    hidden   hidden   hidden    hidden
""",
}

FACTS_OF: dict[str, type] = {
    "edit": Edited,
    "change status": StatusChanged,
    "resolve": Resolved,
    "close": Closed,
    "reopen": Reopened,
    "delete": Deleted,
    "restore": Restored,
    **{name: CommentAdded for name in TABLES if name.startswith("comment")},
    **{name: CommentEdited for name in TABLES if name.startswith("edit ")},
    **{name: CommentDeleted for name in TABLES if name.startswith("delete ")},
    **{name: AttachmentDeleted for name in TABLES if name.startswith("take away ")},
    "attach a file": AttachmentAdded,
}
"""The fact that a `yes` is; of all else it is Assigned."""

COMMENTS = {
    "one's own comment": UUID(int=0xC0),
    "somebody's comment": UUID(int=0xC1),
    "one's own internal comment": UUID(int=0xC2),
    "somebody's internal comment": UUID(int=0xC3),
    "a comment that is not there": UUID(int=0xC4),
}
"""Of every ticket here. An END_USER who wrote an internal one was staff then."""

FILES = {
    "one's own file": UUID(int=0xF0),
    "somebody's file": UUID(int=0xF1),
    "a file that is not there": UUID(int=0xF2),
}
"""Of every ticket here."""

REFUSALS: dict[str, type[Refusal]] = {
    "no": Forbidden,
    "hidden": NotFound,
    "gone": TicketDeleted,
    "unknown": UnknownAssignee,
}


@dataclass(frozen=True)
class Cell:
    """Somebody of a role, a command, and what they have to do with the ticket."""

    role: Role
    name: str
    relation: str
    expected: str

    def __str__(self) -> str:
        return f"{self.role} | {self.name} | {self.relation} -> {self.expected}"


def _cells(name: str, table: str) -> list[Cell]:
    return [
        Cell(Role(role), name, relation, expected)
        for role, *row in (line.split() for line in table.strip().splitlines()[1:])
        for relation, expected in zip(RELATIONS, row, strict=True)
    ]


VIEW_CELLS = _cells("view", VIEW)
CELLS = [cell for name, table in TABLES.items() for cell in _cells(name, table)]


def _command(name: str, actor: Actor) -> Command:
    commands: dict[str, Command] = {
        "edit": Edit(title="Another title"),
        "change status": ChangeStatus(status=Status.PENDING_INFO),
        "resolve": ChangeStatus(status=Status.RESOLVED, reason=NOTES),
        "close": ChangeStatus(status=Status.CLOSED),
        "reopen": ChangeStatus(status=Status.REOPENED),
        "delete": Delete(),
        "restore": Restore(),
        "assign to oneself": Assign(assignee_id=actor.id),
        "assign to a member of the team web": Assign(assignee_id=WEB_DEV.id),
        "assign to a member of the team network": Assign(assignee_id=NET_DEV.id),
        "assign to the requester bob, who is in no team": Assign(assignee_id=BOB.id),
        "assign to somebody unknown": Assign(assignee_id=NOBODY_KNOWN),
        "assign to the team web": Assign(team="web"),
        "assign to the team network": Assign(team="network"),
        "assign to oneself and the team network": Assign(assignee_id=actor.id, team="network"),
        "take it from whoever has it": Assign(assignee_id=None),
        "comment": AddComment(body=WORDS),
        "comment internally": AddComment(body=WORDS, internal=True),
        **{f"edit {what}": EditComment(comment_id=one, body="Put differently") for what, one in COMMENTS.items()},
        **{f"delete {what}": DeleteComment(comment_id=one) for what, one in COMMENTS.items()},
        "attach a file": Attach(filename="a.txt", content_type="text/plain", size=1, sha256=SHA256),
        **{f"take away {what}": Detach(attachment_id=one) for what, one in FILES.items()},
    }
    return commands[name]


def _ticket(relation: str, actor: Actor, status: Status = Status.IN_PROGRESS) -> Given:
    """A ticket with that status which the actor has this to do with, and nothing else but comments and files."""
    first = created(by=actor if relation.endswith("own") else BOB, team="web" if relation == "team" else None)
    further: dict[str, list[TicketEvent]] = {
        "assigned": [assigned(actor)],
        "gone own": [deleted()],
        "gone other": [deleted()],
    }
    said = [
        commented(
            actor if "own" in what else WEB_DEV,
            internal="internal" in what,
            comment_id=one,
        )
        for what, one in COMMENTS.items()
        if what != "a comment that is not there"
    ]
    files = [
        attached(actor if "own" in what else WEB_DEV, attachment_id=one)
        for what, one in FILES.items()
        if what != "a file that is not there"
    ]
    return given(first, *said, *files, *way_to(status), *further.get(relation, []))


def test_the_tables_have_a_cell_for_every_role_command_and_relation() -> None:
    for table in (VIEW, *TABLES.values()):
        header, *rows = table.strip().splitlines()
        assert header.replace("gone ", "gone_").split() == [one.replace(" ", "_") for one in RELATIONS]
        assert [row.split()[0] for row in rows] == list(Role)
    assert len(CELLS) == 6 * 32 * 6
    assert set(ACTORS) == set(Role)


@pytest.mark.parametrize("command", TABLES)
def test_each_role_may_do_what_the_contract_says_and_no_more(command: str) -> None:
    for cell in (one for one in CELLS if one.name == command):
        with told(cell):
            _assert_that_it_is_so(cell)


def _assert_that_it_is_so(cell: Cell) -> None:
    actor = ACTORS[cell.role]
    status = {"close": Status.RESOLVED, "reopen": Status.RESOLVED}.get(cell.name, Status.IN_PROGRESS)

    decision = _ticket(cell.relation, actor, status).when(_command(cell.name, actor), by=actor)

    if cell.expected in REFUSALS:
        decision.then_refused(REFUSALS[cell.expected])
    elif cell.expected == "nothing":
        decision.then_nothing()
    else:
        assert cell.expected == "yes"
        assert decision.refusal is None
        assert type(decision.facts[0]) is FACTS_OF.get(cell.name, Assigned)


@pytest.mark.parametrize("role", Role)
def test_each_role_sees_what_the_contract_says_and_no_more(role: Role) -> None:
    actor = ACTORS[role]
    for cell in (one for one in VIEW_CELLS if one.role is role):
        with told(cell):
            assert may(Permission.VIEW, _ticket(cell.relation, actor).ticket, actor) is (cell.expected == "yes")


CREATING = """
                  for oneself  for somebody else
END_USER          yes          no
DEVOPS_ENGINEER   yes          yes
SENIOR_ENGINEER   yes          yes
TEAM_LEAD         yes          yes
MANAGER           yes          yes
ADMIN             yes          yes
"""


@pytest.mark.parametrize(
    ("role", "for_oneself", "for_somebody_else"),
    [tuple(row.split()) for row in CREATING.strip().splitlines()[1:]],
)
def test_everybody_creates_for_themselves_and_staff_for_others(
    role: str, for_oneself: str, for_somebody_else: str
) -> None:
    actor = ACTORS[Role(role)]
    for requester_id, expected, requester in (
        (None, for_oneself, actor),
        (actor.id, for_oneself, actor),
        (BOB.id, for_somebody_else, BOB),
    ):
        decision = given().when(replace(A_REQUEST, requester_id=requester_id), by=actor)
        if expected == "no":
            decision.then_refused(Forbidden, role=actor.role, permission="create")
        else:
            assert decision.then(Created).ticket.requester_id == requester.id


# What cannot be seen


def test_what_cannot_be_seen_is_as_if_it_were_not_there() -> None:
    for name in TABLES:
        command = _command(name, ALICE)
        missing = given().when(command, by=ALICE).then_refused(NotFound)
        for relation in ("assigned", "team", "other", "gone other"):
            hidden = _ticket(relation, ALICE).when(command, by=ALICE).then_refused(NotFound)
            assert (str(hidden), hidden.details) == (str(missing), missing.details)


def test_an_end_user_sees_no_ticket_by_being_its_assignee_or_in_its_team() -> None:
    member = Actor(id=ALICE.id, role=Role.END_USER, teams=("web",))
    story = given(created(by=BOB, team="web"), assigned(member, team="web"))
    story.when(Edit(title="Mine now"), by=member).then_refused(NotFound)


def test_what_is_not_allowed_is_refused_before_the_ticket_says_no() -> None:
    for status in Status:
        for relation in ("own", "gone own"):
            story = _ticket(relation, ALICE, status)
            story.when(Delete(), by=ALICE).then_refused(Forbidden)
            story.when(ChangeStatus(status=Status.CLOSED), by=ALICE).then_refused(Forbidden)
            story.when(Assign(assignee_id=None), by=ALICE).then_refused(Forbidden)


def test_a_refusal_names_the_role_and_what_it_may_not() -> None:
    refusal = _ticket("other", DEV).when(Edit(title="Mine now"), by=DEV).then_refused(Forbidden)
    assert str(refusal) == "Your role, DEVOPS_ENGINEER, may not update this ticket."


def test_an_internal_comment_is_to_an_end_user_as_a_comment_that_is_not_there_whoever_wrote_it() -> None:
    story = _ticket("own", ALICE)
    for verb in ("edit", "delete"):
        missing = story.when(_command(f"{verb} a comment that is not there", ALICE), by=ALICE).then_refused(NotFound)
        for what in ("one's own internal comment", "somebody's internal comment"):
            for if_match in (None, frozenset({1})):
                command = _command(f"{verb} {what}", ALICE)
                hidden = story.when(command, by=ALICE, if_match=if_match).then_refused(NotFound)
                assert (str(hidden), hidden.details) == (str(missing), missing.details)


def test_staff_of_every_role_write_internal_comments_and_nobody_else_does() -> None:
    for role, actor in ACTORS.items():
        ticket = _ticket("own", actor).ticket
        assert may(Permission.COMMENT_INTERNALLY, ticket, actor) is (role is not Role.END_USER)
        assert may(Permission.COMMENT, ticket, actor)


# Reopening


def test_an_end_user_may_reopen_their_own_resolved_and_closed_tickets_within_the_window() -> None:
    for status in (Status.RESOLVED, Status.CLOSED):
        decision = _ticket("own", ALICE, status).when(ChangeStatus(status=Status.REOPENED), by=ALICE)
        assert decision.ticket.status is Status.REOPENED
    late = _ticket("own", ALICE, Status.CLOSED).when(
        ChangeStatus(status=Status.REOPENED), by=ALICE, at=START + timedelta(days=8)
    )
    late.then_refused(ReopenWindowOver)


def test_an_engineer_may_not_reopen_a_ticket_by_having_requested_it() -> None:
    _ticket("own", DEV, Status.CLOSED).when(ChangeStatus(status=Status.REOPENED), by=DEV).then_refused(Forbidden)


def test_an_end_user_may_edit_their_closed_ticket_no_more_than_anybody() -> None:
    _ticket("own", ALICE, Status.CLOSED).when(Edit(title="Still"), by=ALICE).then_refused(TicketClosed)


# Passing tickets on


def test_a_devops_engineer_takes_a_ticket_for_a_team_of_theirs_but_no_other() -> None:
    story = _ticket("other", DEV)
    story.when(Assign(assignee_id=DEV.id, team="web"), by=DEV).then(assigned(DEV, team="web"))
    refusal = story.when(Assign(assignee_id=DEV.id, team="db"), by=DEV).then_refused(Forbidden)
    assert str(refusal) == "Your role, DEVOPS_ENGINEER, may not assign a ticket to anybody but yourself."


def test_a_devops_engineer_may_take_a_ticket_from_a_colleague_but_not_give_it_away() -> None:
    story = given(created(), *way_to(Status.IN_PROGRESS), assigned(WEB_DEV))
    story.when(Assign(assignee_id=DEV.id), by=DEV).then(assigned(DEV))
    mine = given(created(), *way_to(Status.IN_PROGRESS), assigned(DEV))
    mine.when(Assign(assignee_id=WEB_DEV.id), by=DEV).then_refused(Forbidden)
    mine.when(Assign(assignee_id=None), by=DEV).then_refused(Forbidden)
    mine.when(Assign(team="web"), by=DEV).then_refused(Forbidden)


def test_a_devops_engineer_does_not_learn_whether_somebody_else_is_known() -> None:
    unknown = _ticket("other", DEV).when(Assign(assignee_id=NOBODY_KNOWN), by=DEV).then_refused(Forbidden)
    known = _ticket("other", DEV).when(Assign(assignee_id=WEB_DEV.id), by=DEV).then_refused(Forbidden)
    assert str(unknown) == str(known)


def test_taking_a_new_ticket_opens_it_though_its_taker_may_not_move_it_yet() -> None:
    story = given(created(by=BOB))
    story.when(ChangeStatus(status=Status.OPEN), by=DEV).then_refused(Forbidden)
    taken = story.when(Assign(assignee_id=DEV.id), by=DEV).then(assigned(DEV), StatusChanged).and_then()
    taken.when(ChangeStatus(status=Status.IN_PROGRESS), by=DEV).then(StatusChanged)


def test_a_senior_engineer_passes_tickets_to_each_of_their_teams_and_its_members() -> None:
    story = _ticket("other", SENIOR)
    for team in SENIOR.teams:
        story.when(Assign(team=team), by=SENIOR).then(assigned(team=team))
    story.when(Assign(assignee_id=WEB_DEV.id, team="db"), by=SENIOR).then(assigned(WEB_DEV, team="db"))
    refusal = story.when(Assign(assignee_id=WEB_DEV.id, team="network"), by=SENIOR).then_refused(Forbidden)
    assert str(refusal) == (
        "Your role, SENIOR_ENGINEER, may not assign a ticket to others than your teams and their members."
    )
    story.when(Assign(assignee_id=NET_DEV.id, team="web"), by=SENIOR).then_refused(Forbidden)


def test_a_senior_engineer_without_a_team_passes_tickets_to_nobody_but_themselves() -> None:
    lone = Actor(id=SENIOR.id, role=Role.SENIOR_ENGINEER)
    story = _ticket("other", lone)
    story.when(Assign(assignee_id=lone.id), by=lone).then(assigned(lone))
    for command in (
        Assign(assignee_id=BOB.id),
        Assign(assignee_id=WEB_DEV.id),
        Assign(assignee_id=NOBODY_KNOWN),
        Assign(team="web"),
    ):
        story.when(command, by=lone).then_refused(Forbidden)


def test_a_senior_engineer_may_not_pass_somebody_unknown_to_a_team_of_others() -> None:
    story = _ticket("other", SENIOR)
    story.when(Assign(assignee_id=NOBODY_KNOWN, team="network"), by=SENIOR).then_refused(Forbidden)
    story.when(Assign(assignee_id=NOBODY_KNOWN, team="web"), by=SENIOR).then_refused(UnknownAssignee)


def test_that_the_command_was_stale_is_told_only_to_whoever_may_pass_the_ticket_on() -> None:
    stale = frozenset({1})
    story = _ticket("other", SENIOR)
    story.when(Assign(assignee_id=NET_DEV.id), by=SENIOR, if_match=stale).then_refused(Forbidden)
    story.when(Assign(assignee_id=NOBODY_KNOWN), by=SENIOR, if_match=stale).then_refused(VersionMismatch)


# The tables and the transitions query


def test_the_transitions_query_says_which_steps_the_asker_may_not_take() -> None:
    ticket = _ticket("own", ALICE, Status.RESOLVED).ticket
    found = {step: type(objection) for step, objection in steps(ticket, actor=ALICE, at=LATER, policy=Policy())}
    assert found == {Status.CLOSED: Forbidden, Status.REOPENED: type(None)}


def test_nobody_is_staff_but_those_who_are_no_end_users() -> None:
    assert {role for role, actor in ACTORS.items() if not actor.is_staff} == {Role.END_USER}


def test_deleting_and_restoring_is_granted_to_administrators_alone() -> None:
    assert set(GRANTS) == set(Role)
    assert set(GRANTS[Role.ADMIN]) == set(Permission)
    for role in set(Role) - {Role.ADMIN}:
        assert Permission.VIEW in GRANTS[role]
        assert not GRANTS[role].keys() & {Permission.DELETE, Permission.RESTORE}
