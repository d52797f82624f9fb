"""Verification: clean on a healthy ledger, and each kind of tampering found, with the first bad position.

The tampering is done by the owner of the database with the triggers off, in a transaction that is rolled
back. What cannot be found from inside is tested as well: whoever rewrites everything that follows, to the
end, leaves a ledger that is consistent; only its newest seal is not the one that was noted elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from tests.conftest import fresh_database
from tests.tickets.test_ledger import NOON, appending, assigned, created, noting
from tickets.checkpoints import VerifierKey
from tickets.connections import Connection, connect
from tickets.integrity import GENESIS, leaf, seal
from tickets.ledger import Ledger
from tickets.verification import Finding, Progress, Trust, Verified, verify

A, B, C, D = (UUID(int=number) for number in range(1, 5))
NOTED, IDLE = uuid4(), uuid4()
"""The command of the facts at 4 and 5, and one that changed nothing."""


async def _write(dsn: str) -> None:
    """Ten facts under five seals: 1 to 3, 4 to 5, 6, 7 to 8, 9 to 10."""
    async with Ledger.open(dsn) as ledger:
        await asyncio.gather(*(ledger.append(appending(stream, 0)) for stream in (A, B, C)))
        await ledger.append(appending(A, 1, assigned(A, 2), assigned(A, 3), command_id=NOTED))
        await ledger.append(appending(B, 1))
        await ledger.append(noting(C, 1, IDLE))
        await asyncio.gather(ledger.append(appending(A, 3)), ledger.append(appending(B, 2)))
        await ledger.append(appending(D, 0, created(D), assigned(D, 2, at=NOON)))


@pytest.fixture(scope="module")
def healthy(server: str, template: str) -> Iterator[str]:
    with fresh_database(server, template) as dsn:
        asyncio.run(_write(dsn))
        yield dsn


@asynccontextmanager
async def tampering(dsn: str) -> AsyncIterator[Connection]:
    """A connection that can change everything, and whose changes are undone in the end."""
    connection = await connect(dsn, role=None)
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    try:
        for table in ("events", "commands", "seals"):
            await connection.execute(f"alter table ledger.{table} disable trigger all")
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def verified(connection: Connection, *keys: VerifierKey) -> Verified:
    steps = [step async for step in verify(connection, trust=Trust(keys=keys))]
    last = steps.pop()
    assert isinstance(last, Verified)
    assert all(isinstance(step, Progress) for step in steps)
    return last


async def found(connection: Connection) -> Finding:
    finding = (await verified(connection)).finding
    assert finding is not None, "the tampering was not found"
    return finding


# ---------------------------------------------------------------------------------------------------- healthy


async def test_an_empty_ledger_is_clean(ledger: Ledger, owner: Connection) -> None:
    assert await ledger.head() == 0
    assert await verified(owner) == Verified(facts=0, seals=0, head=GENESIS.hex(), finding=None)


async def test_a_healthy_ledger_is_clean_and_its_newest_seal_is_the_heads(healthy: str) -> None:
    async with tampering(healthy) as connection:
        head: bytes = await connection.fetchval("select seal from ledger.head")
        assert await verified(connection) == Verified(facts=10, seals=5, head=head.hex(), finding=None)


async def test_the_service_itself_can_verify_while_it_writes(dsn: str) -> None:
    async with Ledger.open(dsn) as ledger, asyncio.timeout(20):
        service = await connect(dsn)
        try:
            await ledger.append(appending(A, 0))
            writing = asyncio.gather(*(ledger.append(appending(uuid4(), 0)) for _ in range(300)))
            seen = [await verified(service)]
            while not writing.done():
                seen.append(await verified(service))
            assert {outcome.verdict for outcome in await writing} == {"appended"}
            seen.append(await verified(service))
        finally:
            await service.close()
    assert [one.finding for one in seen] == [None] * len(seen)
    assert [one.facts for one in seen] == sorted(one.facts for one in seen)
    assert seen[-1].facts == 301


async def test_verifying_says_how_far_it_is(dsn: str, owner: Connection) -> None:
    async with Ledger.open(dsn, batch_limit=1) as ledger:
        await asyncio.gather(*(ledger.append(appending(uuid4(), 0)) for _ in range(450)))
    steps = [step async for step in verify(owner)]
    assert steps[:-1] == [Progress(position=200, of=450), Progress(position=400, of=450)]
    assert isinstance(steps[-1], Verified)
    assert (steps[-1].facts, steps[-1].seals, steps[-1].finding) == (450, 450, None)


# -------------------------------------------------------------------------------------------------- tampering

SWAP = (
    "update ledger.events set position = 1000 where position = {0}; "
    "update ledger.events set position = {0} where position = {1}; "
    "update ledger.events set position = {1} where position = 1000"
)

TAMPERINGS: dict[str, tuple[str, int, str]] = {
    # a fact
    "its state": ("update ledger.events set state = state || ' ' where position = 7", 7, "not the one that was hashed"),
    "its metadata": ("update ledger.events set metadata = metadata || ' ' where position = 8", 8, "hashed"),
    "its topic": ("update ledger.events set topic = 'ticket.assigned.v2' where position = 4", 4, "hashed"),
    "when it happened": (
        "update ledger.events set occurred_at = occurred_at + interval '1 microsecond' where position = 5",
        5,
        "hashed",
    ),
    "its version": ("update ledger.events set version = 9 where position = 7", 7, "hashed"),
    "its stream": (f"update ledger.events set stream_id = '{C}' where position = 5", 5, "hashed"),
    "when it was recorded": (
        "update ledger.events set recorded_at = recorded_at - interval '1 microsecond' where position = 3",
        3,
        "time of recording",
    ),
    "its command": ("update ledger.events set command_id = gen_random_uuid() where position = 6", 6, "command"),
    "its leaf": ("update ledger.events set leaf = sha256(leaf) where position = 2", 2, "hashed"),
    "a leaf for another": (
        """update ledger.events e set leaf = (select leaf from ledger.events where position = 3 - e.position)
           where position in (1, 2)""",
        1,
        "hashed",
    ),
    "a fact in the middle is gone": ("delete from ledger.events where position = 2", 2, "no fact at position 2"),
    "the end of a batch is gone": ("delete from ledger.events where position = 5", 5, "seal covers 4 to 5"),
    "the first fact is gone": ("delete from ledger.events where position = 1", 1, "no fact at position 1"),
    "a whole batch is gone": ("delete from ledger.events where position = 6", 6, "no fact at position 6"),
    "a whole batch is gone with its seal": (
        "delete from ledger.events where position = 6; delete from ledger.seals where last_position = 6",
        6,
        "no fact at position 6",
    ),
    "two facts of one batch changed places": (SWAP.format(1, 2), 1, "seal does not follow"),
    "two facts of one stream changed places": (SWAP.format(4, 5), 4, "version 3 does not follow"),
    "two facts of two batches changed places": (SWAP.format(6, 7), 6, "time of recording"),
    "a fact was slipped in at the end": (
        f"""insert into ledger.events select 11, '{uuid4()}', 1, topic, occurred_at, recorded_at, command_id, metadata,
            state, leaf from ledger.events where position = 9""",
        11,
        "not the one that was hashed",
    ),
    # the tail
    "the last fact is gone": ("delete from ledger.events where position = 10", 10, "seal covers 9 to 10"),
    "the last batch is gone": ("delete from ledger.events where position > 8", 9, "the head says 10"),
    "everything is gone but the head": ("delete from ledger.events; delete from ledger.seals", 1, "the head says 10"),
    "the last batch is gone with its seal": (
        "delete from ledger.events where position > 8; delete from ledger.seals where last_position > 8",
        9,
        "the head says 10",
    ),
    "the last batch is gone and the head was moved back": (
        """delete from ledger.events where position > 8;
           update ledger.head set (position, seal) =
             (select last_position, seal from ledger.seals where last_position = 8)""",
        9,
        "a seal covers facts up to 10",
    ),
    "the last batch is gone with its seal and the head was moved back": (
        """delete from ledger.events where position > 8; delete from ledger.seals where last_position > 8;
           update ledger.head set (position, seal) =
             (select last_position, seal from ledger.seals where last_position = 8)""",
        9,
        "a command is on record",
    ),
    # a seal
    "the first seal is gone": ("delete from ledger.seals where last_position = 3", 1, ""),
    "a seal in the middle is gone": ("delete from ledger.seals where last_position = 6", 6, ""),
    "the last seal is gone": ("delete from ledger.seals where last_position = 10", 9, "no seal covers"),
    "all seals are gone": ("delete from ledger.seals", 1, "no seal covers"),
    "a seal": ("update ledger.seals set seal = sha256(seal) where last_position = 5", 4, "seal does not follow"),
    "the first seal": ("update ledger.seals set seal = sha256(seal) where last_position = 3", 1, "does not follow"),
    "when it was sealed": (
        "update ledger.seals set sealed_at = sealed_at + interval '1 hour' where last_position = 8",
        7,
        "time of recording",
    ),
    "when it all was sealed and recorded": (
        """update ledger.seals set sealed_at = sealed_at + interval '1 hour' where last_position = 8;
           update ledger.events set recorded_at = recorded_at + interval '1 hour' where position in (7, 8)""",
        7,
        "seal does not follow",
    ),
    "where a seal begins, later": (
        "update ledger.seals set first_position = 8 where last_position = 8",
        7,
        "covers 8 to 8",
    ),
    "where a seal begins, earlier": (
        "update ledger.seals set first_position = 2 where last_position = 8",
        7,
        "covers 2 to 8",
    ),
    "where a seal ends, earlier": ("update ledger.seals set last_position = 4 where last_position = 5", 4, "follow"),
    "where the last seal ends, later": ("update ledger.seals set last_position = 12 where last_position = 10", 11, ""),
    "a seal of nothing": (
        "insert into ledger.seals values (12, 11, now(), sha256(''))",
        11,
        "a seal covers facts up to 12 that are not there",
    ),
    # the head
    "the head is further": ("update ledger.head set position = 11", 11, "the head says 11"),
    "the head is back": ("update ledger.head set position = 8", 9, "the head says 8"),
    "the head's seal": ("update ledger.head set seal = sha256(seal)", 10, "the head's seal"),
    "the head is gone": ("delete from ledger.head", 11, "the head says None"),
    # the commands
    "a command is gone": (f"delete from ledger.commands where command_id = '{NOTED}'", 4, "record of commands"),
    "all commands are gone": ("delete from ledger.commands", 1, "record of commands"),
    "a command's version": (
        f"update ledger.commands set version = version - 1 where command_id = '{NOTED}'",
        4,
        "record of commands",
    ),
    "a command's position": (
        f"update ledger.commands set position = position + 1 where command_id = '{NOTED}'",
        4,
        "record of commands",
    ),
    "a command's stream": (f"update ledger.commands set stream_id = '{C}' where command_id = '{NOTED}'", 4, "record"),
    "when a command was accepted": (
        f"update ledger.commands set recorded_at = now() where command_id = '{NOTED}'",
        4,
        "record of commands",
    ),
    "a command's id": (
        f"update ledger.commands set command_id = gen_random_uuid() where command_id = '{NOTED}'",
        4,
        "record of commands",
    ),
    "a command that changed nothing, its version": (
        f"update ledger.commands set version = 7 where command_id = '{IDLE}'",
        6,
        "a command is on record",
    ),
    "a command was slipped in": (
        f"insert into ledger.commands values ('{uuid4()}', '{uuid4()}', 1, 8, '', now())",
        8,
        "a command is on record",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_tampering_is_found_at_its_first_position(healthy: str, what: str) -> None:
    statements, position, words = TAMPERINGS[what]
    async with tampering(healthy) as connection:
        await connection.execute(statements)
        finding = await found(connection)
    assert finding.position == position
    assert words in finding.what


async def _with_leaf_of_its_own(connection: Connection, position: int) -> None:
    """Change a fact and hash it anew, as somebody would who knows how."""
    row = await connection.fetchrow("select * from ledger.events where position = $1", position)
    assert row is not None
    state = row["state"].replace(b"team", b"TEAM")
    assert state != row["state"]
    new = leaf(row["stream_id"], row["version"], row["topic"], row["occurred_at"], row["metadata"], state)
    await connection.execute("update ledger.events set state = $1, leaf = $2 where position = $3", state, new, position)


async def _seal_anew(connection: Connection, *, upto: int = 10) -> None:
    """Make the seals follow from the facts again, as far as that."""
    chain = GENESIS
    for row in await connection.fetch("select * from ledger.seals where last_position <= $1 order by 1", upto):
        leaves: bytes = await connection.fetchval(
            "select string_agg(leaf, ''::bytea order by position) from ledger.events where position between $1 and $2",
            row["first_position"],
            row["last_position"],
        )
        chain = seal(chain, row["first_position"], row["last_position"], row["sealed_at"], leaves)
        await connection.execute("update ledger.seals set seal = $1 where last_position = $2", chain, row[0])


@pytest.mark.parametrize(("position", "batch"), [(4, 4), (5, 4), (6, 6), (8, 7), (10, 9)])
async def test_a_fact_that_was_hashed_anew_breaks_its_batchs_seal(healthy: str, position: int, batch: int) -> None:
    async with tampering(healthy) as connection:
        await _with_leaf_of_its_own(connection, position)
        finding = await found(connection)
    assert finding.position == batch
    assert "seal does not follow" in finding.what


async def test_a_batch_that_was_sealed_anew_breaks_the_next_seal(healthy: str) -> None:
    async with tampering(healthy) as connection:
        await _with_leaf_of_its_own(connection, 5)
        for upto, (_, bad) in zip((5, 6, 8), pairwise((4, 6, 7, 9)), strict=True):
            await _seal_anew(connection, upto=upto)
            assert (await found(connection)).position == bad
        await _seal_anew(connection)
        assert (await found(connection)).what == "the head's seal is not the newest seal"


# ------------------------------------------------------------------------ what only a checkpoint elsewhere shows


async def _seals(connection: Connection) -> set[str]:
    return {row[0].hex() for row in await connection.fetch("select seal from ledger.seals")}


async def test_whoever_rewrites_all_that_follows_leaves_other_seals_than_were_noted(healthy: str) -> None:
    """Not found from inside: that is what the newest seal, noted elsewhere, is for."""
    async with tampering(healthy) as connection:
        noted = (await verified(connection)).head
        await _with_leaf_of_its_own(connection, 5)
        await _seal_anew(connection)
        await connection.execute(
            "update ledger.head set seal = (select seal from ledger.seals order by last_position desc limit 1)"
        )
        seen = await verified(connection)
        assert seen.finding is None
        assert seen.head != noted
        assert noted not in await _seals(connection)


async def test_whoever_drops_the_whole_tail_leaves_no_such_seal_as_was_noted(healthy: str) -> None:
    """Facts, seals, commands and head: not found from inside either."""
    async with tampering(healthy) as connection:
        noted = (await verified(connection)).head
        for table, column in (("events", "position"), ("commands", "position"), ("seals", "last_position")):
            await connection.execute(f"delete from ledger.{table} where {column} > 8")
        await connection.execute(
            """update ledger.head set (position, seal) =
                 (select last_position, seal from ledger.seals order by last_position desc limit 1)"""
        )
        seen = await verified(connection)
        assert (seen.finding, seen.facts) == (None, 8)
        assert noted not in await _seals(connection)


async def test_what_no_hash_covers_is_not_found(healthy: str) -> None:
    """A command's fingerprint, and one that changed nothing, stand in no fact: they guard retries, not the record."""
    async with tampering(healthy) as connection:
        await connection.execute("update ledger.commands set fingerprint = ''")
        await connection.execute("delete from ledger.commands where command_id = $1", IDLE)
        seen = await verified(connection)
        assert (seen.finding, seen.facts) == (None, 10)
