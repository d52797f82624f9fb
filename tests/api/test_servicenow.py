"""The import of another system's log: whole lives, once, and provable row by row.

Runs on a small log of the same shape; SERVICENOW_LOG=<file> runs the same tests on a real one.
"""

import asyncio
import csv
import gzip
import itertools
import os
import signal
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest

from api.servicenow import import_log, ticket_id
from api.servicenow_log import LogError, read_log
from projections.history import Action
from projections.replay import replay
from projections.runner import catch_up_alone
from tests.api.servicenow_log import DIRTY, make_log
from tests.conftest import Service, fresh_database, running_service
from tests.starting import Process, start
from tickets.commands import Policy
from tickets.connections import Connection, connect
from tickets.events import PersonSeen, TicketEvent
from tickets.ledger import Ledger
from tickets.people import People, stream_of
from tickets.permissions import Actor, Role
from tickets.ticket import Ticket, evolve

REAL = os.environ.get("SERVICENOW_LOG")
KILLED_IMPORT = int(os.environ.get("KILLED_IMPORT", "400"))
"""How many incidents there are in the log whose import is killed; in `make faults` there are more."""
STATUS = {"New": "NEW", "Active": "IN_PROGRESS", "Resolved": "RESOLVED", "Closed": "CLOSED"}

Seen = tuple[str, str, str | None, UUID | None]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(REAL) if REAL else make_log(tmp_path_factory.mktemp("log") / "incidents.csv.gz")


def _lives(log: Path) -> dict[str, list[tuple[datetime, Seen]]]:
    """What the file says of each incident, row by row, read without any code of the product."""
    lives: dict[str, list[tuple[datetime, int, dict[str, str]]]] = defaultdict(list)
    with gzip.open(log, "rt", newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.strptime(row["sys_updated_at"], "%d/%m/%Y %H:%M").replace(tzinfo=UTC)
            lives[row["number"]].append((at, int(row["sys_mod_count"]), row))
    told: dict[str, list[tuple[datetime, Seen]]] = {}
    for number, rows in lives.items():
        rows.sort(key=lambda one: one[:2])
        told[number], status = [], "NEW"
        for at, _, row in rows:
            state = row["incident_state"]
            status = STATUS.get(state) or ("PENDING_INFO" if state.startswith("Awaiting") else status)
            team = None if row["assignment_group"] == "?" else row["assignment_group"]
            who = None if row["assigned_to"] == "?" else uuid5(NAMESPACE_URL, f"servicenow:{row['assigned_to']}")
            told[number].append((at, (status, f"P{row['priority']}", team, who)))
    return told


async def _states(ledger: Ledger, number: str) -> list[Ticket]:
    states: list[Ticket] = []
    for fact in await ledger.facts(ticket_id(number)):
        states.append(evolve(cast("TicketEvent", fact), states[-1] if states else None))
    return states


def _seen(ticket: Ticket) -> Seen:
    return (ticket.status, ticket.priority, ticket.team, ticket.assignee_id)


async def test_the_state_as_of_every_rows_time_is_the_row(ledger: Ledger, log: Path) -> None:
    report = await import_log(ledger, log, Policy())
    lives = _lives(log)
    assert report.incidents == len(lives)
    assert report.rows == sum(map(len, lives.values()))
    for number, rows in lives.items():
        states = await _states(ledger, number)
        times = [state.updated_at for state in states]
        for place, (at, row) in enumerate(rows):
            is_last_of_its_minute = place + 1 == len(rows) or rows[place + 1][0] > at
            if is_last_of_its_minute:
                assert _seen(states[bisect_right(times, at) - 1]) == row, (number, at)
            else:
                # Within the same minute only the last can be told by time; the others were passed through.
                passed = [_seen(state) for state in states if state.updated_at <= at]
                assert row in passed, (number, at)


async def test_the_ledger_answers_as_of_a_row_what_the_row_says(ledger: Ledger, log: Path) -> None:
    await import_log(ledger, log, Policy())
    for number, rows in list(_lives(log).items())[:25]:
        at, row = rows[-1]
        life = await replay(ledger, ticket_id(number), as_of=at)
        assert life is not None
        assert (life.ticket.status, life.ticket.priority, life.ticket.team, life.ticket.assignee_id) == row


OPEN = ("NEW", "OPEN", "IN_PROGRESS", "PENDING_INFO", "ESCALATED", "REOPENED")
MONTH_ENDS = [
    datetime(2016 + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
    for month in range(3, 15)
]
PAIRS = 10_000 if REAL else 300


class Past:
    """The log, imported, with a service that answers for it; and how long that took each time."""

    def __init__(self, log: Path, service: Service) -> None:
        self.lives = _lives_from_the_opening(log)
        self.client = service.client(Role.ADMIN)
        self.took: list[float] = []

    def asked(self, path: str, *parameters: tuple[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        answer = self.client.get(f"/api/v1/tickets{path}", params=list(parameters))
        self.took.append(1000 * (time.perf_counter() - began))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def told(self, number: str, at: datetime) -> Seen | None:
        """What the file says of an incident at a time; None where it was not there yet."""
        times, rows = self.lives[number]
        place = bisect_right(times, at)
        return rows[place - 1] if place else None

    def listed(self, at: datetime, *filters: tuple[str, str]) -> dict[str, Seen]:
        """The tickets that were open at a moment, as the list has them, page by page."""
        found: dict[str, Seen] = {}
        more: tuple[tuple[str, str], ...] = ()
        while True:
            always = [("as_of", at.isoformat()), ("page_size", 100), *(("status", one) for one in OPEN)]
            page = self.asked("", *always, *filters, *more)
            found |= {one["number"]: _shown(one) for one in page["items"]}
            if page["next_cursor"] is None:
                assert page["total"] == len(found)
                return found
            more = (("cursor", page["next_cursor"]),)

    def report(self, what: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Say how long it took, and see to it that it was not out of all proportion."""
        took = sorted(self.took)
        self.took = []
        with capsys.disabled():
            middle, late = took[len(took) // 2], took[len(took) * 99 // 100]
            print(f"\n{what}: {len(took)} requests, ms: {middle:.1f} median, {late:.1f} p99, {took[-1]:.1f} at most")  # noqa: T201 - the figures
        assert took[-1] < 2_000


def _shown(ticket: dict[str, Any]) -> Seen:
    who = ticket["assignee_id"]
    return (ticket["status"], ticket["priority"], ticket["team"], None if who is None else UUID(who))


def _lives_from_the_opening(log: Path) -> dict[str, tuple[list[datetime], list[Seen]]]:
    """As `_lives`, and before the first row the incident that was opened: new, nobody's, as urgent as it first was."""
    opened: dict[str, datetime] = {}
    with gzip.open(log, "rt", newline="") as file:
        for row in csv.DictReader(file):
            opened[row["number"]] = datetime.strptime(row["opened_at"], "%d/%m/%Y %H:%M").replace(tzinfo=UTC)
    lives: dict[str, tuple[list[datetime], list[Seen]]] = {}
    for number, rows in _lives(log).items():
        first, (_, priority, _, _) = rows[0]
        start: tuple[datetime, Seen] = (min(opened[number], first), ("NEW", priority, None, None))
        lives[number] = ([at for at, _ in (start, *rows)], [seen for _, seen in (start, *rows)])
    return lives


@pytest.fixture(scope="module")
def past(server: str, template: str, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    async def imported(dsn: str) -> None:
        async with Ledger.open(dsn, timeout=60) as ledger:
            await import_log(ledger, log, Policy())
        connection = await connect(dsn, timeout=60)
        await catch_up_alone(connection)
        await connection.close()
        owner = await connect(dsn, role=None, timeout=60)
        await owner.execute("vacuum analyze")  # as autovacuum does within a minute
        await owner.close()

    with fresh_database(server, template) as dsn:
        asyncio.run(imported(dsn))
        with running_service(dsn, tmp_path_factory.mktemp("past")) as service:
            found = Past(log, service)
            yield found
            found.client.close()


def test_a_ticket_as_of_any_time_is_what_the_file_says_of_it_then(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = Random(20161231)  # noqa: S311 - the same pairs every time
    numbers = sorted(past.lives)
    seen = 0
    while seen < PAIRS:
        number = chance.choice(numbers)
        times, _ = past.lives[number]
        at = chance.choice(times) + chance.choice([timedelta(), timedelta(minutes=1)]) * chance.randrange(20_000)
        if chance.random() < 0.2:
            at = times[0] + (times[-1] - times[0]) * chance.random()
        assert _shown(past.asked(f"/{ticket_id(number)}", ("as_of", at.isoformat()))) == past.told(number, at)
        seen += 1
    past.report("a ticket as of a time", capsys)


def test_what_was_open_at_the_ends_of_twelve_months_is_what_the_file_says_by_priority_and_team(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for at in MONTH_ENDS:
        told = {f"INC{number}": seen for number in past.lives if (seen := past.told(number, at)) is not None}
        still_open = {number: seen for number, seen in told.items() if seen[0] in OPEN}
        assert past.listed(at) == still_open
        sizes.append(len(still_open))
        for priority in ("P1", "P2", "P3", "P4"):
            expected = {number: seen for number, seen in still_open.items() if seen[1] == priority}
            assert past.listed(at, ("priority", priority)) == expected
        for team in sorted({seen[2] for seen in still_open.values() if seen[2] is not None}):
            expected = {number: seen for number, seen in still_open.items() if seen[2] == team}
            assert past.listed(at, ("team", team)) == expected
    past.report(f"lists as of the ends of 12 months, with {sizes} open", capsys)
    for at in MONTH_ENDS:
        told = {number: seen for number in past.lives if (seen := past.told(number, at)) is not None}
        counted = past.asked("/counts", ("as_of", at.isoformat()))
        assert counted["total"] == len(told)
        assert counted["status"] == {one: sum(seen[0] == one for seen in told.values()) for one in counted["status"]}
    past.report("counts as of the same", capsys)
    assert max(sizes) > 1


async def test_a_row_that_is_active_again_is_a_reopening(ledger: Ledger, log: Path) -> None:
    await import_log(ledger, log, Policy())
    expected = actual = 0
    for number, rows in _lives(log).items():
        over = [seen[0] in ("RESOLVED", "CLOSED") for _, seen in rows]
        expected += sum(before and not after for before, after in itertools.pairwise(over))
        life = await replay(ledger, ticket_id(number))
        assert life is not None
        actual += sum(entry.action is Action.REOPENED for entry in life.history)
    assert actual == expected > 0


@pytest.mark.skipif(REAL is not None, reason="the real log has dirty rows of its own")
async def test_dirty_rows_are_reported_and_lose_no_incident(ledger: Ledger, log: Path) -> None:
    report = await import_log(ledger, log, Policy())
    assert sorted({one.number for one in report.dirty}) == ["0000007", "0000040"]
    assert len(report.dirty) == len(DIRTY)
    assert all("-100" in one.what and one.line > 1 for one in report.dirty)
    assert await _states(ledger, "0000007")


async def test_a_second_import_adds_nothing(ledger: Ledger, log: Path) -> None:
    first = await import_log(ledger, log, Policy())
    head = await ledger.head()
    second = await import_log(ledger, log, Policy())
    assert await ledger.head() == head
    assert (first.facts, second.facts) == (head, 0)
    assert (first.known, second.known > 0) == (0, True)


@pytest.mark.skipif(REAL is not None, reason="needs logs of its own making")
async def test_a_longer_log_adds_what_is_new(ledger: Ledger, tmp_path: Path) -> None:
    whole = make_log(tmp_path / "whole.csv.gz", incidents=30)
    lines = gzip.decompress(whole.read_bytes()).decode().splitlines()
    shorter = tmp_path / "shorter.csv"
    shorter.write_text("\n".join(line for line in lines if line.split(",")[1] != "Closed") + "\n")
    await import_log(ledger, shorter, Policy())
    await import_log(ledger, whole, Policy())
    for number, rows in _lives(whole).items():
        states = await _states(ledger, number)
        assert [state.version for state in states] == list(range(1, len(states) + 1))
        if number != "0000011":  # there the new row is the oldest: what has been recorded since stays
            assert _seen(states[-1]) == rows[-1][1]


async def test_people_are_known_with_the_teams_they_had_tickets_in(
    ledger: Ledger, owner: Connection, log: Path
) -> None:
    report = await import_log(ledger, log, Policy())
    await catch_up_alone(owner)
    assert await owner.fetchval("select count(*) from read_model.people") == report.people
    person = uuid5(NAMESPACE_URL, "servicenow:17")
    row = await owner.fetchrow("select username, role, teams from read_model.people where person_id = $1", person)
    assert row is not None
    teams = {seen[2] for life in _lives(log).values() for _, seen in life if seen[3] == person} - {None}
    assert (row["username"], row["role"], set(row["teams"])) == ("17", None, teams)


async def test_what_a_token_said_of_somebody_is_not_overwritten(ledger: Ledger, log: Path) -> None:
    person = uuid5(NAMESPACE_URL, "servicenow:17")
    await People(ledger).saw(Actor(id=person, role=Role.MANAGER, username="grace", teams=("Board",)))
    await import_log(ledger, log, Policy())
    last = await ledger.last(stream_of(person))
    assert isinstance(last, PersonSeen)
    assert (last.username, last.role, last.teams) == ("grace", Role.MANAGER, ("Board",))


def test_an_import_killed_half_way_and_started_again_ends_the_same(
    server: str, template: str, tmp_path: Path, log: Path
) -> None:
    log = log if REAL else make_log(tmp_path / "longer.csv.gz", incidents=KILLED_IMPORT)

    def importing(dsn: str) -> Process:
        where = {"PATH": os.environ["PATH"], "DATABASE_URL": dsn, "DATA_DIR": str(tmp_path)}
        with Path(os.devnull).open("wb") as nowhere:
            return start(["import", "servicenow", str(log)], where, nowhere, nowhere)

    async def facts(dsn: str) -> set[tuple[object, ...]]:
        connection = await connect(dsn, role=None)
        rows = await connection.fetch(
            "select stream_id, version, topic, state from ledger.events where topic like 'ticket.%'"
        )
        await connection.close()
        assert len(rows) == len({tuple(row) for row in rows})
        return {tuple(row) for row in rows}

    async def count(dsn: str) -> int:
        connection = await connect(dsn, role=None)
        found: int = await connection.fetchval("select position from ledger.head")
        await connection.close()
        return found

    with fresh_database(server, template) as whole, fresh_database(server, template) as killed:
        assert importing(whole).wait(300) == 0
        complete = asyncio.run(count(whole))
        process = importing(killed)
        while asyncio.run(count(killed)) < complete // 3:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert asyncio.run(count(killed)) < complete
        assert importing(killed).wait(300) == 0
        assert asyncio.run(facts(killed)) == asyncio.run(facts(whole))


def test_a_file_that_is_no_log_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("number,name\n1,x\n")
    with pytest.raises(LogError, match="incident_state"):
        read_log(other)
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(LogError, match="cannot be read"):
        read_log(broken)


@pytest.mark.skipif(REAL is not None, reason="makes a log of its own")
def test_a_row_that_cannot_be_read_is_reported_with_its_line_and_left_out(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.csv.gz", incidents=3)
    lines = gzip.decompress(log.read_bytes()).decode().splitlines()
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([*lines, "0000001,New", lines[1].replace("/2016 ", "/20x6 ")]) + "\n")
    assert [one.line for one in read_log(bad).dirty if "left out" in one.what] == [len(lines) + 1, len(lines) + 2]
