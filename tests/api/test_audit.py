"""`tickets audit export`: what is in the bundle that it makes, what it says, and how it ends."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.cli import main
from projections.verify_bundle import Verdict, check, read_key
from tests.api.servicenow_log import make_log
from tests.conftest import KEY, NEW_TICKET, Service, fresh_database
from tickets.connections import connect

Run = Callable[..., Result]


def run_on(dsn: str, folder: Path, **environment: str) -> Run:
    where = {"DATABASE_URL": dsn, "DATA_DIR": str(folder), "JWT_SECRET_KEY": KEY, **environment}
    return lambda *arguments: CliRunner().invoke(main, [str(one) for one in arguments], env=where)


def fetch(dsn: str, query: str, *arguments: Any) -> Any:
    async def fetching() -> Any:
        connection = await connect(dsn, role=None)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(fetching())


def checked(bundle: Path, made: Result) -> Verdict:
    with bundle.open("rb") as file:
        return check(file, read_key(json.loads(made.stdout)["key"]))


@pytest.fixture(scope="module")
def log(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, str]]:
    folder = tmp_path_factory.mktemp("audit")
    with fresh_database(server, template) as dsn:
        tickets = run_on(dsn, folder)
        done = tickets("import", "servicenow", make_log(folder / "log.csv.gz", incidents=40))
        assert done.exit_code == 0, done.stderr
        yield tickets, dsn


def test_a_bundle_of_tickets_has_their_whole_lives_and_is_good(log: tuple[Run, str], tmp_path: Path) -> None:
    tickets, dsn = log
    out = tmp_path / "bundle.zip"
    made = tickets("audit", "export", "INC0000003", "INC0000004", "--out", out, "--json")
    assert made.exit_code == 0, made.stderr
    verdict = checked(out, made)
    assert verdict.found is None
    assert [one["number"] for one in verdict.bundle.manifest["scope"]["tickets"]] in (
        ["INC0000003", "INC0000004"],
        ["INC0000004", "INC0000003"],
    )
    assert verdict.bundle.facts == fetch(
        dsn,
        """select count(*) from ledger.events where stream_id in
           (select ticket_id from read_model.tickets where number in ('INC0000003', 'INC0000004'))""",
    )


def test_what_is_newer_than_the_newest_checkpoint_is_signed_first_and_nothing_is_signed_twice(
    server: str, template: str, tmp_path: Path
) -> None:
    with fresh_database(server, template) as dsn:
        tickets = run_on(dsn, tmp_path)
        assert tickets("import", "servicenow", make_log(tmp_path / "log.csv.gz", incidents=5)).exit_code == 0
        assert fetch(dsn, "select count(*) from ledger.checkpoints") == 0
        for name in ("first", "second"):
            made = tickets("audit", "export", "--since", "0", "--out", tmp_path / name, "--json")
            assert checked(tmp_path / name, made).found is None
            assert json.loads(made.stdout)["checkpoint"] == fetch(dsn, "select position from ledger.head")
        assert fetch(dsn, "select count(*) from ledger.checkpoints") == 1


def test_a_stretch_is_from_a_position_or_a_time_to_another(log: tuple[Run, str], tmp_path: Path) -> None:
    tickets, dsn = log
    head: int = fetch(dsn, "select position from ledger.head")
    middle: datetime = fetch(dsn, "select recorded_at from ledger.events where position = $1", head // 2)
    before = fetch(dsn, "select count(*) from ledger.events where recorded_at < $1", middle)
    upto = fetch(dsn, "select count(*) from ledger.events where recorded_at <= $1", middle)
    for name, arguments, scope in (
        ("a", ("--since", "7", "--until", "30"), {"after": 7, "upto": 30}),
        ("b", ("--since", str(head - 3)), {"after": head - 3, "upto": head}),
        ("c", ("--since", middle.isoformat()), {"after": before, "upto": head}),
        ("d", ("--since", "0", "--until", middle.isoformat()), {"after": 0, "upto": upto}),
    ):
        made = tickets("audit", "export", *arguments, "--out", tmp_path / name, "--json")
        assert made.exit_code == 0, made.stderr
        verdict = checked(tmp_path / name, made)
        assert verdict.found is None
        assert verdict.bundle.manifest["scope"] == scope
        assert verdict.bundle.facts == scope["upto"] - scope["after"]


def test_people_are_told_how_to_check_it(log: tuple[Run, str], tmp_path: Path) -> None:
    tickets, _ = log
    told = tickets("audit", "export", "INC0000003", "--out", tmp_path / "bundle.zip").stdout
    assert "checked, and good" in told
    assert "python verify.py bundle.zip --key 'tickets+" in told


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("INC0000003", "--since", "1"),
        ("INC0000003", "--until", "1"),
        ("--since", "yesterday"),
        ("--since", "2016-01-01T00:00:00"),
        ("--since", "-1"),
        ("--since", "5", "--until", "5"),
        ("--since", "5", "--until", "99999999"),
        ("--since", "99999999999999999999999"),
        ("INC9999999",),
    ],
)
def test_what_there_is_not_is_wrong_usage_and_makes_no_file(
    log: tuple[Run, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = log[0]("audit", "export", *arguments, "--out", tmp_path / "x.zip")
    assert (done.exit_code, done.stdout) == (2, ""), done.exception
    assert done.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - empty


def test_a_file_that_is_there_is_not_written_over_and_a_folder_that_is_not_is_said(
    log: tuple[Run, str], tmp_path: Path
) -> None:
    (tmp_path / "x.zip").write_text("precious")
    for out, said in ((tmp_path / "x.zip", "is there already"), (tmp_path / "no" / "x.zip", "cannot be written")):
        done = log[0]("audit", "export", "INC0000003", "--out", out)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "x.zip").read_text() == "precious"


def test_where_only_the_public_half_of_the_key_is_nothing_is_exported(log: tuple[Run, str], tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    pem = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(pem)
    tickets = run_on(log[1], tmp_path, CHECKPOINT_KEY_FILE=str(public))
    done = tickets("audit", "export", "INC0000003", "--out", tmp_path / "x.zip")
    assert done.exit_code == 2
    assert "public half" in done.stderr


def test_where_somebody_else_signed_the_newest_checkpoint_that_is_said(log: tuple[Run, str], tmp_path: Path) -> None:
    tickets, dsn = log
    assert tickets("audit", "export", "INC0000003", "--out", tmp_path / "x.zip").exit_code == 0
    done = run_on(dsn, tmp_path)("audit", "export", "INC0000003", "--out", tmp_path / "y.zip")
    assert done.exit_code == 2
    assert "not of this installation's key" in done.stderr


def test_a_record_that_was_tampered_with_is_a_finding(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as dsn:
        tickets = run_on(dsn, tmp_path)
        assert tickets("import", "servicenow", make_log(tmp_path / "log.csv.gz", incidents=5)).exit_code == 0
        assert tickets("audit", "export", "--since", "0", "--out", tmp_path / "before.zip").exit_code == 0
        fetch(dsn, "alter table ledger.events disable trigger all")
        fetch(dsn, "update ledger.events set occurred_at = occurred_at + interval '1 s' where position = 20")
        done = tickets("audit", "export", "--since", "0", "--out", tmp_path / "after.zip")
        assert done.exit_code == 1
        assert "position 20 " in done.stderr
        # hashed anew, it is found by what was signed before: the path does not lead there
        fetch(
            dsn,
            """update ledger.events set leaf = (select leaf from ledger.events where position = 21)
               where position = 20""",
        )
        done = tickets("audit", "export", "--since", "25", "--out", tmp_path / "after.zip")
        assert done.exit_code == 1
        assert "does not hold" in done.stderr
        assert not (tmp_path / "after.zip").exists()


def test_where_a_service_signs_its_next_checkpoint_is_waited_for(
    own_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = own_service(CHECKPOINT_SECONDS="0.5")
    tickets = run_on(service.dsn, tmp_path)
    with service.client() as admin:
        for out in (tmp_path / "first.zip", tmp_path / "second.zip"):
            made = admin.post("/api/v1/tickets", json=NEW_TICKET)
            done = tickets("audit", "export", made.json()["id"], "--out", out, "--json")
            assert done.exit_code == 0, done.stderr
            assert checked(out, done).found is None
