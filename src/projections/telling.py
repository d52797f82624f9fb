"""A ticket's history written down: as a person tells it, as JSON lines, and as CSV for a spreadsheet.

Deliberately absent: where the history comes from (replay.py), and where it goes.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from projections.history import Change, Entry
from projections.tickets import SlaView, TicketView

_encode: Final = msgspec.json.Encoder().encode

CSV_COLUMNS: Final = (
    "ticket_id",
    "number",
    "position",
    "version",
    "action",
    "occurred_at",
    "recorded_at",
    "actor_id",
    "actor_username",
    "actor_role",
    "ip_address",
    "field",
    "old",
    "new",
    "reason",
    "command_id",
    "metadata",
)
"""Of a history: a row a change, and one with `field` empty for a fact that changed nothing."""

_FORMULA: Final = "=+-@\t\r\n＝＋－＠'"  # noqa: RUF001 - spreadsheets take the wide ones for formulas too
"""What a spreadsheet takes for the beginning of a formula, and the apostrophe that makes it a text."""

_QUOTE: Final = '"'
_SPECIAL: Final = re.compile(rf'^[{re.escape(_FORMULA)}]|[,"\r\n]').search

_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    **dict.fromkeys([*range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}
"""What controls a terminal, breaks lines or turns the direction of writing, with what is shown instead."""
_ACTS: Final = re.compile(f"[{''.join(map(chr, _PICTURES))}]").search

_NO_CHANGE: Final = (Change("", None, None),)


def as_text(history: Iterable[Entry]) -> str:
    """Each entry as a person would tell it."""
    return "".join(map(_told, history))


def heading(ticket: TicketView) -> str:
    """Which ticket it is, in a line."""
    return visible(f"{ticket.number}  {ticket.title}  ({ticket.id})").replace("\n", " ") + "\n"


def state_as_text(ticket: TicketView) -> str:
    """The ticket, a field a line."""
    fields = msgspec.json.format(_encode(ticket), indent=2).decode()
    return visible(f"{ticket.number} at version {ticket.version}:\n{fields}\n")


def as_json_lines(ticket_id: UUID, number: str, history: Iterable[Entry]) -> bytes:
    """An entry a line, as the API shows it, with the ticket's id and number before."""
    start = b'{"ticket_id":"%b","number":%b,' % (str(ticket_id).encode(), _encode(number))
    return b"".join(b"%b%b\n" % (start, _encode(one)[1:]) for one in history)


def as_csv(ticket_id: UUID, number: str, history: Iterable[Entry]) -> str:
    """A row a change under CSV_COLUMNS."""
    ticket, rows = _cells(str(ticket_id), number), []
    for one in history:
        # None of these has letters that somebody chose.
        place = f"{one.position},{one.version},{one.action},{moment(one.occurred_at)},{moment(one.recorded_at)}"
        who = _cells(str(one.actor.id), one.actor.username or "", one.actor.role or "", one.ip_address or "")
        metadata = _encode(one.metadata).decode() if one.metadata else ""
        after = _cells(one.reason or "", str(one.command_id), metadata)
        rows += [
            f"{ticket},{place},{who},{_cells(change.field, shown(change.old), shown(change.new))},{after}\r\n"
            for change in one.changes or _NO_CHANGE
        ]
    return "".join(rows)


def state_as_csv(ticket: TicketView) -> str:
    """A row with all that the ticket shows, under `state_columns`."""
    fields: dict[str, Any] = msgspec.to_builtins(ticket)
    fields |= fields.pop("sla")
    return csv_row(*map(shown, fields.values()))


def state_columns() -> Sequence[str]:
    """The columns of `state_as_csv`: the fields of a ticket, those of its service level at the end."""
    *others, sla = (
        field.name for field in sorted(msgspec.structs.fields(TicketView), key=lambda field: field.name == "sla")
    )
    del sla
    return (*others, *(field.name for field in msgspec.structs.fields(SlaView)))


def csv_row(*cells: str) -> str:
    """A row of CSV by RFC 4180.

    A cell that a spreadsheet would take for a formula has an apostrophe before it, which makes it a text, and so
    has one that begins with an apostrophe: without its first apostrophe, if it has one, a cell is what it was.
    """
    return f"{_cells(*cells)}\r\n"


def moment(at: datetime) -> str:
    """A time by RFC 3339, in UTC, with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def shown(value: Any) -> str:
    """A value as a person reads it: a text as it is, nothing for null, the rest as JSON."""
    if value is None or type(value) is str:
        return value or ""
    plain = msgspec.to_builtins(value)
    return plain if isinstance(plain, str) else _encode(plain).decode()


def _cells(*cells: str) -> str:
    """By hand, because the standard library's writer looks at every character in each of a million rows."""
    return ",".join([_cell(cell) if cell and _SPECIAL(cell) else cell for cell in cells])


def _cell(text: str) -> str:
    guarded = f"'{text}" if text[0] in _FORMULA else text
    return f'"{guarded.replace(_QUOTE, _QUOTE * 2)}"'


def visible(text: str) -> str:
    """The text without characters that a terminal or printer acts on; those have a picture instead."""
    return text.translate(_PICTURES) if _ACTS(text) else text


def _told(one: Entry) -> str:
    who = one.actor.username or str(one.actor.id)
    role = f" ({one.actor.role})" if one.actor.role else ""
    internally = ", internally" if one.metadata.get("internal") else ""
    lines = [f"v{one.version:<3} {one.occurred_at:%Y-%m-%d %H:%M:%S}  {one.action}  by {who}{role}{internally}"]
    if one.reason:
        lines.append(f'because "{one.reason}"')
    for change in one.changes:
        was = "" if change.old is None else f"{shown(change.old)} -> "
        lines.append(f"{change.field}: {was}{shown(change.new) or 'nothing'}")
    if "sha256" in one.metadata:
        lines.append(f"whose content has the SHA-256 {one.metadata['sha256']}")
    # However many lines a text has, none of them can be taken for a line of the history.
    return visible("\n".join(lines)).replace("\n", "\n       ") + "\n"
