"""What an installation sets for itself, all of it by environment variables.

A bad value stops the start and is named. Deliberately absent: reading the environment anywhere else.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from secrets import token_urlsafe
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from api.files.inspection import TYPES
from api.files.scanning import clamd_at
from api.files.storage import folder_at, store_at
from tickets.checkpoints import NAME
from tickets.commands import Policy
from tickets.sla import TARGETS, Priority, Target

Positive = Annotated[int, Meta(gt=0, le=2**31 - 1)]
Hours = Annotated[float, Meta(gt=0, le=100_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]

_ALGORITHMS = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]
_SHORTEST_KEY: Final = 32
_EXAMPLE_KEYS: Final = {
    "change-me-to-a-random-key-of-at-least-32-bytes",
    "your-secret-key-change-in-production",
    "your-super-secret-jwt-key-change-in-production",
}
"""Keys that stand in documentation, ours and others': everybody knows them."""


Part = Literal["commands", "queries", "projections"]
PARTS: Final[tuple[Part, ...]] = ("commands", "queries", "projections")
"""What a process can run; all of it, unless it is told otherwise."""


class SettingsError(Exception):
    """A setting is wrong; the message names it and says what would be right."""


def _hours(moment: timedelta) -> float:
    return moment / timedelta(hours=1)


class Settings(Struct, frozen=True, kw_only=True, rename="upper"):
    """The environment, read and checked. Field names are the variables' in lower case."""

    database_url: str | None = None
    data_dir: Path = Path("var")
    jwt_secret_key: str | None = None
    jwt_algorithm: _ALGORITHMS = "HS256"
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    auth_service_url: str | None = None
    sla_p1_response_hours: Hours = _hours(TARGETS[Priority.P1].response)
    sla_p1_resolution_hours: Hours = _hours(TARGETS[Priority.P1].resolution)
    sla_p2_response_hours: Hours = _hours(TARGETS[Priority.P2].response)
    sla_p2_resolution_hours: Hours = _hours(TARGETS[Priority.P2].resolution)
    sla_p3_response_hours: Hours = _hours(TARGETS[Priority.P3].response)
    sla_p3_resolution_hours: Hours = _hours(TARGETS[Priority.P3].resolution)
    sla_p4_response_hours: Hours = _hours(TARGETS[Priority.P4].response)
    sla_p4_resolution_hours: Hours = _hours(TARGETS[Priority.P4].resolution)
    reopen_window_days: Annotated[float, Meta(ge=0, le=36_500)] = 7
    service_name: str = "tickets"
    service_version: str = "0.1.0"
    service_host: str = "127.0.0.1"
    service_port: Port = 8002
    api_v1_prefix: Annotated[str, Meta(pattern=r"^(/[A-Za-z0-9_.~-]+)+$")] = "/api/v1"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    trusted_proxies: tuple[str, ...] = ()
    require_if_match: bool = False
    freshness_timeout_ms: Annotated[int, Meta(ge=0, le=600_000)] = 2_000
    command_queue_limit: Positive = 1_024
    """How many commands may wait for the ledger; one more is answered 503 at once."""
    max_body_bytes: Positive = 1_048_576
    database_pool_size: Positive = 8
    database_timeout_ms: Positive = 4_000
    """How long one statement may take, and in all a request a tenth longer."""
    ticket_cache_size: Positive = 10_000
    upload_dir: Path | None = None
    """Where files are received, and kept where there is no storage_url; by default `uploads` in data_dir."""
    storage_url: str | None = None
    """The object store for files: s3://, gs:// or az://."""
    clamav_url: str | None = None
    """The virus scanner: tcp://host:port or unix:///path."""
    max_file_size_mb: Annotated[int, Meta(ge=1, le=10_240)] = 50
    allowed_file_extensions: Annotated[tuple[str, ...], Meta(min_length=1)] = tuple(TYPES)
    upload_timeout_ms: Positive = 30_000
    """How long an upload may pause."""
    uploads_at_once: Positive = 32
    """How many files may come in at the same time; one more is answered 503 at once."""
    max_archive_entries: Annotated[int, Meta(ge=1, le=60_000)] = 2_000
    max_archive_size_mb: Annotated[int, Meta(ge=1, le=102_400)] = 500
    """How much may be in an archive, all that is nested in it included."""
    max_archive_ratio: Positive = 100
    """How many times its own size that may be."""
    max_archive_depth: Annotated[int, Meta(ge=0, le=16)] = 3
    attachment_retention_days: Annotated[float, Meta(ge=0, le=36_500)] = 30
    """How long the bytes of deleted attachments are kept."""
    rescan_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 60
    """How often files in quarantine are scanned again."""
    sweep_minutes: Annotated[float, Meta(ge=0, le=100_000)] = 60
    """How often bytes that nothing names are looked for."""
    drift_sample_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 10
    """How often a ticket, by luck, is held against its facts."""
    feed_wait_seconds: Annotated[int, Meta(ge=0, le=3_600)] = 30
    """How long a reader of the event feed may wait for more, at most."""
    feed_polls: Positive = 1_000
    """How many may wait for more at the same time; one more is answered 503 at once."""
    feed_streams: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 100
    """How many streams of events may be open; one more is answered 503 at once."""
    feed_heartbeat_seconds: Annotated[float, Meta(ge=0.1, le=3_600)] = 15
    """How often a stream says that it is there; a reader that takes nothing for twice as long is cut off."""
    checkpoint_url: str | None = None
    """Where checkpoints are kept beside the database; by default `checkpoints` in data_dir."""
    checkpoint_origin: Annotated[str, Meta(pattern=f"^{NAME.pattern}$")] | None = None
    """Whose ledger a checkpoint is of; by default service_name, which must stay the same then."""
    checkpoint_key_file: Path | None = None
    """The key that checkpoints are signed with; by default one is made and kept in data_dir."""
    checkpoint_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 60
    """How often there is a checkpoint, if there are new facts."""
    checkpoint_facts: Positive = 10_000
    """After so many new facts there is one sooner."""

    @property
    def origin(self) -> str:
        """Whose ledger it is, as checkpoints name it: without blanks and plus signs."""
        return self.checkpoint_origin or re.sub(r"[\s+\x00]+", "-", self.service_name)[:100]

    @property
    def checkpoint_key(self) -> Path:
        """Where the key of checkpoints is."""
        return self.checkpoint_key_file or self.data_dir / "checkpoint.key"

    @property
    def outside(self) -> str:
        """The URL where checkpoints are kept beside the database."""
        return self.checkpoint_url or (self.data_dir / "checkpoints").absolute().as_uri()

    @property
    def policy(self) -> Policy:
        """The rules that decisions follow."""
        targets = {
            priority: Target(
                timedelta(hours=getattr(self, f"sla_{priority.lower()}_response_hours")),
                timedelta(hours=getattr(self, f"sla_{priority.lower()}_resolution_hours")),
            )
            for priority in Priority
        }
        return Policy(targets=targets, reopen_window=timedelta(days=self.reopen_window_days))

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks whose X-Forwarded-For is believed."""
        return tuple(ip_network(network) for network in self.trusted_proxies)

    @property
    def signs_tokens(self) -> bool:
        """Whether this installation has the key that tokens are signed with."""
        return self.auth_service_url is None and self.jwt_algorithm.startswith("HS")


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in the environment; an empty variable counts as not set. Raises SettingsError."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        text = environment.get(field.encode_name, "").strip()
        if not text:
            continue
        value: Any = text
        if field.name == "trusted_proxies":
            value = [part.strip() for part in text.split(",")]
        if field.name == "allowed_file_extensions":
            value = [part.strip().lstrip(".").lower() for part in text.split(",") if part.strip()]
        if field.name == "log_level":
            value = text.upper()
        if field.type is bool:
            value = text.lower()
        try:
            values[field.name] = msgspec.convert(value, field.type, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            shown = "" if "KEY" in field.encode_name else f" {text!r}"
            raise SettingsError(f"{field.encode_name}{shown} is not usable: {error}") from None
    settings = Settings(**values)
    _check(settings)
    return settings


def _path(kind: type[Path], value: str) -> Path:
    return kind(value)


def _check(settings: Settings) -> None:
    try:
        _ = settings.proxies
    except ValueError as error:
        raise SettingsError(f"TRUSTED_PROXIES is not usable: {error}; write addresses or networks, by commas") from None
    for name, check in (("storage_url", store_at), ("clamav_url", clamd_at), ("checkpoint_url", folder_at)):
        try:
            _ = None if (value := getattr(settings, name)) is None else check(value)
        except ValueError as error:
            raise SettingsError(f"{name.upper()} is not usable: it {error}") from None
    if unknown := set(settings.allowed_file_extensions) - set(TYPES):
        raise SettingsError(
            f"ALLOWED_FILE_EXTENSIONS is not usable: {', '.join(sorted(unknown))}; there are {', '.join(TYPES)}"
        )
    url = settings.database_url
    if url is not None and not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError("DATABASE_URL is not usable: it must begin with postgresql://")
    key = settings.jwt_secret_key
    if settings.jwt_algorithm.startswith("HS"):
        if key is not None and (key in _EXAMPLE_KEYS or len(key.encode()) < _SHORTEST_KEY):
            raise SettingsError(
                f"JWT_SECRET_KEY is not usable: it must be a secret of at least {_SHORTEST_KEY} bytes, not an example; "
                "leave it unset to have one made and kept in DATA_DIR"
            )
    elif key is None or "BEGIN PUBLIC KEY" not in key or not _fits(settings.jwt_algorithm, key):
        raise SettingsError(
            f"JWT_SECRET_KEY is not usable: for {settings.jwt_algorithm} it must be the public key, PEM, "
            "of whoever signs the tokens"
        )


def _fits(algorithm: str, public_key: str) -> bool:
    import jwt  # noqa: PLC0415 - it takes long to import, and most commands have no use for it

    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(public_key)
    except (jwt.PyJWTError, ValueError, TypeError):
        return False
    return True


def jwt_key(settings: Settings) -> str:
    """The key that tokens are checked with: the one that is set, or this installation's own.

    Raises SettingsError where that file has been damaged.
    """
    if settings.jwt_secret_key is not None:
        return settings.jwt_secret_key
    path = settings.data_dir / "jwt.key"
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        # Written beside and linked: nobody ever reads half a key, and of several processes one is first.
        with NamedTemporaryFile("w", dir=settings.data_dir, prefix="jwt.key.") as file:
            file.write(token_urlsafe(48))
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, path)
    key = path.read_text().strip()
    if len(key) < _SHORTEST_KEY:
        raise SettingsError(f"{path} is not usable: there must be a secret of {_SHORTEST_KEY} bytes in it; delete it")
    return key
