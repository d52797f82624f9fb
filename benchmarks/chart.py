"""The side by side as a picture: a bar for each kind of work, as long as this service does more of it than the peer.

Deliberately absent: any other picture; a table says the rest.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.measurement import Result

_ROW: Final = 34
_LEFT: Final = 330
_WIDTH: Final = 760
_BAR: Final = 250
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.number{font-variant-numeric:tabular-nums}"
    ".peer{fill:#8c959f}.ours{fill:#1a7f5a}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#3fb984}}"
)


def chart(results: Sequence[Result], at: str) -> str | None:
    """SVG of what was measured `at` a number of tickets and connections ("100000x64"); None if nothing was."""
    values = {one.key: one for one in results if one.benchmark == "side-by-side"}
    work = [key.partition("@")[0] for key in values if key.endswith(f"@{at} ratio") and " p99 " not in key]
    if not work:
        return None
    tickets, _, connections = at.partition("x")
    rows = []
    longest = max(values[f"{one}@{at} ratio"].value for one in work)
    for number, one in enumerate(work):
        ours, theirs, ratio = (values[f"{one}@{at} {which}"] for which in ("ours", "peer", "ratio"))
        y = 48 + number * _ROW
        name = escape(ours.what.partition(f", {int(tickets):,} tickets")[0])
        rows.append(
            f'<text x="{_LEFT - 12}" y="{y + 15}" text-anchor="end">{name}</text>'
            f'<rect class="ours" x="{_LEFT}" y="{y}" width="{ratio.value / longest * _BAR:.1f}" height="11" rx="2"/>'
            f'<rect class="peer" x="{_LEFT}" y="{y + 13}" width="{_BAR / longest:.1f}" height="7" rx="2"/>'
            f'<text class="number" x="{_LEFT + _BAR + 12}" y="{y + 15}">'
            f"{ratio.value:.1f} times ({ours.value:,.0f}/s : {theirs.value:,.0f}/s)</text>"
        )
    height = 60 + len(work) * _ROW
    title = f"Requests a second beside FastAPI with SQLAlchemy: {int(tickets):,} tickets, {connections} connections"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style><text x="12" y="26">{escape(title)}</text>'
        f"{''.join(rows)}</svg>\n"
    )
