"""That the checker finds what is wrong with a history, and that under faults it finds nothing.

Two services on one ledger, one of them behind a network that goes bad, are killed and cut off while sixteen clients
edit and read the same few tickets. Deliberately absent: the checker (linearizability.py) and the clients (clients.py).
"""

import asyncio
import os
import random
import signal
import time
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from tests.conftest import Service, start_service
from tests.faults.clients import Crowd, assert_that_is_what_happened
from tests.faults.conftest import Tell
from tests.faults.linearizability import Operation, violations
from tests.faults.proxy import proxied
from tests.faults.test_connection_faults import through, to_database
from tickets.connections import Connection

OPERATIONS = int(os.environ.get("OPERATIONS", "150"))
"""How many operations there are, over all tickets."""
LONG = OPERATIONS > 1_000


def wrote(value: str, version: int, invoked: float, returned: float, expected: int | None = None) -> Operation:
    return Operation("write", "t", value, invoked, returned, "acknowledged", version, expected)


def read(value: str, version: int, invoked: float, returned: float) -> Operation:
    return Operation("read", "t", value, invoked, returned, "acknowledged", version, positions=(1, 1))


GOOD = [
    wrote("a", 1, 0, 1),
    wrote("b", 2, 2, 5),
    wrote("c", 3, 2, 4, expected=2),
    Operation("write", "t", "lost", 2, 6, "refused", 3, expected=1),
    Operation("write", "t", "d", 6, inf, "unknown"),
    read("b", 2, 3, 3.5),
    read("c", 3, 5, 7),
    read("d", 4, 8, 9),
    wrote("e", 5, 8, 9),
]
"""Writes and reads that overlap in part; one write was never answered and is read all the same."""
RECORD = {"t": ["a", "b", "c", "d", "e"]}


def test_a_history_that_can_have_happened_is_accepted() -> None:
    assert violations(GOOD) == []
    assert violations(GOOD, RECORD) == []
    assert violations([*GOOD, *(replace(one, ticket="another") for one in GOOD)]) == [], "each ticket by itself"


@pytest.mark.parametrize(
    ("what", "history", "told"),
    [
        ("a stale read", [*GOOD, read("b", 2, 10, 11)], "stale"),
        ("a read that goes back behind another", [*GOOD, read("e", 5, 10, 11), read("d", 4, 12, 13)], "stale"),
        ("an own write that is not read", [*GOOD, wrote("f", 6, 10, 11), read("e", 5, 11.5, 12)], "stale"),
        ("a refusal on an old state", [*GOOD, Operation("write", "t", "x", 10, 11, "refused", 4, 1)], "stale"),
        ("a lost update", [*GOOD, wrote("f", 5, 8, 9)], "is 'e' and 'f'"),
        ("a command that was done twice", [*GOOD, read("c", 6, 10, 11)], "made twice"),
        ("one acknowledged twice with two versions", [*GOOD, wrote("b", 6, 10, 11)], "made twice"),
        ("a gap", [*GOOD, wrote("g", 7, 10, 11)], "nobody made the versions [6]"),
        ("a write in the past", [*GOOD, wrote("f", 6, 12, 13), wrote("g", 7, 10, 11)], "after"),
        ("a refused write that is read", [*GOOD, read("lost", 6, 10, 11)], "was refused"),
        ("a refusal without a reason", [*GOOD, Operation("write", "t", "x", 10, 11, "refused", 5, 5)], "and refused"),
        ("a write for a version that was past", [*GOOD, wrote("f", 6, 10, 11, expected=4)], "meant for version 4"),
        ("a value that is not what was written", [*GOOD, read("z", 3, 10, 11)], "is 'c' and 'z'"),
        ("a read that does not reach", [*GOOD, replace(read("e", 5, 10, 11), positions=(9, 8))], "was to reach to 9"),
    ],
)
def test_the_checker_finds(what: str, history: list[Operation], told: str) -> None:
    assert any(told in one for one in violations(history)), what


@pytest.mark.parametrize(
    ("what", "record", "told"),
    [
        ("an acknowledged command that is lost", ["a", "b", "c", "d"], "it is None"),
        ("two in another order", ["a", "c", "b", "d", "e"], "in the ledger it is"),
        ("one that is there twice", ["a", "b", "c", "d", "e", "b"], "more than once"),
        ("one that was refused", ["a", "b", "c", "d", "e", "lost"], "refused or never asked for"),
        ("one that nobody asked for", ["a", "b", "c", "d", "e", "?"], "refused or never asked for"),
    ],
)
def test_held_against_the_ledger_the_checker_finds(what: str, record: list[str], told: str) -> None:
    assert any(told in one for one in violations(GOOD, {"t": record})), what


async def test_while_services_are_killed_and_cut_off_each_ticket_is_linearizable(
    owner: Connection, dsn: str, tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    began, faults = time.monotonic(), list[str]()
    async with proxied(to_database(dsn)) as proxy:
        services: list[Service] = list(
            await asyncio.gather(
                *(asyncio.to_thread(start_service, one, tmp_path) for one in (dsn, through(dsn, proxy)))
            )
        )
        crowd = Crowd(16, shared=8, chance=chance)

        async def kill() -> None:
            """The first, of which there is another at once."""
            services[0].process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(services[0].process.wait)
            crowd.urls = [services[1].url]
            if not LONG:  # starting one is what takes longest
                return
            services[0] = await asyncio.to_thread(start_service, dsn, tmp_path)
            crowd.urls = [one.url for one in services]

        async def reset() -> None:
            proxy.reset()

        async def swallow() -> None:
            proxy.swallow()
            refused = len(crowd.refusals)
            await crowd.until(lambda: len(crowd.refusals) >= refused + 4)
            await proxy.heal()

        async def terminate() -> None:
            await owner.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
                   and application_name like 'tickets%' and pid <> pg_backend_pid()"""
            )

        try:
            crowd.urls = [one.url for one in services]
            crowd.start()
            short = [kill, reset, terminate]
            chance.shuffle(short)
            while short or len(crowd.history) < OPERATIONS:
                await crowd.notes(min(400, OPERATIONS // 5))
                fault = (
                    short.pop()
                    if short
                    else chance.choice([kill, reset, swallow, terminate] if LONG else [reset, terminate])
                )
                await fault()
                faults.append(fault.__name__)
            await crowd.leave()
            await assert_that_is_what_happened(crowd, owner, dsn, tmp_path)
        finally:
            for service in services:
                service.process.kill()
                service.process.wait()
    kinds = {name: faults.count(name) for name in sorted(set(faults))}
    tell(
        f"{len(crowd.history)} operations on {len(crowd.titles)} tickets in {time.monotonic() - began:.0f} s, "
        f"faults {kinds}, attempts {dict(crowd.attempts)}: linearizable"
    )
