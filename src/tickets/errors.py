"""The refusals. A class's docstring is its message, filled from its keyword arguments.

Deliberately absent: anything about HTTP. The edge gives each its status code.
"""

from inspect import cleandoc
from re import sub


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """The request was refused."""

    position: int | None = None
    """From which position on everybody sees what it was decided on; None where that is nothing in the ledger."""

    def __init__(self, **details: object) -> None:
        """Keep the details, by which the message is filled and which the edge may show."""
        super().__init__(cleandoc(type(self).__doc__ or "").format(**details))
        self.details = details

    @classmethod
    def slug(cls) -> str:
        """The name of this kind of refusal, as URLs write it: `illegal-transition`."""
        return sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class NotFound(Refusal):
    """There is nothing of that id, or it is not yours to see."""


class Forbidden(Refusal):
    """Your role, {role}, may not {permission} {what}."""


class InvalidCommand(Refusal):
    """{field}: {message}."""


class IllegalTransition(Refusal):
    """A ticket that is {status} cannot become {to}; from here it can become {allowed}."""


class ReopenWindowOver(Refusal):
    """The ticket was closed at {closed_at}; it could be reopened until {until}. Create a new one that refers to it."""


class TicketClosed(Refusal):
    """The ticket is closed and takes no command but reopen."""


class TicketDeleted(Refusal):
    """The ticket is deleted and takes no command but restore."""


class UnknownAssignee(Refusal):
    """Nobody with the id {assignee_id} has been seen here; they are known once they have signed in."""


class VersionMismatch(Refusal):
    """The ticket is at version {current_version}, not at {expected_version}."""


class IdempotencyKeyReused(Refusal):
    """This Idempotency-Key was used for another command; take a new key for a new command."""


class TooContended(Refusal):
    """Others kept changing the ticket while this was decided, {attempts} times; nothing was written. Try again."""


class Overloaded(Refusal):
    """{waiting} commands are waiting already; nothing was written. Try again in a moment."""


class LedgerUnavailable(Refusal):
    """The ledger cannot be reached right now; nothing was written. Try again in a moment."""


class OutcomeUnknown(LedgerUnavailable):
    """The ledger went away while this was being written. Ask again with the same Idempotency-Key to settle it."""
