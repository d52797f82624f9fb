"""`tickets replay`: which lives it tells, until when, in what form, and how it ends."""

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from api.cli import main
from tests.api.servicenow_log import make_log
from tests.conftest import KEY, fresh_database
from tickets.connections import connect

Run = Callable[..., Result]


def run_on(dsn: str, folder: Path) -> Run:
    where = {"DATABASE_URL": dsn, "DATA_DIR": str(folder), "JWT_SECRET_KEY": KEY}
    return lambda *arguments: CliRunner().invoke(main, arguments, env=where)


@pytest.fixture(scope="module")
def log(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("replay")
    with fresh_database(server, template) as dsn:
        tickets = run_on(dsn, folder)
        done = tickets("import", "servicenow", str(make_log(folder / "log.csv.gz", incidents=60)))
        assert done.exit_code == 0, done.stderr
        yield tickets


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_everything_comes_by_ticket_and_version_and_the_same_way_twice(log: Run) -> None:
    first, second = (log("replay", "--all", "--format", "jsonl") for _ in range(2))
    assert (first.exit_code, first.stdout) == (0, second.stdout)
    told = lines(first)
    assert len({one["ticket_id"] for one in told}) == 60
    order = [(one["ticket_id"], one["version"]) for one in told]
    assert order == sorted(order)
    for one in {one["ticket_id"]: one for one in told}.values():  # the last of each
        assert one["version"] == sum(other["ticket_id"] == one["ticket_id"] for other in told)


def test_a_ticket_among_many_is_told_as_it_is_alone(log: Run) -> None:
    alone = json.loads(log("replay", "INC0000003", "--json").stdout)
    among = [one for one in lines(log("replay", "--all", "--format", "jsonl")) if one["number"] == "INC0000003"]
    assert [{key: one[key] for key in one if key not in ("ticket_id", "number")} for one in among] == alone["history"]
    assert log("replay", "INC0000003").stdout.split("\n\n")[0] in log("replay", "--all").stdout


def test_csv_says_what_json_lines_say(log: Run) -> None:
    rows = list(csv.DictReader(StringIO(log("replay", "--all", "--format", "csv").stdout, newline="")))
    told = lines(log("replay", "--all", "--format", "jsonl"))
    assert [(row["ticket_id"], int(row["version"]), row["field"]) for row in rows] == [
        (one["ticket_id"], one["version"], change["field"])
        for one in told
        for change in one["changes"] or [{"field": ""}]
    ]


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        (("--status", "closed", "--status", "RESOLVED"), lambda one: one["status"] in ("CLOSED", "RESOLVED")),
        (("--priority", "P1"), lambda one: one["priority"] == "P1"),
        (("--category", "INCIDENT", "--team", "70"), lambda one: one["team"] == "70"),
        (("--assignee", "none"), lambda one: one["assignee_id"] is None),
        (("--tag", "contact Phone"), lambda one: "contact Phone" in one["tags"]),
        (("--created-from", "2016-06-01T00:00:00Z"), lambda one: one["created_at"] >= "2016-06-01T00:00:00Z"),
        (("--updated-to", "2016-06-01T00:00:00Z"), lambda one: one["updated_at"] <= "2016-06-01T00:00:00Z"),
        (("--environment", "PRODUCTION"), lambda one: one["environment"] == "PRODUCTION"),
        (("--q", "INC0000003"), lambda one: one["number"] == "INC0000003"),
    ],
)
def test_the_filters_choose_the_tickets_that_fit_now(
    log: Run, arguments: tuple[str, ...], fits: Callable[[dict[str, Any]], bool]
) -> None:
    every = lines(log("replay", "--all", "--state", "--format", "jsonl"))
    chosen = log("replay", *arguments, "--state", "--format", "jsonl")
    assert chosen.exit_code == 0, chosen.stderr
    assert lines(chosen) == [one for one in every if fits(one)]


def test_a_person_chooses_by_requester_and_assignee(log: Run) -> None:
    every = lines(log("replay", "--all", "--state", "--format", "jsonl"))
    for option, field in (("--requester", "requester_id"), ("--assignee", "assignee_id")):
        person = next(one[field] for one in every if one[field])
        assert lines(log("replay", option, person, "--state", "--format", "jsonl")) == [
            one for one in every if one[field] == person
        ]


def test_as_of_a_time_every_ticket_is_as_it_then_was(log: Run) -> None:
    at = "2016-07-01T12:00:00Z"
    then = lines(log("replay", "--all", "--as-of", at, "--format", "jsonl"))
    every = lines(log("replay", "--all", "--format", "jsonl"))
    assert then == [one for one in every if one["occurred_at"] <= at]
    assert 0 < len(then) < len(every)
    states = lines(log("replay", "--all", "--as-of", at, "--state", "--format", "jsonl"))
    assert [(one["id"], one["version"]) for one in states] == list(
        {one["ticket_id"]: (one["ticket_id"], one["version"]) for one in then}.values()
    )


def test_of_several_the_one_that_is_not_there_is_named_and_the_others_are_told(log: Run) -> None:
    done = log("replay", "INC0000003", "INC9999999", "INC0000004", "--format", "jsonl")
    assert done.exit_code == 1
    assert "INC9999999" in done.stderr
    assert {one["number"] for one in lines(done)} == {"INC0000003", "INC0000004"}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("INC0000003", "--all"),
        ("--all", "--status", "NEW"),
        ("--status", "SLEEPING"),
        ("--all", "--version", "2"),
        ("--all", "--json"),
        ("INC0000003", "--json", "--state"),
        ("INC0000003", "INC0000004", "--version", "1"),
        ("--assignee", "bob"),
        ("--created-from", "yesterday"),
        ("INC0000003", "--as-of", "2016-07-01T12:00:00"),
    ],
)
def test_what_contradicts_itself_or_says_too_little_is_wrong_usage(log: Run, arguments: tuple[str, ...]) -> None:
    done = log("replay", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage" in done.stderr


def test_a_fact_that_cannot_be_read_is_named_and_stops_nothing_else(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as dsn:
        tickets = run_on(dsn, tmp_path)
        assert tickets("import", "servicenow", str(make_log(tmp_path / "log.csv.gz", incidents=5))).exit_code == 0
        whole = lines(tickets("replay", "--all", "--format", "jsonl"))

        async def tamper() -> None:
            connection = await connect(dsn, role=None)
            await connection.execute("alter table ledger.events disable trigger all")
            await connection.execute(
                "update ledger.events set topic = 'ticket.forgotten.v9' where stream_id = $1 and version = 2",
                whole[0]["ticket_id"],
            )
            await connection.close()

        asyncio.run(tamper())
        done = tickets("replay", "--all", "--format", "jsonl")
        assert done.exit_code == 1
        assert f"version 2, at position {whole[1]['position']}, cannot be read" in done.stderr
        assert lines(done) == [one for one in whole if one["ticket_id"] != whole[0]["ticket_id"] or one["version"] == 1]
        alone = tickets("replay", whole[0]["number"], "--json")
        assert (alone.exit_code, alone.stdout) == (1, "")


def test_where_nobody_reads_on_it_ends_quietly(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as dsn:
        where = {"DATABASE_URL": dsn, "DATA_DIR": str(tmp_path), "JWT_SECRET_KEY": KEY}
        log = make_log(tmp_path / "log.csv.gz", incidents=60)
        assert CliRunner().invoke(main, ["import", "servicenow", str(log)], env=where).exit_code == 0
        with subprocess.Popen(
            [sys.executable, "-m", "api.cli", "replay", "--all", "--format", "csv"],
            env={**where, "PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"ticket_id,")
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 0
