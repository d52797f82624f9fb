"""What a read model that was made anew has which the live one has not, and the other way round, by row and by field.

Deliberately absent: bringing the two to one position (rebuild.py), and which tickets are held against their facts
all day long (drift.py).
"""

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct

from projections.beside import give_way
from projections.projection import BESIDE, LIVE, Projection
from tickets.connections import Connection

EXAMPLES: Final = 20
"""So many of the rows that differ are told."""


class Difference(Struct, frozen=True):
    """A row that is not as it should be: which, in what way, and if it is there, which fields are not."""

    key: dict[str, str]
    what: Literal["missing", "unexpected", "different"]
    fields: list[str]


class Compared(Struct, frozen=True, kw_only=True):
    """What a read model made anew has that the live one has not, and the other way round, at one position."""

    projection: str
    position: int
    rows: int
    missing: int
    """Rows that the live one should have and has not, or not like that."""
    unexpected: int
    """Rows that the live one has and should not have, or not like that."""
    made_by: int
    """The version of the projection that made the live one."""
    expected: bool
    """Whether that is another version than this one, whose rows may differ; otherwise what differs is drift."""
    differences: list[Difference]
    """The first of the rows that differ."""

    @property
    def clean(self) -> bool:
        """Whether the live one was just as it should be."""
        return not self.missing and not self.unexpected


async def compare(
    one: Projection, position: int, snapshot: str, other_version: int | None, connection: Connection
) -> Compared:
    """The live table and the one beside as of that moment, which an exported `snapshot` holds; both are at `position`.

    `other_version` is that of the projection which made the live one, where it is not this one.
    """
    live, beside, column = f"{LIVE}.{one.name}", f"{BESIDE}.{one.name}", one.columns[0]
    await give_way(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(f"set transaction snapshot '{snapshot}'; set local enable_hashjoin = off")
        # Rows are held against each other by their key, whole row against whole row: every byte counts.
        different = f"from {live} live full join {beside} made using ({one.key}) where live is distinct from made"
        row = await connection.fetchrow(
            f"""select (select count(*) from {beside}), count(*) filter (where made.{column} is not null),
                       count(*) filter (where live.{column} is not null) {different}"""
        )
        assert row is not None  # noqa: S101 - an aggregate always has a row
        examples = []
        if row[1] or row[2]:
            key = ", ".join(f"'{name}', {name}" for name in one.columns[: one.key_columns])
            examples = await connection.fetch(
                f"""select json_build_object({key}), to_json(live), to_json(made) {different}
                    order by {one.key} limit {EXAMPLES}"""
            )
    return Compared(
        projection=one.name,
        position=position,
        rows=row[0],
        missing=row[1],
        unexpected=row[2],
        made_by=one.version if other_version is None else other_version,
        expected=other_version is not None,
        differences=[difference(*example) for example in examples],
    )


def difference(key: str, live: str | None, made: str | None) -> Difference:
    """What is wrong with a row, from its key, the row that is there and the one that should be, as JSON."""
    was, should = (None if one is None else msgspec.json.decode(one, type=dict[str, Any]) for one in (live, made))
    return Difference(
        key={name: str(value) for name, value in msgspec.json.decode(key).items()},
        what="missing" if was is None else "unexpected" if should is None else "different",
        fields=[] if was is None or should is None else _fields(was, should),
    )


def _fields(was: dict[str, Any], should: dict[str, Any]) -> list[str]:
    """The columns that differ, of documents the fields in them."""
    fields: list[str] = []
    for column, value in was.items():
        if value != should[column]:
            before, after = _document(value), _document(should[column])
            inner = [name for name in before | after if before.get(name, UNSET) != after.get(name, UNSET)]
            fields += [f"{column}.{name}" for name in inner] if before and after and inner else [column]
    return fields


def _document(value: object) -> dict[str, Any]:
    """What is in a document, which is bytes, which JSON has as hexadecimal; of all else, nothing."""
    if not isinstance(value, str) or not value.startswith("\\x"):
        return {}
    try:
        return msgspec.json.decode(bytes.fromhex(value[2:]), type=dict[str, Any])
    except (ValueError, msgspec.DecodeError):  # one that was damaged differs as a whole
        return {}
