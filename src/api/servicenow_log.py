"""Reading the audit log of a ServiceNow instance: a CSV, perhaps gzipped, into typed rows.

A row is a snapshot of one incident after one update. Deliberately absent: what follows from it
(servicenow.py).
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from sys import intern
from typing import Final

from msgspec import Struct

from tickets.lifecycle import Status
from tickets.sla import Priority

UNKNOWN: Final = "?"
"""How the log says that it does not know."""

STATES: Final[dict[str, Status]] = {
    "New": Status.NEW,
    "Active": Status.IN_PROGRESS,
    "Awaiting User Info": Status.PENDING_INFO,
    "Awaiting Vendor": Status.PENDING_INFO,
    "Awaiting Problem": Status.PENDING_INFO,
    "Awaiting Evidence": Status.PENDING_INFO,
    "Resolved": Status.RESOLVED,
    "Closed": Status.CLOSED,
}
"""What a state of the log is here. A row with any other is reported and leaves the status as it was."""

_TAGS: Final = {
    "contact_type": "contact",
    "category": "category",
    "subcategory": "subcategory",
    "u_symptom": "symptom",
    "location": "location",
    "impact": "impact",
    "urgency": "urgency",
    "problem_id": "problem",
    "rfc": "rfc",
    "vendor": "vendor",
    "caused_by": "caused by",
}
"""Columns that become tags, each with the tag's first word."""

_COLUMNS: Final = (
    "incident_state",
    "sys_mod_count",
    "caller_id",
    "opened_by",
    "opened_at",
    "sys_updated_by",
    "sys_updated_at",
    "cmdb_ci",
    "priority",
    "assignment_group",
    "assigned_to",
    "closed_code",
    *_TAGS,
)


class LogError(Exception):
    """The file is not a log of the kind that can be read; the message says why."""


class Dirty(Struct, frozen=True):
    """A row that could not be taken as it is, and what was done about it."""

    line: int
    number: str
    what: str


class Row(Struct, frozen=True, gc=False):
    """One update of an incident, as far as it is taken over. None is not known."""

    line: int
    at: datetime
    change: int
    actor: str | None
    status: Status | None
    priority: Priority | None
    team: str | None
    assignee: str | None
    affected_service: str | None
    tags: tuple[str, ...]
    caller: str | None
    opened_by: str | None
    opened_at: datetime
    closed_code: str | None


class Log(Struct, frozen=True):
    """The rows of each incident, by its number, and the rows that were not as they should be."""

    incidents: dict[str, list[Row]]
    dirty: list[Dirty]


def read_log(path: Path) -> Log:
    """The rows of each incident in the order in which they happened. Raises LogError.

    That is by time, and within a minute by the row's own count of changes: where the two disagree, what
    was true at a time is what the row of that time says.
    """
    incidents: dict[str, list[Row]] = defaultdict(list)
    dirty: list[Dirty] = []
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            for number, row in _rows(file, dirty):
                incidents[number].append(row)
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise LogError(f"{path} cannot be read: {error}") from None
    for rows in incidents.values():
        rows.sort(key=lambda row: (row.at, row.change))
    return Log(dict(incidents), dirty)


def _rows(file: Iterator[str], dirty: list[Dirty]) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(file)
    header = next(reader, [])
    missing = {"number", *_COLUMNS} - set(header)
    if missing:
        raise LogError(f"it has no column {', '.join(sorted(missing))}; is it a ServiceNow incident log?")
    at = {name: header.index(name) for name in ("number", *_COLUMNS)}
    for cells in reader:
        values = {name: _known(cells[column]) for name, column in at.items()} if len(cells) == len(header) else {}
        number = values.get("number")
        try:
            row = _row(reader.line_num, values)
        except (ValueError, KeyError, TypeError) as error:
            dirty.append(Dirty(reader.line_num, number or UNKNOWN, f"left out: {error}"))
            continue
        if number is None:
            dirty.append(Dirty(reader.line_num, UNKNOWN, "left out: it has no number"))
            continue
        if row.status is None:
            what = f"state {values['incident_state'] or UNKNOWN!r} is none that there is: the status stays as it was"
            dirty.append(Dirty(reader.line_num, number, what))
        yield intern(number), row


def _row(line: int, values: dict[str, str | None]) -> Row:
    priority = values["priority"]
    return Row(
        line=line,
        at=_time(values["sys_updated_at"]),
        change=int(values["sys_mod_count"] or 0),
        actor=values["sys_updated_by"],
        status=STATES.get(values["incident_state"] or ""),
        priority=None if priority is None else Priority(f"P{priority}"),
        team=values["assignment_group"],
        assignee=values["assigned_to"],
        affected_service=values["cmdb_ci"],
        tags=tuple(intern(f"{word} {values[name]}") for name, word in _TAGS.items() if values[name] is not None),
        caller=values["caller_id"],
        opened_by=values["opened_by"],
        opened_at=_time(values["opened_at"] or values["sys_updated_at"]),
        closed_code=values["closed_code"],
    )


def _known(cell: str) -> str | None:
    return None if cell in (UNKNOWN, "") else intern(cell)


def _time(text: str | None) -> datetime:
    if text is None:
        raise ValueError("it has no time")
    day, clock = text.split(" ")
    days, months, years = day.split("/")
    hours, minutes = clock.split(":")
    return datetime(int(years), int(months), int(days), int(hours), int(minutes), tzinfo=UTC)
