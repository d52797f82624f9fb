"""Errors as clients see them: problem details (RFC 9457), a kind for everything that is refused.

PROBLEMS is the list; /problems/<slug> explains each. Deliberately absent: deciding that something is
refused.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from msgspec import Struct

from api.auth import Unauthorized
from api.files.storage import StorageAway
from projections.cursors import BadCursor
from tickets.connections import CONNECTION_LOST, OUT_OF_SERVICE
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

_log: Final = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1


class Kind(Struct, frozen=True):
    """A kind of problem: its status code, its title, and what to do about it."""

    status: int
    title: str
    advice: str


PROBLEMS: Final[dict[str, Kind]] = {
    "invalid-request": Kind(400, "Invalid request", "`errors` names each field and what would be right."),
    "unauthorized": Kind(401, "Not signed in", "Send a good token: `Authorization: Bearer <JWT>`."),
    "forbidden": Kind(403, "Not allowed", "Your role does not include this. Ask somebody whose role does."),
    "not-found": Kind(404, "Not found", "It is not there, or it is not yours to see; the two look alike."),
    "method-not-allowed": Kind(405, "Method not allowed", "`Allow` names the methods that this path has."),
    "illegal-transition": Kind(
        409,
        "No such step",
        "The workflow has no such step from here; GET …/transitions lists those there are.",
    ),
    "ticket-closed": Kind(409, "Ticket closed", "Reopen it first, or create a new ticket that refers to it."),
    "ticket-deleted": Kind(409, "Ticket deleted", "An administrator can restore it."),
    "reopen-window-over": Kind(409, "Too late to reopen", "Create a new ticket that refers to this one."),
    "file-quarantined": Kind(
        409,
        "In quarantine",
        "The virus scanner was away when it came, or found something later. It is looked at again by itself.",
    ),
    "not-under-checkpoint": Kind(
        409,
        "Not under a checkpoint yet",
        "What is new is signed within a minute or so. Ask again after `Retry-After` seconds, or for an older version.",
    ),
    "version-mismatch": Kind(
        412,
        "Changed meanwhile",
        "`current_version` is what it is now and `events` what happened since: look, and decide again.",
    ),
    "content-too-large": Kind(413, "Too large", "Send less."),
    "unsupported-media-type": Kind(
        415,
        "Unsupported media type",
        "Send `Content-Type: application/json`; PATCH also takes `application/merge-patch+json`. Files come as "
        "`multipart/form-data`, of a kind that is taken here, and are what their names say.",
    ),
    "range-not-satisfiable": Kind(416, "No such part", "`Range` begins after the end; ask for less, or for all."),
    "infected-file": Kind(422, "A virus is in it", "It was not kept. Clean it, or send something else."),
    "unsafe-archive": Kind(
        422,
        "Unsafe archive",
        "Archives are looked into: not too much, nothing encrypted, no links, no names that lead elsewhere, not nested "
        "too deep. The detail says what it is.",
    ),
    "idempotency-key-reused": Kind(422, "Idempotency-Key used for something else", "Take a new key for a new command."),
    "unknown-assignee": Kind(422, "Unknown assignee", "Assign somebody who has signed in at least once."),
    "precondition-required": Kind(428, "If-Match required", "Send the ETag that you last saw as `If-Match`."),
    "overloaded": Kind(503, "Overloaded", "Nothing was written. Try again after `Retry-After` seconds."),
    "too-contended": Kind(503, "Too contended", "Nothing was written. Try again after `Retry-After` seconds."),
    "ledger-unavailable": Kind(
        503,
        "Database away",
        "Nothing was written. Try again after `Retry-After` seconds; the service mends itself.",
    ),
    "storage-unavailable": Kind(
        503,
        "File storage away",
        "Nothing was attached. Try again after `Retry-After` seconds; if it stays, tell your operator.",
    ),
    "outcome-unknown": Kind(
        503,
        "Outcome unknown",
        "Ask again with the same Idempotency-Key: you get the first answer, or it is done now.",
    ),
    "not-fresh-yet": Kind(
        503,
        "Not there yet",
        "The read models have not reached the `Ledger-Position` that you sent. Try again in a moment.",
    ),
    "refused": Kind(400, "Refused", "The detail says why."),
    "internal-error": Kind(
        500, "Internal error", "It is logged with the request id in `X-Request-ID`; tell your operator."
    ),
}
"""Every kind of problem there is, by its slug."""

_REFUSALS: Final[dict[type[Refusal], str]] = {
    NotFound: "not-found",
    Forbidden: "forbidden",
    InvalidCommand: "invalid-request",
    IllegalTransition: "illegal-transition",
    TicketClosed: "ticket-closed",
    TicketDeleted: "ticket-deleted",
    ReopenWindowOver: "reopen-window-over",
    VersionMismatch: "version-mismatch",
    IdempotencyKeyReused: "idempotency-key-reused",
    UnknownAssignee: "unknown-assignee",
    Overloaded: "overloaded",
    TooContended: "too-contended",
    LedgerUnavailable: "ledger-unavailable",
    OutcomeUnknown: "outcome-unknown",
}

_STATUSES: Final = {404: "not-found", 405: "method-not-allowed"}


class FieldError(Struct, frozen=True):
    """What is wrong with one field of the request."""

    field: str
    message: str


class ProblemDetails(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Problem details, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []
    current_version: int | None = None
    events: list[dict[str, Any]] | None = None


class InvalidRequest(Exception):  # noqa: N818 - an answer, not an error
    """Something in the request is malformed or out of range."""

    def __init__(self, field: str, message: str) -> None:
        """Which part of the request, and what would be right."""
        super().__init__(message)
        self.errors = [FieldError(field, message)]


class Problem(Exception):  # noqa: N818 - an answer, not an error
    """A problem of one of the other kinds that only the edge knows."""

    def __init__(self, slug: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """One of PROBLEMS, what it is in this case, and headers that belong to it."""
        super().__init__(detail)
        self.slug = slug
        self.headers = headers


AnyRequest = Request[Any, Any, Any]


def problem(
    instance: str,
    slug: str,
    detail: str,
    *,
    errors: list[FieldError] | None = None,
    details: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Response[bytes]:
    """The answer that says what is wrong."""
    kind = PROBLEMS[slug]
    headers = {**(headers or {}), "Cache-Control": "no-store"}
    if kind.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="tickets", error="invalid_token"'
    if kind.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    body = ProblemDetails(
        type=f"/problems/{slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=instance,
        errors=errors or [],
        current_version=(details or {}).get("current_version"),
        events=(details or {}).get("events"),
    )
    return Response(msgspec.json.encode(body), status_code=kind.status, media_type=MEDIA_TYPE, headers=headers)


def on_refusal(request: AnyRequest, refusal: Refusal) -> Response[bytes]:
    """A decision of the write side."""
    slug = _REFUSALS[type(refusal)]
    errors = None
    if isinstance(refusal, InvalidCommand):
        errors = [FieldError(str(refusal.details["field"]), str(refusal.details["message"]))]
    headers = None if refusal.position is None else {"Ledger-Position": str(refusal.position)}
    return problem(request.url.path, slug, str(refusal), errors=errors, details=refusal.details, headers=headers)


def on_unauthorized(request: AnyRequest, error: Unauthorized) -> Response[bytes]:
    """No good token."""
    return problem(request.url.path, "unauthorized", str(error))


def on_invalid(request: AnyRequest, error: InvalidRequest) -> Response[bytes]:
    """Bad input, found by us."""
    return problem(request.url.path, "invalid-request", str(error), errors=error.errors)


def on_problem(request: AnyRequest, error: Problem) -> Response[bytes]:
    """Something that only the edge knows."""
    return problem(request.url.path, error.slug, str(error), headers=error.headers)


def on_bad_cursor(request: AnyRequest, error: BadCursor) -> Response[bytes]:
    """A cursor that this list did not give out."""
    detail = f"The cursor is not one that this list gave out: {error}"
    return problem(request.url.path, "invalid-request", detail, errors=[FieldError("cursor", detail)])


def on_http_exception(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What the framework refuses: unknown paths and methods, and a Host that is none."""
    slug = _STATUSES.get(error.status_code, "invalid-request" if error.status_code < 500 else "internal-error")
    if slug == "internal-error":
        return on_unexpected(request, error)
    invalid = slug == "invalid-request"
    detail = error.detail if invalid else PROBLEMS[slug].advice
    errors = [FieldError("Host" if "host" in detail else "request", detail)] if invalid else None
    methods = (error.headers or {}).get("allow")
    headers = {"Allow": allow(methods.split(", "))} if methods else None
    return problem(request.url.path, slug, detail, errors=errors, headers=headers)


def allow(methods: Iterable[str]) -> str:
    """The Allow header of a path that has these methods. Where there is GET, there is HEAD."""
    found = set(methods)
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))


def on_connection_lost(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The database went away under a query, or has no room for what it takes."""
    _log.warning("query.database_away", error=repr(error), path=request.url.path)
    return problem(request.url.path, "ledger-unavailable", str(LedgerUnavailable()))


def on_storage_away(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The files' storage went away, is full, or has lost something."""
    _log.error("storage.away", error=str(error), path=request.url.path)
    return problem(request.url.path, "storage-unavailable", "The files cannot be reached at the moment.")


def on_unexpected(request: AnyRequest, error: Exception) -> Response[bytes]:
    """A fault of ours: logged in full, told in one sentence."""
    _log.error("request.failed", path=request.url.path, exc_info=error)
    return problem(request.url.path, "internal-error", "Something went wrong here; it has been logged.")


HANDLERS: Final[dict[int | type[Exception], Any]] = {
    Refusal: on_refusal,
    Unauthorized: on_unauthorized,
    InvalidRequest: on_invalid,
    Problem: on_problem,
    BadCursor: on_bad_cursor,
    HTTPException: on_http_exception,
    StorageAway: on_storage_away,
    **dict.fromkeys((*CONNECTION_LOST, *OUT_OF_SERVICE), on_connection_lost),
    Exception: on_unexpected,
}
"""For every exception that a request can end with, its answer."""
