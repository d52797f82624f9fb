"""What a request brings besides its body: checked before anything else looks at it.

Runs before parameters and bodies are read: who asks, whether the body is something a JSON reader should
see, and for queries, how fresh the answer must be. Deliberately absent: what the request is about.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_origin
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Request, Response
from litestar.datastructures import State
from msgspec import Struct

from api.auth import Tokens, Unauthorized
from api.problems import InvalidRequest, Problem
from api.settings import Settings
from projections.drift import Sampler
from projections.feed import Tail
from projections.freshness import Freshness
from projections.history import Reading
from projections.stalls import Watch
from projections.tickets import Finding
from tickets.handler import Asked, Handler
from tickets.ledger import Ledger
from tickets.people import People
from tickets.permissions import Actor

if TYPE_CHECKING:  # which in turn takes in what requests bring
    from api.checkpointing import Checkpointer
    from api.files.taking import Files

DEEPEST: Final = 64
"""How deep JSON may be nested."""

_JSON: Final = "application/json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_KEY: Final = re.compile(r'^"(?P<quoted>[^"\\]{1,255})"$|^(?P<bare>[\x21\x23-\x7e]{1,255})$')
# The two below take time in proportion to what they read, whatever it is: an unclosed string ends with the body.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
_NAMED: Final = re.compile(r"(?:unknown|missing required) field `(?P<field>[^`]*)`")
_ETAG: Final = re.compile(r'(?P<weak>W/)?"(?P<value>[^"]*)"\s*(?:,|$)')


class Installation(Struct, frozen=True, kw_only=True):
    """Everything that a request is served with, put together in app.py."""

    settings: Settings
    tokens: Tokens
    ledger: Ledger
    handler: Handler
    people: People
    tickets: Finding
    histories: Reading
    freshness: Freshness
    watch: Watch
    sampler: Sampler
    tail: Tail
    polls: asyncio.Semaphore
    streams: asyncio.Semaphore
    """How many more may wait for events, and have a stream of them."""
    files: "Files"
    stopping: asyncio.Event
    """Set when the service is about to end: who waits is let go."""
    checkpointer: "Checkpointer | None" = None
    """In processes that run the projections."""


ApiRequest = Request[Actor, Any, State]

T = TypeVar("T", bound=Struct)


class Answer(Struct, frozen=True):
    """A finished answer: what litestar's own responses would find out about it is known already."""

    headers: dict[str, str]
    body: bytes = b""
    status: int = 200

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        """Send it (ASGI)."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        if self.body:
            headers.append((b"content-type", b"application/json"))
        if self.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


async def before_command(request: ApiRequest) -> Response[bytes] | None:
    """Who asks."""
    await _authenticate(request)
    return None


async def before_query(request: ApiRequest) -> Response[bytes] | None:
    """Who asks, and whether the read models are far enough to answer."""
    await _authenticate(request)
    _check_query_string(request)
    await _wait_until_fresh(request)
    return None


def installation(request: ApiRequest) -> Installation:
    """What this request is served with."""
    served: Installation = request.scope["state"]["installation"]
    return served


def header(request: ApiRequest, name: bytes) -> str | None:
    """A header, its name in lower case; litestar's own way builds a mapping of all of them."""
    value: bytes | None = request.scope["state"]["headers"].get(name)
    return None if value is None else value.decode("latin-1")


def asked(request: ApiRequest) -> Asked:
    """The circumstances of a command. Raises InvalidRequest, Problem 428."""
    if_match = header(request, b"if-match")
    if (
        if_match is None
        and installation(request).settings.require_if_match
        and not request.url.path.endswith("/tickets")
    ):
        raise Problem("precondition-required", "Send If-Match with the ETag of the ticket as you last saw it.")
    return Asked(
        actor=request.user,
        key=_idempotency_key(header(request, b"idempotency-key")),
        if_match=versions(if_match),
        ip_address=client_address(request),
        request_id=request.scope["state"].get("request_id"),
    )


def versions(if_match: str | None) -> frozenset[int] | None:
    """The versions that an If-Match names; None for all. Weak tags match nothing (RFC 9110, 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    return frozenset(
        int(tag["value"])
        for tag in _ETAG.finditer(if_match)
        if not tag["weak"] and tag["value"].isascii() and tag["value"].isdigit() and len(tag["value"]) < 10
    )


def not_modified(request: ApiRequest, etag: str) -> bool:
    """Whether If-None-Match says that the client has this already (weak comparison, RFC 9110, 13.1.2)."""
    known = header(request, b"if-none-match")
    if known is None:
        return False
    return known.strip() == "*" or any(f'"{tag["value"]}"' == etag for tag in _ETAG.finditer(known))


def client_address(request: ApiRequest) -> str | None:
    """Where the request comes from: the last address in X-Forwarded-For that no trusted proxy vouches for."""
    client = request.scope.get("client")
    address = client[0] if client else None
    proxies = installation(request).settings.proxies
    if not proxies or address is None or not _within(address, proxies):
        return address
    forwarded = [part.strip() for part in (header(request, b"x-forwarded-for") or "").split(",") if part.strip()]
    for hop in reversed(forwarded):
        try:
            trusted = _within(hop, proxies)
        except ValueError:
            return address  # not an address: believe only what came before it
        address = hop
        if not trusted:
            break
    return address


def _within(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    parsed = ip_address(address)
    return any(parsed in network for network in networks)


async def _authenticate(request: ApiRequest) -> None:
    served = installation(request)
    if [name for name, _ in request.scope["headers"]].count(b"authorization") > 1:
        raise Unauthorized("Send one Authorization header.")
    actor = served.tokens.actor(header(request, b"authorization"))
    await served.people.saw(
        actor, request_id=request.scope["state"].get("request_id"), ip_address=client_address(request)
    )
    request.scope["user"] = actor


def _idempotency_key(sent: str | None) -> str | None:
    if sent is None:
        return None
    found = _KEY.match(sent.strip())
    if found is None:
        raise InvalidRequest("Idempotency-Key", "must be 1 to 255 visible ASCII characters, bare or in double quotes")
    return found["quoted"] or found["bare"]


async def body(request: ApiRequest, kind: type[T], *, default: T | None = None) -> T:
    """The body as a Struct; `default` is what no body means. Raises InvalidRequest, naming the field, and Problem."""
    raw = await _read(request)
    if not raw.strip():
        if default is None:
            raise InvalidRequest("body", "a JSON object is required")
        return default
    accepted = (_JSON, _MERGE_PATCH) if request.method == "PATCH" else (_JSON,)
    _check_kind(request, accepted)
    check_json(raw)
    try:
        decoded: T = _decoder(kind).decode(raw)
    except msgspec.ValidationError as error:
        field, message = _wrong(error)
        raise InvalidRequest(field or "body", message) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest("body", f"is not JSON: {error}") from None
    return decoded


async def no_body(request: ApiRequest) -> None:
    """See to it that there is none. Raises InvalidRequest and Problem."""
    if (await _read(request)).strip():
        _check_kind(request, (_JSON,))
        raise InvalidRequest("body", "this command takes no body")


def _check_kind(request: ApiRequest, accepted: Sequence[str]) -> None:
    kind = (header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if kind not in accepted:
        raise Problem(
            "unsupported-media-type", f"The body must be {' or '.join(accepted)}, not {kind or 'of no kind'}."
        )


async def _read(request: ApiRequest) -> bytes:
    """The body. Raises Problem where it is over the limit, InvalidRequest where it does not come."""
    limit = installation(request).settings.max_body_bytes
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        event: Any = await request.receive()
        if event["type"] == "http.disconnect":
            raise InvalidRequest("body", "the connection ended before it did")
        size += len(event["body"])
        if size > limit:
            raise Problem("content-too-large", f"The body may be {limit:,} bytes long, not more.")
        chunks.append(event["body"])
        more = event["more_body"]
    return b"".join(chunks)


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


def _wrong(error: msgspec.ValidationError) -> tuple[str, str]:
    """Which field msgspec finds wrong, empty where it is the whole, and what is wrong with it."""
    message, _, path = str(error).partition(" - at `$")
    named = _NAMED.search(message)
    field = path.rstrip("`") + (f".{named['field']}" if named is not None else "")
    return field.removeprefix("."), message


def check_json(body: bytes) -> None:
    """Refuse what no reader of JSON should see: invalid UTF-8, NUL characters, nesting over DEEPEST.

    Raises InvalidRequest.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("body", f"is not UTF-8: {error.reason} at byte {error.start}") from None
    if b"\\u0000" in body and b"\\u0000" in body.replace(b"\\\\", b""):
        raise InvalidRequest("body", "must not contain the NUL character")
    if body.count(b"[") + body.count(b"{") > DEEPEST and _depth(body) > DEEPEST:
        raise InvalidRequest("body", f"is nested more than {DEEPEST} deep")


def _depth(body: bytes) -> int:
    deepest = depth = 0
    for byte in _STRING.sub(b"", body):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _check_query_string(request: ApiRequest) -> None:
    raw: bytes = request.scope["query_string"]
    if not raw:
        return
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("query", "is not UTF-8") from None
    if "\0" in text:
        raise InvalidRequest("query", "must not contain the NUL character")


def query(request: ApiRequest, kind: type[T]) -> T:
    """The query parameters as a Struct. Raises InvalidRequest, naming the parameter."""
    fields = _fields(kind)
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name not in fields:
            raise InvalidRequest(name, f"is not a parameter here; there are {', '.join(sorted(fields)) or 'none'}")
        if get_origin(fields[name].type) is tuple:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidRequest(name, "may be given once")
        else:
            values[name] = value
    try:
        found = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        field, message = _wrong(error)
        raise InvalidRequest(field.partition("[")[0] or "query", message) from None
    for name, value in values.items():
        meant = getattr(found, fields[name].name)
        if isinstance(meant, datetime):
            _check_moment(name, value, meant)
        elif type(meant) is int and not (value.isascii() and value.isdigit()):  # msgspec also takes 1e3 for one
            raise InvalidRequest(name, "must be a whole number")
    return found


def _check_moment(name: str, text: str, moment: datetime) -> None:
    """Refuse what msgspec also takes for a time, seconds since 1970, and what is no year in UTC."""
    if ":" not in text:
        raise InvalidRequest(name, "Invalid RFC3339 encoded datetime")
    try:
        moment.astimezone(UTC)
    except OverflowError:
        raise InvalidRequest(name, "must be in the years 1 to 9999, in UTC") from None


@cache
def _fields(kind: type[Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The parameters that a query has."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


async def _wait_until_fresh(request: ApiRequest) -> None:
    served = installation(request)
    timeout = served.settings.freshness_timeout_ms / 1000
    wanted = header(request, b"ledger-position")
    if wanted is None:
        # What this process knows of should be seen, but an answer that says how old it is beats none.
        await served.freshness.wait_for(served.ledger.newest, timeout)
        return
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 19):
        raise InvalidRequest("Ledger-Position", "must be a position, as an earlier answer gave it")
    if not await served.freshness.wait_for(int(wanted), timeout):
        raise Problem(
            "not-fresh-yet",
            f"The read models are at {served.freshness.projected}; you asked for {wanted}, {timeout:g} s ago.",
        )
