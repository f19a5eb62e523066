"""The grid of AGLA's paper on a terminal: what it takes, and measured beside published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from lvlm_guard.evals.report.numbers import p_text
from lvlm_guard.evals.report.tables import Column, fitted
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.studies.reproduce import Reproduced
from lvlm_guard.evals.studies.reproduce.figures import MEAN
from lvlm_guard.evals.studies.reproduce.needs import DryRun
from lvlm_guard.evals.studies.reproduce.plan import Cell

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

_Line = tuple[dict[str, Row], bool]
"""A method on a kind of questions of a data set, in one mode: its rows by metric, and whether it is the first there."""


def dry_run_table(found: DryRun, width: int = 120) -> Table:
    """Return the runs of the grid and how long they take."""
    columns = [
        Column[Cell]("run", lambda cell: cell.name, text=True),
        Column[Cell]("questions or captions", lambda cell: f"{cell.items:,}", 2),
        Column[Cell]("answers", lambda cell: f"{cell.answers:,}", 1),
        Column[Cell]("hours", lambda cell: f"{cell.hours:.2f}"),
    ]
    return fitted(found.cells, columns, width, title="AGLA's paper: the runs")


def reproduce_tables(found: Reproduced, width: int = 120) -> list[Table]:
    """Return, for each model, POPE and CHAIR: measured, published, and how far they are apart, in points."""
    made = []
    for model in dict.fromkeys(row["model"] for row in found.rows):
        for name in METRICS:
            rows = [r for r in found.rows if r["model"] == model and (r["kind"] == "chair") == (name == "CHAIR")]
            made += [_table(model, name, list(_lines(rows)), width)] if rows else []
    return made


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    """Yield lines: data sets with their kinds, plain decoding first and once, then each mode of AGLA."""
    for data, kind in dict.fromkeys((row["data"], row["kind"]) for row in rows):
        here = [row for row in rows if (row["data"], row["kind"]) == (data, kind)]
        new = True
        for method in METHODS:
            modes = list(dict.fromkeys(row["mode"] for row in here if row["method"] == method))
            for mode in modes if method.startswith("agla") else modes[:1]:
                yield {row["metric"]: row for row in here if (row["method"], row["mode"]) == (method, mode)}, new
                new = False


def _table(model: str, name: str, lines: Sequence[_Line], width: int) -> Table:
    def told(title: str, of: Callable[[Row], str], always: bool = True) -> Column[_Line]:
        return Column(title, lambda line: of(next(iter(line[0].values()))) if always or line[1] else "", text=True)

    columns = [told("data", lambda row: DATA[row["data"]], False)]
    columns += [told("kind", lambda row: row["kind"], False)] if name == "POPE" else []
    columns.append(told("method", lambda row: METHODS[row["method"]]))
    columns.append(told("mode", lambda row: row["mode"] if row["method"].startswith("agla") else ""))
    paired = any(row["published"] is not None for of, _ in lines for row in of.values())
    for place, (metric, title) in enumerate(METRICS[name].items()):
        columns += _figure(metric, title, 3 * place, paired)
    caption = (
        "Measured in percent with its 95 % interval over pictures; p of a difference: where its interval would touch "
        "zero. All are sampled at temperature 1, “as sharp” at the lower temperature that sharpens as AGLA does."
    )
    if paired:
        caption += " “apart”: measured minus published, in points; * outside the interval."
    else:
        caption += " Nothing published is set beside it."
    title = f"{name}, {model}: measured{' beside published' if paired else ''}"
    return fitted(lines, columns, width, title=title, caption=caption)


def _figure(metric: str, title: str, rank: int, paired: bool) -> Iterator[Column[_Line]]:
    def of(write: Callable[[Row], str], needed: str = "value") -> Callable[[_Line], str]:
        return lambda line: "–" if line[0].get(metric, {}).get(needed) is None else write(line[0][metric])

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
