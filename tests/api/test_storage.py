"""Where files are kept, over HTTP: in a folder and in S3, each content once; what goes, when, and what never does.

S3 is moto's server, spoken to over the loopback. Deliberately absent: what may be attached and by whom, the
scanner (test_virus_scanner.py), and the service killed (tests/faults/test_upload_faults.py).
"""

import asyncio
import logging
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import httpx
import obstore
import pytest
from obstore.store import LocalStore

from api.files.housekeeping import sweep
from api.files.storage import Storage, store_at
from api.files.taking import content_lock
from tests.conftest import (
    NEW_TICKET,
    NO_CERTIFICATES,
    Service,
    eventually,
    free_port,
    fresh_database,
    running_service,
)
from tests.projections.test_runner import level
from tests.tickets.test_ledger import held_up, waits_for_the_head
from tickets.connections import Connection, connect, connected

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer

TICKETS = "/api/v1/tickets"
ATTACHMENTS = "/api/v1/attachments"
NO_TIME, A_MONTH = timedelta(0), timedelta(days=30)
TWO_HOURS_S = 2 * 60 * 60


# ------------------------------------------------------------------------------------------------ what is done


def text(size: int = 60) -> bytes:
    """So many bytes that nobody has attached before."""
    return os.urandom(size // 2 + 1).hex()[:size].encode()


def named(content: bytes) -> str:
    return sha256(content).hexdigest()


def new_ticket(http: httpx.Client) -> str:
    answer = http.post(TICKETS, json=NEW_TICKET)
    assert answer.status_code == 201, answer.text
    ticket_id: str = answer.json()["id"]
    return ticket_id


def attach(
    http: httpx.Client, ticket: str, content: bytes, filename: str = "notes.txt", **headers: str
) -> httpx.Response:
    path = f"{TICKETS}/{ticket}/attachments"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(path, files={"file": (filename, content)}, headers=sent)


def attached(http: httpx.Client, ticket: str, content: bytes) -> dict[str, Any]:
    answer = attach(http, ticket, content)
    assert answer.status_code == 201, answer.text
    attachment: dict[str, Any] = answer.json()
    assert attachment["sha256"] == named(content)
    return attachment


def download(http: httpx.Client, attachment: dict[str, Any], **headers: str) -> httpx.Response:
    return http.get(f"{ATTACHMENTS}/{attachment['id']}", headers=headers)


def delete(http: httpx.Client, *attachments: dict[str, Any]) -> None:
    """Returns when the read models know."""
    position = ""
    for one in attachments:
        answer = http.delete(f"{ATTACHMENTS}/{one['id']}")
        assert answer.status_code == 204, answer.text
        position = answer.headers["Ledger-Position"]
    known = http.get(TICKETS, params={"page_size": 1}, headers={"Ledger-Position": position})
    assert known.status_code == 200, known.text


def listed(http: httpx.Client, ticket: str) -> list[dict[str, Any]]:
    answer = http.get(f"{TICKETS}/{ticket}/attachments")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def history(http: httpx.Client, ticket: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"{TICKETS}/{ticket}/history", params={"page_size": 100}).json()["items"]
    return found


def assert_problem(answer: httpx.Response, status: int, slug: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["type"] == f"/problems/{slug}"
    assert ("Retry-After" in answer.headers) == (status == 503)


def files_in(folder: Path) -> dict[str, Path]:
    """All files, by their names."""
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def grow_old(*paths: Path) -> None:
    for path in paths:
        with suppress(FileNotFoundError):  # somebody sweeps
            os.utime(path, (then := time.time() - TWO_HOURS_S, then))


def fetched(dsn: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
    async def fetch() -> list[asyncpg.Record]:
        async with connected(dsn, role=None) as connection:
            return await connection.fetch(query, *arguments)

    return asyncio.run(fetch())


def facts(dsn: str, ticket: str, topic: str) -> int:
    query = "select count(*) from ledger.events where stream_id = $1::text::uuid and topic = $2"
    number: int = fetched(dsn, query, ticket, topic)[0][0]
    return number


class Place:
    """A service, somebody who attaches files there, and what is kept where it keeps them."""

    def __init__(self, service: Service, http: httpx.Client, uploads: Path, url: str | None) -> None:
        self.service, self.http, self.dsn, self.uploads, self.url = service, http, service.dsn, uploads, url

    def storage(self) -> Storage:
        return Storage(self.uploads, self.url)

    def kept(self) -> set[str]:
        async def names() -> set[str]:
            return {one.sha256 async for some in self.storage().all() for one in some}

        return asyncio.run(names())

    def put(self, content: bytes) -> None:
        """Keep bytes that no fact will ever name."""
        path = self.uploads / "incoming" / named(content)
        path.write_bytes(content)
        asyncio.run(self.storage().keep(path, named(content)))
        path.unlink(missing_ok=True)

    def sweep(self, retention: timedelta = A_MONTH, abandoned: timedelta = NO_TIME) -> int:
        """Sweep once the read models know everything; by default, whatever was not attached yet is old."""

        async def swept() -> int:
            async with connected(self.dsn) as connection:
                await eventually(lambda: level(connection))
            return await sweep(self.storage(), self.dsn, retention, abandoned)

        return asyncio.run(swept())


@contextmanager
def place(server: str, template: str, folder: Path, url: str | None = None, **environment: str) -> Iterator[Place]:
    """One that nobody sweeps after its start but who uses it."""
    if url is not None:
        environment["STORAGE_URL"] = url
    with (
        fresh_database(server, template) as dsn,
        running_service(dsn, folder, UPLOAD_DIR=str(folder / "files"), **environment) as service,
        service.client() as http,
    ):
        yield Place(service, http, folder / "files", url)


# -------------------------------------------------------------------------------------------------------- S3


class S3:
    """An S3 that can be switched off and on again. What is in it is in this process, whoever serves it."""

    def __init__(self) -> None:
        self._port = free_port()
        self._server: ThreadedMotoServer | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.environment = {
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - it takes a second, and but one process needs it

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """With a bucket, `files`; the environment of this process knows it too."""
    running = S3()
    running.start()
    try:
        assert httpx.put(f"{running.url}/files", verify=NO_CERTIFICATES).status_code == 200
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment.items():
                patch.setenv(name, value)
            yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def in_folder(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(server, template, tmp_path_factory.mktemp("folder")) as made:
        yield made


@pytest.fixture(scope="module")
def in_s3(server: str, template: str, tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("s3")
    with place(server, template, folder, "s3://files/of/tickets", **s3.environment) as made:
        yield made


@pytest.fixture(params=["folder", "s3"])
def kept_in(request: pytest.FixtureRequest) -> Place:
    """Both: what holds of one must hold of the other."""
    found: Place = request.getfixturevalue(f"in_{request.param}")
    return found


@pytest.fixture
def ticket(kept_in: Place) -> str:
    return new_ticket(kept_in.http)


# ------------------------------------------------------------------------------------------------------ kept


def test_the_same_bytes_are_kept_once_whoever_attaches_them(kept_in: Place, ticket: str) -> None:
    content, before = text(), kept_in.kept()
    first = attached(kept_in.http, ticket, content)
    with kept_in.service.client() as other:
        second = attached(other, new_ticket(other), content)
        assert first["id"] != second["id"]
        assert kept_in.kept() - before == {named(content)}
        for http, one in ((other, first), (kept_in.http, second)):
            assert download(http, one).content == content
    assert first["scan"] == "unscanned"
    assert files_in(kept_in.uploads / "incoming") == {}


def test_many_bytes_come_back_as_they_went_and_in_parts_too(kept_in: Place, ticket: str) -> None:
    content = text(6_000_000)  # S3 takes so many in several parts
    attachment = attached(kept_in.http, ticket, content)
    answer = download(kept_in.http, attachment)
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, "6000000")
    assert answer.content == content
    for wanted, part, told in (
        ("bytes=0-0", content[:1], "bytes 0-0/6000000"),
        ("bytes=5000000-5999999", content[5_000_000:], "bytes 5000000-5999999/6000000"),
        ("bytes=5999990-", content[-10:], "bytes 5999990-5999999/6000000"),
        ("bytes=-7", content[-7:], "bytes 5999993-5999999/6000000"),
    ):
        answer = download(kept_in.http, attachment, Range=wanted)
        assert (answer.status_code, answer.headers["Content-Range"]) == (206, told)
        assert answer.content == part
    assert_problem(download(kept_in.http, attachment, Range="bytes=6000000-"), 416, "range-not-satisfiable")
    kept_in.http.delete(f"{ATTACHMENTS}/{attachment['id']}")


def test_bytes_that_are_lost_are_answered_503_and_nothing_else_suffers(kept_in: Place, ticket: str) -> None:
    lost, there = (attached(kept_in.http, ticket, text()) for _ in range(2))
    asyncio.run(kept_in.storage().remove(lost["sha256"]))
    assert_problem(download(kept_in.http, lost), 503, "storage-unavailable")
    assert download(kept_in.http, there).status_code == 200
    delete(kept_in.http, lost)


# ------------------------------------------------------------------------------------------------------ gone


def test_bytes_stay_until_the_last_that_named_them_has_been_gone_for_the_retention(kept_in: Place, ticket: str) -> None:
    content = text()
    one, other = (attached(kept_in.http, ticket, content) for _ in range(2))
    delete(kept_in.http, one)
    kept_in.sweep(NO_TIME)
    assert download(kept_in.http, one).status_code == 404
    assert download(kept_in.http, other).content == content, "another attachment names them"
    delete(kept_in.http, other)
    kept_in.sweep(A_MONTH)
    assert named(content) in kept_in.kept(), "not a month ago"
    time.sleep(0.01)
    assert kept_in.sweep(timedelta(milliseconds=10)) > 0
    assert named(content) not in kept_in.kept()


def test_bytes_that_went_can_come_again(kept_in: Place, ticket: str) -> None:
    content = text()
    delete(kept_in.http, attached(kept_in.http, ticket, content))
    kept_in.sweep(NO_TIME)
    assert named(content) not in kept_in.kept()
    again = attached(kept_in.http, ticket, content)
    assert kept_in.sweep(NO_TIME) == 0
    assert download(kept_in.http, again).content == content


def test_bytes_that_no_fact_names_go_once_they_are_old(kept_in: Place) -> None:
    content = text()
    kept_in.put(content)
    kept_in.sweep(abandoned=timedelta(hours=1))
    assert named(content) in kept_in.kept(), "it may yet be attached"
    assert kept_in.sweep() > 0
    assert named(content) not in kept_in.kept()


def test_what_an_upload_left_that_broke_off_goes_once_it_is_old(in_folder: Place) -> None:
    old, young = (in_folder.uploads / "incoming" / name for name in ("tmpold", "tmpyoung"))
    for path in (old, young):
        path.write_bytes(b"half a")
    grow_old(old)
    in_folder.sweep(abandoned=timedelta(hours=1))
    assert files_in(in_folder.uploads / "incoming") == {"tmpyoung": young}
    young.unlink()


def test_an_upload_that_breaks_off_leaves_nothing(kept_in: Place, ticket: str) -> None:
    before = kept_in.kept()

    def half() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n' + text(100_000)
        becomes(lambda: files_in(kept_in.uploads / "incoming") != {})
        raise InterruptedError

    with pytest.raises(InterruptedError):
        kept_in.http.post(
            f"{TICKETS}/{ticket}/attachments",
            content=half(),
            headers={"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "200000"},
        )
    becomes(lambda: files_in(kept_in.uploads / "incoming") == {})
    assert kept_in.kept() == before
    assert listed(kept_in.http, ticket) == []


def test_what_is_not_ours_is_left_alone_and_is_in_nobodys_way(kept_in: Place) -> None:
    content, store = text(), LocalStore(kept_in.uploads / "objects") if kept_in.url is None else store_at(kept_in.url)
    theirs = ["README.md", f"backup/{named(content)}", "ab/cd"]
    for path in theirs:
        obstore.put(store, path, b"somebody put this here")
    kept_in.put(content)
    try:
        kept_in.sweep()
        assert [bytes(obstore.get(store, path).bytes()) for path in theirs] == [b"somebody put this here"] * 3
        with pytest.raises(FileNotFoundError):
            obstore.head(store, f"{named(content)[:2]}/{named(content)}")
    finally:
        obstore.delete(store, theirs)


def test_the_service_sweeps_by_itself(server: str, template: str, tmp_path: Path) -> None:
    swept_often = {"SWEEP_MINUTES": "0", "RESCAN_SECONDS": "0.1", "ATTACHMENT_RETENTION_DAYS": "0"}
    with place(server, template, tmp_path, **swept_often) as own:
        ticket = new_ticket(own.http)
        going, staying = (attached(own.http, ticket, text()) for _ in range(2))
        grow_old(*files_in(own.uploads / "objects").values())
        delete(own.http, going)
        becomes(lambda: own.kept() == {staying["sha256"]})
        abandoned = own.uploads / "incoming" / "tmpold"
        abandoned.write_bytes(b"half a")
        grow_old(abandoned)
        becomes(lambda: not abandoned.exists())
        assert download(own.http, staying).status_code == 200
        assert own.service.stop() == 0
        assert "Traceback" not in own.service.log.read_text()


def becomes(check: Callable[[], bool], timeout: float = 10) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------- sweeping and attaching at once


@pytest.mark.parametrize(("where", "rounds"), [("folder", 12), ("s3", 4)])
def test_what_is_attached_while_a_sweep_is_at_it_is_never_lost(
    request: pytest.FixtureRequest, tmp_path: Path, where: str, rounds: int
) -> None:
    kept_in: Place = request.getfixturevalue(f"in_{where}")
    ticket, contents = new_ticket(kept_in.http), [text(), text()]
    # The sweeper of S3 receives nothing, so that all is old for it; in a folder the bytes are made to look old.
    storage = Storage(tmp_path, kept_in.url) if kept_in.url else kept_in.storage()
    abandoned = NO_TIME if kept_in.url else timedelta(hours=1)
    over = threading.Event()

    async def sweeps() -> None:
        while not over.is_set():
            await sweep(storage, kept_in.dsn, NO_TIME, abandoned)
            await asyncio.sleep(0.005)

    def has_removed_them() -> bool:
        return kept_in.kept().isdisjoint(map(named, contents))

    with ThreadPoolExecutor(5) as crowd:
        sweeping = crowd.submit(lambda: asyncio.run(sweeps()))
        try:
            for turn in range(rounds):
                came = list(crowd.map(lambda content: attached(kept_in.http, ticket, content), contents * 2))
                for one in came:
                    assert named(download(kept_in.http, one).content) == one["sha256"]
                delete(kept_in.http, *came)
                grow_old(*files_in(kept_in.uploads / "objects").values())
                time.sleep(turn % 3 / 100)  # the next may come before the sweeper, with it, or after it
                if turn % 4 == 0:
                    becomes(has_removed_them)
        finally:
            over.set()
        sweeping.result()


async def test_a_sweep_waits_for_whoever_is_attaching_what_it_would_remove(in_folder: Place) -> None:
    http, dsn, content = in_folder.http, in_folder.dsn, text()
    ticket = await asyncio.to_thread(new_ticket, http)
    async with owner_of(dsn) as owner:
        await eventually(lambda: level(owner))
        async with held_up(dsn):
            attaching = asyncio.create_task(asyncio.to_thread(attach, http, ticket, content))
            await eventually(lambda: waits_for_the_head(owner))
            grow_old(files_in(in_folder.uploads / "objects")[named(content)])
            sweeping = asyncio.create_task(sweep(in_folder.storage(), dsn, NO_TIME))
            await eventually(lambda: _waits_for_a_content(owner))
            assert not sweeping.done()
        attachment = (await attaching).json()
        await sweeping
    assert (await asyncio.to_thread(download, http, attachment)).content == content


async def _waits_for_a_content(owner: Connection) -> bool:
    query = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    return bool(await owner.fetchval(query))


async def _holder(owner: Connection, mode: str) -> int | None:
    """The server process that has an advisory lock in that mode."""
    pid: int | None = await owner.fetchval(
        """select pid from pg_locks where locktype = 'advisory' and mode = $1 and granted
           and database = (select oid from pg_database where datname = current_database())""",
        mode,
    )
    return pid


async def test_what_is_attached_on_a_connection_that_is_lost_meanwhile_keeps_its_bytes(in_folder: Place) -> None:
    """The lock on the content goes with its connection; the fact may still come."""
    http, dsn, storage = in_folder.http, in_folder.dsn, in_folder.storage()
    ticket = await asyncio.to_thread(new_ticket, http)
    content_of = {named(content): content for content in (text(), text())}
    for content in content_of.values():
        await asyncio.to_thread(delete, http, await asyncio.to_thread(attached, http, ticket, content))
    grow_old(*files_in(in_folder.uploads / "objects").values())
    kept = [one.sha256 async for some in storage.all() for one in some]
    first, second = (sha256 for sha256 in kept if sha256 in content_of)
    async with owner_of(dsn) as owner, AsyncExitStack() as head:
        await eventually(lambda: level(owner))
        async with content_lock(dsn, first, shared=False):
            sweeping = asyncio.create_task(sweep(storage, dsn, NO_TIME))
            await eventually(lambda: _waits_for_a_content(owner))
            await head.enter_async_context(held_up(dsn))
            attaching = asyncio.create_task(asyncio.to_thread(attach, http, ticket, content_of[second]))
            await eventually(lambda: waits_for_the_head(owner))
            await owner.execute("select pg_terminate_backend($1)", await _holder(owner, "ShareLock"))
        await sweeping
        await head.aclose()
        await attaching
    became = await asyncio.to_thread(listed, http, ticket)
    for one in became:  # whatever its answer was: it is attached, or it is not
        answer = await asyncio.to_thread(download, http, one)
        assert (answer.status_code, answer.content) == (200, content_of[second])


@asynccontextmanager
async def owner_of(dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(dsn, role=None)
    try:
        yield connection
    finally:
        await connection.close()


def test_a_sweep_does_its_work_while_uploads_come_and_go(in_folder: Place) -> None:
    """Files that are being received vanish under its eyes, and the ledger is ahead of the read models all the time."""
    contents, incoming = [text() for _ in range(20)], in_folder.uploads / "incoming"
    for content in contents:
        in_folder.put(content)
    grow_old(*(files_in(in_folder.uploads / "objects")[named(content)] for content in contents))
    over = threading.Event()

    def attaches() -> None:
        with in_folder.service.client() as http:
            ticket = new_ticket(http)
            while not over.is_set():
                attached(http, ticket, text())

    def receives(number: int) -> None:
        while not over.is_set():
            for path in (paths := [incoming / f"tmp{number}of{one}" for one in range(30)]):
                path.write_bytes(b"half a")
            for path in paths:
                path.unlink()

    with ThreadPoolExecutor(4) as crowd:
        busy = [crowd.submit(attaches), crowd.submit(attaches), *(crowd.submit(receives, one) for one in range(2))]
        try:
            for _ in range(5):
                asyncio.run(sweep(in_folder.storage(), in_folder.dsn, A_MONTH))
        finally:
            over.set()
        for one in busy:
            one.result()
    assert in_folder.kept().isdisjoint(map(named, contents))


# ---------------------------------------------------------------------------------------- when it may not sweep


async def test_nothing_is_swept_while_the_read_model_is_behind(in_folder: Place) -> None:
    content = text()
    await asyncio.to_thread(in_folder.put, content)
    sha256 = named(content)
    grow_old(files_in(in_folder.uploads / "objects")[sha256])
    async with owner_of(in_folder.dsn) as owner:
        await eventually(lambda: level(owner))
        async with owner.transaction():
            await owner.execute("lock table read_model.attachments in share row exclusive mode")
            ticket = await asyncio.to_thread(new_ticket, in_folder.http)
            attachment = await asyncio.to_thread(attached, in_folder.http, ticket, text())
            assert not await level(owner)
            assert await sweep(in_folder.storage(), in_folder.dsn, NO_TIME) == 0
            assert sha256 in files_in(in_folder.uploads / "objects")
        await eventually(lambda: level(owner))
    assert await sweep(in_folder.storage(), in_folder.dsn, NO_TIME) > 0
    assert sha256 not in files_in(in_folder.uploads / "objects")
    assert (await asyncio.to_thread(download, in_folder.http, attachment)).status_code == 200


async def test_nothing_is_swept_while_a_ticket_is_parked(in_folder: Place) -> None:
    content, stream_id = text(), uuid4()
    await asyncio.to_thread(in_folder.put, content)
    sha256 = named(content)
    grow_old(files_in(in_folder.uploads / "objects")[sha256])
    async with owner_of(in_folder.dsn) as owner:
        await eventually(lambda: level(owner))
        await owner.execute(
            """insert into read_model.parked (projection, stream_id, position, error, parked_at)
               values ('attachments', $1, 1, 'something that this version cannot read', now())""",
            stream_id,
        )
        try:
            assert await sweep(in_folder.storage(), in_folder.dsn, NO_TIME) == 0
        finally:
            await owner.execute("delete from read_model.parked where stream_id = $1", stream_id)
    assert await sweep(in_folder.storage(), in_folder.dsn, NO_TIME) > 0
    assert sha256 not in files_in(in_folder.uploads / "objects")


# ------------------------------------------------------------------------------------------------ storage away


def test_while_s3_is_away_nothing_is_attached_and_it_mends_itself(s3: S3, in_s3: Place) -> None:
    http, ticket = in_s3.http, new_ticket(in_s3.http)
    attachment = attached(http, ticket, text())
    s3.stop()
    try:
        began = time.monotonic()
        refused = attach(http, ticket, text(), Idempotency_Key="once")
        assert time.monotonic() - began < 15
        assert_problem(refused, 503, "storage-unavailable")
        assert_problem(download(http, attachment), 503, "storage-unavailable")
        assert listed(http, ticket) == [attachment]
        assert facts(in_s3.dsn, ticket, "ticket.attachment_added.v1") == 1
        assert files_in(in_s3.uploads) == {}
        assert http.get("/health").json()["status"] == "ok", "tickets are not in S3"
    finally:
        s3.start()
    assert attach(http, ticket, text(), Idempotency_Key="once").status_code == 201
    assert download(http, attachment).status_code == 200


def test_where_there_is_no_such_bucket_nothing_is_attached(server: str, template: str, tmp_path: Path, s3: S3) -> None:
    with place(server, template, tmp_path, "s3://nowhere/at/all", **s3.environment) as lost:
        ticket = new_ticket(lost.http)
        for content in (text(), text(6_000_000)):
            assert_problem(attach(lost.http, ticket, content), 503, "storage-unavailable")
        assert listed(lost.http, ticket) == []
        assert facts(lost.dsn, ticket, "ticket.attachment_added.v1") == 0
        assert files_in(lost.uploads) == {}
        assert lost.http.get("/health").status_code == 200


class Disk:
    """A disk of one's own, as small as one likes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def becomes(self, *options: str) -> None:
        self._mount("-o", ",".join(("remount", *options)))

    def mount(self, *options: str) -> None:
        self.path.mkdir()
        self._mount("-t", "tmpfs", "-o", ",".join(options), "tmpfs")

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["/bin/mount", *arguments, str(self.path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Skipped where nothing can be mounted."""
    if os.geteuid() != 0 or not Path("/bin/mount").exists():
        pytest.skip("only root can mount a small disk, with /bin/mount")
    small = Disk(tmp_path / "files")
    small.mount("size=1m")
    yield small
    subprocess.run(["/bin/umount", "--lazy", str(small.path)], check=True)


def test_a_disk_that_cannot_be_written_to_attaches_nothing_and_keeps_what_it_has(
    server: str, template: str, tmp_path: Path, disk: Disk
) -> None:
    with place(server, template, tmp_path) as own:
        http, ticket = own.http, new_ticket(own.http)
        attachment = attached(http, ticket, content := text(1_000))

        def refuses(size: int) -> None:
            assert_problem(attach(http, ticket, text(size)), 503, "storage-unavailable")
            assert listed(http, ticket) == [attachment]
            assert facts(own.dsn, ticket, "ticket.attachment_added.v1") == 1
            assert set(files_in(own.uploads)) == {named(content)}
            assert download(http, attachment).content == content

        refuses(3_000_000)  # more than it has
        refuses(15_000_000)  # so much more that the sender is still at it when it is full, and yet hears of it
        disk.becomes("nr_inodes=6")  # the root, two folders and one in it, a file, and the one that is received
        refuses(1_000)
        disk.becomes("nr_inodes=0", "ro")
        refuses(1_000)
        disk.becomes("rw")
        attached(http, ticket, text(1_000))
        assert own.service.stop() == 0
        assert "Traceback" not in own.service.log.read_text()


def test_an_upload_dir_that_cannot_be_made_stops_the_start_and_is_named(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("this is a file")
    with pytest.raises(AssertionError, match="the service did not start") as refused:
        running_service(dsn, tmp_path, UPLOAD_DIR=str(tmp_path / "taken")).__enter__()
    assert str(tmp_path / "taken") in str(refused.value)
    assert 'File "' not in str(refused.value), "a sentence, not a traceback"
