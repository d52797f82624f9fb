"""Lives off the ledger: `replay`.

Deliberately absent: how they are read (projections/replay.py) and written down (projections/telling.py).
"""

import sys
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import click
import msgspec

from api.cli.terminal import TIME, open_database, output, progress, run, say, settings_or_fail
from projections import replay as lives
from projections import telling
from projections.lists import Filter
from projections.tickets import TicketView
from tickets.connections import connected
from tickets.ledger import Ledger
from tickets.lifecycle import Status
from tickets.sla import Priority
from tickets.values import Category, Environment


def _one_of(kind: type[StrEnum]) -> dict[str, Any]:
    return {"multiple": True, "type": click.Choice([one.value for one in kind], case_sensitive=False)}


_FILTERS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("--status", _one_of(Status)),
    ("--priority", _one_of(Priority)),
    ("--category", _one_of(Category)),
    ("--environment", _one_of(Environment)),
    ("--assignee", {"metavar": "ID", "help": "A person's id, or none."}),
    ("--requester", {"type": click.UUID, "metavar": "ID"}),
    ("--team", {}),
    ("--affected-service", {}),
    ("--tag", {}),
    ("--q", {"help": "What to search for, as in the list of the API."}),
    ("--breached/--not-breached", {"default": None}),
    *((f"--{what}-{end}", {"type": TIME}) for what in ("created", "updated") for end in ("from", "to")),
)
"""The filters of the list of tickets, as options; they ask about tickets as they are now."""

_FIELDS: Final = {"assignee": "assignee_id", "requester": "requester_id"}
"""Those of them that the filter has under another name."""


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    for name, how in reversed(_FILTERS):
        command = click.option(name, **how)(command)
    return command


def _filter(asked: dict[str, Any]) -> Filter | None:
    given = {_FIELDS.get(name, name): value for name, value in asked.items() if value not in (None, ())}
    if given.get("assignee_id") == "none":
        del given["assignee_id"]
        given["unassigned"] = True
    try:
        return msgspec.convert(given, Filter) if given else None
    except msgspec.ValidationError as error:
        raise click.UsageError(f"The filter is not usable: {error}") from None


_STATES: Final[dict[str, Callable[[TicketView], bytes]]] = {
    "text": lambda ticket: telling.state_as_text(ticket).encode(),
    "jsonl": lambda ticket: msgspec.json.encode(ticket) + b"\n",
    "csv": lambda ticket: telling.state_as_csv(ticket).encode(),
}
_HISTORIES: Final[dict[str, Callable[[lives.Life], bytes]]] = {
    "text": lambda life: telling.as_text(life.history).encode(),
    "jsonl": lambda life: telling.as_json_lines(life.ticket.id, life.ticket.number, life.history),
    "csv": lambda life: telling.as_csv(life.ticket.id, life.ticket.number, life.history).encode(),
}


@click.command()
@click.argument("tickets", nargs=-1, metavar="[TICKET]...")
@click.option("--all", "everything", is_flag=True, help="Every ticket there is, deleted ones too.")
@_filtered
@click.option("--version", type=click.IntRange(min=1), help="Up to this version; of one ticket.")
@click.option("--as-of", "as_of", type=TIME, help="Up to this time, RFC 3339: 2026-01-31T12:00:00Z.")
@click.option("--state", is_flag=True, help="The tickets as they then were, instead of how they came to it.")
@click.option("--format", "how", type=click.Choice(list(_STATES)), default="text", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One ticket as one JSON document on standard output.")
def replay(
    tickets: tuple[str, ...],
    *,
    everything: bool,
    version: int | None,
    as_of: datetime | None,
    state: bool,
    how: str,
    as_json: bool,
    **filters: Any,
) -> None:
    """Tickets' lives off the ledger: fact by fact, with what each changed. Exit 1 if one is not there or unreadable.

    Tickets are named by id or number, chosen by the filters as they are now, or --all. They come by id, their
    facts by version: as text, JSON lines (one fact a line), or CSV (one change a row; no cell is a formula).
    """
    wanted = _filter(filters)
    if bool(tickets) + everything + (wanted is not None) != 1:
        raise click.UsageError("Name tickets, or choose them by filters, or say --all: one of these.")
    if version is not None and as_of is not None:
        raise click.UsageError("--version and --as-of cannot go together.")
    if len(tickets) != 1 and (as_json or version is not None):
        raise click.UsageError("--json and --version are for one ticket; --format jsonl is for many.")
    if as_json and (state or how != "text"):
        raise click.UsageError("--json has all of a ticket in a form of its own.")

    async def replaying(dsn: str) -> bool:
        async with Ledger.open(dsn) as ledger:
            named = {name: await lives.find_ticket(ledger, name) for name in tickets}
            at = lives.Moment(await ledger.head(), version, as_of)
        ids = [one for one in named.values() if one is not None]
        seen, clean, facts = set[UUID](), True, 0
        with output() as out, progress("replaying facts", beside_output=True) as told:
            if how == "csv":
                out.write(telling.csv_row(*(telling.state_columns() if state else telling.CSV_COLUMNS)).encode())
            async with connected(dsn) as connection, connection.transaction(readonly=True):
                async for one in lives.follow(connection, at, ids if tickets else wanted):
                    out.write(_printed(one, at, how, state=state, alone=len(tickets) == 1, as_json=as_json))
                    if one.unreadable is not None:
                        clean = _unreadable(one, one.unreadable)
                    if tickets:
                        seen.add(one.id)
                    facts += len(one.facts)
                    told(facts, at.position if everything else None)
        for name, ticket_id in named.items():
            if ticket_id not in seen:
                clean = False
                say(f"There is no ticket {name}, or it was not there at that version or time.")
        return clean

    with open_database(settings_or_fail()) as dsn:
        clean: bool = run(replaying(dsn))
    sys.exit(0 if clean else 1)


def _printed(one: lives.Followed, at: lives.Moment, how: str, *, state: bool, alone: bool, as_json: bool) -> bytes:
    if state:
        return b"" if (shown := one.shown(at)) is None else _STATES[how](shown)
    if (life := one.life(at)) is None or (as_json and one.unreadable is not None):
        return b""
    if as_json:
        return msgspec.json.format(msgspec.json.encode(life), indent=2) + b"\n"
    if how != "text":
        return _HISTORIES[how](life)
    if alone:
        return _HISTORIES[how](life) + b"\n" + _STATES[how](life.ticket)
    return telling.heading(life.ticket).encode() + _HISTORIES[how](life) + b"\n"


def _unreadable(one: lives.Followed, fact: lives.Unreadable) -> bool:
    name = one.id if one.ticket is None else f"{one.ticket.number} ({one.id})"
    why = telling.visible(f"{name}: version {fact.version}, at position {fact.position}, cannot be read: {fact.why}")
    say(why)
    return False


COMMANDS: Final = (replay,)
