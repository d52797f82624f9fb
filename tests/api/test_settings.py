"""Settings: every variable, good and bad, named when it is bad; and the key that an installation makes itself."""

import os
import stat
import subprocess
import sys
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.settings import Settings, SettingsError, jwt_key, read_settings
from tests.starting import run
from tickets.sla import TARGETS, Priority, Target

KEY = "0123456789abcdef0123456789abcdef"
PUBLIC_FORM = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ED25519 = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*PUBLIC_FORM).decode()
P256 = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*PUBLIC_FORM).decode()
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048).public_key().public_bytes(*PUBLIC_FORM).decode()

HOURS = [f"SLA_P{priority}_{which}_HOURS" for priority in (1, 2, 3, 4) for which in ("RESPONSE", "RESOLUTION")]
COUNTS = [
    "COMMAND_QUEUE_LIMIT",
    "MAX_BODY_BYTES",
    "DATABASE_POOL_SIZE",
    "DATABASE_TIMEOUT_MS",
    "TICKET_CACHE_SIZE",
    "UPLOAD_TIMEOUT_MS",
    "UPLOADS_AT_ONCE",
    "MAX_ARCHIVE_RATIO",
    "CHECKPOINT_FACTS",
]

GOOD: list[tuple[str, str, Any]] = [
    ("DATABASE_URL", "postgresql://user:secret@host/tickets", "postgresql://user:secret@host/tickets"),
    ("DATABASE_URL", "postgres://host:5433/tickets?sslmode=require", "postgres://host:5433/tickets?sslmode=require"),
    ("DATA_DIR", "/srv/tickets", Path("/srv/tickets")),
    ("DATA_DIR", "a folder", Path("a folder")),
    ("JWT_SECRET_KEY", KEY, KEY),
    ("JWT_ALGORITHM", "HS512", "HS512"),
    ("JWT_ISSUER", "https://id.example.org", "https://id.example.org"),
    ("JWT_AUDIENCE", "tickets", "tickets"),
    ("AUTH_SERVICE_URL", "https://id.example.org/sign-in", "https://id.example.org/sign-in"),
    *((name, "0.5", 0.5) for name in HOURS),
    ("SLA_P1_RESPONSE_HOURS", "0.00001", 0.00001),
    ("SLA_P4_RESOLUTION_HOURS", "720", 720.0),
    ("REOPEN_WINDOW_DAYS", "0", 0.0),
    ("REOPEN_WINDOW_DAYS", "1.5", 1.5),
    ("SERVICE_NAME", "desk", "desk"),
    ("SERVICE_VERSION", "2.0.0-rc.1", "2.0.0-rc.1"),
    ("SERVICE_HOST", "0.0.0.0", "0.0.0.0"),  # noqa: S104 - it is only read
    ("SERVICE_HOST", "::", "::"),
    ("SERVICE_PORT", "1", 1),
    ("SERVICE_PORT", "65535", 65_535),
    ("SERVICE_PORT", " 8080 ", 8_080),
    ("API_V1_PREFIX", "/api/v2", "/api/v2"),
    ("API_V1_PREFIX", "/t", "/t"),
    ("LOG_LEVEL", "DEBUG", "DEBUG"),
    ("LOG_LEVEL", "warning", "WARNING"),
    ("TRUSTED_PROXIES", "10.0.0.1", ("10.0.0.1",)),
    ("TRUSTED_PROXIES", "10.0.0.0/8, ::1,fd00::/8", ("10.0.0.0/8", "::1", "fd00::/8")),
    *(("REQUIRE_IF_MATCH", text, True) for text in ("true", "True", "TRUE", "1")),
    *(("REQUIRE_IF_MATCH", text, False) for text in ("false", "False", "0")),
    ("FRESHNESS_TIMEOUT_MS", "0", 0),
    ("FRESHNESS_TIMEOUT_MS", "600000", 600_000),
    ("UPLOAD_DIR", "/srv/uploads", Path("/srv/uploads")),
    ("STORAGE_URL", "s3://bucket/prefix", "s3://bucket/prefix"),
    ("STORAGE_URL", "gs://bucket", "gs://bucket"),
    ("CLAMAV_URL", "tcp://127.0.0.1:3310", "tcp://127.0.0.1:3310"),
    ("CLAMAV_URL", "tcp://clamav", "tcp://clamav"),
    ("CLAMAV_URL", "unix:///run/clamav/clamd.ctl", "unix:///run/clamav/clamd.ctl"),
    ("ALLOWED_FILE_EXTENSIONS", "pdf", ("pdf",)),
    ("ALLOWED_FILE_EXTENSIONS", ".PDF, png,", ("pdf", "png")),
    ("MAX_FILE_SIZE_MB", "1", 1),
    ("MAX_FILE_SIZE_MB", "10240", 10_240),
    ("MAX_ARCHIVE_ENTRIES", "60000", 60_000),
    ("MAX_ARCHIVE_SIZE_MB", "1", 1),
    ("MAX_ARCHIVE_DEPTH", "0", 0),
    ("ATTACHMENT_RETENTION_DAYS", "0", 0.0),
    ("RESCAN_SECONDS", "0.1", 0.1),
    ("SWEEP_MINUTES", "0.5", 0.5),
    ("DRIFT_SAMPLE_SECONDS", "0.1", 0.1),
    ("FEED_WAIT_SECONDS", "0", 0),
    ("FEED_POLLS", "7", 7),
    ("FEED_STREAMS", "0", 0),
    ("FEED_HEARTBEAT_SECONDS", "0.1", 0.1),
    ("CHECKPOINT_URL", "file:///srv/checkpoints", "file:///srv/checkpoints"),
    ("CHECKPOINT_URL", "s3://bucket/checkpoints", "s3://bucket/checkpoints"),
    ("CHECKPOINT_ORIGIN", "desk.example.org/tickets", "desk.example.org/tickets"),
    ("CHECKPOINT_KEY_FILE", "/run/secrets/checkpoint.key", Path("/run/secrets/checkpoint.key")),
    ("CHECKPOINT_SECONDS", "0.1", 0.1),
    *((name, "1", 1) for name in COUNTS),
    *((name, "2147483647", 2**31 - 1) for name in COUNTS),
]

BAD: list[tuple[str, str]] = [
    ("DATABASE_URL", "mysql://host/tickets"),
    ("DATABASE_URL", "host/tickets"),
    ("DATABASE_URL", "sqlite:///tickets.db"),
    ("JWT_SECRET_KEY", "x" * 31),
    ("JWT_SECRET_KEY", "change-me-to-a-random-key-of-at-least-32-bytes"),
    ("JWT_SECRET_KEY", "your-secret-key-change-in-production"),
    ("JWT_SECRET_KEY", " " * 40 + "short"),
    *(("JWT_ALGORITHM", text) for text in ("none", "None", "hs256", "HS1", "HS256,RS256", "*", "dir")),
    *((name, text) for name in HOURS for text in ("0", "-1", "nan", "inf", "1e400", "soon", "4h", "100001")),
    *(("REOPEN_WINDOW_DAYS", text) for text in ("-1", "nan", "inf", "a week", "36501")),
    *(("SERVICE_PORT", text) for text in ("0", "-1", "65536", "http", "80.5", "8_0", "٨٠")),
    *(("API_V1_PREFIX", text) for text in ("api", "/", "/api/", "//api", "/api v1", "/{id}", "/api?x", "/a/../b?")),
    *(("LOG_LEVEL", text) for text in ("TRACE", "5", "loud")),
    *(("TRUSTED_PROXIES", text) for text in ("proxy", "10.0.0.1/8", "10.0.0.0/33", ",", "10.0.0.1;10.0.0.2", "*")),
    *(("REQUIRE_IF_MATCH", text) for text in ("yes", "on", "2", "maybe", "tru")),
    *(("FRESHNESS_TIMEOUT_MS", text) for text in ("-1", "600001", "2s", "1.5")),
    *(("STORAGE_URL", text) for text in ("/srv", "file:///srv", "http://host/bucket", "memory:///", "s3:")),
    *(("CLAMAV_URL", text) for text in ("127.0.0.1:3310", "tcp://", "unix://", "http://clamav", "tcp://host:port")),
    *(("ALLOWED_FILE_EXTENSIONS", text) for text in ("exe", "pdf,svg", "*", ",", "pdf;png")),
    *(("MAX_FILE_SIZE_MB", text) for text in ("0", "10241", "50M")),
    *(("MAX_ARCHIVE_ENTRIES", text) for text in ("0", "60001")),
    *(("MAX_ARCHIVE_SIZE_MB", text) for text in ("0", "102401")),
    *(("MAX_ARCHIVE_DEPTH", text) for text in ("-1", "17")),
    *(("ATTACHMENT_RETENTION_DAYS", text) for text in ("-1", "nan", "36501", "a month")),
    *(("RESCAN_SECONDS", text) for text in ("0", "86401", "inf")),
    *(("SWEEP_MINUTES", text) for text in ("-1", "100001")),
    *(("DRIFT_SAMPLE_SECONDS", text) for text in ("0", "0.09", "86401", "often")),
    *(("FEED_WAIT_SECONDS", text) for text in ("-1", "3601", "1.5")),
    *(("FEED_POLLS", text) for text in ("0", "many")),
    *(("FEED_STREAMS", text) for text in ("-1", "2147483648")),
    *(("FEED_HEARTBEAT_SECONDS", text) for text in ("0", "3601", "nan")),
    *(("CHECKPOINT_URL", text) for text in ("/srv", "file://srv", "file:srv", "http://host/bucket", "s3:")),
    *(("CHECKPOINT_ORIGIN", text) for text in ("my desk", "a+b", "x" * 101)),
    *(("CHECKPOINT_SECONDS", text) for text in ("0", "86401", "a minute")),
    *((name, text) for name in COUNTS for text in ("0", "-1", "many", "2147483648", "1.5")),
]


def test_without_any_variable_there_is_a_setting_for_all() -> None:
    settings = read_settings({})
    assert settings == Settings()
    assert (settings.database_url, settings.data_dir, settings.jwt_secret_key) == (None, Path("var"), None)
    assert (settings.jwt_algorithm, settings.service_port, settings.api_v1_prefix) == ("HS256", 8_002, "/api/v1")
    assert (settings.reopen_window_days, settings.require_if_match, settings.proxies) == (7, False, ())
    assert settings.policy.targets == TARGETS
    assert settings.policy.reopen_window == timedelta(days=7)


@pytest.mark.parametrize(("name", "text", "value"), GOOD, ids=[f"{name}={text}" for name, text, _ in GOOD])
def test_a_good_value_is_taken(name: str, text: str, value: Any) -> None:
    settings = read_settings({name: text, "UNRELATED": "x", name.lower(): "not this one"})
    assert getattr(settings, name.lower()) == value
    assert msgspec.structs.replace(settings, **{name.lower(): getattr(Settings(), name.lower())}) == Settings()


def test_every_setting_is_in_the_tables() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(Settings)}
    assert {name for name, _, _ in GOOD} == fields
    free = {
        "DATA_DIR",
        "UPLOAD_DIR",
        "CHECKPOINT_KEY_FILE",
        "JWT_ISSUER",
        "JWT_AUDIENCE",
        "AUTH_SERVICE_URL",
        "SERVICE_NAME",
        "SERVICE_VERSION",
        "SERVICE_HOST",
    }
    assert {name for name, _ in BAD} == fields - free


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{name}={text}" for name, text in BAD])
def test_a_bad_value_is_named_and_a_secret_is_not_shown(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings({name: text})
    message = str(refused.value)
    assert message.startswith(name)
    assert "is not usable: " in message
    assert len(message) > len(f"{name} is not usable: ") + 10
    if name in ("JWT_SECRET_KEY", "DATABASE_URL"):
        assert text.strip() not in message


def test_a_password_in_a_bad_database_url_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings({"DATABASE_URL": "mysql://me:hunter2@host/tickets"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_not_set(text: str) -> None:
    fields = [field.encode_name for field in msgspec.structs.fields(Settings)]
    assert read_settings(dict.fromkeys(fields, text)) == Settings()


def test_the_targets_and_the_window_are_policy() -> None:
    hours = {
        f"SLA_P{number}_{which}_HOURS": str(number * (2 if which == "RESOLUTION" else 1))
        for number in (1, 2, 3, 4)
        for which in ("RESPONSE", "RESOLUTION")
    }
    policy = read_settings(hours | {"REOPEN_WINDOW_DAYS": "0.5"}).policy
    assert policy.targets == {
        priority: Target(timedelta(hours=number), timedelta(hours=2 * number))
        for number, priority in enumerate(Priority, 1)
    }
    assert policy.reopen_window == timedelta(hours=12)


@pytest.mark.parametrize(
    ("variables", "origin"),
    [({}, "tickets"), ({"SERVICE_NAME": "our + desk"}, "our-desk"), ({"CHECKPOINT_ORIGIN": "a/b"}, "a/b")],
)
def test_an_origin_is_one_that_notes_can_have(variables: dict[str, str], origin: str) -> None:
    assert read_settings(variables).origin == origin


def test_trusted_proxies_are_networks() -> None:
    assert read_settings({"TRUSTED_PROXIES": "10.1.2.3, fd00::/8"}).proxies == (
        ip_network("10.1.2.3/32"),
        ip_network("fd00::/8"),
    )


@pytest.mark.parametrize(
    ("variables", "signs"),
    [
        ({}, True),
        ({"JWT_SECRET_KEY": KEY}, True),
        ({"JWT_ALGORITHM": "HS384", "JWT_SECRET_KEY": KEY}, True),
        ({"AUTH_SERVICE_URL": "https://id.example.org", "JWT_SECRET_KEY": KEY}, False),
        ({"JWT_ALGORITHM": "EdDSA", "JWT_SECRET_KEY": ED25519}, False),
    ],
)
def test_who_signs_tokens_follows_from_the_settings(variables: dict[str, str], *, signs: bool) -> None:
    assert read_settings(variables).signs_tokens is signs


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("EdDSA", ED25519), ("ES256", P256), ("RS256", RSA), ("RS512", RSA), ("PS256", RSA), ("PS384", RSA)],
)
def test_an_algorithm_with_two_keys_takes_the_public_one(algorithm: str, key: str) -> None:
    settings = read_settings({"JWT_ALGORITHM": algorithm, "JWT_SECRET_KEY": key})
    assert jwt_key(settings).strip() == key.strip()


BAD_KEYS: dict[str, tuple[str, str | None]] = {
    "none": ("RS256", None),
    "a secret": ("RS256", KEY),
    "a key of another kind": ("RS256", ED25519),
    "a key of another kind too": ("EdDSA", RSA),
    "a key of a third kind": ("ES256", RSA),
    "damaged": ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
    "cut off": ("EdDSA", ED25519[:60]),
    "a private key": ("RS256", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"),
}


@pytest.mark.parametrize(("algorithm", "key"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_any_other_key_for_it_stops_the_start(algorithm: str, key: str | None) -> None:
    variables = {"JWT_ALGORITHM": algorithm} | ({} if key is None else {"JWT_SECRET_KEY": key})
    with pytest.raises(SettingsError) as refused:
        read_settings(variables)
    message = str(refused.value)
    assert message.startswith("JWT_SECRET_KEY is not usable: ")
    assert algorithm in message
    assert key is None or key not in message


@pytest.mark.parametrize("key", ["x" * 32, "é" * 16, "a b" * 11])
def test_a_key_of_32_bytes_is_long_enough(key: str) -> None:
    assert jwt_key(read_settings({"JWT_SECRET_KEY": key})) == key


# The key that an installation makes


def test_a_key_is_made_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    settings = read_settings({"DATA_DIR": str(tmp_path / "deep" / "data")})
    before = os.umask(0)
    try:
        made = jwt_key(settings)
    finally:
        os.umask(before)
    assert len(made) >= 32
    assert jwt_key(settings) == made
    (kept,) = settings.data_dir.iterdir()
    assert kept.name == "jwt.key"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    assert jwt_key(read_settings({"DATA_DIR": str(tmp_path / "other")})) != made


@pytest.mark.parametrize("damaged", ["", "\n", "short", " " * 64])
def test_a_damaged_key_is_not_used(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "jwt.key").write_text(damaged)
    with pytest.raises(SettingsError, match=r"jwt\.key is not usable"):
        jwt_key(read_settings({"DATA_DIR": str(tmp_path)}))


def test_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from api.settings import jwt_key, read_settings\n"
        "settings = read_settings(os.environ)\n"
        "sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.readline()\n"
        "print(jwt_key(settings))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={"DATA_DIR": str(tmp_path / "data"), "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.read(1) == "."
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=20)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(keys) == 1
    assert keys == {(tmp_path / "data" / "jwt.key").read_text()}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["jwt.key"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("SERVICE_PORT", "http"), ("JWT_SECRET_KEY", "hunter2-hunter2"), ("DATABASE_URL", "mysql://me:hunter2@host/x")],
)
def test_a_bad_value_stops_the_start_with_its_name(tmp_path: Path, name: str, text: str) -> None:
    ended = run(["serve"], {"DATA_DIR": str(tmp_path), "PATH": os.environ["PATH"], name: text}, timeout=30)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert name in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
