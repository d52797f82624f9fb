"""Tokens: what is taken, and the many ways to forge one that are not."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from api.auth import Tokens, Unauthorized, make_token
from api.settings import Settings, SettingsError, read_settings
from tests.conftest import KEY, NEW_TICKET, Service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
SUB = str(UUID(int=7, version=4))
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
LONG_AGO, FAR_AWAY = 1_000_000_000, 4_000_000_000


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def claims(**other: Any) -> dict[str, Any]:
    """What a good token says; a claim that is ... is left out."""
    good = {"sub": SUB, "role": "ADMIN", "exp": FAR_AWAY}
    return {name: value for name, value in (good | other).items() if value is not ...}


def forge(
    payload: dict[str, Any] | bytes, *, key: str | bytes = KEY, sign: str = "HS256", head: Any = ..., **header: Any
) -> str:
    """A token made by hand: signed by `sign` and `key`, whatever its header says."""
    if head is ...:
        head = {"alg": sign, "typ": "JWT", **header}
    first = head if isinstance(head, bytes) else json.dumps(head).encode()
    second = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{b64(first)}.{b64(second)}"
    secret = key.encode() if isinstance(key, str) else key
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), HASHES[sign]).digest())}"


def parts(made: str) -> list[str]:
    return made.split(".")


GOOD = forge(claims())
GOOD_AS_END_USER = forge(claims(role="END_USER"))
NONE = {
    f"alg {alg!r}, {how}": f"{b64(json.dumps({'alg': alg}).encode())}.{b64(json.dumps(claims()).encode())}{end}"
    for alg in ("none", "None", "NONE", "nOnE", "", None, "null")
    for how, end in (("unsigned", "."), ("signed", f".{parts(GOOD)[2]}"))
}

FORGED: dict[str, str] = {
    **NONE,
    "alg none in two parts": ".".join(parts(forge(claims(), alg="none"))[:2]),
    "no alg": forge(claims(), head={"typ": "JWT"}),
    "alg in lower case": forge(claims(), alg="hs256"),
    "alg a list": forge(claims(), alg=["HS256"]),
    "alg an object": forge(claims(), alg={"name": "HS256"}),
    "alg with a space": forge(claims(), alg="HS256 "),
    "alg unknown": forge(claims(), alg="HS1"),
    "HS384 where HS256 is set": forge(claims(), sign="HS384"),
    "HS512 where HS256 is set": forge(claims(), sign="HS512"),
    "HS512 that says HS256": forge(claims(), sign="HS512", alg="HS256"),
    "HS256 that says RS256": forge(claims(), alg="RS256"),
    "HS256 that says ES256": forge(claims(), alg="ES256"),
    "HS256 that says EdDSA": forge(claims(), alg="EdDSA"),
    "another key": forge(claims(), key="another-key-which-is-long-enough-to-be-one"),
    "an empty key": forge(claims(), key=""),
    "the key and a line end": forge(claims(), key=KEY + "\n"),
    "the key in capitals": forge(claims(), key=KEY.upper()),
    "the documented example key": forge(claims(), key="change-me-to-a-random-key-of-at-least-32-bytes"),
    "expired a second ago": forge(claims(exp=int(time.time()) - 1)),
    "expired long ago": forge(claims(exp=LONG_AGO)),
    "expired in 1970": forge(claims(exp=0)),
    "expired before that": forge(claims(exp=-FAR_AWAY)),
    "no exp": forge(claims(exp=...)),
    "exp null": forge(claims(exp=None)),
    "exp a word": forge(claims(exp="tomorrow")),
    "exp a list": forge(claims(exp=[FAR_AWAY])),
    "exp infinite": forge(b'{"sub":"%b","role":"ADMIN","exp":1e999}' % SUB.encode()),
    "exp not a number": forge(b'{"sub":"%b","role":"ADMIN","exp":NaN}' % SUB.encode()),
    "not valid yet": forge(claims(nbf=FAR_AWAY - 1)),
    "nbf a word": forge(claims(nbf="now")),
    "issued in the future": forge(claims(iat=FAR_AWAY - 1)),
    "no sub": forge(claims(sub=...)),
    "sub null": forge(claims(sub=None)),
    "sub empty": forge(claims(sub="")),
    "sub a name": forge(claims(sub="alice")),
    "sub a number": forge(claims(sub=7)),
    "sub a UUID and more": forge(claims(sub=f"{SUB}\n")),
    "sub a list": forge(claims(sub=[SUB])),
    "no role": forge(claims(role=...)),
    "role null": forge(claims(role=None)),
    "role unknown": forge(claims(role="ROOT")),
    "role in lower case": forge(claims(role="admin")),
    "role a list": forge(claims(role=["ADMIN"])),
    "role two": forge(claims(role="END_USER,ADMIN")),
    "role true": forge(claims(role=True)),
    "teams a word": forge(claims(teams="Network")),
    "teams numbers": forge(claims(teams=[1, 2])),
    "teams an object": forge(claims(teams={"Network": True})),
    "teams null": forge(claims(teams=None)),
    "a team with half a character": forge(claims(teams=["Net\ud800work"])),
    "a team with NUL": forge(claims(teams=["Net\0work"])),
    "username a number": forge(claims(username=7)),
    "username half a character": forge(claims(username="\udc00")),
    "username with NUL": forge(claims(username="al\0ice")),
    "email a list": forge(claims(email=["a@example.org"])),
    "claims changed": ".".join([parts(GOOD_AS_END_USER)[0], parts(GOOD)[1], parts(GOOD_AS_END_USER)[2]]),
    "header changed": ".".join([b64(b'{"alg":"HS256"}'), *parts(GOOD)[1:]]),
    "signature of another token": ".".join([*parts(GOOD)[:2], parts(GOOD_AS_END_USER)[2]]),
    "signature stripped": ".".join(parts(GOOD)[:2]) + ".",
    "signature and its dot stripped": ".".join(parts(GOOD)[:2]),
    "signature cut": GOOD[:-5],
    "signature longer": GOOD + "AAAA",
    "signature of zeros": ".".join([*parts(GOOD)[:2], b64(bytes(32))]),
    "signature with a space in it": GOOD[:-5] + " " + GOOD[-5:],
    "signature with what base64 does not have": GOOD[:-5] + "!" + GOOD[-5:],
    "the key embedded, jwk": forge(
        claims(),
        key="mine-and-long-enough-to-be-a-key",
        jwk={"kty": "oct", "k": b64(b"mine-and-long-enough-to-be-a-key")},
    ),
    "the key elsewhere, jku": forge(claims(), key="mine-and-long-enough-to-be-a-key", jku="http://127.0.0.1:1/keys"),
    "the key elsewhere, x5u": forge(claims(), key="mine-and-long-enough-to-be-a-key", x5u="http://127.0.0.1:1/cert"),
    "the key a file, kid": forge(claims(), key="", kid="../../../../dev/null"),
    "the key by SQL, kid": forge(claims(), key="x", kid="' union select 'x"),
    "crit": forge(claims(), crit=["unheard"], unheard=True),
    "crit of what is not there": forge(claims(), crit=["exp"]),
    "crit empty": forge(claims(), crit=[]),
    "crit a word": forge(claims(), crit="exp"),
    "payload not encoded": forge(claims(), b64=False, crit=["b64"]),
    "one part": "token",
    "two parts": "to.ken",
    "three parts of nothing": "..",
    "three letters": "a.b.c",
    "four parts": GOOD + ".x",
    "five parts, as if encrypted": "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAA.AAAA.AAAA",
    "header not JSON": forge(claims(), head=b"header"),
    "header an array": forge(claims(), head=[]),
    "header null": forge(claims(), head=None),
    "header not UTF-8": forge(claims(), head=b'{"alg":"HS256","x":"\xff"}'),
    "header deep": forge(claims(), head=b'{"alg":"HS256","x":' + b"[" * 2_000 + b"]" * 2_000 + b"}"),
    "payload empty": forge(b""),
    "payload not JSON": forge(b"payload"),
    "payload an array": forge(b"[]"),
    "payload a string": forge(b'"ADMIN"'),
    "payload null": forge(b"null"),
    "payload not UTF-8": forge(b'{"sub":"\xff"}'),
    "payload deep": forge(b"[" * 2_000 + b"]" * 2_000),
    "quoted": f'"{GOOD}"',
    "too long": forge(claims(x="x" * 9_000)),
}

WRONG_HEADERS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "empty": [("Authorization", "")],
    "only the scheme": [("Authorization", "Bearer")],
    "Basic": [("Authorization", "Basic " + base64.b64encode(f"{SUB}:{KEY}".encode()).decode())],
    "another scheme": [("Authorization", f"Token {GOOD}")],
    "a colon after the scheme": [("Authorization", f"Bearer: {GOOD}")],
    "no scheme": [("Authorization", GOOD)],
    "no space": [("Authorization", f"Bearer{GOOD}")],
    "two tokens": [("Authorization", f"Bearer {GOOD} {GOOD}")],
    "two tokens by a comma": [("Authorization", f"Bearer {GOOD}, Bearer {GOOD}")],
    "something after it": [("Authorization", f"Bearer {GOOD} x")],
    "two headers": [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Bearer {GOOD_AS_END_USER}")],
    "two headers, one of them bad": [("Authorization", f"Bearer {GOOD}"), ("Authorization", "Bearer x")],
    "in another header": [("X-Authorization", f"Bearer {GOOD}"), ("Cookie", f"token={GOOD}")],
    "the key itself": [("Authorization", f"Bearer {KEY}")],
}


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        # Seen once, so that a good token writes nothing any more.
        for bearer in (GOOD_AS_END_USER, GOOD):
            assert client.get(TICKETS, headers={"Authorization": f"Bearer {bearer}"}).status_code == 200
        yield client


def position(client: httpx.Client) -> int:
    found: int = client.get("/health").json()["ledger"]["position"]
    return found


def assert_unauthorized(answer: httpx.Response, secret: str = KEY) -> None:
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["status"]) == ("/problems/unauthorized", 401)
    assert KEY not in answer.text
    assert len(secret) < 20 or secret not in answer.text
    assert "Ledger-Position" not in answer.headers


def test_the_forger_can_make_a_good_token(http: httpx.Client) -> None:
    answer = http.get(TICKETS, headers={"Authorization": f"Bearer {GOOD}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("bearer", FORGED.values(), ids=FORGED)
def test_a_forged_token_is_401_and_writes_nothing(http: httpx.Client, bearer: str) -> None:
    before = position(http)
    headers = {"Authorization": f"Bearer {bearer}"}
    assert_unauthorized(http.post(TICKETS, json=NEW_TICKET, headers=headers), bearer)
    assert_unauthorized(http.get(TICKETS, headers=headers), bearer)
    assert position(http) == before


@pytest.mark.parametrize("headers", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_a_wrong_authorization_header_is_401_and_writes_nothing(
    http: httpx.Client, headers: list[tuple[str, str]]
) -> None:
    before = position(http)
    assert_unauthorized(http.post(TICKETS, json=NEW_TICKET, headers=headers))
    assert_unauthorized(http.get(TICKETS, headers=headers))
    assert position(http) == before


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_written_in_any_case(http: httpx.Client, scheme: str) -> None:
    assert http.get(TICKETS, headers={"Authorization": f"{scheme} {GOOD}"}).status_code == 200


@pytest.mark.parametrize(
    "other",
    [
        {"exp": 4_000_000_000.5},
        {"nbf": LONG_AGO, "iat": LONG_AGO},
        {"sub": SUB.upper()},
        {"teams": []},
        {"username": None, "email": "a@example.org"},
        {"iss": "anybody", "aud": "anything", "jti": "1", "scope": "all"},
    ],
    ids=repr,
)
def test_what_a_token_may_also_say(http: httpx.Client, other: dict[str, Any]) -> None:
    bearer = forge(claims(**other), typ="at+jwt", kid="1")
    assert http.get(TICKETS, headers={"Authorization": f"Bearer {bearer}"}).status_code == 200


def test_everything_but_what_operators_look_at_needs_a_token(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    asked = 0
    for path, operations in paths.items():
        for method in operations:
            url = path
            for name in ("ticket_id", "comment_id", "attachment_id"):
                url = url.replace(f"{{{name}}}", str(uuid4()))
            if path.startswith("/api/"):
                asked += 1
                assert_unauthorized(http.request(method, url))
            else:
                assert http.request(method, url.replace("{slug}", "forbidden")).status_code == 200
    assert asked > 10


def test_without_a_token_nobody_learns_what_is_there(http: httpx.Client) -> None:
    good = {"Authorization": f"Bearer {GOOD}"}
    there = http.post(TICKETS, json=NEW_TICKET, headers=good).json()["id"]
    answers = [http.get(f"{TICKETS}/{one}") for one in (there, str(uuid4()))]
    for answer in answers:
        assert_unauthorized(answer)
    assert len({answer.content.replace(there.encode(), b"").replace(url_id(answer), b"") for answer in answers}) == 1


def url_id(answer: httpx.Response) -> bytes:
    return answer.request.url.path.rsplit("/", 1)[1].encode()


def test_a_token_that_is_remembered_stops_when_it_expires(http: httpx.Client) -> None:
    expires = int(time.time()) + 2
    headers = {"Authorization": f"Bearer {forge(claims(exp=expires))}"}
    assert http.get(TICKETS, headers=headers).status_code == 200
    assert http.get(TICKETS, headers=headers).status_code == 200
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    for _ in range(2):
        assert_unauthorized(http.get(TICKETS, headers=headers))


def test_what_a_token_says_counts_now_whatever_an_earlier_one_said(http: httpx.Client) -> None:
    sub = uuid4()
    for role, status in ((Role.ADMIN, 200), (Role.END_USER, 404), (Role.TEAM_LEAD, 200)):
        ticket = http.post(TICKETS, json=NEW_TICKET, headers={"Authorization": f"Bearer {GOOD}"}).json()["id"]
        answer = http.get(f"{TICKETS}/{ticket}", headers={"Authorization": f"Bearer {token(role, sub)}"})
        assert answer.status_code == status


def test_issuer_and_audience_are_checked_where_they_are_set(own_service: Callable[..., Service]) -> None:
    running = own_service(JWT_ISSUER="https://id.example.org", JWT_AUDIENCE="tickets")
    right = {"iss": "https://id.example.org", "aud": "tickets"}
    with httpx.Client(base_url=running.url, timeout=30) as client:

        def ask(**other: Any) -> httpx.Response:
            bearer = forge(claims(**(right | other)))
            return client.get(TICKETS, headers={"Authorization": f"Bearer {bearer}"})

        assert ask().status_code == 200
        assert ask(aud=["others", "tickets"]).status_code == 200
        before = position(client)
        issuers: list[Any] = [..., None, "", 7, "https://id.example.org/", "HTTPS://ID.EXAMPLE.ORG", [right["iss"]]]
        audiences: list[Any] = [..., None, "", 7, "others", "Tickets", "tickets ", [], ["others"], [7], {}]
        for issuer in issuers:
            assert_unauthorized(ask(iss=issuer))
        for audience in audiences:
            assert_unauthorized(ask(aud=audience))
        assert_unauthorized(ask(iss=..., aud=...))
        assert position(client) == before


def pem(key: PrivateKeyTypes) -> tuple[str, str]:
    """The private key and the public key, as PEM."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


MAKERS: dict[str, tuple[Callable[[], PrivateKeyTypes], str]] = {
    "RS256": (lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048), "PS256"),
    "PS256": (lambda: rsa.generate_private_key(public_exponent=65_537, key_size=2_048), "RS256"),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), "HS256"),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, "HS256"),
}


@pytest.mark.parametrize("algorithm", MAKERS)
def test_tokens_signed_elsewhere_are_checked_with_the_public_key(algorithm: str) -> None:
    make, other = MAKERS[algorithm]
    private, public = pem(make())
    settings = read_settings({"JWT_ALGORITHM": algorithm, "JWT_SECRET_KEY": public})
    tokens = Tokens(settings)
    assert not settings.signs_tokens

    def refused(bearer: str) -> bool:
        with pytest.raises(Unauthorized):
            tokens.actor(f"Bearer {bearer}")
        return True

    good = jwt.encode(claims(), private, algorithm=algorithm)
    actor = tokens.actor(f"Bearer {good}")
    assert (str(actor.id), actor.role) == (SUB, Role.ADMIN)
    assert refused(jwt.encode(claims(exp=LONG_AGO), private, algorithm=algorithm))
    assert refused(jwt.encode(claims(), pem(make())[0], algorithm=algorithm))
    # The public key is no secret: whoever signs with it as if it were one is nobody.
    for key in (public, public.strip(), public.encode()):
        assert refused(forge(claims(), key=key))
        assert refused(forge(claims(), key=key, alg=algorithm))
    if other != "HS256":
        assert refused(jwt.encode(claims(), private, algorithm=other))
    head, body, signature = good.split(".")
    assert refused(f"{head}.{b64(json.dumps(claims(role='MANAGER')).encode())}.{signature}")
    assert refused(f"{head}.{body}.")
    with pytest.raises(SettingsError, match="JWT_SECRET_KEY"):
        read_settings({"JWT_ALGORITHM": algorithm, "JWT_SECRET_KEY": private})


def test_a_token_that_is_made_here_is_taken_here() -> None:
    settings = Settings(jwt_secret_key=KEY * 2, jwt_issuer="us", jwt_audience="tickets", jwt_algorithm="HS512")
    sub = uuid4()
    made = make_token(settings, role=Role.TEAM_LEAD, sub=sub, username="Zoë", teams=("b", "a", "b"))
    actor = Tokens(settings).actor(f"Bearer {made}")
    assert (actor.id, actor.role, actor.username, actor.teams) == (sub, Role.TEAM_LEAD, "Zoë", ("a", "b"))
    with pytest.raises(Unauthorized):
        Tokens(Settings(jwt_secret_key=KEY)).actor(f"Bearer {made}")


def test_only_so_many_tokens_are_remembered() -> None:
    settings = Settings(jwt_secret_key=KEY)
    tokens = Tokens(settings, remembered=2)
    for _ in range(5):
        bearer = make_token(settings, role=Role.END_USER, sub=uuid4())
        assert tokens.actor(f"Bearer {bearer}") == tokens.actor(f"bearer {bearer}")
    assert len(tokens._remembered) == 2
