"""Verifying: everything that is recorded, held against the hashes, seals, commands and checkpoints.

Small ledgers are looked through here, larger ones by a process a core, range by range, in one snapshot
(scanning.py). The first bad position over all is named. Checkpoints are held against the tree of the very
leaves that were looked at, and against those that were kept outside: what is changed from end to end, seals
and head included, shows only there. Deliberately absent: where checkpoints are kept, and writing.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from tickets import proofs, scanning
from tickets.checkpoints import BadCheckpoint, Checkpoint, VerifierKey, verify_note
from tickets.connections import Connection
from tickets.integrity import GENESIS, leaf
from tickets.merkle import Piece, grown, joined, verify_inclusion
from tickets.scanning import LAST, Checked, Fault, Job, Part, Range, Scanned, look, prepare
from tickets.workers import answered

_SMALL: Final = 20_000
"""A ledger with fewer facts is looked through before other processes have started."""
_SEALS_A_RANGE: Final = 200
_FACTS_A_RANGE: Final = 8_192
_FACTS_A_PART: Final = 2_000_000

LeavesOf = Callable[[int], Awaitable[bytes | None]]
"""Where the leaves since the checkpoint before were kept with a checkpoint of this size: those, 32 bytes each."""


class Finding(Struct, frozen=True):
    """The first thing that is not as it was written: at a position, or where `until` is given, from there to that."""

    position: int
    what: str
    until: int | None = None


class Verified(Struct, frozen=True):
    """What a verification saw."""

    facts: int
    seals: int
    head: str
    """The newest seal, in hexadecimal. Noted elsewhere, it shows later that nothing before it changed."""
    finding: Finding | None
    checkpoints: int = 0
    """How many were held against the facts, those in the database and those kept outside counted once."""


class Progress(Struct, frozen=True):
    """How far a verification is."""

    position: int
    of: int


class Trust(Struct, frozen=True, kw_only=True):
    """What a ledger is held against."""

    keys: Sequence[VerifierKey] = ()
    """Who may have signed its checkpoints."""
    since: Checkpoint | None = None
    """What was signed up to then is believed, and not looked at again."""
    kept: Sequence[Checkpoint] = ()
    """Checkpoints that were kept outside, by their size."""
    leaves_of: LeavesOf | None = None


async def verify(
    connection: Connection, *, dsn: str | None = None, workers: int = 1, trust: Trust | None = None
) -> AsyncIterator[Progress | Verified]:
    """Recompute every leaf and every seal, and hold them against each other, the head, commands and checkpoints.

    Yields Progress now and then and at last one Verified, with the first bad position if there is one. With a
    `dsn`, and where it is worth it, so many processes do it. Raises WorkerDied.
    """
    trust = trust or Trust()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await prepare(connection)
        verification = _Verification(connection, trust)
        async with aclosing(verification.run(dsn, workers)) as steps:
            async for step in steps:
                yield step


async def verify_stream(connection: Connection, stream_id: UUID, keys: Sequence[VerifierKey]) -> Verified | None:
    """Recompute the leaves of one stream's facts, and prove that those which it covers are under the newest checkpoint.

    None where there is no such stream, or no checkpoint. `head` of what was seen is that checkpoint's root.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await prepare(connection)
        row = await connection.fetchrow("select note from ledger.checkpoints order by size desc limit 1")
        rows = await connection.fetch(
            """select position, version, topic, occurred_at, metadata, state, leaf from ledger.events
               where stream_id = $1 order by version""",
            stream_id,
        )
        if row is None or not rows:
            return None
        facts, root, finding = 0, "", None
        try:
            checkpoint = verify_note(row["note"], *keys)
        except BadCheckpoint as error:
            finding = Finding(rows[0]["position"], f"the newest checkpoint is not to be trusted: {error}")
        else:
            root = checkpoint.root.hex()
            before = 0
            for facts, one in enumerate(rows):
                finding = await _fault_of(connection, stream_id, facts + 1, before, one, checkpoint)
                if finding is not None:
                    break
                before = one["position"]
            else:
                facts = len(rows)
        return Verified(facts=facts, seals=0, head=root, finding=finding, checkpoints=1)


async def _fault_of(
    connection: Connection, stream_id: UUID, version: int, before: int, row: Any, checkpoint: Checkpoint
) -> Finding | None:
    position = row["position"]
    entry = leaf(stream_id, row["version"], row["topic"], row["occurred_at"], row["metadata"], row["state"])
    if entry != row["leaf"]:
        return Finding(position, "the fact is not the one that was hashed")
    if row["version"] != version or position <= before:
        return Finding(position, f"version {row['version']} does not follow in stream {stream_id}")
    if position > checkpoint.size:
        return None  # it is newer than what was signed
    try:
        path = await proofs.inclusion(connection, position, checkpoint.size)
    except proofs.NotThere as error:
        return Finding(position, f"what was signed cannot be recomputed: {error}")
    if not verify_inclusion(entry, position - 1, checkpoint.size, path, checkpoint.root):
        return Finding(position, f"the fact is not under the checkpoint at {checkpoint.size}")
    return None


class _Verification:
    """One verification: what is known so far, in the order of positions."""

    def __init__(self, connection: Connection, trust: Trust) -> None:
        self._connection, self._trust = connection, trust
        self._kept = {one.size: one for one in trust.kept}
        self._after = 0 if trust.since is None else trust.since.size
        self._before = trust.since
        self._tree: list[Piece] = []
        self._checkpoints = 0
        self._walk: Fault | None = None
        self._signed: Finding | None = None

    async def run(self, dsn: str | None, workers: int) -> AsyncGenerator[Progress | Verified]:
        top: int = await self._connection.fetchval("select position from ledger.head") or 0
        start, chain = await self._begin()
        alone = dsn is None or workers < 2 or top - start < _SMALL
        ranges = await self._ranges(start, chain, few=alone)
        of = 1
        while not alone and of < max(workers, (top - start) // _FACTS_A_PART):
            of *= 2
        parts = [Part(number, of, start) for number in range(of)]
        facts, seals, following = start, 0, 0
        checked: list[Checked] = []
        waiting: dict[int, Scanned] = {}
        looking = self._looked(None if alone else dsn, workers, [*ranges, *parts])
        async with aclosing(looking) as answers:
            async for wanted, answer in answers:
                if isinstance(answer, Checked):
                    checked.append(answer)
                    continue
                waiting[wanted.after] = answer
                while following < len(ranges) and (one := waiting.pop(ranges[following].after, None)) is not None:
                    await self._take(ranges[following], one)
                    facts, chain, seals, following = one.upto, one.seal, seals + one.seals, following + 1
                    if self._walk is not None or self._signed is not None:
                        break
                    if following < len(ranges):
                        if one.upto < ranges[following].after:
                            bad = one.upto + 1
                            self._walk = Fault(bad, 0, f"there is no fact at position {bad}")
                            break
                        yield Progress(position=facts, of=top)
                if self._walk is not None or self._signed is not None:
                    break
        if len(checked) < len(parts):
            checked = [await scanning.check(self._connection, part) for part in parts]
        finding = self._first(checked) or await self._loose_ends(checked, chain, facts)
        yield Verified(facts=facts, seals=seals, head=chain.hex(), finding=finding, checkpoints=self._checkpoints)

    async def _looked(
        self, dsn: str | None, workers: int, wanted: Sequence[Range | Part]
    ) -> AsyncGenerator[tuple[Any, Any]]:
        """Everything that is to be looked at, with what was found, here or by other processes."""
        if dsn is None:
            for question in wanted:
                yield question, await look(self._connection, question)
            return
        job = Job(dsn, await self._connection.fetchval("select pg_export_snapshot()"))
        async with aclosing(answered(scanning.__name__, job, wanted, Scanned | Checked, workers)) as answers:
            async for one in answers:
                yield one

    async def _begin(self) -> tuple[int, bytes]:
        """The position after which to begin, where a seal ends, and that seal; the tree that was signed by then."""
        since = self._trust.since
        if since is None:
            return 0, GENESIS
        try:
            self._tree = await proofs.tree_at(self._connection, since.size)
        except proofs.NotThere as error:
            self._signed = Finding(1, f"the checkpoint at {since.size} covers what is not there: {error}", since.size)
        else:
            if joined(self._tree) != since.root:
                self._signed = await self._differing(since, 0)
        row = await self._connection.fetchrow(
            "select last_position, seal from ledger.seals where last_position <= $1 order by 1 desc limit 1", since.size
        )
        return (0, GENESIS) if row is None else (row["last_position"], row["seal"])

    async def _ranges(self, start: int, chain: bytes, *, few: bool) -> list[Range]:
        """All positions from there on, in ranges that end at seals; the last is to the end."""
        ends = await self._connection.fetch(
            """select last_position, seal from (
                 select last_position, seal, row_number() over (order by last_position) as place,
                        max(last_position) over () as newest
                 from ledger.seals where last_position > $1) s
               where place % $2 = 0 and last_position < newest order by last_position"""
            if few
            else """select distinct s.last_position, s.seal
               from generate_series($1 + $2::bigint, (select max(last_position) - 1 from ledger.seals), $2) wanted
               cross join lateral (select last_position, seal from ledger.seals where last_position >= wanted
                                   order by last_position limit 1) s
               where s.last_position < (select max(last_position) from ledger.seals)
               order by last_position""",
            start,
            _SEALS_A_RANGE if few else _FACTS_A_RANGE,
        )
        sizes = await self._sizes()
        found: list[Range] = []
        bounds: list[tuple[int, bytes]] = [(row["last_position"], row["seal"]) for row in ends]
        for upto, seal in (*bounds, (LAST, b"")):
            within = tuple(size for size in sizes if start < size <= upto) if sizes else None
            sizes = [size for size in sizes if size > upto]
            found.append(Range(after=start, upto=upto, seal=chain, sizes=within))
            start, chain = upto, seal
        return found

    async def _sizes(self) -> list[int]:
        """The sizes of all trees whose roots were signed, and of the one that is believed."""
        rows = await self._connection.fetch("select size from ledger.checkpoints where size >= $1", self._after)
        return sorted({*(size for (size,) in rows), *(size for size in self._kept if size >= self._after)})

    async def _take(self, wanted: Range, scanned: Scanned) -> None:
        """Take in what a range has, those before it having been: hold its checkpoints against the tree."""
        self._walk = scanned.fault
        if wanted.sizes is None:
            return
        rows = {
            row["size"]: row
            for row in await self._connection.fetch(
                "select size, root, time, note from ledger.checkpoints where size > $1 and size <= $2",
                max(wanted.after, self._after),
                wanted.upto,
            )
        }
        for size, pieces in zip((*wanted.sizes, None), scanned.trees, strict=False):
            if size is not None and size <= self._after:
                continue  # it is what is believed
            grown(self._tree, pieces)
            if size is None or size > scanned.upto:
                return
            if (finding := await self._held(size, rows.get(size), joined(self._tree))) is not None:
                self._signed = finding
                return

    async def _held(self, size: int, row: Any, root: bytes) -> Finding | None:
        """What is wrong with the checkpoint of this size, in the database or kept outside, or with what it is of."""
        before = 0 if self._before is None else self._before.size
        kept = self._kept.get(size)
        self._checkpoints += 1

        def finding(what: str) -> Finding:
            return Finding(before + 1, f"the checkpoint at {size} {what}", size)

        if kept is not None and kept.root != root:
            return await self._differing(kept, before)
        if row is None:
            return finding("that is kept outside is not in the database")
        try:
            found = verify_note(row["note"], *self._trust.keys)
        except BadCheckpoint as error:
            return finding(f"is not to be trusted: {error}")
        if (found.size, found.root, found.time) != (size, row["root"], row["time"]):
            return finding("says something else than its row")
        if kept is not None and kept.note != found.note:
            return finding("is not the one that is kept outside")
        if found.previous != (None if self._before is None else self._before.digest):
            return finding("does not follow the one before it")
        if found.root != root:
            return await self._differing(found, before)
        self._before = found
        return None

    async def _differing(self, signed: Checkpoint, before: int) -> Finding:
        """Where the facts are not those that were signed: exactly, if their leaves were kept outside."""
        leaves = None if self._trust.leaves_of is None else await self._trust.leaves_of(signed.size)
        when = f"{signed.time:%Y-%m-%d %H:%M:%S} UTC"
        what = f"the first {signed.size} facts are not those that were signed at {when}"
        if leaves:
            begin = signed.size - len(leaves) // 32
            rows = await self._connection.fetch(
                "select position, leaf from ledger.events where position > $1 and position <= $2", begin, signed.size
            )
            found: dict[int, bytes] = dict(rows)  # type: ignore[arg-type] # rows are pairs
            for n in range(len(leaves) // 32):
                if found.get(begin + n + 1) != leaves[32 * n : 32 * n + 32]:
                    return Finding(begin + n + 1, what)
        return Finding(before + 1, what, signed.size)

    def _first(self, checked: Sequence[Checked]) -> Finding | None:
        """The first of what was found along the facts, and of what checkpoints show."""
        faults = [one for one in (self._walk, *(part.version for part in checked)) if one is not None]
        if not faults:
            return self._signed
        first = min(faults, key=lambda one: one.order)
        if self._signed is not None and (self._signed.until or self._signed.position) < first.position:
            return self._signed
        return Finding(first.position, first.what)

    async def _loose_ends(self, checked: Sequence[Checked], chain: bytes, facts: int) -> Finding | None:
        """What the walk along the facts cannot see: the head, what is beyond the last fact, and the commands."""
        head = await self._connection.fetchrow("select position, seal from ledger.head")
        if head is None or head["position"] != facts:
            at = None if head is None else head["position"]
            bad = facts + 1 if at is None else min(at, facts) + 1
            return Finding(bad, f"the head says {at}, but the last fact is at {facts}")
        if head["seal"] != chain:
            return Finding(facts, "the head's seal is not the newest seal")
        beyond = await self._connection.fetchval(
            "select min(last_position) from ledger.seals where last_position > $1", facts
        )
        if beyond is not None:
            return Finding(facts + 1, f"a seal covers facts up to {beyond} that are not there")
        sizes = [size for size in await self._sizes() if size > facts]
        if sizes:
            return Finding(facts + 1, f"the checkpoint at {sizes[0]} covers facts that are not there")
        stray = min((one.stray for one in checked if one.stray is not None), default=None)
        if stray is not None:
            return Finding(stray, "the command of this fact is not in the record of commands as it was accepted")
        idle = min((one.idle for one in checked if one.idle is not None), default=None)
        if idle is not None:
            return Finding(min(idle, facts + 1), "a command is on record whose outcome is not among the facts")
        return None
