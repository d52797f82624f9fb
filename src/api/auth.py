"""Who is asking: tokens checked, and for `tickets token`, made.

One algorithm is accepted, the one that is set; the token's own word on that is never taken (RFC 8725).
Deliberately absent: what somebody may do (tickets/permissions.py).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, Final
from uuid import UUID

import jwt
import msgspec
from cachetools import LRUCache
from msgspec import Struct

from api.settings import Settings, jwt_key
from tickets.permissions import Actor, Role

_LONGEST_TOKEN: Final = 8_192
_HALF_A_CHARACTER: Final = re.compile("[\ud800-\udfff]")
"""One of two surrogates: JSON can say it, and nothing can write it."""


class Unauthorized(Exception):  # noqa: N818 - an answer, not an error
    """The token is missing or not good; the message says why, and never repeats it."""


class _Claims(Struct):
    sub: UUID
    role: Role
    exp: int | float
    nbf: int | float | None = None
    username: str | None = None
    email: str | None = None
    teams: tuple[str, ...] = ()


class Tokens:
    """Checks tokens. Those that were good a moment ago are remembered until they expire."""

    def __init__(self, settings: Settings, *, remembered: int = 10_000) -> None:
        """Reads the key, or makes this installation's own."""
        self._key = jwt_key(settings)
        self._algorithm = settings.jwt_algorithm
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._remembered: LRUCache[str, tuple[Actor, float]] = LRUCache(remembered)

    def actor(self, authorization: str | None) -> Actor:
        """Whoever the Authorization header is from. Raises Unauthorized."""
        if authorization is None:
            raise Unauthorized("Send a token: Authorization: Bearer <token>.")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("The Authorization header must be: Bearer <token>.")
        known = self._remembered.get(token)
        if known is not None:
            actor, expires = known
            if time() < expires:
                return actor
            raise Unauthorized("The token has expired.")
        actor, expires = self._check(token)
        self._remembered[token] = (actor, expires)
        return actor

    def seconds_left(self, authorization: str) -> float:
        """How long the token in this header, which was good, still is."""
        token = authorization.partition(" ")[2]
        _, expires = self._remembered.get(token) or self._check(token)
        return expires - time()

    def _check(self, token: str) -> tuple[Actor, float]:
        if len(token) > _LONGEST_TOKEN:
            raise Unauthorized(f"The token is longer than {_LONGEST_TOKEN} characters.")
        try:
            payload: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=[self._algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": [
                        "exp",
                        "sub",
                        "role",
                        *["iss"] * bool(self._issuer),
                        *["aud"] * bool(self._audience),
                    ],
                    "verify_aud": self._audience is not None,
                },
            )
            claims = msgspec.convert(payload, _Claims)
        except jwt.PyJWTError as error:
            raise Unauthorized(f"The token is not good: {error}.") from None
        except msgspec.ValidationError as error:
            raise Unauthorized(f"The token's claims are not good: {error}.") from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise Unauthorized("The token cannot be read.") from None
        for text in (claims.username or "", *claims.teams):
            if "\0" in text or _HALF_A_CHARACTER.search(text):
                raise Unauthorized("The token's claims are not good: NUL or half a character in a name.")
        teams = tuple(sorted(set(claims.teams)))
        return Actor(id=claims.sub, role=claims.role, username=claims.username, teams=teams), float(claims.exp)


def make_token(
    settings: Settings,
    *,
    role: Role,
    sub: UUID,
    username: str | None = None,
    teams: Sequence[str] = (),
    valid: timedelta = timedelta(hours=12),
) -> str:
    """A token signed with this installation's key."""
    now = datetime.now(UTC)
    claims: dict[str, Any] = {"sub": str(sub), "role": role.value, "iat": now, "exp": now + valid}
    if username is not None:
        claims["username"] = username
    if teams:
        claims["teams"] = list(teams)
    if settings.jwt_issuer is not None:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience is not None:
        claims["aud"] = settings.jwt_audience
    return jwt.encode(claims, jwt_key(settings), algorithm=settings.jwt_algorithm)
