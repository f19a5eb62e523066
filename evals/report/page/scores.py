"""Tables of a run's scores: values with intervals, differences with p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.evals.report.figures import NAMES, Row, ends, number, p_text, verdict
from lvlm_guard.evals.report.terminal import hardest_of, row_tasks, whole_of
from lvlm_guard.evals.stats.results import drawn, find
from lvlm_guard.report import Cell, Html, table, tag

Task = Mapping[str, Any]
Run = Mapping[str, Any]
Where = tuple[str, str, object]
"""A column: result row, metric, heading."""

PLAIN_NUMBERS = frozenset({"length", "objects_named", "score", "score_official"})  # no shares
MOST = 8  # columns of a task whose metrics are not ours


def score_tables(run: Run, task: Task) -> list[Html]:
    """Return the tables of a task."""
    rows = run["rows"]
    whole, hardest = whole_of(task, rows), hardest_of(task, rows)
    again, of = drawn(run["decoders"])
    told = _CELL.format(reference=run["reference"], drawn=again, of=of)
    if task["kind"] == "pope":
        names = row_tasks(task, rows)
        balance = ("precision", "recall", "f1", "yes_ratio", "unreadable")
        return [
            _table(
                run,
                task,
                [(name, "accuracy", _titled(name, rows)) for name in names],
                "Accuracy",
                outcome=whole,
                note=told,
            ),
            _table(
                run,
                task,
                [(whole, m, _metric(m)) for m in balance],
                f"How it answers, {whole}",
                note=_labels(run, whole),
            ),
            _readings(run, task, [(name, m) for name in dict.fromkeys((hardest, whole)) for m in _OTHER_READINGS]),
        ]
    if task["kind"] == "chair":
        metrics = ("chair_i", "chair_s", "object_recall", "objects_named", "length", "repeats")
        shown = _table(run, task, [(whole, m, _metric(m)) for m in metrics], "Captions", note=f"{_CAPTIONS} {told}")
        return [shown, _readings(run, task, [(whole, m) for m in _OTHER_CHAIR])]
    if task["kind"] == "mme":
        points = ("score", "accuracy", "accuracy_plus", "yes_ratio", "unreadable")
        parts = [name for name in row_tasks(task, rows) if name != whole]
        return [
            _table(run, task, [(whole, m, _metric(m)) for m in points], whole, outcome=whole, note=told),
            _table(run, task, [(name, "score", _titled(name, rows)) for name in parts], "Points of each part"),
            _readings(run, task, [(whole, "score_official")]),
        ]
    found = _metrics(task, rows)[:MOST]
    several = len({name for name, _ in found}) > 1
    columns = [(name, m, _heading(name, _metric(m)) if several else _metric(m)) for name, m in found]
    return [_table(run, task, columns, "Metrics of lmms-eval", note=told)]


_OTHER_READINGS = ("accuracy_official", "accuracy_agla", "accuracy_stock", "yes_ratio_official")
_OTHER_CHAIR = ("chair_i_official", "chair_s_official", "object_recall_official")
_CAPTIONS = (
    "CHAIR_i: share of object words that are not in the picture; CHAIR_s: share of captions with any; less is better "
    "of both. A method can lower both by saying less: object recall, objects named and words stand beside them, and "
    "repeats, since CHAIR_i counts an object as often as it is named."
)
_CELL = (
    "A cell: the value; its 95 % interval ({drawn} drawn with replacement); the paired difference to {reference} "
    "with its interval; its p-value, by swapping the two decoders on pictures at random{of}, and Holm's adjustment "
    "over all decoders. Green or red: a difference whose interval excludes zero and whose p is below .05."
)


def decoders_of(run: Run, task: Task) -> list[str]:
    """Return the decoders that answered a task, in order."""
    own = set(row_tasks(task, run["rows"]))
    names = {row["method"] for row in run["rows"] if row["task"] in own}
    return [decoder["name"] for decoder in run["decoders"] if decoder["name"] in names]


def _table(run: Run, task: Task, columns: Sequence[Where], title: str, *, outcome: str = "", note: str = "") -> Html:
    columns = [c for c in columns if any((r["task"], r["metric"]) == c[:2] for r in run["rows"])]
    if not columns:
        return Html("")
    header: list[object] = ["decoder", *(heading for *_, heading in columns)]
    if outcome:
        header.append(_heading("fixed / broken", outcome))
    body: list[list[object]] = []
    for decoder in decoders_of(run, task):
        cells: list[object] = [decoder, *(_cell(run, decoder, name, metric) for name, metric, _ in columns)]
        body.append(cells + ([_outcome(run, decoder, outcome)] if outcome else []))
    return table(header, body, caption=title, note=note or None)


def _cell(run: Run, decoder: str, name: str, metric: str) -> Cell:
    row = find(run["rows"], decoder, name, metric)
    if row is None or row["value"] is None:
        return Cell("–")
    change = find(run["rows"], f"{decoder}-{run['reference']}", name, metric)
    lines: list[object] = [tag("div", value_text(row), class_="value"), small(_ends(row))]
    mark = ""
    if change is not None and change["value"] is not None:
        mark = verdict(change) if metric not in _NEUTRAL else ""
        p = p_text(change["p_value"]) if change.get("p_value") is not None else ""
        holm = (
            f", Holm {p_text(change['p_holm']).removeprefix('p=').removeprefix('p')}"
            if change.get("p_holm") is not None
            else ""
        )
        lines += [small(f"{value_text(change, signed=True)} {_ends(change, signed=True)}"), small(p + holm)]
    return Cell(tag("div", *lines), mark)


_NEUTRAL = frozenset(
    {"yes_ratio", "length", "words", "objects_named", "repeats", "unreadable"}
)  # no way is the better one


def small(text: str) -> Html | None:
    """Write a cell's second line; nothing where there is none."""
    return tag("div", text, class_="interval") if text else None


def value_text(row: Row, *, signed: bool = False) -> str:
    """Write a row's value: shares without the leading zero, counts with two digits."""
    if row["metric"] in PLAIN_NUMBERS:
        return f"{row['value']:{'+' if signed else ''}.2f}".replace("-", "−")
    return number(row["value"], signed=signed)


def _ends(row: Row, *, signed: bool = False) -> str:
    if row["metric"] in PLAIN_NUMBERS and row["low"] is not None:
        low, high = (f"{row[end]:{'+' if signed else ''}.2f}".replace("-", "−") for end in ("low", "high"))
        return f"[{low}, {high}]"
    return ends(row, signed=signed)


def _outcome(run: Run, decoder: str, name: str) -> object:
    row = find(run["rows"], f"{decoder}-{run['reference']}", name, "accuracy")
    if row is None or row.get("fixed") is None:
        return "" if decoder == run["reference"] else None
    told = p_text(row["mcnemar_p"])
    return tag("div", tag("div", f"{row['fixed']} / {row['broken']}", class_="value"), small("McNemar"), small(told))


def _titled(name: str, rows: Sequence[Row]) -> Html:
    """Return a column's heading on two lines: the result row, and how many it counts."""
    n = next((row["n"] for row in rows if row["task"] == name), 0)
    return _heading(name, f"n = {n}")


def _heading(name: str, more: str) -> Html:
    return tag("div", name, tag("div", more, class_="interval"))


def _metric(metric: str) -> str:
    more = {"objects_named": "objects named", "object_recall": "object recall", "accuracy_plus": "accuracy+"}
    return more.get(metric) or NAMES.get(metric, metric.replace("_", " "))


def _labels(run: Run, name: str) -> str:
    row = next((r for r in run["rows"] if (r["task"], r["metric"]) == (name, "label_yes")), None)
    return f"{number(row['value'])} of the labels are yes." if row is not None else ""


def _readings(run: Run, task: Task, columns: Sequence[tuple[str, str]]) -> Html:
    """Return the scores of the same answers as published scripts read them."""
    there = [c for c in columns if any((r["task"], r["metric"]) == c for r in run["rows"])]
    if not there:
        return Html("")
    body: list[list[object]] = []
    for decoder in decoders_of(run, task):
        found = [find(run["rows"], decoder, name, metric) for name, metric in there]
        body.append([decoder, *(value_text(row) if row and row["value"] is not None else None for row in found)])
    return tag(
        "details",
        tag("summary", "The same answers as other scripts read them"),
        table(
            ["decoder", *(_heading(name, metric.replace("_", " ")) for name, metric in there)],
            body,
            note="official: the authors' script, slips included; agla: the script of AGLA and VCD; stock: lmms-eval. "
            "To compare with a paper, take the reading of its script.",
        ),
    )


def pairs_table(run: Run) -> Html:
    """Return the differences beside those to the reference, with what each tells; nothing where there are none."""
    columns = [
        (name, metric, _heading(name, _metric(metric)))
        for task in run["tasks"]
        for name, metric in main_metrics(task, run["rows"])
    ]
    body: list[list[object]] = []
    for ours, theirs, tells in run.get("compared", ()):
        found = [find(run["rows"], f"{ours}-{theirs}", name, metric) for name, metric, _ in columns]
        if any(found):
            cells = [_difference(row) for row in found]
            body.append([tag("div", f"{ours} − {theirs}", tag("div", tells, class_="tells")), *cells])
    if not body:
        return Html("")
    return table(["difference", *(heading for *_, heading in columns)], body)


def _difference(row: Row | None) -> object:
    if row is None or row["value"] is None:
        return None
    shown = tag("div", value_text(row, signed=True), class_="value")
    p = p_text(row["p_value"]) if row.get("p_value") is not None else ""
    return Cell(tag("div", shown, small(_ends(row, signed=True)), small(p)), verdict(row))


def main_metrics(task: Task, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the result rows and metrics that a task is first judged by."""
    whole, hardest = whole_of(task, rows), hardest_of(task, rows)
    if task["kind"] == "pope":
        return [(name, "accuracy") for name in dict.fromkeys((hardest, whole))]
    if task["kind"] == "chair":
        return [(whole, "chair_i"), (whole, "object_recall")]
    if task["kind"] == "mme":
        return [(whole, "score")]
    return _metrics(task, rows)[:1]


def _metrics(task: Task, rows: Sequence[Row]) -> list[tuple[str, str]]:
    own = set(row_tasks(task, rows))
    return list(dict.fromkeys((row["task"], row["metric"]) for row in rows if row["task"] in own))
