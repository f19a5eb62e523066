"""Tables for terminals of any width: what matters least is left out, and nothing is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Line = TypeVar("Line")


@dataclass(frozen=True)
class Column(Generic[Line]):
    """A column: its heading, and what stands in it for a line."""

    title: str
    cell: Callable[[Line], Text | str]
    rank: int = 0  # on a narrow terminal the columns of the highest rank go first, those of rank 0 never
    text: bool = False  # whether it holds words, which are folded where they are too long; else figures


def fitted(
    lines: Sequence[Line], columns: Sequence[Column[Line]], width: int, *, title: str, caption: str = ""
) -> Table:
    """Return a table of as many of the columns as fit into `width` characters."""
    kept = list(columns)
    unbounded = Console(width=10_000)
    while True:
        shown = _drawn(lines, kept, title, caption)
        wide = Measurement.get(unbounded, unbounded.options, shown).maximum
        if wide <= width or not any(column.rank for column in kept):
            return shown
        kept.remove(max(kept, key=lambda column: column.rank))


def _drawn(lines: Sequence[Line], columns: Sequence[Column[Line]], title: str, caption: str) -> Table:
    shown = Table(title=Text(title), caption=Text(caption) if caption else None, box=box.SIMPLE_HEAD)
    shown.title_justify = shown.caption_justify = "left"
    shown.pad_edge, shown.padding = False, (0, 1, 0, 0)
    for column in columns:
        kind: dict[str, Any] = {"overflow": "fold"} if column.text else {"justify": "right", "no_wrap": True}
        shown.add_column(column.title, **kind)
    for line in lines:
        # Text: names of sweep points hold brackets, which would be taken for markup
        cells = [column.cell(line) for column in columns]
        shown.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    return shown
