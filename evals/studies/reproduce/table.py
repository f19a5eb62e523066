"""The grid of AGLA's paper on a terminal: what it takes, and measured beside published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from rich.table import Table

from lvlm_guard.evals.report.numbers import p_text
from lvlm_guard.evals.report.terminal import Column, fitted
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.studies.reproduce.grid import TABLE

_Line = dict[str, Any]
"""What stands in the columns of a run, or of a method on a kind of questions of a data set, in one mode."""


def dry_run_table(found: Mapping[str, Any], width: int = 120) -> Table:
    """Return the runs of the grid and how long they take."""
    columns = [
        Column("run", [cell["name"] for cell in found["cells"]], text=True),
        Column("questions or captions", [f"{cell['items']:,}" for cell in found["cells"]], 2),
        Column("answers", [f"{cell['answers']:,}" for cell in found["cells"]], 1),
        Column("hours", [f"{cell['hours']:.2f}" for cell in found["cells"]]),
    ]
    return fitted(columns, width, title="AGLA's paper: the runs")


def reproduce_tables(found: Mapping[str, Any], width: int = 120) -> list[Table]:
    """Return, for each model, POPE and CHAIR: measured, published, and how far they are apart, in points."""
    made = []
    for model, name in product(dict.fromkeys(row["model"] for row in found["rows"]), TABLE["columns"]):
        rows = [r for r in found["rows"] if r["model"] == model and (r["kind"] == "chair") == (name == "CHAIR")]
        made += [_table(model, name, rows, width)] if rows else []
    return made


def _table(model: str, name: str, rows: Sequence[Row], width: int) -> Table:
    paired = any(row["published"] is not None for row in rows)
    words = ("data", "kind", "method", "mode") if name == "POPE" else ("data", "method", "mode")
    lines = _lines(rows)
    columns = [Column(word, [line[word] for line in lines], text=True) for word in words]
    for place, (metric, title) in enumerate(TABLE["columns"][name].items()):
        columns.append(Column(title, [line[metric] for line in lines], 3 * place))
        if paired:
            columns.append(Column("publ.", [line[f"{metric} publ."] for line in lines], 3 * place))
            columns.append(Column("apart", [line[f"{metric} apart"] for line in lines], 3 * place + (place > 0)))
    caption = (
        "Measured in percent with its 95 % interval over pictures; p of a difference: where its interval would touch "
        "zero. All are sampled at temperature 1, “as sharp” at the lower temperature that sharpens as AGLA does. "
    )
    beside = "“apart”: measured minus published, in points; * outside the interval."
    caption += beside if paired else "Nothing published is set beside it."
    title = f"{name}, {model}: measured{' beside published' if paired else ''}"
    return fitted(columns, width, title=title, caption=caption)


def _lines(rows: Sequence[Row]) -> list[_Line]:
    """Return lines: data sets with their kinds, plain decoding first and once, then each mode of AGLA."""
    found: dict[tuple[str, ...], _Line] = {}
    for row in rows:
        mode = row["mode"] if row["method"].startswith("agla") else ""
        where = (row["data"], row["kind"], row["method"], mode)
        line = found.setdefault(where, defaultdict(lambda: "–", method=TABLE["methods"][row["method"]], mode=mode))
        line |= {} if row["metric"] in line else _cells(row)
    places, methods = list(dict.fromkeys(key[:2] for key in found)), list(TABLE["methods"])
    order = sorted(found, key=lambda key: (places.index(key[:2]), methods.index(key[2])))
    for before, (data, kind, *which) in zip([(), *order], order, strict=False):
        same = before[:2] == (data, kind)
        found[data, kind, *which] |= {"data": "" if same else TABLE["data"][data], "kind": "" if same else kind}
    return [found[key] for key in order]


def _cells(row: Row) -> _Line:
    """Return what a row's metric says: as measured, as published, and how far they are apart."""
    metric, sign = row["metric"], "+" if "p_value" in row else ""
    scale, digits = (1, 1) if metric == "length" else (100, 2)  # in words; all else are shares

    def number(end: str) -> str:
        return f"{round(scale * row[end], digits) + 0.0:{sign}.{digits}f}"

    found = {}
    if row["value"] is not None:
        p = f" {p_text(row['p_value'])}" if "p_value" in row else ""
        found[metric] = f"{number('value')}{p}\n[{number('low')}, {number('high')}]"
    if row["published"] is not None:
        apart = f"{100 * (row['value'] - row['published']):+.2f}{'' if row['inside'] else '*'}"
        found |= {f"{metric} publ.": number("published"), f"{metric} apart": apart}
    return {name: text.replace("-", "−") for name, text in found.items()}
