"""How the tail stands: how far the read models are behind, who leads, what is parked, and what holds things up.

Everything waits for two rows: the ledger's head, which every append locks, and the checkpoints, which the runner
locks. Who holds one of them for longer than a moment, or whom their holder waits for in turn, is named. Looked at in
the background, so that no answer about it waits for a database that is stuck. Deliberately absent: doing anything
about it.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import structlog
from msgspec import Struct

from projections.runner import LED_BY, PROJECTIONS
from tickets.connections import CANNOT_CONNECT, Connection, in_transaction

HELD: Final = ("ledger.head", "read_model.checkpoints")
A_MOMENT: Final = timedelta(seconds=1)
"""Shorter than this, nothing is worth naming."""

_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 5.0
_LOCK_PATIENCE: Final = "250ms"
_STATEMENT: Final = 200
_DEEPEST: Final = 8

_log: Final = structlog.get_logger(__name__)


class Process(Struct, frozen=True):
    """A process as the database knows it: its own process for it, what it calls itself, where it is."""

    pid: int
    application_name: str
    client_address: str | None


class Holder(Process, frozen=True):
    """Somebody who holds something, since their transaction began, and their statement, the last or the current."""

    since: datetime | None
    state: str | None
    statement: str


class Stall(Struct, frozen=True):
    """What stands still: the rows that are waited for, since when, and who holds them, if somebody does."""

    rows: list[str]
    since: datetime | None
    held_by: list[Holder]


class Standing(Struct, frozen=True):
    """How the read models stand to the ledger."""

    looked_at: datetime
    behind: int
    oldest_seconds: float
    """How old the oldest fact is that is not in all read models; 0 where there is none."""
    leader: Process | None
    parked: int
    """How many streams are parked in some read model."""
    stall: Stall | None


class Watch:
    """Looks every second, and knows what was seen last."""

    def __init__(self) -> None:
        """Nothing was seen yet; `run` looks."""
        self.seen: Standing | None = None

    async def run(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        """Look again and again, until cancelled."""
        while True:
            connection: Connection | None = None
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    connection = await connect()
                while True:
                    async with asyncio.timeout(_PATIENCE_S):
                        self.seen = await look(connection, self.seen)
                    await asyncio.sleep(_EVERY_S)
            except CANNOT_CONNECT as error:
                _log.warning("stalls.interrupted", error=repr(error))
                await asyncio.sleep(_EVERY_S)
            finally:
                if connection is not None and not connection.is_closed():
                    connection.terminate()


async def look(connection: Connection, before: Standing | None = None) -> Standing:
    """How it is now. Where a table of ours is locked as a whole, the numbers are those of `before`."""
    behind, oldest, moved_at, parked = (
        0 if before is None else before.behind,
        None,
        None,
        before.parked if before else 0,
    )
    try:
        async with in_transaction(connection, readonly=True):
            await connection.execute(f"set local lock_timeout = '{_LOCK_PATIENCE}'")
            ((behind, oldest, moved_at, parked),) = await connection.fetch(
                """select h.position - c.position,
                          (select recorded_at from ledger.events where position = c.position + 1),
                          coalesce(c.moved_at, 'epoch'), (select count(distinct stream_id) from read_model.parked)
                   from ledger.head h,
                     (select case when count(*) = cardinality($1::text[]) then min(position) else 0 end as position,
                             max(updated_at) as moved_at
                      from read_model.checkpoints where projection = any($1)) c""",
                list(PROJECTIONS),
            )
    except asyncpg.LockNotAvailableError:
        pass  # who has it is found below
    tables: dict[int, str] = {
        row[0]: row[1]
        for row in await connection.fetch("select name::regclass::oid, name from unnest($1::text[]) name", list(HELD))
    }
    async with in_transaction(connection, readonly=True):
        # As whoever it signed in as: the role that the service works as is not told what others do.
        await connection.execute("set local role none")
        now: datetime = await connection.fetchval("select now()")
        leader = await connection.fetchrow(
            f"select pid, application_name, host(client_addr) from pg_stat_activity where pid in ({LED_BY})"
        )
        rows, since, pids = await _held(connection, tables, now)
        holders = await _holders(connection, pids)
    unmoved = None if oldest is None else max(oldest, moved_at)
    still = unmoved is not None and unmoved < now - A_MOMENT
    return Standing(
        looked_at=now,
        behind=max(0, behind),
        oldest_seconds=0.0 if oldest is None else max(0.0, round((now - oldest).total_seconds(), 3)),
        leader=None if leader is None else Process(*leader),
        parked=parked,
        stall=Stall(rows, since or unmoved, holders) if holders or still else None,
    )


async def _held(
    connection: Connection, tables: dict[int, str], now: datetime
) -> tuple[list[str], datetime | None, set[int]]:
    """Which of our rows are held for longer than a moment, since when, and by which processes in the end."""
    found = await connection.fetch(
        """select l.pid, array_agg(distinct l.relation::bigint), min(w.waitstart), min(a.xact_start)
           from pg_locks l join pg_stat_activity a using (pid)
             left join lateral (select min(waitstart) as waitstart from pg_locks
                                where pid = l.pid and not granted) w on true
           where l.locktype = 'relation' and l.relation = any($1::oid[]) and l.pid <> pg_backend_pid()
             and l.mode not in ('AccessShareLock', 'ShareUpdateExclusiveLock')
             and l.database = (select oid from pg_database where datname = current_database())
           group by l.pid""",
        list(tables),
    )
    waiting = {row[0] for row in found if row[2] is not None and row[2] < now - A_MOMENT}
    holding = {row[0] for row in found if row[2] is None and row[3] is not None and row[3] < now - A_MOMENT}
    concerned = [row for row in found if row[0] in waiting | holding]
    names = sorted({tables[oid] for row in concerned for oid in row[1]})
    since = min((row[2] or row[3] for row in concerned), default=None)
    blocked = waiting
    for _ in range(_DEEPEST):  # who holds something may wait for somebody in turn
        rows = await connection.fetch("select pid, pg_blocking_pids(pid) from unnest($1::int[]) pid", list(blocked))
        blockers = {pid for row in rows for pid in row[1]}
        if not blockers:
            break
        holding |= blockers
        holding -= {row[0] for row in rows if row[1]}
        blocked = blockers - blocked
    return names, since, holding - waiting


async def _holders(connection: Connection, pids: Iterable[int]) -> list[Holder]:
    rows = await connection.fetch(
        """select pid, coalesce(application_name, ''), host(client_addr), xact_start, state, query
           from unnest($1::int[]) pid left join pg_stat_activity a using (pid) order by xact_start, pid""",
        list(pids),
    )
    return [
        Holder(pid, name, address, since, state, _statement(pid, state, query))
        for pid, name, address, since, state, query in rows
    ]


def _statement(pid: int, state: str | None, query: str | None) -> str:
    if pid == 0:
        return "a prepared transaction; see pg_prepared_xacts"
    if query is None:
        return "gone meanwhile"
    if state is None and query.startswith("<"):
        return "statement hidden; grant pg_read_all_stats"
    return without_values(query)[:_STATEMENT]


_VALUE: Final = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
      | \b[eE]'(?:[^'\\]|\\.|'')*+(?:'|\\?\Z)
      | \b(?:[bBxXnN]|[uU]&)'(?:[^']|'')*+(?:'|\Z)
      | '(?:[^']|'')*+(?:'|\Z)
      | \$(?P<tag>[^\W\d]\w*|)\$.*?(?:\$(?P=tag)\$|\Z)
      | (?P<kept>"(?:[^"]|"")*+(?:"|\Z)|\$\d+|[^\W\d]\w*)
      | \d[\w.]*""",
    re.VERBOSE | re.DOTALL,
)


def without_values(statement: str) -> str:
    """A statement with a question mark for each value that is written in it, without comments, on one line."""

    def instead(found: re.Match[str]) -> str:
        return found["kept"] or (" " if found["comment"] else "?")

    return " ".join(_VALUE.sub(instead, statement).split())
