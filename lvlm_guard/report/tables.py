"""Tables, and how a number with its interval is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.report.html import Html, part


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
    value: float | None, low: float | None = None, high: float | None = None, digits: int = 3, *, signed: bool = False
) -> Html:
    """Write a value and, smaller, its interval."""
    shown, *ends = (number(each, digits, signed=signed) for each in (value, low, high))
    return part("interval", shown, "" if low is None or high is None else f"[{', '.join(ends)}]")


def table(
    header: Sequence[object], rows: Sequence[Sequence[object]], *, caption: object = None, note: object = None
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
    return part("table", header, [[_shown(cell) for cell in row] for row in rows], caption, note)


def _shown(cell: object) -> Cell:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    written = number(cell.content) if cell.content is None or isinstance(cell.content, float) else cell.content
    return Cell(written, cell.mark)
