"""What a run's table says, in sentences whose verdicts follow the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.report.figures import Row, named, number, said, verdict
from lvlm_guard.evals.report.terminal import hardest_of, row_tasks, whole_of
from lvlm_guard.evals.stats.results import find

LEANS = 0.02  # a shift of the yes ratio that a sentence mentions
SHORTER = 0.05  # a change of a caption's length, as a share, that a sentence mentions


def remarks(run: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the results in `run.json`, sentence by sentence; none of a void run."""
    if run["status"] == "void":
        return []
    told: list[str] = []
    for task in run["tasks"]:
        own = set(row_tasks(task, run["rows"]))
        rows = [row for row in run["rows"] if row["task"] in own]
        if task["kind"] == "pope":
            told += [*_questions(run, task, rows), *_controls(run, hardest_of(task, run["rows"]), rows)]
        elif task["kind"] == "chair":
            told += _captions(run, task, rows)
    limits = dict.fromkeys(task["about"]["limits"] for task in run["tasks"] if task["about"].get("limits"))
    return [*dict.fromkeys(told), *limits]


def _methods(run: Mapping[str, Any]) -> list[str]:
    found = [d for d in run["decoders"] if d["method"] and d["method"] != "apc"]
    return [d["name"] for d in found if d["name"] == named(d["method"], d.get("matcher") or "")]


def _questions(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    reference, name = run["reference"], whole_of(task, run["rows"])
    plain = find(rows, reference, name, "yes_ratio")
    for method in _methods(run):
        row = find(rows, f"{method}-{reference}", name, "accuracy")
        ours = find(rows, method, name, "yes_ratio")
        if row is None or ours is None or plain is None:
            continue
        effect = {"good": "answers more questions right", "bad": "answers fewer questions right"}.get(
            verdict(row), "is not told apart"
        )
        lean = ours["value"] - plain["value"]
        leaning = (
            f"; it says {'yes' if lean > 0 else 'no'} more often (yes ratio {number(plain['value'])} to "
            f"{number(ours['value'])}{_labels(rows, reference, name)})"
            if abs(lean) >= LEANS
            else ""
        )
        yield f"{method} {effect} than {reference} on {name}: {said(row)}{leaning}.".replace(
            "told apart than", "told apart from"
        )


def _labels(rows: Sequence[Row], reference: str, name: str) -> str:
    share = find(rows, reference, name, "label_yes")
    return f", {number(share['value'])} would be right" if share is not None else ""


def _controls(run: Mapping[str, Any], name: str, rows: Sequence[Row]) -> Iterator[str]:
    for ours, theirs, tells in run["compared"]:
        row = find(rows, f"{ours}-{theirs}", name, "accuracy")
        if row is not None:
            yield f"{ours} − {theirs} on {name}: {said(row)}; {tells}."


def _captions(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    reference = run["reference"]
    for name in row_tasks(task, run["rows"]):
        for method in _methods(run):
            wrong = find(rows, f"{method}-{reference}", name, "chair_i")
            recall = find(rows, f"{method}-{reference}", name, "object_recall")
            if wrong is None or recall is None:
                continue
            effect = {"good": "names fewer absent objects", "bad": "names more absent objects"}.get(
                verdict(wrong), "has no clear effect on absent objects"
            )
            yield (
                f"In captions {method} {effect}: CHAIR_i {said(wrong)}; recall {said(recall)}"
                f"{_shorter(rows, method, reference, name)}{_repeats(rows, method, reference, name)}."
            )


def _shorter(rows: Sequence[Row], method: str, reference: str, name: str) -> str:
    """Say whether it says less: a guard that only shortens captions lowers CHAIR."""
    ours, plain = find(rows, method, name, "length"), find(rows, reference, name, "length")
    if ours is None or plain is None or not plain["value"]:
        return ""
    change = ours["value"] / plain["value"] - 1
    if abs(change) < SHORTER:
        return ""
    return f"; its captions are {abs(change):.0%} {'shorter' if change < 0 else 'longer'}"


def _repeats(rows: Sequence[Row], method: str, reference: str, name: str) -> str:
    """Say how much a method repeats itself: CHAIR_i counts an object as often as it is named."""
    ours, plain = find(rows, method, name, "repeats"), find(rows, reference, name, "repeats")
    if ours is None or plain is None:
        return ""
    repeated = f"{ours['value']:.0%} of its object words repeat one of the same caption"
    return f"; {repeated} ({reference}: {plain['value']:.0%})"
