"""A run's results on a terminal: a table for each task, a line for each decoder, its cost beside its scores.

for table in tables(results, width):
    console.print(table)
print(*sentences(results), sep="\\n")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.report.layout import JUDGED, Cell, Results, Task, interval, judged, p_text, said, title, written

STYLES = {"good": "bold green", "bad": "bold red", "": ""}


def tables(results: Results | Mapping[str, Any], width: int = 120, about: str = "", caption: str = "") -> list[Table]:
    """Return a table for each task; narrower terminals get fewer columns, never cut ones. None of a void run. `about`:
    what the tables are of, else the model; `caption`: what stands below, else what the figures are."""
    known = results if isinstance(results, Results) else Results(results)
    about, found = about or known.data.get("settings", {}).get("model", ""), []
    for task in known.tasks if not known.data["void"] else ():
        lines = known.lines(task)
        quiet = ["dim" if line["role"] in ("plain", "control") else "" for line in lines]
        names = [Text(line["name"], style) for line, style in zip(lines, quiet, strict=True)]
        columns = [Column("decoder", names, text=True)]
        for one in known.columns(task):
            columns.append(Column(one.title, [_drawn(known.cell(one, line["name"])) for line in lines], one.rank))
        of = f"{task['name']}: {about}, {task['split']} split, {task['n']} items on {task['pictures']} pictures"
        found.append(fitted(columns, width, title=of, caption=caption or explained(known, task)))
    return found


def _drawn(cell: Cell) -> Text:
    if cell.change is None:
        return Text.assemble(cell.text, (cell.interval and f"\n{cell.interval}", "dim"))
    change = written(cell.change), STYLES[judged(cell.change)]
    return Text.assemble(f"{cell.text} ", change, (f"\n{interval(cell.change)}", "dim"))


class Column(NamedTuple):
    """A column of a table: its heading, and what stands in it, line by line."""

    title: str
    cells: Sequence[Text | str]
    rank: int = 0  # on a narrow terminal the columns of the highest rank go first, those of rank 0 never
    text: bool = False  # whether it holds words, which are folded where they are too long; else figures


def fitted(columns: Sequence[Column], width: int, *, title: str, caption: str = "") -> Table:
    """Return a table of as many of the columns as fit into `width` characters."""
    kept, unbounded = list(columns), Console(width=10_000)
    while True:
        shown = Table(title=Text(title), caption=Text(caption) if caption else None, box=box.SIMPLE_HEAD)
        shown.title_justify = shown.caption_justify = "left"
        shown.pad_edge, shown.padding = False, (0, 1, 0, 0)
        for column in kept:
            kind: dict[str, Any] = {"overflow": "fold"} if column.text else {"justify": "right", "no_wrap": True}
            shown.add_column(column.title, **kind)
        for line in zip(*(column.cells for column in kept), strict=True):
            # Text: names of sweep points hold brackets, which would be taken for markup
            shown.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in line))
        wide = Measurement.get(unbounded, unbounded.options, shown).maximum
        if wide <= width or not any(column.rank for column in kept):
            return shown
        kept.remove(max(kept, key=lambda column: column.rank))


def explained(results: Results, task: Task) -> str:
    """Return what a table's figures are, in a few sentences."""
    n = {row: max(r["n"] for r in results.rows if r["task"] == row) for row in results.row_tasks(task)}
    counted = ", ".join(f"{row} {n}" for row, n in n.items())
    told = f"n: {counted}. Beside a value its paired difference to {results.reference}, below it that difference's 95 %"
    told += f" interval ({results.reference}: the value's), pictures drawn with replacement; coloured where clear."
    return f"{told} Time: the request's, picture and mask included."


def sentences(results: Results | Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the results, sentence by sentence; none of a void run."""
    known = results if isinstance(results, Results) else Results(results)
    if known.data["void"]:
        return []
    methods = {decoder["name"]: decoder["method"] for decoder in known.decoders if decoder["role"] == "method"}
    return worded("sentences", results=known, methods=methods, roles=JUDGED)


def worded(name: str, **data: Any) -> list[str]:
    """Return what the text template NAME.txt.jinja says of data, each sentence once."""
    loader = PackageLoader("lvlm_guard.evals.report.page")
    made = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals |= {one.__name__: one for one in (judged, p_text, said, title)}
    lines = made.get_template(f"{name}.txt.jinja").render(data).split("\n")
    return [line for line in dict.fromkeys(lines) if line]
