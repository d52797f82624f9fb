"""Uploading and downloading over HTTP, as somebody does it who means harm: what each attempt is answered, and that
nothing stays of one that was refused.

The files are in hostile_files.py. Deliberately absent: the limits of archives to the byte (test_inspection.py), the
virus scanner (test_virus_scanner.py), and where bytes are kept (test_storage.py).
"""

import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import httpx
import pytest

from api.files.inspection import TYPES
from tests.api.hostile_files import (
    ALSO_GOOD,
    GOOD,
    HOSTILE,
    KIB,
    MIB,
    RENAMED,
    TEXT,
    UNSAFE,
    WRONG,
    noise,
)
from tests.conftest import NEW_TICKET, NO_CERTIFICATES, Service, fresh_database, running_service, token
from tickets.permissions import Role

TICKETS = "/api/v1/tickets"
ATTACHMENTS = "/api/v1/attachments"
LARGEST = 50 * MIB
PLACES = 12
PATIENCE_S = 1.0
FORM = "multipart/form-data; boundary=b"

MALFORMED, TOO_LARGE = (400, "invalid-request"), (413, "content-too-large")


class Desk:
    """A service of our own, with Alice and her ticket, and a view of the folder where files go."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.alice, self.bob, self.admin = (uuid4() for _ in range(3))
        self._tokens: dict[str, str] = {}
        self.http = httpx.Client(base_url=service.url, timeout=30, verify=NO_CERTIFICATES)
        self.ticket = self.new_ticket()

    def bearer(self, person: str = "alice") -> dict[str, str]:
        if person not in self._tokens:
            role = Role.ADMIN if person == "admin" else Role.END_USER
            self._tokens[person] = token(role, getattr(self, person), username=person)
        return {"Authorization": f"Bearer {self._tokens[person]}"}

    def ask(self, method: str, path: str, body: Any = None, person: str = "alice", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.request(method, path, json=body, headers=self.bearer(person) | named)

    def new_ticket(self) -> str:
        answer = self.ask("POST", TICKETS, NEW_TICKET)
        assert answer.status_code == 201, answer.text
        ticket_id: str = answer.json()["id"]
        return ticket_id

    def closed_ticket(self) -> str:
        ticket = self.new_ticket()
        for status in ("OPEN", "IN_PROGRESS", "RESOLVED", "CLOSED"):
            answer = self.ask("PATCH", f"{TICKETS}/{ticket}/status", {"status": status, "reason": "so"}, "admin")
            assert answer.is_success, answer.text
        return ticket

    def version(self, ticket: str | None = None) -> int:
        answer = self.ask("GET", f"{TICKETS}/{ticket or self.ticket}", person="admin")
        assert answer.status_code == 200, answer.text
        version: int = answer.json()["version"]
        return version

    def sends(
        self,
        body: bytes,
        kind: str | None = FORM,
        ticket: str | None = None,
        person: str | None = "alice",
        **headers: str,
    ) -> httpx.Response:
        """A body as it is, to a ticket's attachments."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        about = {} if kind is None else {"Content-Type": kind}
        if len(body) > 16 * MIB:  # of a refused one the rest is not read: the connection is no good afterwards
            about["Connection"] = "close"
        bearer = {} if person is None else self.bearer(person)
        path = f"{TICKETS}/{ticket or self.ticket}/attachments"
        return self.http.post(path, content=body, headers={**about, **bearer, **named})

    def attaches(self, content: bytes, filename: str = "a.txt", **about: str) -> httpx.Response:
        return self.sends(form(content, filename), **about)

    def downloads(self, attachment: dict[str, Any], method: str = "GET", **headers: str) -> httpx.Response:
        return self.ask(method, f"{ATTACHMENTS}/{attachment['id']}", **headers)

    def incoming(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "incoming").iterdir())

    def objects(self) -> set[str]:
        return {name for _, _, names in os.walk(self.folder / "objects") for name in names}


@pytest.fixture(scope="module")
def service(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("uploads")
    with (
        fresh_database(server, template) as dsn,
        running_service(
            dsn,
            folder,
            UPLOAD_DIR=str(folder / "files"),
            UPLOAD_TIMEOUT_MS=str(int(PATIENCE_S * 1_000)),
            UPLOADS_AT_ONCE=str(PLACES),
        ) as running,
    ):
        yield running
        assert running.process.poll() is None, "it died of something"
        log = running.log.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") :][:3_000]
        assert list((folder / "files" / "incoming").iterdir()) == []


@pytest.fixture(scope="module")
def desk(service: Service) -> Iterator[Desk]:
    made = Desk(service, service.log.parent / "files")
    with closing(made.http):
        yield made


@pytest.fixture
def unchanged(desk: Desk) -> Iterator[None]:
    """At the end of the test there is no fact, no file and no object that was not there before."""
    before = (desk.version(), desk.objects())
    yield
    assert_nothing_coming(desk)
    assert (desk.version(), desk.objects()) == before


def assert_nothing_coming(desk: Desk) -> None:
    """Whoever is gone may be noticed a little later."""
    deadline = time.monotonic() + 2 * PATIENCE_S + 3
    while left := desk.incoming():
        assert time.monotonic() < deadline, f"left in incoming: {left}"
        time.sleep(0.01)


def form(content: bytes, filename: str = "a.txt", name: str = "file") -> bytes:
    return part(f'name="{name}"; filename="{filename}"'.encode(), content) + b"--b--\r\n"


def part(about: bytes, content: bytes = TEXT, *headers: bytes) -> bytes:
    lines = b"".join(line + b"\r\n" for line in (b"Content-Disposition: form-data; " + about, *headers))
    return b"--b\r\n" + lines + b"\r\n" + content + b"\r\n"


def assert_problem(answer: "httpx.Response | Heard", expected: tuple[int, str]) -> dict[str, Any]:
    status, slug = expected
    problem: dict[str, Any] = json.loads(answer.content)
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{slug}"), problem
    assert problem["status"] == status
    return problem


def attached(answer: "httpx.Response | Heard") -> dict[str, Any]:
    assert answer.status_code == 201, answer.content
    attachment: dict[str, Any] = json.loads(answer.content)
    return attachment


# What is in the file


@pytest.mark.parametrize("extension", TYPES)
def test_a_valid_file_of_each_type_is_attached(desk: Desk, extension: str) -> None:
    content = GOOD[extension]
    version = desk.version()
    answer = desk.attaches(content, f"a.{extension.upper()}")
    attachment = attached(answer)
    assert answer.headers["ETag"] == f'"{version + 1}"'
    assert answer.headers["Location"] == f"{ATTACHMENTS}/{attachment['id']}"
    assert attachment == {
        "id": attachment["id"],
        "ticket_id": desk.ticket,
        "filename": f"a.{extension.upper()}",
        "content_type": TYPES[extension],
        "size": len(content),
        "sha256": sha256(content).hexdigest(),
        "scan": "unscanned",
        "uploaded_by": {"id": str(desk.alice), "username": "alice", "role": "END_USER"},
        "created_at": attachment["created_at"],
    }
    assert desk.downloads(attachment).content == content
    assert attachment["sha256"] in desk.objects()
    assert desk.incoming() == []


@pytest.mark.parametrize(("filename", "content"), ALSO_GOOD.values(), ids=ALSO_GOOD)
def test_a_valid_file_of_an_odd_form_is_attached(desk: Desk, filename: str, content: bytes) -> None:
    attachment = attached(desk.attaches(content, filename))
    assert attachment["sha256"] == sha256(content).hexdigest()
    assert desk.incoming() == []


PICTURES = ("gif", "jpeg", "jpg", "pdf", "png", "webp")
TEXTS = ("csv", "eml", "json", "log", "md", "txt", "xml", "yaml", "yml")


@pytest.mark.parametrize("extension", [*PICTURES, *TEXTS])
def test_a_text_or_picture_that_was_cut_off_at_its_end_is_what_it_says_and_attached(desk: Desk, extension: str) -> None:
    content = GOOD[extension][:-1]
    assert attached(desk.attaches(content, f"a.{extension}"))["sha256"] == sha256(content).hexdigest()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("extension", PICTURES)
def test_a_picture_of_which_not_even_the_head_is_there_is_refused(desk: Desk, extension: str) -> None:
    assert_problem(desk.attaches(GOOD[extension][:2], f"a.{extension}"), WRONG)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("filename", "content"), RENAMED.values(), ids=RENAMED)
def test_a_file_that_is_not_what_its_name_says_is_refused(desk: Desk, filename: str, content: bytes) -> None:
    problem = assert_problem(desk.attaches(content, filename), WRONG)
    assert problem["detail"].startswith(f"{filename}: ")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("filename", "content"), HOSTILE.values(), ids=HOSTILE)
def test_an_archive_that_could_do_harm_is_refused(desk: Desk, filename: str, content: bytes) -> None:
    problem = assert_problem(desk.attaches(content, filename), UNSAFE)
    assert problem["detail"].startswith(f"{filename}: ")


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n--b",
        b"--b--",
        b"\r\n--",
        b"\r\r\n\r\n--\r\n--B--",
        b"\r\n-" * 50_000,
        b"\r" * 200_000,
        b"\n--b\r\n" * 1_000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_nearly_is_a_boundary_is_content(desk: Desk, content: bytes) -> None:
    if b"\r\n--b" in content:
        content = content.replace(b"\r\n--b", b"\r\n--\r\n-b")
    attachment = attached(desk.attaches(b"x" + content + b"y"))
    assert desk.downloads(attachment).content == b"x" + content + b"y"


def test_what_the_part_says_of_its_type_is_not_believed(desk: Desk) -> None:
    body = part(b'name="file"; filename="a.txt"', TEXT, b"Content-Type: text/html") + b"--b--\r\n"
    assert attached(desk.sends(body))["content_type"] == "text/plain"


# What it is called

NAMES: dict[str, tuple[str, str]] = {
    "letters of all kinds": ("Größe 日本語.txt", "Größe 日本語.txt"),
    "composed": ("\u00e9.txt", "\u00e9.txt"),
    "decomposed": ("e\u0301.txt", "e\u0301.txt"),
    "emoji": ("🔥👩‍👩‍👧.txt", "🔥👩‍👩‍👧.txt"),
    "a quote as browsers send it": ("a%22b.txt", 'a"b.txt'),
    "a quote as curl sends it": ('a\\"b.txt', 'a"b.txt'),
    "other quotes": ("a'b`c.txt", "a'b`c.txt"),
    "percent signs": ("100%.txt", "100%.txt"),
    "a percent-encoded letter": ("%41.txt", "%41.txt"),
    "a percent-encoded NUL": ("a%00b.txt", "a%00b.txt"),
    "percent-encoded dots and slashes": ("%2e%2e%2fa.txt", "%2e%2e%2fa.txt"),
    "what is special in a header": ("a; b=c, (d) <e>.txt", "a; b=c, (d) <e>.txt"),
    "spaces": (" a  b .txt", " a  b .txt"),
    "a folder above": ("../../a.txt", "a.txt"),
    "a folder above, by backslashes": ("..\\..\\a.txt", "a.txt"),
    "a folder as Windows has them": ("C:\\dir\\a.txt", "a.txt"),
    "a server as Windows has them": ("\\\\server\\share\\a.txt", "a.txt"),
    "from the root": ("/etc/a.txt", "a.txt"),
    "two extensions": ("a.exe.txt", "a.exe.txt"),
    "capitals": ("A.TxT", "A.TxT"),
    "dots at the front": ("...a.txt", "...a.txt"),
    "as a device": ("con.txt", "con.txt"),
    "as an option": ("--help.txt", "--help.txt"),
    "markup": ("<script>alert(1)<.txt", "<script>alert(1)<.txt"),
    "255 characters": ("a" * 251 + ".txt", "a" * 251 + ".txt"),
    "255 characters of four bytes": ("🔥" * 251 + ".txt", "🔥" * 251 + ".txt"),
}


@pytest.mark.parametrize(("sent", "kept"), NAMES.values(), ids=NAMES)
def test_a_name_comes_back_byte_for_byte(desk: Desk, sent: str, kept: str) -> None:
    ticket = desk.new_ticket()
    attachment = attached(desk.attaches(TEXT, sent, ticket=ticket))
    assert attachment["filename"] == kept
    disposition = desk.downloads(attachment).headers["Content-Disposition"]
    found = re.fullmatch(r"attachment; filename\*=UTF-8''([A-Za-z0-9%._~-]+)", disposition)
    assert found is not None, disposition
    assert unquote_to_bytes(found[1]) == kept.encode()
    listed = desk.ask("GET", f"{TICKETS}/{ticket}/attachments").json()["items"]
    assert [one["filename"] for one in listed] == [kept]
    assert desk.incoming() == []


DISPOSITIONS: dict[str, tuple[bytes, tuple[int, str] | str]] = {
    "no filename": (b'name="file"', MALFORMED),
    "an empty filename": (b'name="file"; filename=""', MALFORMED),
    "a dot": (b'name="file"; filename="."', MALFORMED),
    "two dots": (b'name="file"; filename=".."', MALFORMED),
    "only folders": (b'name="file"; filename="../../.."', MALFORMED),
    "only slashes": (b'name="file"; filename="///"', MALFORMED),
    "a raw NUL": (b'name="file"; filename="a\0b.txt"', MALFORMED),
    "a raw NUL before the extension": (b'name="file"; filename="a.exe\0.txt"', MALFORMED),
    "a raw CR": (b'name="file"; filename="a\rb.txt"', MALFORMED),
    "a raw LF": (b'name="file"; filename="a\nb.txt"', MALFORMED),
    "a raw CR LF": (b'name="file"; filename="a\r\nb.txt"', MALFORMED),
    "a header inside": (b'name="file"; filename="a\r\nX-Evil: 1\r\n.txt"', MALFORMED),
    "an encoded CR LF": (b'name="file"; filename="a%0D%0Ab.txt"', MALFORMED),
    "an encoded LF": (b'name="file"; filename="a%0Ab.txt"', MALFORMED),
    "an escape": (b'name="file"; filename="a\x1b[2Jb.txt"', MALFORMED),
    "a control character of the second kind": ('name="file"; filename="a\u0085b.txt"'.encode(), MALFORMED),
    "another direction": ('name="file"; filename="a\u202etxt.exe.txt"'.encode(), MALFORMED),
    "another direction, isolated": ('name="file"; filename="a\u2066b.txt"'.encode(), MALFORMED),
    "another direction, marked": ('name="file"; filename="a\u200fb.txt"'.encode(), MALFORMED),
    "a line of Unicode's": ('name="file"; filename="a\u2028b.txt"'.encode(), MALFORMED),
    "Latin-1": (b'name="file"; filename="\xe9.txt"', MALFORMED),
    "a surrogate": (b'name="file"; filename="\xed\xa0\x80.txt"', MALFORMED),
    "overlong UTF-8": (b'name="file"; filename="\xc0\xaf.txt"', MALFORMED),
    "256 characters": (b'name="file"; filename="' + b"a" * 252 + b'.txt"', MALFORMED),
    "256 characters of four bytes": (('name="file"; filename="' + "🔥" * 252 + '.txt"').encode(), MALFORMED),
    "4 KiB": (b'name="file"; filename="' + b"a" * 4_092 + b'.txt"', MALFORMED),
    "64 KiB": (b'name="file"; filename="' + b"a" * 65_532 + b'.txt"', MALFORMED),
    "only filename*": (b"name=\"file\"; filename*=UTF-8''a.txt", MALFORMED),
    "filename* that is another": (b'name="file"; filename="a.txt"; filename*=UTF-8\'\'b.exe', "a.txt"),
    "filename* first": (b'name="file"; filename*=UTF-8\'\'b.exe; filename="a.txt"', "a.txt"),
    "no quotes": (b"name=file; filename=a.txt", "a.txt"),
    "capitals": (b'NAME="file"; FileName="a.txt"', "a.txt"),
    "filename first": (b'filename="a.txt"; name="file"', "a.txt"),
    "two filenames": (b'name="file"; filename="a.txt"; filename="b.exe"', WRONG),
    "no extension": (b'name="file"; filename="README"', WRONG),
    "only an extension": (b'name="file"; filename=".txt"', WRONG),
    "a dot at the end": (b'name="file"; filename="a.txt."', WRONG),
    "a space at the end": (b'name="file"; filename="a.txt "', WRONG),
    "an extension that is not taken": (b'name="file"; filename="a.exe"', WRONG),
    "two extensions, the last not taken": (b'name="file"; filename="a.txt.exe"', WRONG),
    "a stream as NTFS has them": (b'name="file"; filename="a.txt::$DATA"', WRONG),
    "a dot that is none": ('name="file"; filename="a\uff0etxt"'.encode(), WRONG),
    "an extension in other letters": ('name="file"; filename="a.tхt"'.encode(), WRONG),  # noqa: RUF001 - that is it
    "a comma as a list": (b'name="file"; filename="a.txt,b.exe"', WRONG),
    "no name": (b'filename="a.txt"', MALFORMED),
    "an empty name": (b'name=""; filename="a.txt"', MALFORMED),
    "another name": (b'name="files"; filename="a.txt"', MALFORMED),
    "the name in capitals": (b'name="FILE"; filename="a.txt"', MALFORMED),
    "the name of a list": (b'name="file[]"; filename="a.txt"', MALFORMED),
}


@pytest.mark.parametrize(("disposition", "expected"), DISPOSITIONS.values(), ids=DISPOSITIONS)
def test_a_part_is_what_it_should_be_or_is_refused(
    desk: Desk, disposition: bytes, expected: tuple[int, str] | str
) -> None:
    before = (desk.version(), desk.objects())
    answer = desk.sends(part(disposition, uuid4().hex.encode()) + b"--b--\r\n")
    assert desk.incoming() == []
    if isinstance(expected, str):
        assert attached(answer)["filename"] == expected
    else:
        assert_problem(answer, expected)
        assert (desk.version(), desk.objects()) == before


# What is around it

PART = part(b'name="file"; filename="a.txt"', b"never seen\n")
OTHER = part(b'name="other"', b"1")

BODIES: dict[str, tuple[str | None, bytes]] = {
    "nothing": (FORM, b""),
    "no part": (FORM, b"--b--\r\n"),
    "two parts": (FORM, PART + PART + b"--b--\r\n"),
    "5,000 parts": (FORM, PART * 5_000 + b"--b--\r\n"),
    "5,000 parts that are no files": (FORM, OTHER * 5_000 + b"--b--\r\n"),
    "another part before": (FORM, OTHER + PART + b"--b--\r\n"),
    "another part behind": (FORM, PART + OTHER + b"--b--\r\n"),
    "an empty file": (FORM, part(b'name="file"; filename="a.txt"', b"") + b"--b--\r\n"),
    "an empty file and another": (FORM, part(b'name="file"; filename="a.txt"', b"") + PART + b"--b--\r\n"),
    "a huge preamble": (FORM, b"x" * MIB + b"\r\n" + PART + b"--b--\r\n"),
    "a preamble of line ends": (FORM, b"\r\n" * 100_000 + PART + b"--b--\r\n"),
    "a huge epilogue": (FORM, PART + b"--b--\r\n" + b"x" * MIB),
    "no final boundary": (FORM, PART),
    "half a final boundary": (FORM, PART + b"--b-"),
    "no line end before the final boundary": (FORM, PART[:-2] + b"--b--\r\n"),
    "an end in the headers": (FORM, b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'),
    "nothing but headers": (FORM, b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'),
    "another boundary": ("multipart/form-data; boundary=c", PART + b"--b--\r\n"),
    "the boundary in capitals": ("multipart/form-data; boundary=B", PART + b"--b--\r\n"),
    "no boundary": ("multipart/form-data", PART + b"--b--\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", PART + b"--b--\r\n"),
    "an empty boundary in quotes": ('multipart/form-data; boundary=""', b"--\r\n" + PART[5:] + b"----\r\n"),
    "a boundary that is too long": (
        "multipart/form-data; boundary=" + "b" * 1_025,
        (PART + b"--b--\r\n").replace(b"--b", b"--" + b"b" * 1_025),
    ),
    "a boundary of 60 KiB": ("multipart/form-data; boundary=" + "b" * 60 * KIB, PART + b"--b--\r\n"),
    "a boundary of other letters": ("multipart/form-data; boundary=\xe9", PART + b"--b--\r\n"),
    "line ends without CR": (FORM, (PART + b"--b--\r\n").replace(b"\r\n", b"\n")),
    "a header without end": (FORM, b"--b\r\nX-A: " + b"x" * 300_000),
    "headers without end": (FORM, b"--b\r\n" + b"X-A: x\r\n" * 50_000),
    "nine headers": (FORM, part(b'name="file"; filename="a.txt"', TEXT, *[b"X-A: x"] * 8) + b"--b--\r\n"),
    "a header without a colon": (FORM, part(b'name="file"; filename="a.txt"', TEXT, b"hello") + b"--b--\r\n"),
    "a header that goes on": (FORM, part(b'name="file";\r\n filename="a.txt"') + b"--b--\r\n"),
    "no disposition": (FORM, b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n"),
    "another disposition": (FORM, (PART + b"--b--\r\n").replace(b"form-data;", b"attachment;")),
    "a length that is too short": (
        FORM,
        part(b'name="file"; filename="a.txt"', TEXT, b"Content-Length: 3") + b"--b--\r\n",
    ),
    "a length that is too long": (
        FORM,
        part(b'name="file"; filename="a.txt"', TEXT, b"Content-Length: 3000") + b"--b--\r\n",
    ),
    "a length that is no number": (
        FORM,
        part(b'name="file"; filename="a.txt"', TEXT, b"Content-Length: " + b"9" * 4_000) + b"--b--\r\n",
    ),
    "parts inside a part": (
        FORM,
        part(b'name="file"', part(b'filename="a.txt"'), b"Content-Type: multipart/mixed; boundary=c") + b"--b--\r\n",
    ),
    "JSON": (FORM, b'{"file": "a.txt"}'),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("kind", "body"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_not_one_file_in_a_form_is_malformed(desk: Desk, kind: str, body: bytes) -> None:
    about = kind.encode("latin-1")
    bearer = {name.encode(): value.encode() for name, value in desk.bearer().items()}
    path = f"{TICKETS}/{desk.ticket}/attachments"
    assert_problem(desk.http.post(path, content=body, headers={b"Content-Type": about, **bearer}), MALFORMED)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "kind",
    [
        *(None, "", "application/json", "text/plain", "application/octet-stream", "multipart/mixed; boundary=b"),
        *("application/x-www-form-urlencoded", "multipart/form-datax; boundary=b", "boundary=b", "image/png"),
    ],
)
def test_a_body_of_another_type_is_refused(desk: Desk, kind: str | None) -> None:
    assert_problem(desk.sends(PART + b"--b--\r\n", kind), WRONG)


ACCEPTED: dict[str, tuple[str, bytes]] = {
    "a preamble": (FORM, b"hello\r\n" + PART + b"--b--\r\n"),
    "a line end before": (FORM, b"\r\n" + PART + b"--b--\r\n"),
    "no line end at the end": (FORM, PART + b"--b--"),
    "the longest boundary": (
        "multipart/form-data; boundary=" + "b" * 70,
        (PART + b"--b--\r\n").replace(b"--b", b"--" + b"b" * 70),
    ),
    "a boundary in quotes": (
        'multipart/form-data; boundary="a b:c"',
        (PART + b"--b--\r\n").replace(b"--b", b"--a b:c"),
    ),
    "more in the type": ("Multipart/Form-Data; charset=utf-7; Boundary=b", PART + b"--b--\r\n"),
    "headers in small letters": (FORM, (PART + b"--b--\r\n").replace(b"Content-D", b"content-d")),
}


@pytest.mark.parametrize(("kind", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_form_may_look_otherwise(desk: Desk, kind: str, body: bytes) -> None:
    attachment = attached(desk.sends(body.replace(b"never seen", b"now it is seen"), kind))
    assert (attachment["filename"], attachment["size"]) == ("a.txt", 15)


# How it comes


class Heard(NamedTuple):
    """What came back over a socket; status 0 if the connection was closed without a word."""

    status_code: int
    content: bytes
    after_s: float


class Wire:
    """A connection on which what is sent is up to us."""

    def __init__(self, desk: Desk) -> None:
        url = desk.http.base_url
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=20)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def says(self, sent: bytes) -> "Wire":
        self.socket.sendall(sent)
        return self

    def hears(self) -> Heard:
        received = b""
        try:
            while piece := self.socket.recv(65_536):
                received += piece
        except ConnectionResetError:
            pass  # closed on us: what came until then counts
        while received.startswith(b"HTTP/1.1 100"):
            received = received.partition(b"\r\n\r\n")[2]
        head, _, body = received.partition(b"\r\n\r\n")
        return Heard(int(head.split(b" ")[1]) if head else 0, body, time.monotonic() - self._began)


def head(desk: Desk, *headers: str, ticket: str | None = None, bearer: bool = True) -> bytes:
    lines = [
        f"POST {TICKETS}/{ticket or desk.ticket}/attachments HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Type: {FORM}",
        *([f"Authorization: {desk.bearer()['Authorization']}"] if bearer else []),
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def heard(desk: Desk, sent: bytes, *headers: str) -> Heard:
    with Wire(desk) as wire:
        return wire.says(head(desk, *headers) + sent).hears()


def test_a_body_may_come_in_pieces_of_unknown_number(desk: Desk) -> None:
    body = form(TEXT)
    for pieces in ([body], [body[:9], body[9:]], [body[at : at + 1] for at in range(len(body))]):
        attached(heard(desk, chunked(*pieces), "Transfer-Encoding: chunked"))
    attached(
        heard(
            desk, b"%x;name=value\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked"
        )
    )


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 60, 98, -9, -8, -7, -6, -5, -4, -3, -2, -1])
def test_it_does_not_matter_where_a_body_was_divided_on_the_way(desk: Desk, at: int) -> None:
    body = form(TEXT)
    with Wire(desk) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.says(head(desk, f"Content-Length: {len(body)}") + body[:at])
        time.sleep(0.05)
        attached(wire.says(body[at:]).hears())


def test_who_expects_to_be_told_to_go_on_is(desk: Desk) -> None:
    body = form(TEXT)
    with Wire(desk) as wire:
        wire.says(head(desk, f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert wire.socket.recv(1_000).startswith(b"HTTP/1.1 100 ")
        attached(wire.says(body).hears())


@pytest.mark.usefixtures("unchanged")
def test_a_length_that_is_too_short_cuts_the_body_off(desk: Desk) -> None:
    body = form(b"never seen\n")
    assert_problem(heard(desk, body, f"Content-Length: {len(body) - 9}"), MALFORMED)


@pytest.mark.usefixtures("unchanged")
def test_who_pauses_too_long_is_told_so(desk: Desk) -> None:
    body = form(b"never seen\n" * 100)
    with ThreadPoolExecutor(6) as people:  # nowhere, in the boundary, in the headers, in the file, at its end
        answers = people.map(lambda far: heard(desk, body[:far], "Content-Length: 5000"), [0, 1, 60, 150, 1_000, -1])
    for answer in answers:
        assert "nothing more came" in assert_problem(answer, MALFORMED)["errors"][0]["message"]
        assert PATIENCE_S <= answer.after_s < PATIENCE_S + 2


@pytest.mark.usefixtures("unchanged")
def test_who_sends_a_byte_at_a_time_does_not_have_a_place_for_ever(desk: Desk) -> None:
    began = time.monotonic()
    with Wire(desk) as wire:
        wire.says(head(desk, "Content-Length: 5000") + form(b"never seen\n" * 100)[:100])
        while time.monotonic() - began < PATIENCE_S + 3 and len(desk.incoming()):
            wire.says(b"x")
            time.sleep(PATIENCE_S / 5)
    assert time.monotonic() - began < PATIENCE_S + 2


@pytest.mark.usefixtures("unchanged")
def test_an_epilogue_without_end_is_refused(desk: Desk) -> None:
    pieces = [form(b"never seen\n"), *[b"\r\n" * 100_000] * 20]
    with Wire(desk) as wire:
        wire.says(head(desk, "Transfer-Encoding: chunked") + chunked(*pieces))
        assert_problem(wire.hears(), MALFORMED)


@pytest.mark.usefixtures("unchanged")
def test_a_whole_form_in_a_body_that_is_longer_is_waited_for_and_refused(desk: Desk) -> None:
    body = form(b"never seen\n")
    assert_problem(heard(desk, body, f"Content-Length: {len(body) + 9}"), MALFORMED)


@pytest.mark.usefixtures("unchanged")
def test_of_a_client_that_is_gone_half_way_nothing_stays(desk: Desk) -> None:
    body = form(b"never seen\n" * 20_000)
    for far in (0, 1, 60, 150, 100_000, len(body) - 1):
        for headers, sent in (
            ([f"Content-Length: {len(body)}"], body[:far]),
            (["Transfer-Encoding: chunked"], chunked(body[:far]).removesuffix(b"0\r\n\r\n")),
        ):
            with Wire(desk) as wire:
                wire.says(head(desk, *headers) + sent)
            with Wire(desk) as wire:  # a reset, not an end
                wire.says(head(desk, *headers) + sent)
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with Wire(desk) as wire:
                wire.says(head(desk, *headers) + sent).socket.shutdown(socket.SHUT_WR)
                wire.hears()


# How much


@pytest.fixture(scope="module")
def megabytes() -> Iterator[BinaryIO]:
    """A file with what is in a form of 50 MiB of text, without its first part and its end."""
    with TemporaryFile() as file:
        file.write(b"0123456789abcde\n" * (LARGEST // 16))
        file.flush()
        yield file


def large(size: int) -> tuple[bytes, bytes]:
    """What is before and behind so many bytes of a file, the first of them different each time."""
    before = part(b'name="file"; filename="a.txt"', uuid4().hex.encode()).removesuffix(b"\r\n")
    return before, b"x" * (size - LARGEST) + b"\r\n--b--\r\n"


def sends_large(desk: Desk, megabytes: BinaryIO, size: int, *, known: bool = True) -> Heard:
    """An upload of so many bytes."""
    before, behind = large(size)
    offset = 32  # as many as its mark has
    length = len(before) + LARGEST - offset + len(behind)
    with Wire(desk) as wire:
        try:
            if known:
                wire.says(head(desk, f"Content-Length: {length}") + before)
                wire.socket.sendfile(megabytes, offset)
                wire.says(behind)
            else:
                wire.says(head(desk, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(before), before))
                while piece := os.pread(megabytes.fileno(), MIB, offset):
                    wire.says(b"%x\r\n%b\r\n" % (len(piece), piece))
                    offset += len(piece)
                wire.says(chunked(behind))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered
        return wire.hears()


@pytest.mark.parametrize("known", [True, False], ids=["of a known length", "of an unknown length"])
def test_a_file_of_exactly_as_much_as_is_allowed_goes_through(desk: Desk, megabytes: BinaryIO, *, known: bool) -> None:
    answer = sends_large(desk, megabytes, LARGEST, known=known)
    assert attached(answer)["size"] == LARGEST
    assert desk.incoming() == []


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("known", [True, False], ids=["of a known length", "of an unknown length"])
def test_a_file_of_one_byte_more_is_too_large(desk: Desk, megabytes: BinaryIO, *, known: bool) -> None:
    answer = sends_large(desk, megabytes, LARGEST + 1, known=known)
    assert f"{LARGEST:,}" in assert_problem(answer, TOO_LARGE)["detail"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("length", [LARGEST + 10 * MIB, 1 << 40, (1 << 63) - 1])
def test_a_length_that_is_too_large_is_answered_before_much_was_sent(desk: Desk, length: int) -> None:
    piece, sent = bytes(256 * KIB), 0
    with Wire(desk) as wire:
        try:
            wire.says(head(desk, f"Content-Length: {length}"))
            while sent < 40 * MIB:
                sent += len(piece)
                wire.says(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert_problem(wire.hears(), TOO_LARGE)
    assert sent < 30 * MIB


@pytest.mark.usefixtures("unchanged")
def test_a_length_that_is_too_large_is_answered_though_nothing_is_sent(desk: Desk) -> None:
    """As who expects to be told to go on before they send anything."""
    answer = heard(desk, b"", f"Content-Length: {LARGEST + 10 * MIB}")
    assert_problem(answer, TOO_LARGE)
    assert answer.after_s < PATIENCE_S + 2


@pytest.mark.usefixtures("unchanged")
def test_a_file_without_end_is_answered_soon_after_it_is_too_large(desk: Desk, megabytes: BinaryIO) -> None:
    piece = os.pread(megabytes.fileno(), MIB, 0)
    sent = 0
    with Wire(desk) as wire:
        try:
            wire.says(head(desk, "Transfer-Encoding: chunked") + chunked(PART[:-2]).removesuffix(b"0\r\n\r\n"))
            while sent < 200 * MIB:
                wire.says(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert_problem(wire.hears(), TOO_LARGE)
    assert sent < LARGEST + 80 * MIB, "what is on its way on a busy machine, and no more"


def memory_kib(pid: int, field: str) -> int:
    """Of a process and those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) + sum(memory_kib(int(child), field) for child in children)


def test_ten_large_uploads_at_once_take_little_memory(desk: Desk, megabytes: BinaryIO) -> None:
    pid = desk.service.process.pid
    before = memory_kib(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the highest is what it is now
    with ThreadPoolExecutor(10) as people:
        answers = list(people.map(lambda _: sends_large(desk, megabytes, LARGEST), range(10)))
    assert len({attached(answer)["sha256"] for answer in answers}) == 10
    assert memory_kib(pid, "VmHWM") - before < 150 * KIB
    assert desk.incoming() == []


# Who, to what, and when


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("person", "ticket", "expected"),
    [
        (None, None, (401, "unauthorized")),
        ("bob", None, (404, "not-found")),
        ("alice", str(uuid4()), (404, "not-found")),
        ("alice", "0", (404, "not-found")),
    ],
    ids=["nobody", "somebody else", "a ticket that is not there", "an id that is none"],
)
@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "mine"}], ids=["", "with a key"])
@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["a short file", "a long file"])
def test_who_may_not_attach_is_told_so(
    desk: Desk, person: str | None, ticket: str | None, expected: tuple[int, str], key: dict[str, str], size: int
) -> None:
    sent = form(uuid4().hex.encode() + b"x" * size)
    assert_problem(desk.sends(sent, person=person, ticket=ticket, **key), expected)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "closed"}], ids=["", "with a key"])
def test_nothing_is_attached_to_a_closed_or_deleted_ticket(desk: Desk, key: dict[str, str]) -> None:
    closed, deleted = desk.closed_ticket(), desk.new_ticket()
    assert desk.ask("DELETE", f"{TICKETS}/{deleted}", person="admin").status_code in {200, 204}
    for ticket, slug in ((closed, "ticket-closed"), (deleted, "ticket-deleted")):
        version = desk.version(ticket)
        named = {name: value + ticket for name, value in key.items()}
        for person in ("alice", "admin"):
            assert_problem(desk.attaches(b"never seen\n", ticket=ticket, person=person, **named), (409, slug))
        assert desk.version(ticket) == version


def test_a_refusal_says_more_than_a_file_that_is_bad(desk: Desk) -> None:
    """Who may not attach learns nothing of the file, and the file is not read first."""
    answer = desk.sends(b"nonsense", "text/plain", person="bob")
    assert_problem(answer, (404, "not-found"))


def test_the_same_key_gives_the_same_answer_and_attaches_once(desk: Desk) -> None:
    ticket = desk.closed_ticket()
    desk.ask("PATCH", f"{TICKETS}/{ticket}/status", {"status": "REOPENED", "reason": "again"})
    content, about = uuid4().hex.encode(), {"ticket": ticket, "Idempotency_Key": uuid4().hex}
    version = desk.version(ticket)
    first = desk.attaches(content, **about)
    attachment = attached(first)
    assert "Idempotency-Replayed" not in first.headers
    again = desk.attaches(content, **about)
    assert (attached(again), again.headers["Idempotency-Replayed"]) == (attachment, "true")
    assert again.headers["ETag"] == first.headers["ETag"]
    before = desk.objects()
    other = (422, "idempotency-key-reused")
    assert_problem(desk.attaches(uuid4().hex.encode(), **about), other)
    assert_problem(desk.attaches(content, "b.txt", **about), other)
    assert desk.ask("DELETE", f"{TICKETS}/{ticket}", person="admin").is_success
    assert attached(desk.attaches(content, **about)) == attachment
    assert (desk.version(ticket), desk.incoming(), desk.objects()) == (version + 2, [], before)


def test_the_same_key_at_the_same_time_attaches_once(desk: Desk) -> None:
    content, key, version = uuid4().hex.encode(), uuid4().hex, desk.version()
    with ThreadPoolExecutor(6) as people:
        answers = list(people.map(lambda _: desk.attaches(content, Idempotency_Key=key), range(6)))
    assert len({attached(answer)["id"] for answer in answers}) == 1
    assert (desk.version(), desk.incoming()) == (version + 1, [])


@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "stale"}], ids=["", "with a key"])
def test_a_version_that_was_is_refused(desk: Desk, key: dict[str, str]) -> None:
    version, before = desk.version(), desk.objects()
    answer = desk.attaches(uuid4().hex.encode(), If_Match=f'"{version - 1}"', **key)
    assert_problem(answer, (412, "version-mismatch"))
    assert (desk.version(), desk.objects(), desk.incoming()) == (version, before, [])
    attached(desk.attaches(uuid4().hex.encode(), If_Match=f'"{version}"'))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["a short file", "a long file"])
def test_a_key_that_is_malformed_is_told_of(desk: Desk, size: int) -> None:
    assert_problem(desk.attaches(b"x" * size, Idempotency_Key="two words"), MALFORMED)


def test_who_wants_no_answer_gets_a_short_one(desk: Desk) -> None:
    answer = desk.attaches(TEXT, Prefer="return=minimal")
    assert (answer.status_code, answer.content, answer.headers["Preference-Applied"]) == (201, b"", "return=minimal")
    assert desk.ask("GET", answer.headers["Location"]).content == TEXT


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *[(method, f"{TICKETS}/{{}}/attachments", "GET, HEAD, OPTIONS, POST") for method in ("PUT", "PATCH", "DELETE")],
        *[(method, f"{ATTACHMENTS}/{{}}", "DELETE, GET, HEAD, OPTIONS") for method in ("PUT", "PATCH", "POST")],
    ],
)
def test_another_method_is_not_there(desk: Desk, method: str, path: str, allowed: str) -> None:
    answer = desk.http.request(
        method, path.format(desk.ticket), content=form(TEXT), headers=desk.bearer() | {"Content-Type": FORM}
    )
    assert_problem(answer, (405, "method-not-allowed"))
    assert answer.headers["Allow"] == allowed


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["a short file", "a long file"])
def test_one_more_upload_than_there_are_places_is_refused_at_once(desk: Desk, size: int) -> None:
    body = form(b"never seen\n" + b"x" * size)  # made before: the others wait no longer than they have patience with
    with ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(Wire(desk)).says(head(desk, "Content-Length: 5000") + form(TEXT)[:100])
        deadline = time.monotonic() + PATIENCE_S
        while len(desk.incoming()) < PLACES:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        answer = desk.sends(body)
        assert_problem(answer, (503, "overloaded"))
        assert answer.headers["Retry-After"] == "1"
        assert len(desk.incoming()) == PLACES
    assert_nothing_coming(desk)


def test_places_are_there_again_after_every_kind_of_end(desk: Desk) -> None:
    for _ in range(PLACES + 1):
        assert_problem(desk.sends(b"nonsense"), MALFORMED)
        assert_problem(desk.attaches(b"\0"), WRONG)
        assert_problem(desk.attaches(TEXT, person="bob"), (404, "not-found"))
        with Wire(desk) as wire:
            wire.says(head(desk, "Content-Length: 5000") + form(TEXT)[:100])
        attached(desk.attaches(TEXT))
    assert_nothing_coming(desk)
    with ThreadPoolExecutor(PLACES) as people:
        for answer in people.map(lambda _: desk.attaches(TEXT), range(PLACES)):
            attached(answer)


def test_many_who_attach_the_same_bytes_at_once_all_have_them(desk: Desk) -> None:
    content = noise(200_000, seed=7).hex().encode()
    with ThreadPoolExecutor(8) as people:
        attachments = [attached(one) for one in people.map(lambda _: desk.attaches(content), range(8))]
    assert len({one["id"] for one in attachments}) == 8
    assert {one["sha256"] for one in attachments} == {sha256(content).hexdigest()}
    assert all(desk.downloads(one).content == content for one in attachments)
    assert desk.incoming() == []


# Downloads

CONTENT = b"".join(b"%05d\n" % number for number in range(50_000))
SIZE = len(CONTENT)


@pytest.fixture(scope="module")
def attachment(desk: Desk) -> dict[str, Any]:
    return attached(desk.attaches(CONTENT, "Größe 🔥.txt"))


def test_a_download_is_never_shown_inside_a_page(desk: Desk, attachment: dict[str, Any]) -> None:
    answer = desk.downloads(attachment)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    named = {name: answer.headers.get(name) for name in SENT}
    assert named == {
        "ETag": f'"{attachment["sha256"]}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Type": "text/plain",
        "Content-Length": str(SIZE),
        "Content-Disposition": "attachment; filename*=UTF-8''Gr%C3%B6%C3%9Fe%20%F0%9F%94%A5.txt",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Content-Range": None,
        "Content-Encoding": None,
    }
    assert "inline" not in answer.headers["Content-Disposition"]


SENT = (
    *("ETag", "Accept-Ranges", "Cache-Control", "Content-Type", "Content-Length", "Content-Disposition"),
    *("X-Content-Type-Options", "Content-Security-Policy", "Content-Range", "Content-Encoding"),
)


@pytest.mark.parametrize("headers", [{}, {"Accept_Encoding": "gzip, br"}], ids=["", "compressed"])
def test_head_says_what_get_would(desk: Desk, attachment: dict[str, Any], headers: dict[str, str]) -> None:
    whole, about = desk.downloads(attachment, **headers), desk.downloads(attachment, "HEAD", **headers)
    assert (about.status_code, about.content) == (200, b"")
    assert {name: about.headers.get(name) for name in SENT} == {name: whole.headers.get(name) for name in SENT}


def test_head_knows_of_no_ranges(desk: Desk, attachment: dict[str, Any]) -> None:
    """RFC 9110, 14.2: they are defined for GET alone."""
    about = desk.downloads(attachment, "HEAD", Range="bytes=0-9")
    assert (about.status_code, about.headers["Content-Length"]) == (200, str(SIZE))


RANGES: dict[str, tuple[str, tuple[int, int]]] = {
    "the beginning": ("bytes=0-9", (0, 10)),
    "the first byte": ("bytes=0-0", (0, 1)),
    "the last byte": (f"bytes={SIZE - 1}-{SIZE - 1}", (SIZE - 1, SIZE)),
    "the middle": ("bytes=100000-199999", (100_000, 200_000)),
    "from somewhere on": ("bytes=299000-", (299_000, SIZE)),
    "from the last on": (f"bytes={SIZE - 1}-", (SIZE - 1, SIZE)),
    "beyond the end": ("bytes=299999-999999", (299_999, SIZE)),
    "far beyond the end": ("bytes=5-999999999999999999", (5, SIZE)),
    "the last bytes": ("bytes=-10", (SIZE - 10, SIZE)),
    "the very last byte": ("bytes=-1", (SIZE - 1, SIZE)),
    "all but the first": (f"bytes=-{SIZE - 1}", (1, SIZE)),
    "zeros in front": ("bytes=000-009", (0, 10)),
    "the unit in capitals": ("Bytes=0-9", (0, 10)),
}


@pytest.mark.parametrize(("wanted", "expected"), RANGES.values(), ids=RANGES)
def test_a_part_can_be_had(desk: Desk, attachment: dict[str, Any], wanted: str, expected: tuple[int, int]) -> None:
    answer = desk.downloads(attachment, Range=wanted)
    start, end = expected
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["Content-Length"] == str(end - start)
    assert answer.headers["ETag"] == f'"{attachment["sha256"]}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "wanted", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=999999999999999999-", "bytes=-0"]
)
def test_a_part_that_is_not_there_is_refused(desk: Desk, attachment: dict[str, Any], wanted: str) -> None:
    answer = desk.downloads(attachment, Range=wanted)
    assert_problem(answer, (416, "range-not-satisfiable"))
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "wanted",
    [
        *("bytes=0-9,20-29", "bytes=-5,0-1", "bytes=0-0," + ",".join(f"{n}-{n}" for n in range(1_000))),
        *("bytes=", "bytes=-", "bytes=9-0", "bytes=a-b", "bytes=0x0-9", "bytes=1.5-2", "bytes=--5", "bytes=0-9-", ""),
        *(
            "bytes 0-9",
            "items=0-9",
            "0-9",
            "bytes=" + "9" * 5_000 + "-",
            "bytes=\u0660-\u0669".encode().decode("latin-1"),
        ),
        *(f"bytes=-{SIZE}", f"bytes=-{SIZE + 1}", "bytes=-999999999999999999", f"bytes=0-{SIZE - 1}", "bytes=0-"),
    ],
)
def test_whatever_is_not_one_part_is_the_whole(desk: Desk, attachment: dict[str, Any], wanted: str) -> None:
    """Several are one of these; and what is all of it may be answered as the whole."""
    url = f"{ATTACHMENTS}/{attachment['id']}"
    bearer = {name.encode(): value.encode() for name, value in desk.bearer().items()}
    answer = desk.http.get(url, headers={b"Range": wanted.encode("latin-1"), **bearer})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        ('"{}"', 206),
        ('W/"{}"', 200),
        ('"other"', 200),
        ("{}", 200),
        ("*", 200),
        ("Wed, 21 Oct 2065 07:28:00 GMT", 200),
        ("", 200),
    ],
)
def test_a_part_is_only_of_what_is_expected(desk: Desk, attachment: dict[str, Any], if_range: str, status: int) -> None:
    answer = desk.downloads(attachment, Range="bytes=0-9", If_Range=if_range.format(attachment["sha256"]))
    assert (answer.status_code, answer.content) == (status, CONTENT[:10] if status == 206 else CONTENT)


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [('"{}"', 304), ('W/"{}"', 304), ('"a", "{}"', 304), ("*", 304), ('"other"', 200), ('""', 200)],
)
@pytest.mark.parametrize("wanted", [{}, {"Range": "bytes=999999999-"}], ids=["", "with a part that is not there"])
def test_what_is_known_is_not_sent_again(
    desk: Desk, attachment: dict[str, Any], if_none_match: str, status: int, wanted: dict[str, str]
) -> None:
    for method in ("GET", "HEAD"):
        answer = desk.downloads(attachment, method, If_None_Match=if_none_match.format(attachment["sha256"]), **wanted)
        expected = status if not wanted or status == 304 or method == "HEAD" else 416
        assert answer.status_code == expected
        if expected == 304:
            assert (answer.content, answer.headers["ETag"]) == (b"", f'"{attachment["sha256"]}"')


def test_somebody_elses_file_looks_as_one_that_is_not_there(desk: Desk, attachment: dict[str, Any]) -> None:
    theirs, missing = attachment["id"], str(uuid4())
    for method in ("GET", "HEAD", "DELETE"):
        for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=999999999-"}, {"If_None_Match": "*"}):
            found = []
            for one in (theirs, missing):
                answer = desk.ask(method, f"{ATTACHMENTS}/{one}", person="bob", **headers)
                assert answer.status_code == 404
                about = {
                    name: value
                    for name, value in answer.headers.items()
                    if name not in {"date", "x-request-id", "server-timing"}
                }
                found.append((about, answer.text.replace(one, "ID")))
            assert found[0] == found[1]
    assert desk.http.get(f"{ATTACHMENTS}/{theirs}").status_code == 401
    answer = desk.ask("GET", f"{TICKETS}/{desk.ticket}/attachments", person="bob")
    assert_problem(answer, (404, "not-found"))


def test_what_was_deleted_is_not_there_any_more(desk: Desk) -> None:
    gone = attached(desk.attaches(TEXT))
    assert desk.ask("DELETE", f"{ATTACHMENTS}/{gone['id']}").status_code == 204
    assert_problem(desk.downloads(gone), (404, "not-found"))
    assert_problem(desk.ask("DELETE", f"{ATTACHMENTS}/{gone['id']}"), (404, "not-found"))


def test_a_client_that_leaves_in_the_middle_of_a_download_does_no_harm(desk: Desk, megabytes: BinaryIO) -> None:
    large_one = attached(sends_large(desk, megabytes, LARGEST))
    for _ in range(10):
        with desk.http.stream("GET", f"{ATTACHMENTS}/{large_one['id']}", headers=desk.bearer()) as answer:
            assert next(answer.iter_raw(100_000))
    assert desk.downloads(large_one, Range="bytes=-9").status_code == 206


def test_a_file_comes_back_whole_for_many_at_once(desk: Desk, attachment: dict[str, Any]) -> None:
    with ThreadPoolExecutor(8) as people:
        assert {
            sha256(one.content).hexdigest() for one in people.map(lambda _: desk.downloads(attachment), range(40))
        } == {attachment["sha256"]}
