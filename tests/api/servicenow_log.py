"""A small log of the shape of the real one, with all that is odd about it: not a test.

Ties within a minute, a row out of order, incidents that begin in the middle of the workflow, reopenings,
states that are none, people and teams that are not known. Made with a seed, so it is the same every time.
"""

import csv
import gzip
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

COLUMNS = [
    "number",
    "incident_state",
    "active",
    "reassignment_count",
    "reopen_count",
    "sys_mod_count",
    "made_sla",
    "caller_id",
    "opened_by",
    "opened_at",
    "sys_created_by",
    "sys_created_at",
    "sys_updated_by",
    "sys_updated_at",
    "contact_type",
    "location",
    "category",
    "subcategory",
    "u_symptom",
    "cmdb_ci",
    "impact",
    "urgency",
    "priority",
    "assignment_group",
    "assigned_to",
    "knowledge",
    "u_priority_confirmation",
    "notify",
    "problem_id",
    "rfc",
    "vendor",
    "caused_by",
    "closed_code",
    "resolved_by",
    "resolved_at",
    "closed_at",
]
STATES = ["New", "Active", "Awaiting User Info", "Awaiting Vendor", "Awaiting Problem", "Awaiting Evidence", "Resolved"]
DIRTY = ((7, 2), (7, 3), (40, 1))
"""Incidents and rows that have the state -100."""


def _clock(at: datetime) -> str:
    return f"{at.day}/{at.month}/{at.year} {at:%H:%M}"


def make_log(path: Path, incidents: int = 120) -> Path:
    """Write the log; returns the path."""
    random = Random(498)  # noqa: S311 - the same log every time is the point
    start = datetime(2016, 2, 29, 1, 16)  # noqa: DTZ001 - the log has no zone
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="?")
        writer.writeheader()
        for number in range(incidents):
            at = opened = start + timedelta(minutes=random.randrange(60 * 24 * 300))
            row: dict[str, str] = {
                "number": f"{number:07}",
                "incident_state": random.choice(["New", "New", "Active", "Resolved", "Awaiting Problem"]),
                "caller_id": random.choice(["?", "12", "2403"]),
                "opened_by": str(random.randrange(5)),
                "opened_at": _clock(opened),
                "contact_type": "Phone",
                "category": str(random.randrange(60)),
                "subcategory": str(random.randrange(200)),
                "cmdb_ci": random.choice(["?", "cmdb_ci 31"]),
                "impact": "2",
                "urgency": "2",
                "priority": "3",
                "assignment_group": random.choice(["?", "56", "70"]),
                "assigned_to": "?",
                "closed_code": "5",
            }
            rows = []
            for change in range(random.randrange(2, 12)):
                row = {**row, "sys_mod_count": str(change), "sys_updated_by": str(random.randrange(20))}
                row["sys_updated_at"] = _clock(at)
                if change:
                    field = random.choice(
                        ["incident_state"] * 3 + ["assigned_to", "assignment_group", "priority", "none"]
                    )
                    choices = {
                        "incident_state": STATES,
                        "assigned_to": ["?", "89", "17", "13"],
                        "assignment_group": ["?", "56", "70", "25"],
                        "priority": ["1", "2", "3", "4"],
                        "none": ["?"],
                    }
                    if field != "none":
                        row[field] = random.choice(choices[field])
                rows.append({**row, "incident_state": "-100"} if (number, change) in DIRTY else row)
                at += timedelta(minutes=random.choice([0, 0, 1, 60, 5000]))
            rows.append(
                {**row, "incident_state": "Closed", "sys_mod_count": str(len(rows)), "sys_updated_at": _clock(at)}
            )
            if number == 11:
                rows.insert(0, rows.pop())
            writer.writerows(rows)
    return path
