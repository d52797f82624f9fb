"""What the service asks of its database goes by an index, whatever it is: nothing is read from end to end that grows.

The planner is told to avoid sequential scans, so that small tables are asked as large ones would be; PostgreSQL's own
statistics then count those that it could not avoid. Deliberately absent: what the answers are.
"""

from pathlib import Path
from typing import Final, cast

import pytest

from projections.lists import Filter, Sort, search
from tests.api.test_no_leak import FOR_STAFF, OF_A_TICKET, OF_THE_SERVICE, TICKETS, Desk
from tests.conftest import NEW_TICKET, start_service
from tickets.connections import Connection, Pool
from tickets.lifecycle import Status
from tickets.permissions import Role

BOUNDED: Final = {
    "ledger.head": "one row",
    "ledger.schema_applied": "one row",
    "read_model.checkpoints": "a row for each projection",
    "read_model.parked": "what could not be digested: read whole by those who tell of it",
}
"""Tables that do not grow with the ledger, and why."""

_ANSWERED: Final = {200, 303, 400, 503}
"""400 where a route wants parameters; 503 for a proof of what is under no checkpoint yet."""

FILTERS: Final = (
    *("status=NEW", "status=NEW&status=OPEN", "priority=P1", "category=INCIDENT", "environment=PRODUCTION"),
    *("assignee_id=me", "assignee_id=none", "team=Network", "affected_service=web-app-01", "tag=web"),
    *("requester_id=00000000-0000-0000-0000-000000000001", "created_from=2026-01-01T00:00:00Z"),
    *("created_to=2030-01-01T00:00:00Z", "updated_from=2026-01-01T00:00:00Z", "updated_to=2030-01-01T00:00:00Z"),
    *("breached=true", "breached=false", "q=server", "q=server&status=NEW&priority=P1", "q=nothing-like-it"),
)


COMMANDS: Final = (
    ("PUT", "", {"title": "Another", "description": "Another", "category": "PROBLEM", "priority": "P2"}),
    ("PATCH", "", {"title": "Another one", "tags": ["vpn"]}),
    ("PUT", "/assign", {"team": "Network"}),
    ("PATCH", "/status", {"status": "IN_PROGRESS"}),
    ("POST", "/comments", {"body": "A restart helped."}),
    ("POST", "/resolve", {"resolution_notes": "It was restarted, and the cause was found."}),
    ("POST", "/close", None),
    ("POST", "/reopen", {"reason": "It is back again."}),
    ("DELETE", "", None),
    ("POST", "/restore", None),
)
"""All that is done to a ticket, in an order in which it can be."""


async def test_no_query_reads_a_table_that_grows_from_end_to_end(dsn: str, owner: Connection, tmp_path: Path) -> None:
    database = await owner.fetchval("select current_database()")
    await owner.execute(f"alter database {database} set enable_seqscan = off")
    service = start_service(dsn, tmp_path, CHECKPOINT_SECONDS="1", DRIFT_SAMPLE_SECONDS="0.2")
    desk = Desk(service, internal=True)
    try:
        for who in (desk.requester, desk.engineer):
            for path, queries in OF_A_TICKET.items():
                for query in queries:
                    desk.looked(path, query, who)
            for query in (*FILTERS, *(f"sort={sort}" for sort in Sort if sort is not Sort.RELEVANCE)):
                desk.looked(TICKETS, query, who)
                if not query.startswith("q="):
                    desk.looked(TICKETS, f"{query}&as_of={{after_the_last_public}}", who)
        with service.client(Role.ADMIN) as admin:
            for path in (*OF_THE_SERVICE.values(), *FOR_STAFF):
                asked = admin.get(path.replace("{ticket_id:uuid}", desk.ticket_id))
                assert asked.status_code in _ANSWERED, asked.text
            own = admin.post(TICKETS, json=NEW_TICKET).json()["id"]
            for method, path, body in COMMANDS:
                headers = {"Idempotency-Key": f"{method}{path}"}
                done = admin.request(method, f"{TICKETS}/{own}{path}", json=body, headers=headers)
                assert done.is_success, done.text
            comment = admin.post(f"{TICKETS}/{own}/comments", json={"body": "It is to be taken back."}).json()["id"]
            file = admin.post(f"{TICKETS}/{own}/attachments", files={"file": ("a.txt", b"Something")}).json()["id"]
            for path in (f"comments/{comment}", f"attachments/{file}"):
                assert admin.delete(f"/api/v1/{path}").status_code == 204, path
    finally:
        desk.http.close()
        service.stop()  # each of its connections tells what it did when it ends
    scanned = await owner.fetch(
        """select schemaname || '.' || relname, seq_scan from pg_stat_user_tables
           where schemaname in ('ledger', 'read_model') and seq_scan > 0"""
    )
    assert {name: scans for name, scans in scanned if name not in BOUNDED} == {}
    assert await owner.fetchval("select count(*) from pg_stat_user_tables where idx_scan > 0") > 12, "all were asked"


@pytest.mark.usefixtures("ledger")
async def test_a_search_looks_up_what_it_found_however_much_the_database_expects(owner: Connection) -> None:
    """How many texts have a word it cannot know, and takes it for a share of all: for most tickets, of thousands."""
    await owner.execute(
        """insert into read_model.tickets
           select gen_random_uuid(), 'TKT-' || n, 1, n, 'NEW', 0, 'P2', 'INCIDENT', null, null, '{}', gen_random_uuid(),
                  null, null, now(), now(), null, null, null, false, 0,
                  convert_to(json_build_object('said', repeat(md5(n::text), 40))::text, 'UTF8')
           from generate_series(1, 2000) n"""
    )
    await owner.execute(
        """insert into read_model.texts
           select gen_random_uuid(), ticket_id, position, false, '',
                  'word' || n || case when n = position then ' rare' else '' end
           from read_model.tickets, generate_series(1, 20) n"""
    )
    await owner.execute("vacuum analyze")
    await owner.execute("select pg_stat_force_next_flush()")  # of what was done for it until here
    async with owner.transaction():
        for wanted in (Filter(q="rare"), Filter(q="word7"), Filter(q="rare", status=(Status.NEW,))):
            await search(cast("Pool", owner), wanted, sort=Sort.RELEVANCE)
        scanned = await owner.fetch("select relname, seq_scan from pg_stat_xact_user_tables where seq_scan > 0")
    assert {name for name, _ in scanned} <= {"parked"}
