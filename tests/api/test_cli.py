"""The command line: what it prints where, and how it ends."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from projections.runner import PROJECTIONS
from tests.api.servicenow_log import make_log
from tests.conftest import KEY, NEW_TICKET, Service, fresh_database, running_service
from tests.starting import run, start_anew
from tickets.connections import connect
from tickets.integrity import GENESIS, leaf, seal

PUBLIC_KEY = (
    generate_private_key(65_537, 2_048)
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)


def tickets(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run(arguments, _with_key(environment))


def tickets_anew(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Started as people do, with all that it imports: once for each command."""
    return run(arguments, _with_key(environment), starting=start_anew)


def _with_key(environment: dict[str, str]) -> dict[str, str]:
    variables = {"PATH": os.environ["PATH"], "JWT_SECRET_KEY": KEY, **environment}
    return {name: value for name, value in variables.items() if value}


@pytest.fixture(scope="module")
def imported(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("cli")
    with fresh_database(server, template) as dsn:
        where = {"DATABASE_URL": dsn, "DATA_DIR": str(folder)}
        log = str(make_log(folder / "log.csv.gz", incidents=60))
        done = tickets_anew("import", "servicenow", log, "--json", **where)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["incidents"], len(report["dirty"])) == (60, 3)
        yield where


def test_help_names_every_command() -> None:
    done = tickets_anew("--help")
    assert done.returncode == 0
    for name in ("serve", "token", "import", "replay", "verify", "projections", "schema"):
        assert name in done.stdout


def test_a_token_says_who_and_is_signed_with_this_installations_key() -> None:
    person = uuid4()
    done = tickets_anew(
        "token", "--role", "TEAM_LEAD", "--sub", str(person), "--username", "grace", "--team", "A", "--team", "B"
    )
    claims = jwt.decode(done.stdout.strip(), KEY, algorithms=["HS256"])
    assert (claims["sub"], claims["role"], claims["username"], claims["teams"]) == (
        str(person),
        "TEAM_LEAD",
        "grace",
        ["A", "B"],
    )


@pytest.mark.parametrize(
    "elsewhere",
    [{"AUTH_SERVICE_URL": "https://auth.example"}, {"JWT_ALGORITHM": "RS256", "JWT_SECRET_KEY": PUBLIC_KEY}],
)
def test_a_token_is_refused_where_tokens_come_from_elsewhere(elsewhere: dict[str, str]) -> None:
    done = tickets("token", "--role", "ADMIN", **elsewhere)
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not sign tokens" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("token",),
        ("token", "--role", "KING"),
        ("serve", "--only", "nothing"),
        ("replay",),
        ("nonsense",),
        ("verify", "--fast"),
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_standard_error(arguments: tuple[str, ...]) -> None:
    done = tickets(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage" in done.stderr


def test_a_bad_setting_stops_the_start_with_its_name() -> None:
    done = tickets("serve", SERVICE_PORT="eighty")
    assert done.returncode == 2
    assert "SERVICE_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_stops_the_start(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    done = tickets("serve", "--port", port, DATABASE_URL=service.dsn)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr


def test_a_database_that_is_away_is_a_sentence() -> None:
    done = tickets("verify", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_replay_tells_a_life_fact_by_fact(imported: dict[str, str]) -> None:
    told = tickets_anew("replay", "INC0000003", **imported).stdout
    assert "CREATED" in told
    assert "CLOSED" in told
    assert "INC0000003 at version" in told


def test_replay_in_json_is_one_document_with_the_ticket_and_its_history(imported: dict[str, str]) -> None:
    life = json.loads(tickets("replay", "INC0000003", "--json", **imported).stdout)
    assert life["ticket"]["status"] == "CLOSED"
    assert [entry["version"] for entry in life["history"]] == list(range(1, life["ticket"]["version"] + 1))


def test_replay_to_a_version_or_a_time_shows_the_ticket_as_it_then_was(imported: dict[str, str]) -> None:
    first = json.loads(tickets("replay", "INC0000003", "--version", "1", "--json", **imported).stdout)
    assert (first["ticket"]["status"], len(first["history"])) == ("NEW", 1)
    at = first["ticket"]["created_at"]
    then = json.loads(tickets("replay", first["ticket"]["id"], "--as-of", at, "--json", **imported).stdout)
    assert then["ticket"]["updated_at"] == at


def test_replay_of_what_is_not_there_is_a_finding(imported: dict[str, str]) -> None:
    assert tickets("replay", "INC9999999", **imported).returncode == 1
    assert tickets("replay", "INC0000003", "--as-of", "1999-01-01T00:00:00Z", **imported).returncode == 1
    assert tickets("replay", "INC0000003", "--as-of", "yesterday", **imported).returncode == 2
    assert (
        tickets("replay", "INC0000003", "--version", "1", "--as-of", "2020-01-01T00:00:00Z", **imported).returncode == 2
    )


def test_check_and_rebuild_find_every_read_model_as_it_should_be(imported: dict[str, str]) -> None:
    for command in ("check", "rebuild"):
        done = tickets("projections", command, "--json", **imported)
        assert done.returncode == 0, done.stderr
        compared = json.loads(done.stdout)
        assert {one["projection"] for one in compared} == set(PROJECTIONS)
        assert all(not one["missing"] and not one["unexpected"] for one in compared)
        assert {one["projection"] for one in compared if not one["rows"]} == {"attachments"}, "the log has no files"


def test_the_rows_of_one_ticket_are_put_right(imported: dict[str, str]) -> None:
    async def spoil() -> tuple[str, str]:
        connection = await connect(imported["DATABASE_URL"], role=None)
        spoilt = await connection.fetchrow(
            """update read_model.tickets set team = 'Nobody' where ticket_id =
               (select ticket_id from read_model.tickets order by number limit 1) returning ticket_id, number"""
        )
        await connection.close()
        assert spoilt is not None
        return str(spoilt["ticket_id"]), spoilt["number"]

    ticket_id, number = asyncio.run(spoil())
    checked = tickets("projections", "check", **imported)
    assert (checked.returncode, f"{ticket_id} different: team" in checked.stdout) == (1, True)
    done = tickets("projections", "rebuild", "--only", number, **imported)
    assert (done.returncode, done.stdout) == (0, f"tickets     {ticket_id} different: team: put right\n")
    assert json.loads(tickets("projections", "rebuild", "--only", ticket_id, "--json", **imported).stdout) == []
    assert tickets("projections", "check", **imported).returncode == 0
    assert tickets("projections", "rebuild", "--only", "TKT-0", **imported).returncode == 2
    assert tickets("projections", "rebuild", "--only", number, "people", **imported).returncode == 2


def test_status_says_how_far_each_read_model_is(imported: dict[str, str]) -> None:
    seen = json.loads(tickets_anew("projections", "status", "--json", **imported).stdout)
    assert {one["behind"] for one in seen["projections"]} == {0}
    assert seen["led"] is False
    assert "no runner leads" in tickets("projections", "status", **imported).stdout


def test_an_unknown_read_model_is_wrong_usage(imported: dict[str, str]) -> None:
    done = tickets("projections", "rebuild", "nothing", **imported)
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_verify_is_clean_and_finds_what_was_tampered_with(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as dsn:
        where = {"DATABASE_URL": dsn, "DATA_DIR": str(tmp_path)}
        assert (
            tickets("import", "servicenow", str(make_log(tmp_path / "log.csv.gz", incidents=5)), **where).returncode
            == 0
        )
        clean = tickets_anew("verify", "--json", **where)
        assert (clean.returncode, json.loads(clean.stdout)["finding"]) == (0, None)

        async def tamper() -> int:
            connection = await connect(dsn, role=None)
            position: int = await connection.fetchval("select max(position) - 3 from ledger.events")
            await connection.execute("alter table ledger.events disable trigger all")
            await connection.execute("update ledger.events set state = state || ' ' where position = $1", position)
            await connection.close()
            return position

        position = asyncio.run(tamper())
        found = tickets("verify", "--json", **where)
        assert (found.returncode, json.loads(found.stdout)["finding"]["position"]) == (1, position)
        assert f"position {position}" in tickets("verify", **where).stdout


@pytest.fixture(scope="module")
def signed(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A ledger that a service has signed at two sizes, and then added to; its ticket's number is in TICKET."""
    folder = tmp_path_factory.mktemp("signed")
    with fresh_database(server, template) as dsn:
        with running_service(dsn, folder, CHECKPOINT_SECONDS="0.1") as running, running.client() as admin:
            number = ""
            for _ in range(2):
                number = admin.post("/api/v1/tickets", json=NEW_TICKET).json()["number"]
                position = admin.get("/health").json()["ledger"]["position"]
                deadline = time.monotonic() + 20
                while admin.get("/health").json()["checkpoints"]["size"] < position:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            key = admin.get("/api/v1/ledger").json()["public_key"]
        yield {"DATABASE_URL": dsn, "DATA_DIR": str(folder), "TICKET": number, "SIGNED_BY": key}


def test_verify_holds_the_ledger_against_what_was_signed_and_kept_outside(signed: dict[str, str]) -> None:
    folder = Path(signed["DATA_DIR"]) / "checkpoints"
    sizes = sorted(int(one.stem) for one in folder.glob("*.checkpoint"))
    whole = json.loads(tickets("verify", "--json", **signed).stdout)
    assert (whole["finding"], whole["checkpoints"]) == (None, len(sizes))
    newest = folder / f"{sizes[-1]:020d}.checkpoint"
    for arguments in (
        ("--outside",),
        ("--checkpoint", str(newest)),
        ("--checkpoint", str(folder)),
        ("--checkpoint", folder.as_uri()),
        ("--since", str(sizes[0])),
        ("--since", str(sizes[0]), "--outside", "--workers", "2"),
        ("--ticket", signed["TICKET"]),
        ("--key", signed["SIGNED_BY"]),
    ):
        done = tickets("verify", *arguments, **signed)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        assert "as they were" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--outside", "--checkpoint", "x"), "cannot go together"),
        (("--ticket", "TKT-1", "--outside"), "cannot go together"),
        (("--key", "nonsense"), "name+id+key"),
        (("--since", "999999"), "no checkpoint at 999999"),
        (("--ticket", "TKT-1999-000001"), "no ticket"),
        (("--ticket", ":bug:"), "no ticket :bug:"),
        (("--checkpoint", "/nowhere"), "no checkpoints in"),
    ],
)
def test_verify_against_what_is_not_there_is_wrong_usage(
    signed: dict[str, str], arguments: tuple[str, ...], words: str
) -> None:
    done = tickets("verify", *arguments, **signed)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ledger_that_was_written_anew_is_found_by_what_was_kept_outside(signed: dict[str, str]) -> None:
    """The checkpoints inside were removed with it: inside, everything follows from everything else."""

    async def rewrite(undo: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        connection = await connect(signed["DATABASE_URL"], role=None)
        async with connection.transaction():
            await connection.execute("set local session_replication_role = replica")
            if undo:
                await connection.execute("update ledger.events set state = $1, leaf = $2 where position = 2", *undo[0])
                await connection.execute("insert into ledger.checkpoints select * from kept; drop table kept")
            else:
                await connection.execute(
                    "create table kept as table ledger.checkpoints; delete from ledger.checkpoints"
                )
                row = await connection.fetchrow("select * from ledger.events where position = 2")
                assert row is not None
                undo = [(row["state"], row["leaf"])]
                state = row["state"].replace(b"down", b"fine")
                parts = (row["stream_id"], row["version"], row["topic"], row["occurred_at"], row["metadata"], state)
                changed = (state, leaf(*parts))
                await connection.execute("update ledger.events set state = $1, leaf = $2 where position = 2", *changed)
            chain = GENESIS
            for first, last, at in await connection.fetch(
                "select first_position, last_position, sealed_at from ledger.seals order by 1"
            ):
                leaves = await connection.fetchval(
                    """select string_agg(leaf, ''::bytea order by position) from ledger.events
                       where position between $1 and $2""",
                    first,
                    last,
                )
                chain = seal(chain, first, last, at, leaves)
                await connection.execute("update ledger.seals set seal = $1 where last_position = $2", chain, last)
            await connection.execute("update ledger.head set seal = $1", chain)
        await connection.close()
        return undo

    undo = asyncio.run(rewrite([]))
    try:
        assert tickets("verify", **signed).returncode == 0
        found = tickets("verify", "--outside", "--json", **signed)
        assert (found.returncode, json.loads(found.stdout)["finding"]["position"]) == (1, 2)
    finally:
        asyncio.run(rewrite(undo))
    assert tickets("verify", "--outside", **signed).returncode == 0


def test_what_a_running_service_recorded_can_be_replayed_by_number(service: Service, tmp_path: Path) -> None:
    with service.client() as admin:
        made = admin.post("/api/v1/tickets", json=NEW_TICKET)
        admin.get("/api/v1/tickets", headers={"Ledger-Position": made.headers["Ledger-Position"]})
    where = {"DATABASE_URL": service.dsn, "DATA_DIR": str(tmp_path)}
    told = tickets("replay", made.json()["number"], **where)
    assert NEW_TICKET["title"] in told.stdout
    assert json.loads(tickets("projections", "status", "--json", **where).stdout)["led"] is True
