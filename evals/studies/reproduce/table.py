"""The grid of AGLA's paper on a terminal: what it takes, and measured beside published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any

from rich.table import Table

from lvlm_guard.evals.report.numbers import p_text
from lvlm_guard.evals.report.tables import Column, fitted
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.studies.reproduce.figures import MEAN

DATA = {MEAN: "mean of three", "coco": "COCO", "aokvqa": "A-OKVQA", "gqa": "GQA", "world": "world"}
METHODS = {
    "regular": "regular",
    "matched": "regular, as sharp",
    "agla": "AGLA",
    "agla-regular": "AGLA − regular",
    "agla-matched": "AGLA − as sharp",
}
METRICS = {
    "POPE": {"accuracy": "accuracy", "f1": "F1", "precision": "precision", "recall": "recall"},
    "CHAIR": {"chair_i": "CHAIR_i", "chair_s": "CHAIR_s", "object_recall": "recall", "length": "words"},
}
"""Metric -> heading, what matters most first."""

_Line = dict[str, Any]
"""A method on a kind of questions of a data set, in one mode: its words by heading, its rows by metric."""


def dry_run_table(found: Mapping[str, Any], width: int = 120) -> Table:
    """Return the runs of the grid and how long they take."""
    columns = [
        Column[_Line]("run", itemgetter("name"), text=True),
        Column[_Line]("questions or captions", lambda cell: f"{cell['items']:,}", 2),
        Column[_Line]("answers", lambda cell: f"{cell['answers']:,}", 1),
        Column[_Line]("hours", lambda cell: f"{cell['hours']:.2f}"),
    ]
    return fitted(found["cells"], columns, width, title="AGLA's paper: the runs")


def reproduce_tables(found: Mapping[str, Any], width: int = 120) -> list[Table]:
    """Return, for each model, POPE and CHAIR: measured, published, and how far they are apart, in points."""
    made = []
    for model, name in product(dict.fromkeys(row["model"] for row in found["rows"]), METRICS):
        rows = [r for r in found["rows"] if r["model"] == model and (r["kind"] == "chair") == (name == "CHAIR")]
        made += [_table(model, name, rows, width)] if rows else []
    return made


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    """Yield lines: data sets with their kinds, plain decoding first and once, then each mode of AGLA."""
    known: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        mode = row["mode"] if row["method"].startswith("agla") else ""
        known.setdefault((row["data"], row["kind"], row["method"], mode), {}).setdefault(row["metric"], row)
    places, methods = list(dict.fromkeys(key[:2] for key in known)), list(METHODS)
    before = None
    for key in sorted(known, key=lambda key: (places.index(key[:2]), methods.index(key[2]))):
        data, kind, method, mode = key
        where = {"data": "", "kind": ""} if before == (data, kind) else {"data": DATA[data], "kind": kind}
        yield {**where, "method": METHODS[method], "mode": mode, **known[key]}
        before = (data, kind)


def _table(model: str, name: str, rows: Sequence[Row], width: int) -> Table:
    paired = any(row["published"] is not None for row in rows)
    words = ("data", "kind", "method", "mode") if name == "POPE" else ("data", "method", "mode")
    columns = [Column[_Line](word, itemgetter(word), text=True) for word in words]
    for place, (metric, title) in enumerate(METRICS[name].items()):
        columns += _figure(metric, title, 3 * place, paired)
    caption = (
        "Measured in percent with its 95 % interval over pictures; p of a difference: where its interval would touch "
        "zero. All are sampled at temperature 1, “as sharp” at the lower temperature that sharpens as AGLA does. "
    )
    beside = "“apart”: measured minus published, in points; * outside the interval."
    caption += beside if paired else "Nothing published is set beside it."
    title = f"{name}, {model}: measured{' beside published' if paired else ''}"
    return fitted(list(_lines(rows)), columns, width, title=title, caption=caption)


def _figure(metric: str, title: str, rank: int, paired: bool) -> Iterator[Column[_Line]]:
    def of(write: Callable[[Row], str], needed: str = "value") -> Callable[[_Line], str]:
        return lambda line: "–" if line.get(metric, {}).get(needed) is None else write(line[metric])

    yield Column(title, of(_measured), rank)
    if paired:
        yield Column("publ.", of(lambda row: _number(row, row["published"]), "published"), rank)
        yield Column("apart", of(_apart, "published"), rank and rank + 1)


def _number(row: Row, value: float) -> str:
    sign = "+" if "p_value" in row else ""
    # the length is in words, all else are shares
    text = f"{value:{sign}.1f}" if row["metric"] == "length" else f"{round(100 * value, 2) + 0.0:{sign}.2f}"
    return text.replace("-", "−")


def _measured(row: Row) -> str:
    p = f" {p_text(row['p_value'])}" if "p_value" in row else ""
    return f"{_number(row, row['value'])}{p}\n[{_number(row, row['low'])}, {_number(row, row['high'])}]"


def _apart(row: Row) -> str:
    return f"{100 * (row['value'] - row['published']):+.2f}".replace("-", "−") + ("" if row["inside"] else "*")
