"""Figures of a task: intervals of differences, answers against labels, and what a gain is paid with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.evals.report.disagreement import judge
from lvlm_guard.evals.report.figures import LOWER_IS_BETTER, Row, verdict
from lvlm_guard.evals.report.page.scores import decoders_of, main_metrics
from lvlm_guard.evals.report.terminal import whole_of
from lvlm_guard.evals.stats.results import find
from lvlm_guard.report import Dot, Html, Interval, confusion_square, dot_plot, scatter, tag

Run = Mapping[str, Any]
Task = Mapping[str, Any]

_TITLES = {
    "accuracy": "accuracy",
    "chair_i": "CHAIR_i, share of object words that are not in the picture",
    "object_recall": "object recall",
    "length": "words a caption",
}


def interval_strips(run: Run, task: Task) -> list[Html]:
    """Return a strip of interval bars for each main metric: every decoder against the reference."""
    reference = run["reference"]
    metrics = main_metrics(task, run["rows"])
    if task["kind"] == "chair":
        metrics = [*metrics, (metrics[0][0], "length")]
    strips = []
    for name, metric in metrics:
        intervals = [
            Interval(decoder, row["value"], row["low"], row["high"], verdict(row) if metric != "length" else "")
            for decoder in decoders_of(run, task)
            if (row := find(run["rows"], f"{decoder}-{reference}", name, metric)) and row["value"] is not None
        ]
        if intervals:
            way = "" if metric == "length" else f": {'less' if metric in LOWER_IS_BETTER else 'more'} is better"
            strips.append(
                dot_plot(
                    intervals,
                    title=f"{name}, {_TITLES.get(metric, metric)}{way}",
                    axis=f"difference to {reference}, 95 % interval",
                    reference=0.0,
                    digits=2 if metric == "length" else 3,
                    signed=True,
                )
            )
    return strips


def confusion_squares(run: Run, task: Task, samples: Sequence[Mapping[str, Any]]) -> Html:
    """Return a square for each decoder of a yes/no task; a question counts in each of its rows, as in the table."""
    squares = []
    for decoder in decoders_of(run, task):
        counts = {label: {"right": 0.0, "wrong": 0.0, "unreadable": 0.0} for label in ("yes", "no")}
        for sample in samples:
            said = judge(task, sample, decoder)
            for one in said:
                counts[sample["truth"]][one.mark] += max(1, len(set(sample.get("rows") or ()))) / len(said)
        yes, no = counts["yes"], counts["no"]
        if any((*yes.values(), *no.values())):
            whole = (yes["right"], yes["wrong"], no["wrong"], no["right"])
            tp, fn, fp, tn = (round(count, 3) for count in whole)
            unread = (round(yes["unreadable"], 3), round(no["unreadable"], 3))
            squares.append(confusion_square(tp, fn, fp, tn, title=decoder, unread=unread))
    if not squares:
        return Html("")
    return tag(
        "figure",
        tag("div", f"Answers against labels, {whole_of(task, run['rows'])}", class_="figure-title"),
        tag("div", *squares, class_="squares"),
        tag(
            "figcaption",
            "Left column: labelled yes; right column: labelled no. Answered yes above, no below; what can't be read is "
            "grey. Green is right, red wrong. A decoder that leans to “no” has a shorter upper half.",
        ),
        class_="plot",
    )


def trade_off(run: Run, task: Task) -> Html:
    """Return one score against another that can pay for it: accuracy over yes ratio, CHAIR_i over recall."""
    name, rows = whole_of(task, run["rows"]), run["rows"]
    if task["kind"] == "chair":
        x, y, axes = "object_recall", "chair_i", ("object recall: more is better", "CHAIR_i: less is better")
        title = "What captions leave out, and what they make up: best is low and to the right"
        line = None
    elif task["kind"] == "pope":
        x, y, axes = "yes_ratio", "accuracy", ("share of answers that are yes", "accuracy: more is better")
        title = "Accuracy, and the lean to yes or no: a gain that only moves sideways is a change of lean"
        label = next((r for r in rows if (r["task"], r["metric"]) == (name, "label_yes")), None)
        line = (float(label["value"]), "labels") if label is not None else None
    else:
        return Html("")
    dots = []
    for decoder in decoders_of(run, task):
        across, up = find(rows, decoder, name, x), find(rows, decoder, name, y)
        if across and up and across["value"] is not None and up["value"] is not None:
            dots.append(
                Dot(
                    decoder,
                    across["value"],
                    up["value"],
                    _mark(run, decoder, find(rows, f"{decoder}-{run['reference']}", name, y)),
                )
            )
    if len(dots) < 2:
        return Html("")
    return scatter(dots, title=f"{name}. {title}", x_axis=axes[0], y_axis=axes[1], x_line=line)


def _mark(run: Run, decoder: str, change: Row | None) -> str:
    told = next(d for d in run["decoders"] if d["name"] == decoder)
    if decoder == run["reference"]:
        return "plain"
    if not told.get("method") or told.get("control_of") or told.get("sampled"):
        return "quiet"
    return verdict(change) if change is not None else ""
