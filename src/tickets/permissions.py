"""Who may do what to which tickets.

One table, GRANTS, and the functions that read it. Deliberately absent: what a ticket's state allows
(lifecycle.py, commands.py) and how a person proves who they are (the edge).
"""

from enum import StrEnum
from typing import Final
from uuid import UUID

from msgspec import Struct


class Role(StrEnum):
    """What a person is to the service desk."""

    END_USER = "END_USER"
    DEVOPS_ENGINEER = "DEVOPS_ENGINEER"
    SENIOR_ENGINEER = "SENIOR_ENGINEER"
    TEAM_LEAD = "TEAM_LEAD"
    MANAGER = "MANAGER"
    ADMIN = "ADMIN"


class Permission(StrEnum):
    """What can be allowed or not, as a verb: somebody may or may not … a ticket."""

    CREATE = "create"
    VIEW = "view"
    UPDATE = "update"
    ASSIGN = "assign"
    MOVE = "change the status of"
    REOPEN = "reopen"
    DELETE = "delete"
    RESTORE = "restore"
    COMMENT = "comment on"
    COMMENT_INTERNALLY = "comment internally on"
    EDIT_COMMENT = "edit a comment on"
    DELETE_COMMENT = "delete a comment on"
    ATTACH = "attach files to"


class Scope(StrEnum):
    """Which tickets, or for ASSIGN whom, a grant covers."""

    ALL = "all"
    OWN = "own"
    """Tickets that the actor requested."""
    ASSIGNED = "assigned"
    """Tickets that the actor is assigned to."""
    SELF = "self"
    """Passing tickets to oneself."""
    WRITTEN = "written"
    """Comments that the actor wrote."""
    TEAMS = "own teams and their members"
    """Passing tickets to a team of the actor's, or to somebody who shares a team with the actor."""


class Actor(Struct, frozen=True, kw_only=True):
    """Somebody who asks for something, as their token describes them."""

    id: UUID
    role: Role
    username: str | None = None
    teams: tuple[str, ...] = ()

    @property
    def is_staff(self) -> bool:
        """Whether this is anybody but an end user."""
        return self.role is not Role.END_USER


class Assignee(Struct, frozen=True, kw_only=True):
    """Somebody whom a ticket can be passed to: known to exist, with the teams they were last seen in."""

    id: UUID
    teams: tuple[str, ...] = ()


_STAFF_TALK: Final = {
    Permission.COMMENT: Scope.ALL,
    Permission.COMMENT_INTERNALLY: Scope.ALL,
    Permission.EDIT_COMMENT: Scope.WRITTEN,
    Permission.DELETE_COMMENT: Scope.WRITTEN,
    Permission.ATTACH: Scope.ALL,
}

_EVERYTHING_BUT_DELETING: Final = {
    **_STAFF_TALK,
    Permission.DELETE_COMMENT: Scope.ALL,
    Permission.CREATE: Scope.ALL,
    Permission.VIEW: Scope.ALL,
    Permission.UPDATE: Scope.ALL,
    Permission.ASSIGN: Scope.ALL,
    Permission.MOVE: Scope.ALL,
    Permission.REOPEN: Scope.ALL,
}

GRANTS: Final[dict[Role, dict[Permission, Scope]]] = {
    Role.END_USER: {
        Permission.CREATE: Scope.OWN,
        Permission.VIEW: Scope.OWN,
        Permission.UPDATE: Scope.OWN,
        Permission.REOPEN: Scope.OWN,
        Permission.COMMENT: Scope.OWN,
        Permission.EDIT_COMMENT: Scope.WRITTEN,
        Permission.DELETE_COMMENT: Scope.WRITTEN,
        Permission.ATTACH: Scope.OWN,
    },
    Role.DEVOPS_ENGINEER: {
        **_STAFF_TALK,
        Permission.CREATE: Scope.ALL,
        Permission.VIEW: Scope.ALL,
        Permission.UPDATE: Scope.ASSIGNED,
        Permission.ASSIGN: Scope.SELF,
        Permission.MOVE: Scope.ASSIGNED,
        Permission.REOPEN: Scope.ASSIGNED,
    },
    Role.SENIOR_ENGINEER: {
        **_EVERYTHING_BUT_DELETING,
        Permission.ASSIGN: Scope.TEAMS,
        Permission.DELETE_COMMENT: Scope.WRITTEN,
    },
    Role.TEAM_LEAD: _EVERYTHING_BUT_DELETING,
    Role.MANAGER: _EVERYTHING_BUT_DELETING,
    Role.ADMIN: {
        **_EVERYTHING_BUT_DELETING,
        Permission.DELETE: Scope.ALL,
        Permission.RESTORE: Scope.ALL,
    },
}
"""What each role may do, and to which tickets. What is not here is not allowed."""


def covers(scope: Scope | None, actor: Actor, *, requester_id: UUID, assignee_id: UUID | None) -> bool:
    """Whether a grant with this scope (None: no grant) reaches a ticket of that requester and assignee.

    The scopes that are about whom a ticket is passed to, or who wrote a comment, reach every ticket:
    may_pass_to and may_change_comment say the rest.
    """
    match scope:
        case None:
            return False
        case Scope.OWN:
            return requester_id == actor.id
        case Scope.ASSIGNED:
            return assignee_id == actor.id
        case Scope.ALL | Scope.SELF | Scope.TEAMS | Scope.WRITTEN:
            return True


def may_pass_to(actor: Actor, assignee: Assignee | None, team: str | None) -> bool:
    """Whether the actor's ASSIGN grant reaches this assignee and this team, either of which may be None."""
    match GRANTS[actor.role].get(Permission.ASSIGN):
        case Scope.ALL:
            return True
        case Scope.SELF:
            to_self = assignee is not None and assignee.id == actor.id
            return to_self and (team is None or team in actor.teams)
        case Scope.TEAMS:
            return (team is None or team in actor.teams) and (
                assignee is None or assignee.id == actor.id or not set(actor.teams).isdisjoint(assignee.teams)
            )
        case _:
            return False


def may_change_comment(actor: Actor, permission: Permission, author_id: UUID) -> bool:
    """Whether the actor's grant to edit or delete comments reaches one by that author."""
    scope = GRANTS[actor.role].get(permission)
    return scope is Scope.ALL or (scope is Scope.WRITTEN and actor.id == author_id)
