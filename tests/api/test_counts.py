"""The numbers on the tabs: always what counting would find, for staff and for each requester, and kept, not counted."""

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from time import sleep
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from projections.comparison import Compared
from projections.rebuild import rebuild
from tests.conftest import NEW_TICKET, Service, start_service
from tests.tickets.test_ledger import SOMEBODY, appending, created
from tickets.connections import Connection
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.values import Category, Environment

TICKETS = "/api/v1/tickets"
COUNTS = f"{TICKETS}/counts"
STAFF = UUID(int=7)
REQUESTERS = [UUID(int=100 + number) for number in range(4)]
_MISSED_S = 0.05
"""After this every ticket of P1 to P3 has missed its deadline: none must while they are counted."""
FILTERS = {"status": Status, "priority": Priority, "category": Category}


@pytest.fixture
def desk(dsn: str, tmp_path: Any) -> Iterator[Service]:
    """A service that has promised to answer within a hundredth of a second, and fixes P4 in time."""
    hours = {f"SLA_P{number}_RESPONSE_HOURS": "0.000003" for number in (1, 2, 3)}
    found = start_service(dsn, tmp_path, **hours)
    yield found
    found.stop()


def lived(desk: Service, tickets: int) -> None:
    """Tickets that change in every way that a count could miss."""
    chance = random.Random(20261124)  # noqa: S311 - the same every time
    with desk.client(Role.ADMIN, STAFF, teams=("Network",)) as admin:
        for number in range(tickets):
            made = admin.post(
                TICKETS,
                json={
                    **NEW_TICKET,
                    "priority": chance.choice(list(Priority)),
                    "category": chance.choice(list(Category)),
                    "requester_id": str(REQUESTERS[number % len(REQUESTERS)]),
                    "environment": chance.choice([*Environment, None]),
                },
            ).json()
            url = f"{TICKETS}/{made['id']}"
            for _ in range(chance.randrange(6)):
                way = chance.randrange(6)
                if way == 0:
                    admin.put(f"{url}/assign", json={"assignee_id": chance.choice([str(STAFF), None])})
                elif way == 1:
                    admin.put(f"{url}/assign", json={"team": chance.choice(["Network", "Mail", None])})
                elif way == 2:
                    admin.patch(url, json={"priority": chance.choice(list(Priority))})
                elif way == 3:
                    admin.patch(f"{url}/status", json={"status": chance.choice(list(Status)), "reason": "so"})
                elif way == 4:
                    admin.delete(url)
                else:
                    admin.post(f"{url}/restore")
    sleep(_MISSED_S)


def total(client: httpx.Client, **filters: str) -> int:
    found: int = client.get(TICKETS, params={**filters, "page_size": 1}).json()["total"]
    return found


def test_every_number_is_what_the_list_with_that_filter_has(desk: Service) -> None:
    lived(desk, 60)
    people = [(Role.TEAM_LEAD, uuid4()), *((Role.END_USER, one) for one in REQUESTERS), (Role.END_USER, uuid4())]
    for role, person in people:
        with desk.client(role, person) as client:
            counts = client.get(COUNTS).json()
            assert counts["total"] == total(client)
            for name, values in FILTERS.items():
                assert counts[name] == {value: total(client, **{name: value}) for value in values}
            assert counts["team"] == {team: n for team in ("Network", "Mail") if (n := total(client, team=team))}
            mine = total(client, assignee_id=str(STAFF))
            assert counts["assignee"] == ({str(STAFF): mine} if mine else {})
            assert counts["unassigned"] == total(client, assignee_id="none")
            assert counts["breached"] == total(client, breached="true")
            assert (counts["total"] == 0) == (person == people[-1][1])
            if role is not Role.END_USER:
                assert 0 < counts["breached"] < counts["total"]


async def test_what_was_due_on_earlier_days_is_late_and_what_is_due_on_later_ones_is_not(
    desk: Service, ledger: Ledger
) -> None:
    now, position = datetime.now(UTC), 0
    for days in (-400, -3, -2, 2, 400):
        ticket = uuid4()
        outcome = await ledger.append(appending(ticket, 0, created(ticket, at=now + timedelta(days=days))))
        position = outcome.position
    people = ((Role.TEAM_LEAD, uuid4(), 3), (Role.END_USER, SOMEBODY.id, 3), (Role.END_USER, uuid4(), 0))
    for role, person, late in people:
        with desk.client(role, person) as client:
            client.headers["Ledger-Position"] = str(position)
            assert client.get(COUNTS).json()["breached"] == late == total(client, breached="true")


async def test_they_are_the_same_after_a_rebuild_and_have_no_row_for_nothing(
    desk: Service, dsn: str, owner: Connection
) -> None:
    lived(desk, 40)
    with desk.client() as client:
        before = client.get(COUNTS).json()
        assert await owner.fetchval("select count(*) from read_model.counts where n <= 0") == 0
        found = [step async for step in rebuild(dsn) if isinstance(step, Compared)]
        assert all(one.clean for one in found)
        assert client.get(COUNTS).json() == before


async def test_they_are_read_not_counted(desk: Service, owner: Connection) -> None:
    lived(desk, 8)
    with desk.client() as client:
        seen = client.get(COUNTS).json()["total"]
        await owner.execute("insert into read_model.counts values ('everybody', 'cell', 'CLOSED/P4/PROBLEM/', 20000)")
        assert client.get(COUNTS).json()["total"] == seen + 20_000
        closed = client.get(TICKETS, params={"status": "CLOSED", "priority": ["P3", "P4"]}).json()
        assert (closed["total"], closed["total_is_exact"]) == (20_000, True), "the total of a list as well"


def test_the_total_of_a_list_is_as_many_as_it_has_whatever_it_asks_for(desk: Service) -> None:
    lived(desk, 60)
    asked: dict[str, list[Any]] = {
        "status": [[], ["NEW"], ["OPEN", "IN_PROGRESS", "CLOSED"]],
        "priority": [[], ["P2"], ["P1", "P4"]],
        "category": [[], ["INCIDENT"], ["PROBLEM", "QUESTION"]],
        "environment": [[], ["PRODUCTION"], ["STAGING", "TESTING"]],
    }
    totals = []
    for who in (STAFF, REQUESTERS[0]):
        with desk.client(Role.ADMIN if who == STAFF else Role.END_USER, who) as client:
            for one in product(*asked.values()):
                wanted = dict(zip(asked, one, strict=True))
                found = client.get(TICKETS, params={**wanted, "page_size": 100}).json()
                assert (found["total"], found["total_is_exact"]) == (len(found["items"]), True), wanted
                totals.append(found["total"])
    assert len(set(totals)) > 10


async def test_what_was_missed_on_earlier_days_is_summed_and_today_is_looked_at(
    desk: Service, owner: Connection
) -> None:
    with desk.client() as client:
        client.post(TICKETS, json={**NEW_TICKET, "priority": "P1"})
        await asyncio.sleep(_MISSED_S)
        assert client.get(COUNTS).json()["breached"] == 1
        await owner.execute(
            """insert into read_model.counts values
               ('everybody', 'breach', '2020-02-29', 5), ('everybody', 'breach', '9999-12-31', 7)"""
        )
        assert client.get(COUNTS).json()["breached"] == 6


def test_the_numbers_take_no_parameters_and_are_as_fresh_as_asked_for(desk: Service) -> None:
    with desk.client() as client:
        refused = client.get(COUNTS, params={"status": "NEW"})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "status")
        for number in range(5):
            made = client.post(TICKETS, json=NEW_TICKET)
            counted = client.get(COUNTS, headers={"Ledger-Position": made.headers["Ledger-Position"]})
            assert counted.json()["total"] == number + 1
            assert int(counted.headers["Ledger-Position"]) >= int(made.headers["Ledger-Position"])
