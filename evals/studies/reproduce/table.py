"""The grid of AGLA's paper on a terminal: what it takes, and measured beside published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from lvlm_guard.evals.report.numbers import p_text
from lvlm_guard.evals.report.tables import Column, fitted
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.studies.reproduce import DryRun, Reproduced
from lvlm_guard.evals.studies.reproduce.plan import Cell
from lvlm_guard.evals.studies.reproduce.published import MEAN

DATA = {MEAN: "mean of three", "coco": "COCO", "aokvqa": "A-OKVQA", "gqa": "GQA", "world": "world"}
METHODS = {
    "regular": "regular",
    "matched": "regular, as sharp",
    "agla": "AGLA",
    "agla-regular": "AGLA − regular",
    "agla-matched": "AGLA − as sharp",
}
TITLES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "object_recall": "recall",
    "length": "words",
}


@dataclass(frozen=True)
class _Line:
    """A method on a kind of questions of a data set, in one mode: its rows by metric.

    Args:
        rows: by metric.
        new: whether data set and kind are named, as on the first of their lines.
    """

    rows: dict[str, Row]
    new: bool

    @property
    def first(self) -> Row:
        return next(iter(self.rows.values()))


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
        mine = [row for row in found.rows if row["model"] == model]
        for pope in (True, False):
            lines = list(_lines([row for row in mine if (row["kind"] != "chair") == pope]))
            if lines:
                made.append(_table(model, lines, width, pope))
    return made


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    """Yield lines: data sets with their kinds, plain decoding first and once, then each mode of AGLA."""
    places = dict.fromkeys((row["data"], row["kind"]) for row in rows)
    for data, kind in places:
        here = [row for row in rows if (row["data"], row["kind"]) == (data, kind)]
        new = True
        for method in METHODS:
            modes = list(dict.fromkeys(row["mode"] for row in here if row["method"] == method))
            for mode in modes if method.startswith("agla") else modes[:1]:
                of = {row["metric"]: row for row in here if (row["method"], row["mode"]) == (method, mode)}
                yield _Line(of, new)
                new = False


def _table(model: str, lines: Sequence[_Line], width: int, pope: bool) -> Table:
    main = ("accuracy", "f1", "precision", "recall") if pope else ("chair_i", "chair_s", "object_recall", "length")
    columns = [
        Column[_Line]("data", lambda line: DATA[line.first["data"]] if line.new else "", text=True),
        *([Column[_Line]("kind", lambda line: line.first["kind"] if line.new else "", text=True)] if pope else []),
        Column[_Line]("method", lambda line: METHODS[line.first["method"]], text=True),
        Column[_Line]("mode", lambda line: line.first["mode"] if line.first["method"].startswith("agla") else ""),
    ]
    paired = any(row["published"] is not None for line in lines for row in line.rows.values())
    for place, metric in enumerate(main):
        columns += _figure(metric, 0 if place == 0 else place * 3, paired)
    caption = (
        "Measured in percent with its 95 % interval over pictures; p of a difference: where its interval would "
        "touch zero. All are "
        "sampled at temperature 1, “as sharp” at the lower temperature that sharpens as AGLA does."
    )
    if paired:
        caption += " “apart”: measured minus published, in points; * outside the interval."
    else:
        caption += " Nothing published is set beside it."
    title = f"{'POPE' if pope else 'CHAIR'}, {model}: " + ("measured beside published" if paired else "measured")
    return fitted(lines, columns, width, title=title, caption=caption)


def _figure(metric: str, rank: int, paired: bool) -> Iterator[Column[_Line]]:
    yield Column(TITLES[metric], lambda line: _measured(line.rows.get(metric)), rank)
    if paired:
        yield Column("publ.", lambda line: _published(line.rows.get(metric)), rank)
        yield Column("apart", lambda line: _apart(line.rows.get(metric)), rank and rank + 1)


def _published(row: Row | None) -> str:
    return "–" if row is None or row["published"] is None else _figures(row, row["published"])


def _figures(row: Row, value: float) -> str:
    sign = "+" if "p_value" in row else ""
    # the length is in words, all else are shares
    text = f"{value:{sign}.1f}" if row["metric"] == "length" else f"{round(100 * value, 2) + 0.0:{sign}.2f}"
    return text.replace("-", "−")


def _measured(row: Row | None) -> str:
    if row is None:
        return "–"
    p = f" {p_text(row['p_value'])}" if "p_value" in row else ""
    return f"{_figures(row, row['value'])}{p}\n[{_figures(row, row['low'])}, {_figures(row, row['high'])}]"


def _apart(row: Row | None) -> str:
    if row is None or row["published"] is None:
        return "–"
    apart = f"{100 * (row['value'] - row['published']):+.2f}".replace("-", "−")
    return apart + ("" if row["inside"] else "*")
