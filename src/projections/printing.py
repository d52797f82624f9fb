"""A history as a page to print and file: HTML in itself, without scripts, every value escaped.

Deliberately absent: where the history comes from, and its other forms (telling.py).
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from projections.history import Entry
from projections.telling import moment, shown, visible

_STYLE: Final = """
body { font: 10pt/1.4 Georgia, serif; color: #000; background: #fff; margin: 2em auto; max-width: 75em; padding: 0 1em }
h1 { font-size: 16pt } h2 { font-size: 12pt; margin: 2em 0 .5em; break-after: avoid }
table { border-collapse: collapse; width: 100% }
th, td { border: .5pt solid #999; padding: .3em .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
thead { display: table-header-group } tr { break-inside: avoid }
dl { display: grid; grid-template-columns: max-content auto; gap: .2em 1em } dt { font-weight: bold } dd { margin: 0 }
bdi { white-space: pre-wrap } code { font-size: 7.5pt } .was { color: #666 } .when { white-space: nowrap }
@page { size: A4 landscape; margin: 15mm 12mm }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 8.5pt } a { color: inherit } }
"""

_HEAD: Final = (
    "<thead><tr><th>Position</th><th>Ticket</th><th>When</th><th>What</th><th>By</th><th>What changed</th></tr></thead>"
)


def page_begins(title: str, facts: Mapping[str, str]) -> str:
    """The head of the page: what it is, and what there is to know about it."""
    told = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n" for name, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n<dl>\n{told}</dl>\n"
    )


def table_begins(heading: str) -> str:
    """A table of entries under a heading."""
    return f"<h2>{_text(heading)}</h2>\n<table>{_HEAD}<tbody>\n"


def row(number: str, one: Entry, leaf: bytes) -> str:
    """An entry, with the leaf of its fact in hexadecimal."""
    who = one.actor.username or str(one.actor.id)
    by = [who, *([one.actor.role] if one.actor.role else []), *([f"from {one.ip_address}"] if one.ip_address else [])]
    what = one.action + (", internal" if one.metadata.get("internal") else "")
    told = [f"{_text(change.field)}: {_change(shown(change.old), shown(change.new))}" for change in one.changes]
    if one.reason:
        told.insert(0, f"because {_value(one.reason)}")
    told += [
        f"{_text(name)} {_value(shown(one.metadata[name]))}" for name in ("sha256", "infected") if name in one.metadata
    ]
    told.append(f"<code>{leaf.hex()}</code>")
    return (
        f"<tr><td>{one.position}</td><td>{_value(number)} v{one.version}</td>"
        f'<td class="when">{moment(one.occurred_at)}</td>'
        f"<td>{_text(what)}</td><td>{_lines(map(_value, by))}</td><td>{_lines(told)}</td></tr>\n"
    )


def table_ends() -> str:
    """The end of a table."""
    return "</tbody></table>\n"


def page_ends() -> str:
    """The end of the page."""
    return (
        "<p>Each entry follows from one fact of the ledger; under it stands the fact's leaf, the SHA-256 that "
        "facts.jsonl and proofs.jsonl beside this page prove to be in the ledger.</p>\n</body>\n</html>\n"
    )


def _change(old: str, new: str) -> str:
    return f'<span class="was">{_value(old)}</span> → {_value(new)}' if old else _value(new)


def _lines(lines: Iterable[str]) -> str:
    return "<br>".join(lines)


def _value(text: str) -> str:
    """What somebody wrote: what its letters do to the direction of writing ends where it ends."""
    return f"<bdi>{_text(text)}</bdi>" if text else "<i>nothing</i>"


def _text(text: str) -> str:
    return escape(visible(text))
