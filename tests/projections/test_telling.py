"""A history written down: read back, it is what it was, and nothing in it can pass for something else."""

import csv
import json
from datetime import UTC, datetime
from io import StringIO
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.history import Action, Change, Entry
from projections.telling import (
    CSV_COLUMNS,
    as_csv,
    as_json_lines,
    as_text,
    csv_row,
    heading,
    state_as_text,
    state_columns,
)
from projections.tickets import SlaView, TicketView, view
from tickets.events import By, Created
from tickets.permissions import Role
from tickets.sla import Priority
from tickets.ticket import evolve
from tickets.values import Category

AT = datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC)
TICKET = uuid4()


def entry(*changes: Change, reason: str | None = None) -> Entry:
    return Entry(
        position=7,
        version=3,
        action=Action.UPDATE,
        actor=By(uuid4(), "grace", Role.ADMIN),
        ip_address="192.0.2.1",
        occurred_at=AT,
        recorded_at=AT,
        changes=list(changes),
        reason=reason,
        command_id=uuid4(),
        metadata={},
    )


def rows(text: str) -> list[dict[str, str]]:
    return [dict(zip(CSV_COLUMNS, row, strict=True)) for row in csv.reader(StringIO(text, newline=""))]


@given(st.lists(st.text(), min_size=2))
def test_what_is_written_as_csv_is_read_back_but_for_one_apostrophe(cells: list[str]) -> None:
    (back,) = csv.reader(StringIO(csv_row(*cells), newline=""))
    assert [cell.removeprefix("'") for cell in back] == cells


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'"])  # noqa: RUF001
def test_no_cell_is_a_formula(start: str) -> None:
    value = f'{start}HYPERLINK("http://evil.example";"x")'
    (row,) = rows(as_csv(TICKET, value, [entry(Change("title", value, value), reason=value)]))
    assert {row["number"], row["old"], row["new"], row["reason"]} == {f"'{value}"}


def test_csv_has_a_row_for_each_change_and_one_for_a_fact_that_changed_nothing() -> None:
    told = rows(as_csv(TICKET, "TKT-1", [entry(Change("tags", ["a"], ["a", "b"]), Change("team", None, "x")), entry()]))
    assert [(row["field"], row["old"], row["new"]) for row in told] == [
        ("tags", '["a"]', '["a","b"]'),
        ("team", "", "x"),
        ("", "", ""),
    ]
    assert {row["ticket_id"] for row in told} == {str(TICKET)}
    assert {row["occurred_at"] for row in told} == {"2026-01-31T12:00:00.000005Z"}


def test_json_lines_are_one_entry_each_with_the_ticket_it_is_of() -> None:
    lines = as_json_lines(TICKET, 'TKT"1', [entry(Change("title", "a\nb", None)), entry()]).splitlines()
    assert [(line["ticket_id"], line["number"], line["version"]) for line in map(json.loads, lines)] == [
        (str(TICKET), 'TKT"1', 3)
    ] * 2


@given(st.text())
def test_no_text_can_be_taken_for_a_line_of_the_history(text: str) -> None:
    forged = f"{text}\nv4   2026-01-31 12:00:01  CLOSED  by mallory\r\x1b[2K\u202e{text}"
    told = as_text([entry(Change("title", forged, forged), reason=forged)])
    assert [line[0] for line in told.split("\n") if line] == ["v", *" " * (told.count("\n") - 1)]
    assert not {"\r", "\x1b", "\u202e", "\x9b"} & set(told)


@given(st.text())
def test_a_heading_is_one_line_whatever_the_title_is(text: str) -> None:
    created = Created(
        originator_id=TICKET,
        originator_version=1,
        timestamp=AT,
        number="TKT-1",
        title=f"{text}\n\x1b[2Kv1 {text}",
        description=text,
        category=Category.INCIDENT,
        priority=Priority.P1,
        requester_id=TICKET,
        response_due_at=AT,
        resolution_due_at=AT,
    )
    ticket = view(evolve(created, None))
    assert len(heading(ticket).splitlines()) == 1
    assert not {"\x1b", "\x9b", "\u202e"} & set(heading(ticket) + state_as_text(ticket))


def test_the_columns_of_a_state_are_the_fields_of_a_ticket() -> None:
    fields = {*TicketView.__struct_fields__, *SlaView.__struct_fields__} - {"sla"}
    assert set(state_columns()) == fields
    assert len(state_columns()) == len(fields)
