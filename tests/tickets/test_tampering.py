"""Tampering with the database as its superuser, at random: every mutation of every kind is found, and where.

A ledger of some hundred facts is signed at several sizes, with the notes and leaves kept outside. Each time
one mutation is made with the triggers off, looked for, and rolled back. Who knows how makes the seals and
the head follow from what they did: then only the checkpoints show it, exactly where the leaves that were kept
outside differ, and without those in the range between two checkpoints. The seed is printed; TAMPERINGS says
how many there are (make faults: 1,000).
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from benchmarks.lives import fill
from tests.conftest import fresh_database
from tests.tickets.test_integrity import tampering
from tickets import merkle, verification
from tickets.checkpoints import Checkpoint, sign, verifier
from tickets.connections import Connection, connect
from tickets.integrity import GENESIS, leaf, seal
from tickets.verification import Finding, Trust, Verified, verify

TAMPERINGS: Final = int(os.environ.get("TAMPERINGS", "39"))
SEED: Final = int(os.environ.get("TAMPERING_SEED", str(Random().randrange(10**6))))  # noqa: S311 - not for secrets
TICKETS: Final = 60
ASIDE: Final = 1_000_000
"""A position beyond all."""
OURS, THEIRS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED: Final = verifier(OURS, "desk")
NOON: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)


class Desk(Struct, frozen=True):
    """A ledger, and what was kept of it outside."""

    dsn: str
    size: int
    kept: list[Checkpoint]
    leaves: dict[int, bytes]

    def __repr__(self) -> str:
        return f"a desk with {self.size} facts"

    def covered(self, position: int) -> tuple[int, int]:
        """The facts of the checkpoint that covers this one first."""
        before = 0
        for one in self.kept:
            if position <= one.size:
                return before + 1, one.size
            before = one.size
        raise AssertionError(f"no checkpoint covers {position}")


async def _signed(dsn: str) -> Desk:
    await fill(dsn, TICKETS, at_once=8)
    connection = await connect(dsn, role=None)
    try:
        found = [row[0] for row in await connection.fetch("select leaf from ledger.events order by position")]
        ends = [row[0] for row in await connection.fetch("select last_position from ledger.seals order by 1")]
        # At ends of batches, as the service signs; the last some way before the end of the ledger.
        wanted = [ends[len(ends) * part // 10] for part in (1, 3, 4, 7, 9)]
        kept: list[Checkpoint] = []
        leaves: dict[int, bytes] = {}
        before = 0
        for size in sorted(set(wanted)):
            previous = kept[-1].digest if kept else None
            at = NOON + timedelta(minutes=len(kept))
            one = sign(OURS, "desk", size=size, root=merkle.root(found[:size]), time=at, previous=previous)
            leaves[size] = b"".join(found[before:size])
            kept.append(one)
            before = size
            await connection.execute(
                "insert into ledger.checkpoints values ($1, $2, $3, $4)", size, one.root, one.time, one.note
            )
    finally:
        await connection.close()
    return Desk(dsn, len(found), kept, leaves)


@pytest.fixture(scope="module")
def desk(server: str, template: str) -> Iterator[Desk]:
    with fresh_database(server, template) as dsn:
        yield asyncio.run(_signed(dsn))


async def looked(connection: Connection, trust: Trust) -> Finding | None:
    steps = [step async for step in verify(connection, trust=trust)]
    assert isinstance(steps[-1], Verified)
    return steps[-1].finding


def inside() -> Trust:
    return Trust(keys=[TRUSTED])


def outside(desk: Desk, *, leaves: bool = True) -> Trust:
    async def leaves_of(size: int) -> bytes | None:
        return desk.leaves.get(size) if leaves else None

    return Trust(keys=[TRUSTED], kept=desk.kept, leaves_of=leaves_of)


# ------------------------------------------------------------------------------------------------- what is done


class Done(Struct, frozen=True):
    """What a mutation should be found as: where at first, and whether only checkpoints show it."""

    position: int
    to: int | None = None
    """The last position that may be named instead: that of the batch, or of what a checkpoint covers."""
    signed: bool = False
    """Everything follows from everything else again: only checkpoints show it."""
    kept_only: bool = False
    """Only what is kept outside shows it."""


Mutation = Callable[[Connection, Desk, Random], Awaitable[Done]]


async def _batch(connection: Connection, position: int) -> tuple[int, int]:
    row = await connection.fetchrow(
        "select first_position, last_position from ledger.seals where last_position >= $1 order by 2 limit 1", position
    )
    assert row is not None
    return row[0], row[1]


async def _rehashed(connection: Connection, since: int) -> None:
    """Hash the facts from there on anew, and make all seals and the head follow."""
    rows = await connection.fetch(
        """select position, stream_id, version, topic, occurred_at, metadata, state from ledger.events
           where position >= $1""",
        since,
    )
    await connection.executemany(
        "update ledger.events set leaf = $2 where position = $1", [(row[0], leaf(*tuple(row)[1:])) for row in rows]
    )
    chain, top = GENESIS, 0
    leaves = {row[0]: row[1] for row in await connection.fetch("select position, leaf from ledger.events")}
    changed = []
    for first, last, at in await connection.fetch(
        "select first_position, last_position, sealed_at from ledger.seals order by 1"
    ):
        chain = seal(chain, first, last, at, b"".join(leaves[n] for n in range(first, last + 1)))
        changed.append((last, chain))
        top = last
    await connection.executemany("update ledger.seals set seal = $2 where last_position = $1", changed)
    await connection.execute("update ledger.head set position = $1, seal = $2", top, chain)


def _flipped(value: bytes, luck: Random) -> bytes:
    changed = bytearray(value)
    changed[luck.randrange(len(changed))] ^= 1 << luck.randrange(8)
    return bytes(changed)


async def _edited(connection: Connection, position: int, luck: Random) -> None:
    """Change one thing of a fact, but not its hash."""
    match luck.choice(["state", "metadata", "topic", "time", "version", "stream"]):
        case "state" | "metadata" as column:
            value = await connection.fetchval(f"select {column} from ledger.events where position = $1", position)
            await connection.execute(
                f"update ledger.events set {column} = $2 where position = $1", position, _flipped(value, luck)
            )
        case "topic":
            await connection.execute("update ledger.events set topic = topic || 'x' where position = $1", position)
        case "time":
            await connection.execute(
                "update ledger.events set occurred_at = occurred_at + $2 where position = $1",
                position,
                timedelta(microseconds=luck.randint(1, 10**9)),
            )
        case "version":
            await connection.execute("update ledger.events set version = version + 1000 where position = $1", position)
        case _:
            await connection.execute(
                "update ledger.events set stream_id = gen_random_uuid() where position = $1", position
            )


async def edit(connection: Connection, desk: Desk, luck: Random) -> Done:
    position = luck.randint(1, desk.size)
    await _edited(connection, position, luck)
    return Done(position)


async def edit_the_leaf(connection: Connection, desk: Desk, luck: Random) -> Done:
    position = luck.randint(1, desk.size)
    await connection.execute("update ledger.events set leaf = sha256(leaf) where position = $1", position)
    return Done(position)


async def edit_what_is_beside(connection: Connection, desk: Desk, luck: Random) -> Done:
    position = luck.randint(1, desk.size)
    what = luck.choice(["recorded_at = recorded_at + interval '1 microsecond'", "command_id = gen_random_uuid()"])
    await connection.execute(f"update ledger.events set {what} where position = $1", position)
    return Done(position)


async def edit_and_hash(connection: Connection, desk: Desk, luck: Random) -> Done:
    """The fact and its leaf, not the seal."""
    position = luck.randint(1, desk.size)
    state = await connection.fetchval("select state from ledger.events where position = $1", position)
    row = await connection.fetchrow(
        "update ledger.events set state = $2 where position = $1 "
        "returning stream_id, version, topic, occurred_at, metadata, state",
        position,
        state + b" ",
    )
    assert row is not None
    await connection.execute("update ledger.events set leaf = $2 where position = $1", position, leaf(*tuple(row)))
    return Done((await _batch(connection, position))[0], position)


async def edit_and_rehash_the_chain(connection: Connection, desk: Desk, luck: Random) -> Done:
    position = luck.randint(1, desk.kept[-1].size)
    state = await connection.fetchval("select state from ledger.events where position = $1", position)
    changed = state.replace(b"2026", b"2025", 1) if b"2026" in state and luck.random() < 0.5 else _flipped(state, luck)
    await connection.execute("update ledger.events set state = $2 where position = $1", position, changed)
    await _rehashed(connection, position)
    return Done(position, signed=True)


async def drop_the_tail(connection: Connection, desk: Desk, luck: Random) -> Done:
    """Facts, seals and commands, the head moved back; below the newest checkpoint."""
    _, last = await _batch(connection, luck.randint(1, desk.kept[-1].size - 1))
    if last >= desk.kept[-1].size:
        last = (await _batch(connection, last))[0] - 1
    for table, column in (("events", "position"), ("commands", "position"), ("seals", "last_position")):
        await connection.execute(f"delete from ledger.{table} where {column} > $1", last)
    await _rehashed(connection, last + 1)
    if last == 0:
        await connection.execute("update ledger.head set position = 0, seal = $1", GENESIS)
    return Done(last + 1, last + 1)


async def drop_a_ticket(connection: Connection, desk: Desk, luck: Random) -> Done:
    """A whole stream, everything after it numbered and hashed anew."""
    streams = await connection.fetch(
        "select stream_id, min(position) from ledger.events group by 1 having min(position) <= $1 order by 2",
        desk.kept[-1].size,
    )
    stream, first = luck.choice(streams)
    await connection.execute("delete from ledger.events where stream_id = $1", stream)
    await connection.execute("delete from ledger.commands where stream_id = $1", stream)
    rows = await connection.fetch("select position from ledger.events order by position")
    places = {old: new for new, (old,) in enumerate(rows, 1)}
    commands = [
        (row[0], places[row[1]]) for row in await connection.fetch("select command_id, position from ledger.commands")
    ]
    seals = await connection.fetch("select first_position, last_position, sealed_at, seal from ledger.seals order by 1")
    await connection.execute("delete from ledger.seals")
    await connection.executemany(
        "update ledger.events set position = $2::bigint + 1000000 where position = $1", list(places.items())
    )
    await connection.execute("update ledger.events set position = position - 1000000")
    await connection.executemany("update ledger.commands set position = $2 where command_id = $1", commands)
    for begin, end, at, old in seals:
        covered = [places[n] for n in range(begin, end + 1) if n in places]
        if covered:
            await connection.execute(
                "insert into ledger.seals (last_position, first_position, sealed_at, seal) values ($1, $2, $3, $4)",
                covered[-1],
                covered[0],
                at,
                old,
            )
    await _rehashed(connection, first)
    return Done(first, signed=True)


async def swap_two(connection: Connection, desk: Desk, luck: Random) -> Done:
    """Two facts change places, of one batch and two streams so that nothing else tells, and all is hashed anew."""
    batches = await connection.fetch(
        """select s.first_position, s.last_position from ledger.seals s where s.last_position <= $1
           and (select count(distinct command_id) from ledger.events e
                where e.position between s.first_position and s.last_position) > s.last_position - s.first_position - 2
           and s.last_position - s.first_position > 3""",
        desk.kept[-1].size,
    )
    begin, end = luck.choice(batches)
    rows = await connection.fetch(
        "select position, stream_id, command_id from ledger.events where position between $1 and $2", begin, end
    )
    alone = [row for row in rows if [each["command_id"] for each in rows].count(row["command_id"]) == 1]
    one, other = sorted(row["position"] for row in luck.sample(alone, 2))
    for old, new in ((one, ASIDE), (other, one), (ASIDE, other)):
        await connection.execute("update ledger.events set position = $2 where position = $1", old, new)
    await connection.execute(
        """update ledger.commands c set position = e.position from ledger.events e
           where e.command_id = c.command_id and e.position = any($1::bigint[])
             and c.position = any($1::bigint[])""",
        [one, other],
    )
    await _rehashed(connection, one)
    return Done(one, signed=True)


async def swap_without_hashing(connection: Connection, desk: Desk, luck: Random) -> Done:
    begin, end = await _batch(connection, luck.randint(1, desk.size))
    near = luck.random() < 0.5 and begin < end  # in one batch, versions may show it only after the first that is bad
    one, other = sorted(luck.sample(range(begin, end + 1) if near else range(1, desk.size + 1), 2))
    for old, new in ((one, ASIDE), (other, one), (ASIDE, other)):
        await connection.execute("update ledger.events set position = $2 where position = $1", old, new)
    return Done((await _batch(connection, one))[0], one)


async def replace_a_checkpoint(connection: Connection, desk: Desk, luck: Random) -> Done:
    n = luck.randrange(len(desk.kept))
    one = desk.kept[n]
    other = luck.choice([each for each in desk.kept if each is not one])
    before = desk.kept[n - 1] if n else None
    previous = None if before is None else before.digest
    match luck.choice(["by an old one", "by another's", "its row", "its note", "its chain"]):
        case "by an old one":
            values = (other.root, other.time, other.note)
        case "by another's":
            forged = sign(THEIRS, "desk", size=one.size, root=one.root, time=one.time, previous=previous)
            values = (one.root, one.time, forged.note)
        case "its row":
            values = luck.choice([(other.root, one.time, one.note), (one.root, other.time, one.note)])
        case "its note":
            at = luck.randrange(len(one.note))
            changed = one.note[:at] + chr(ord(one.note[at]) ^ 1) + one.note[at + 1 :]
            values = (one.root, one.time, changed)
        case _:
            rechained = sign(OURS, "desk", size=one.size, root=one.root, time=one.time, previous=one.digest)
            values = (one.root, one.time, rechained.note)
    await connection.execute(
        "update ledger.checkpoints set root = $2, time = $3, note = $4 where size = $1", one.size, *values
    )
    first, last = desk.covered(one.size)
    return Done(first, last)


async def remove_a_checkpoint(connection: Connection, desk: Desk, luck: Random) -> Done:
    n = luck.randrange(len(desk.kept))
    await connection.execute("delete from ledger.checkpoints where size = $1", desk.kept[n].size)
    first, last = desk.covered(desk.kept[n].size)
    if n + 1 == len(desk.kept):
        return Done(first, last, kept_only=True)
    return Done(first, desk.kept[n + 1].size)


async def change_a_command(connection: Connection, desk: Desk, luck: Random) -> Done:
    position = luck.randint(1, desk.size)
    what = luck.choice(
        [
            "delete from ledger.commands where command_id = $1",
            "update ledger.commands set version = version + 1 where command_id = $1",
            "update ledger.commands set position = position - 1 where command_id = $1",
            "update ledger.commands set stream_id = gen_random_uuid() where command_id = $1",
            "update ledger.commands set recorded_at = recorded_at + interval '1 second' where command_id = $1",
        ]
    )
    command, first = await connection.fetchrow(
        """select command_id, min(position) from ledger.events
           where command_id = (select command_id from ledger.events where position = $1) group by 1""",
        position,
    ) or (None, 0)
    await connection.execute(what, command)
    return Done(first)


async def change_a_seal(connection: Connection, desk: Desk, luck: Random) -> Done:
    first, last = await _batch(connection, luck.randint(1, desk.size))
    what = luck.choice(
        [
            "seal = sha256(seal)",
            "sealed_at = sealed_at + interval '1 microsecond'",
            "first_position = -first_position",
        ]
    )
    await connection.execute(f"update ledger.seals set {what} where last_position = $1", last)
    return Done(first, last)


KINDS: Final[tuple[Mutation, ...]] = (
    edit,
    edit_the_leaf,
    edit_what_is_beside,
    edit_and_hash,
    edit_and_rehash_the_chain,
    drop_the_tail,
    drop_a_ticket,
    swap_two,
    swap_without_hashing,
    replace_a_checkpoint,
    remove_a_checkpoint,
    change_a_command,
    change_a_seal,
)


# ------------------------------------------------------------------------------------------------- and found


async def test_what_nobody_touched_is_clean(desk: Desk) -> None:
    assert desk.size > desk.kept[-1].size > 0
    async with tampering(desk.dsn) as connection:
        for trust in (inside(), outside(desk), Trust(keys=[TRUSTED], since=desk.kept[2])):
            assert await looked(connection, trust) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
async def test_every_mutation_is_found_and_its_first_position_named(desk: Desk, kind: Mutation) -> None:
    for n in range(-(-TAMPERINGS // len(KINDS))):
        luck = Random(f"{SEED}/{kind.__name__}/{n}")  # noqa: S311 - not for secrets
        told = f"TAMPERING_SEED={SEED}, {kind.__name__} {n}"
        async with tampering(desk.dsn) as connection:
            await connection.execute("set local session_replication_role = replica")
            done = await kind(connection, desk, luck)
            found = await looked(connection, inside())
            if done.kept_only:
                assert found is None, told
            else:
                assert found is not None, f"not found: {told}"
                if done.signed:
                    assert (found.position, found.until) == desk.covered(done.position), (told, found)
                else:
                    assert done.position <= found.position <= (done.to or done.position), (told, found, done)
            exact = await looked(connection, outside(desk))
            assert exact is not None, f"not found outside: {told}"
            if done.signed:
                assert (exact.position, exact.until) == (done.position, None), (told, exact)
            else:
                assert done.position <= exact.position <= (done.to or done.position), (told, exact, done)


async def test_processes_of_their_own_find_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_SMALL", 0)
    monkeypatch.setattr(verification, "_FACTS_A_RANGE", 20)

    async def found() -> Verified:
        service = await connect(desk.dsn)
        steps = [step async for step in verify(service, dsn=desk.dsn, workers=2, trust=outside(desk))]
        await service.close()
        assert len(steps) > 5
        assert isinstance(steps[-1], Verified)
        return steps[-1]

    clean = await found()
    assert (clean.finding, clean.facts, clean.checkpoints) == (None, desk.size, len(desk.kept))
    owner = await connect(desk.dsn, role=None)
    await owner.execute("set session_replication_role = replica")
    position = desk.size * 2 // 3
    state = await owner.fetchval("select state from ledger.events where position = $1", position)
    try:
        await owner.execute("update ledger.events set state = state || ' ' where position >= $1", position)
        finding = (await found()).finding
        assert finding is not None
        assert finding.position == position
    finally:
        await owner.execute(
            "update ledger.events set state = substr(state, 1, octet_length(state) - 1) where position >= $1", position
        )
        assert await owner.fetchval("select state from ledger.events where position = $1", position) == state
        await owner.close()
