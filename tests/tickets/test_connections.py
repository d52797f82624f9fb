"""Connections: what is known of types, and what is asked anew.

Deliberately absent: networks that fail (tests/faults/test_connection_faults.py).
"""

from uuid import uuid4

from tickets.connections import connected

ARRAYS = "select $1::uuid[], $2::int[], $3::bytea[], $4::timestamptz[], $5::text[]"


async def test_of_types_that_postgresql_comes_with_one_connection_asks_for_all(dsn: str) -> None:
    values: tuple[object, ...] = ([uuid4()], [1, 2], [b"\0"], [], ["a"])
    async with connected(dsn) as first:
        assert tuple(await first.fetchrow(ARRAYS, *values) or ()) == values
    asked: list[str] = []
    async with connected(dsn) as second:
        second.add_query_logger(lambda record: asked.append(record.query))
        assert tuple(await second.fetchrow(ARRAYS, *values) or ()) == values
    assert asked == [ARRAYS]


async def test_types_of_a_table_that_was_made_anew_are_what_they_are_now(dsn: str) -> None:
    for columns, row in (("a int", (1,)), ("a text, b uuid[]", ("x", [uuid4()]))):
        async with connected(dsn, role=None) as connection:
            await connection.execute(f"drop table if exists anew; create table anew ({columns})")
            told = await connection.fetchval("select $1::anew[]", [row])
            assert [tuple(one) for one in told] == [row]
