"""The virus scanner: clamd itself, with one signature of our own, asked by a service that takes files in over HTTP.

Skipped where clamd is not installed (Debian's clamav-daemon). Deliberately absent: where the bytes are
(test_storage.py).
"""

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.api.test_storage import (
    Place,
    assert_problem,
    attach,
    attached,
    becomes,
    download,
    facts,
    files_in,
    history,
    listed,
    named,
    new_ticket,
    owner_of,
    place,
    text,
)
from tests.conftest import free_port
from tests.projections.test_runner import store
from tests.tickets.test_ledger import assigned
from tickets import mapper

CLAMD = Path("/usr/sbin/clamd")
MARKER = b"THIS-IS-WHAT-OUR-VIRUS-LOOKS-LIKE"
VIRUS = "Test.Marker.UNOFFICIAL"
LONGEST = 1024 * 1024
"""How much the scanner looks at."""

if not CLAMD.exists():
    pytest.skip(f"there is no {CLAMD} (Debian's clamav-daemon)", allow_module_level=True)


class Clamd:
    """A scanner that can be switched on and off, reachable by a socket in a folder and by TCP."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        signatures, self._port = folder / "signatures", free_port()
        self._socket, self._configuration, self._log = folder / "socket", folder / "clamd.conf", folder / "log"
        signatures.mkdir()
        (signatures / "own.ndb").write_text(f"Test.Marker:0:*:{MARKER.hex()}\n")
        self._configuration.write_text(
            f"Foreground yes\nUser root\nDatabaseDirectory {signatures}\nStreamMaxLength {LONGEST}\n"
            f"LocalSocket {self._socket}\nTCPAddr 127.0.0.1\nTCPSocket {self._port}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.urls = {"unix": f"unix://{self._socket}", "tcp": f"tcp://127.0.0.1:{self._port}"}

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([CLAMD, "-c", self._configuration], stdout=log, stderr=log)
        becomes(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with socket.create_connection(("127.0.0.1", self._port), 5) as asked:
                asked.sendall(b"nPING\n")
                return asked.recv(16) == b"PONG\n" and self._socket.exists()
        except ConnectionError:
            return False


@pytest.fixture(scope="module")
def clamd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clamd]:
    """The scanner that all share; it is there all the time."""
    running = Clamd(tmp_path_factory.mktemp("clamd"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["unix", "tcp"])
def guarded(
    request: pytest.FixtureRequest,
    server: str,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    clamd: Clamd,
) -> Iterator[Place]:
    """A service that asks it, by each kind of URL."""
    folder = tmp_path_factory.mktemp("guarded")
    with place(server, template, folder, CLAMAV_URL=clamd.urls[request.param]) as made:
        yield made


@pytest.fixture
def ticket(guarded: Place) -> str:
    return new_ticket(guarded.http)


@pytest.fixture
def own_clamd(tmp_path: Path) -> Iterator[Clamd]:
    """A scanner that is away at first."""
    away = Clamd(tmp_path / "clamd")
    yield away
    away.stop()


@pytest.fixture
def waiting(server: str, template: str, tmp_path: Path, own_clamd: Clamd) -> Iterator[Place]:
    """A service that asks that one, and asks often."""
    with place(server, template, tmp_path, CLAMAV_URL=own_clamd.urls["unix"], RESCAN_SECONDS="0.2") as made:
        yield made


def infected() -> bytes:
    return text() + MARKER + text()


def scan_of(at: Place, ticket: str, attachment: dict[str, Any]) -> str:
    (found,) = (one["scan"] for one in listed(at.http, ticket) if one["id"] == attachment["id"])
    assert isinstance(found, str)
    return found


# ---------------------------------------------------------------------------------------------- when it comes


def test_what_the_scanner_finds_nothing_in_is_clean(guarded: Place, ticket: str) -> None:
    for size in (1, 60, 700_000):
        content = text(size)
        attachment = attached(guarded.http, ticket, content)
        assert attachment["scan"] == "clean"
        assert download(guarded.http, attachment).content == content
    assert {one["scan"] for one in listed(guarded.http, ticket)} == {"clean"}


def test_what_the_scanner_finds_a_virus_in_is_refused_and_only_the_fact_is_kept(guarded: Place, ticket: str) -> None:
    content, before = infected(), guarded.kept()
    first, again = (attach(guarded.http, ticket, content, "offer.txt", Idempotency_Key="once") for _ in range(2))
    for answer in (first, again):
        assert_problem(answer, 422, "infected-file")
        assert VIRUS in answer.json()["detail"]
    assert guarded.kept() == before
    assert files_in(guarded.uploads / "incoming") == {}
    assert listed(guarded.http, ticket) == []
    assert facts(guarded.dsn, ticket, "ticket.attachment_added.v1") == 0
    assert facts(guarded.dsn, ticket, "ticket.attachment_refused.v1") == 1
    entry = history(guarded.http, ticket)[-1]
    assert (entry["action"], entry["changes"]) == ("UPDATE", [])
    assert "offer.txt" in entry["reason"]
    assert VIRUS in entry["reason"]
    told = {name: entry["metadata"][name] for name in ("filename", "sha256", "infected")}
    assert told == {"filename": "offer.txt", "sha256": named(content), "infected": VIRUS}


def test_a_virus_is_found_wherever_in_the_file_it_is(guarded: Place, ticket: str) -> None:
    for content in (MARKER, MARKER + text(600_000), text(300_000) + MARKER + text(300_000), text(700_000) + MARKER):
        assert_problem(attach(guarded.http, ticket, content), 422, "infected-file")
    assert facts(guarded.dsn, ticket, "ticket.attachment_refused.v1") == 4


def test_what_is_too_long_for_the_scanner_is_taken_and_nobody_gets_it(guarded: Place, ticket: str) -> None:
    for content in (text(LONGEST + 1), text(20 * LONGEST), MARKER + text(3 * LONGEST)):
        attachment = attached(guarded.http, ticket, content)
        assert attachment["scan"] == "quarantined"
        assert_problem(download(guarded.http, attachment), 409, "file-quarantined")
    assert attached(guarded.http, ticket, text(LONGEST))["scan"] == "clean"


# ------------------------------------------------------------------------------------------ when it was away


def test_what_came_while_the_scanner_was_away_waits_for_it(waiting: Place, own_clamd: Clamd) -> None:
    http, ticket, content = waiting.http, new_ticket(waiting.http), text()
    clean = attached(http, ticket, content)
    refused = attach(http, ticket, bad := infected(), "offer.txt")
    assert (refused.status_code, refused.json()["scan"]) == (201, "quarantined"), "nobody knows yet"
    suspect = refused.json()
    assert clean["scan"] == "quarantined"
    time.sleep(0.5)  # it has been looked for meanwhile
    for one in (clean, suspect):
        assert_problem(download(http, one), 409, "file-quarantined")
        assert_problem(download(http, one, Range="bytes=0-5"), 409, "file-quarantined")
        assert_problem(download(http, one, If_None_Match="*"), 409, "file-quarantined")
        assert http.head(f"/api/v1/attachments/{one['id']}").status_code == 409
    assert facts(waiting.dsn, ticket, "ticket.attachment_scanned.v1") == 0

    own_clamd.start()
    becomes(lambda: scan_of(waiting, ticket, clean) == "clean")
    assert download(http, clean).content == content
    becomes(lambda: facts(waiting.dsn, ticket, "ticket.attachment_scanned.v1") == 2)
    time.sleep(0.5)
    assert facts(waiting.dsn, ticket, "ticket.attachment_scanned.v1") == 2, "once each"
    assert scan_of(waiting, ticket, suspect) == "quarantined"
    assert_problem(download(http, suspect), 409, "file-quarantined")
    assert named(bad) in waiting.kept()

    becomes(lambda: len(history(http, ticket)) == 5)
    told = {one["metadata"]["filename"]: one for one in history(http, ticket)[-2:]}
    for filename, result, attachment in (
        ("notes.txt", "clean", clean),
        ("offer.txt", f"infected with {VIRUS}", suspect),
    ):
        entry = told[filename]
        assert (entry["action"], entry["metadata"]["attachment_id"]) == ("UPDATE", attachment["id"])
        assert entry["changes"] == [{"field": "attachment.scan", "old": "quarantined", "new": result}]
    assert waiting.service.stop() == 0
    assert "Traceback" not in waiting.service.log.read_text()


def test_what_the_scanner_does_not_want_to_look_at_keeps_no_other_waiting(waiting: Place, own_clamd: Clamd) -> None:
    http, ticket = waiting.http, new_ticket(waiting.http)
    too_long = [attached(http, ticket, text(LONGEST + 1 + one)) for one in range(21)]
    deleted = attached(http, ticket, text())
    assert http.delete(f"/api/v1/attachments/{deleted['id']}").status_code == 204
    last = attached(http, ticket, text())
    own_clamd.start()
    becomes(lambda: download(http, last).status_code == 200)
    for one in too_long:
        assert_problem(download(http, one), 409, "file-quarantined")


def test_a_file_whose_bytes_are_lost_keeps_no_other_waiting(waiting: Place, own_clamd: Clamd) -> None:
    http, ticket = waiting.http, new_ticket(waiting.http)
    lost, last = (attached(http, ticket, text()) for _ in range(2))
    asyncio.run(waiting.storage().remove(lost["sha256"]))
    log = waiting.service.log  # who has read it before that may still scan it
    becomes(lambda: any(lost["id"] in line and "StorageAway" in line for line in log.read_text().splitlines()))
    own_clamd.start()
    becomes(lambda: scan_of(waiting, ticket, last) == "clean")
    assert scan_of(waiting, ticket, lost) == "quarantined"


def test_a_ticket_that_cannot_be_read_keeps_no_other_waiting(waiting: Place, own_clamd: Clamd) -> None:
    http, unreadable, ticket = waiting.http, new_ticket(waiting.http), new_ticket(waiting.http)
    stuck, last = attached(http, unreadable, text()), attached(http, ticket, text())
    asyncio.run(_write_what_only_a_newer_version_can_read(waiting.dsn, UUID(unreadable)))
    own_clamd.start()
    becomes(lambda: scan_of(waiting, ticket, last) == "clean")
    assert_problem(download(http, stuck), 409, "file-quarantined")
    assert waiting.service.process.poll() is None


async def _write_what_only_a_newer_version_can_read(dsn: str, ticket_id: UUID) -> None:
    async with owner_of(dsn) as owner:
        await store(owner, ticket_id, 3, topic="ticket.teleported.v1", state=mapper.encode(assigned(ticket_id, 3)))
