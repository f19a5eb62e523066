"""Tables, and how a number with its interval is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.report.html import Html, join, tag


@dataclass(frozen=True)
class Cell:
    """A cell with a mark: "good", "bad", "strong" or "" (none)."""

    content: object
    mark: str = ""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number with a true minus sign; None becomes a dash."""
    if value is None:
        return "–"
    value = round(value, digits) + 0.0  # turns -0.0 into 0.0
    return f"{value:{'+' if signed and value else ''}.{digits}f}".replace("-", "−")


def with_interval(
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    digits: int = 3,
    *,
    signed: bool = False,
) -> Html:
    """Write a value and, smaller, its interval."""
    shown = tag("span", number(value, digits, signed=signed), class_="value")
    if low is None or high is None:
        return shown
    ends = f"[{number(low, digits, signed=signed)}, {number(high, digits, signed=signed)}]"
    return join((shown, " ", tag("span", ends, class_="interval")))


def table(
    header: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    caption: object = None,
    note: object = None,
) -> Html:
    """Return a table whose first column names the rows; the others are aligned as numbers.

    Args:
        header: one cell a column.
        rows: cells are text (escaped), `Html`, a number (three digits), None (a dash) or a `Cell`.
        caption: what the table shows, above it.
        note: what a reader must know, below it.

    Raises:
        ValueError: a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"The table has {len(header)} columns, but a row has {len(row)} cells: {list(row)!r}.")
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", _shown(row[0]), scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    whole = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", head),
        tag("tbody", *body),
    )
    return join((tag("div", whole, class_="scroll", tabindex=0), tag("p", note, class_="note") if note else None))


def _cell(cell: object) -> Html:
    mark = cell.mark if isinstance(cell, Cell) else ""
    return tag("td", _shown(cell), class_=mark or None)


def _shown(cell: object) -> object:
    content = cell.content if isinstance(cell, Cell) else cell
    if content is None:
        return "–"
    return number(content) if isinstance(content, float) else content
