"""The grid of AGLA's paper on a terminal: what it takes, and measured beside published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
        mine = [row for row in found.rows if row["model"] == model]
        for pope in (True, False):
            lines = list(_lines([row for row in mine if (row["kind"] != "chair") == pope]))
            if lines:
                made.append(_table(model, lines, width, pope))
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


def _table(model: str, lines: Sequence[_Line], width: int, pope: bool) -> Table:
    main = ("accuracy", "f1", "precision", "recall") if pope else ("chair_i", "chair_s", "object_recall", "length")

    def told(name: str, of: Callable[[Row], str], always: bool = True) -> Column[_Line]:
        return Column(name, lambda line: of(next(iter(line[0].values()))) if always or line[1] else "", text=True)

    columns = [told("data", lambda row: DATA[row["data"]], False)]
    columns += [told("kind", lambda row: row["kind"], False)] if pope else []
    columns.append(told("method", lambda row: METHODS[row["method"]]))
    columns.append(told("mode", lambda row: row["mode"] if row["method"].startswith("agla") else ""))
    paired = any(row["published"] is not None for of, _ in lines for row in of.values())
    for place, metric in enumerate(main):
        columns += _figure(metric, 3 * place, paired)
    caption = (
        "Measured in percent with its 95 % interval over pictures; p of a difference: where its interval would touch "
        "zero. All are sampled at temperature 1, “as sharp” at the lower temperature that sharpens as AGLA does."
    )
    if paired:
        caption += " “apart”: measured minus published, in points; * outside the interval."
    else:
        caption += " Nothing published is set beside it."
    title = f"{'POPE' if pope else 'CHAIR'}, {model}: " + ("measured beside published" if paired else "measured")
    return fitted(lines, columns, width, title=title, caption=caption)


def _figure(metric: str, rank: int, paired: bool) -> Iterator[Column[_Line]]:
    def of(write: Callable[[Row], str]) -> Callable[[_Line], str]:
        return lambda line: write(line[0][metric]) if metric in line[0] else "–"

    yield Column(TITLES[metric], of(_measured), rank)
    if paired:
        yield Column("publ.", of(lambda row: "–" if row["published"] is None else _number(row, row["published"])), rank)
        yield Column("apart", of(_apart), rank and rank + 1)


def _number(row: Row, value: float) -> str:
    sign = "+" if "p_value" in row else ""
    # the length is in words, all else are shares
    text = f"{value:{sign}.1f}" if row["metric"] == "length" else f"{round(100 * value, 2) + 0.0:{sign}.2f}"
    return text.replace("-", "−")


def _measured(row: Row) -> str:
    p = f" {p_text(row['p_value'])}" if "p_value" in row else ""
    return f"{_number(row, row['value'])}{p}\n[{_number(row, row['low'])}, {_number(row, row['high'])}]"


def _apart(row: Row) -> str:
    if row["published"] is None:
        return "–"
    return f"{100 * (row['value'] - row['published']):+.2f}".replace("-", "−") + ("" if row["inside"] else "*")
