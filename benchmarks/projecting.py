"""Catching up: our runner with all read models, beside the eventsourcing library's projection runner with one table.

Both have the same facts about tickets on the same server, each in its own ledger, and begin at the first. The
library's projection is as its documentation has them: a transaction for each event, in which a row is written, the
ticket's version and the event's topic, and how far it is. Ours folds the tickets and writes the read models that the
API answers with, of many facts in one transaction. They take turns, and in the end each must have every ticket at its
version.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from time import perf_counter
from typing import Any, Final
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, StoredEvent, Tracking
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.sql import SQL

from benchmarks.append import datastore, parts
from benchmarks.lives import fill
from benchmarks.measurement import Bench, Benchmark, Figure, Round
from benchmarks.rebuild import catch_up
from projections.runner import PROJECTIONS
from tickets.connections import connected
from tickets.events import Fact
from tickets.ledger import read
from tickets.mapper import FactMapper

_PATIENCE_S: Final = 120.0


class _Desk(Application[UUID]):
    """What the library's runner follows: an application with our facts, in the table that the recorder filled."""

    name = "stored"

    def construct_mapper(self) -> Mapper[UUID]:
        return FactMapper()


class _View(PostgresTrackingRecorder):
    """A read model as the library has them: rows, and beside them how far it is."""

    def __init__(self, datastore: PostgresDatastore, **names: Any) -> None:
        super().__init__(datastore, **names)
        rows = SQL("create table if not exists tickets_view (ticket_id uuid primary key, version int, topic text)")
        self.sql_create_statements.append(rows.format())

    def note(self, fact: Fact, tracking: Tracking) -> None:
        """Write the ticket's row and how far this is, in one transaction."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                """insert into tickets_view values (%s, %s, %s) on conflict (ticket_id)
                   do update set version = excluded.version, topic = excluded.topic""",
                (fact.originator_id, fact.originator_version, fact.TOPIC),
                prepare=True,
            )


class _Tickets(Projection[_View]):
    name = "tickets"

    def process_event(self, domain_event: Fact, tracking: Tracking) -> None:
        self.view.note(domain_event, tracking)


async def _measure(bench: Bench) -> AsyncIterator[Round]:
    tickets = 300 if bench.quick else 2_000
    dsn = await bench.server.filled(f"{tickets} lives twice", partial(_fill, tickets=tickets))
    async with connected(dsn, role=None, timeout=60) as connection:
        facts: int = await connection.fetchval("select position from ledger.head")
        events: int = await connection.fetchval("select count(*) from stored_events")
        for _ in range(bench.rounds):
            await connection.execute(
                f"truncate read_model.checkpoints, {', '.join(f'read_model.{name}' for name in PROJECTIONS)}"
            )
            await connection.execute("drop table if exists tickets_view, tickets_tracking")
            await bench.server.settle()
            theirs = events / await asyncio.to_thread(_follow, dsn, events)
            await bench.server.settle()
            ours = facts / await catch_up(dsn, facts)
            different: int = await connection.fetchval(
                """select count(*) from (select stream_id, max(version) as version from ledger.events
                                         where topic like 'ticket.%' group by stream_id) e
                   full join tickets_view v on v.ticket_id = e.stream_id
                   full join read_model.tickets t on t.ticket_id = e.stream_id
                   where (v.version, t.version) is distinct from (e.version, e.version)"""
            )
            assert different == 0, f"{different} tickets are not as they should be"
            yield {"ours": ours, "theirs": theirs, "ratio": ours / theirs}


async def _fill(dsn: str, *, tickets: int) -> None:
    """Our ledger, and the same facts in the library's."""
    await fill(dsn, tickets)
    async with connected(dsn) as connection:
        raws = await read(connection, 0, 1_000_000)
    stored = [
        StoredEvent(one.stream_id, one.version, one.topic, one.state) for one in raws if one.topic.startswith("ticket.")
    ]
    await asyncio.to_thread(_store, dsn, stored)


def _store(dsn: str, stored: list[StoredEvent]) -> None:
    with datastore(dsn, 1, function=False) as opened:
        recorder = PostgresApplicationRecorder(opened)
        recorder.create_table()
        for first in range(0, len(stored), 500):
            recorder.insert_events(stored[first : first + 500])


def _follow(dsn: str, events: int) -> float:
    """How long the library's runner takes, in seconds."""
    of = parts(dsn)
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": of["dbname"],
        "POSTGRES_HOST": of.get("host", ""),
        "POSTGRES_PORT": of.get("port", "5432"),
        "POSTGRES_USER": of.get("user", ""),
        "POSTGRES_PASSWORD": of.get("password", ""),
    }
    started = perf_counter()
    with ProjectionRunner(application_class=_Desk, projection_class=_Tickets, view_class=_View, env=env) as runner:
        runner.wait(events, timeout=_PATIENCE_S)
        return perf_counter() - started


PROJECTING: Final = Benchmark(
    "projecting",
    (
        Figure("ours", f"our runner from nothing, {len(PROJECTIONS)} read models", "facts/s"),
        Figure("theirs", "the library's projection runner, one table", "facts/s"),
        Figure("ratio", "our runner / the library's", "x"),
    ),
    _measure,
)
