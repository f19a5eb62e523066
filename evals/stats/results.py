"""From answers to result rows: counts for each picture, scores with intervals, differences with tests.

A row in long form is {"model", "method", "task", "metric", "value", "low", "high", "n"}; a difference
"a-b" has "p_value" too. The counts are those of the scorers, `pope.score` and `chair.score`, picture by
picture; where a decoder has several seeds, a picture's counts are their mean, or stay apart where they are trainings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.metrics.pope import Answer, Reading
from lvlm_guard.evals.stats.bootstrap import Array, Draws, Estimate, Score, holm, mcnemar

Row = dict[str, Any]


def share(part: Array, whole: Array) -> Array:
    """Return part / whole, and 0.0 for 0/0, as `pope.ratio` has it."""
    found: Array = np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=np.asarray(whole) != 0)
    return found


def _f1(c: Array) -> Array:
    return share(2 * c[..., 0], 2 * c[..., 0] + c[..., 1] + c[..., 3])


POPE_SCORES: dict[str, Score] = {  # of tp, fp, tn, fn, questions
    "accuracy": lambda c: share(c[..., 0] + c[..., 2], c[..., 4]),
    "precision": lambda c: share(c[..., 0], c[..., 0] + c[..., 1]),
    "recall": lambda c: share(c[..., 0], c[..., 0] + c[..., 3]),
    "f1": _f1,
    "yes_ratio": lambda c: share(c[..., 0] + c[..., 1], c[..., 4]),
}

CHAIR_SCORES: dict[str, Score] = {  # of the columns of `chair_counts`
    "chair_s": lambda c: share(c[..., 1], c[..., 0]),
    "chair_i": lambda c: share(c[..., 3], c[..., 2]),
    "object_recall": lambda c: share(c[..., 4], c[..., 5]),
    "length": lambda c: share(c[..., 6], c[..., 0]),
    "repeats": lambda c: share(c[..., 7], c[..., 2]),
}


@dataclass(frozen=True)
class Measured:
    """One task as every method did it.

    Args:
        task: its name in rows.
        scores: metric -> function of summed counts.
        n: how many questions or captions.
        counts: method -> [P, k], the same pictures in the same order for each; [T, P, k] of T trainings.
        compared: metrics whose differences are rows; None: all.
        once: metrics that are the same for every method (shares of the labels): a row of one method only.
        right: method -> [N], whether each question was answered rightly; methods of one seed only, since
            McNemar's test is of single answers.
        n_of: metric -> how many samples have it, where that is not `n`.
    """

    task: str
    scores: Mapping[str, Score]
    n: int
    counts: dict[str, Array] = field(default_factory=dict)
    compared: Collection[str] | None = None
    once: Collection[str] = ()
    right: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    n_of: Mapping[str, int] = field(default_factory=dict)


def pope_counts(labels: Sequence[Answer], answers: Sequence[str], reading: Reading = "word") -> Array:
    """Return tp, fp, tn, fn and 1 for each question, [N, 5]."""
    known: dict[tuple[Answer, str], list[int]] = {}
    for pair in zip(labels, answers, strict=True):
        if pair not in known:
            scored = pope.score([{"question_id": 0, "label": pair[0], "answer": pair[1]}], reading)
            known[pair] = [scored["tp"], scored["fp"], scored["tn"], scored["fn"], scored["n"]]
    return np.array([known[pair] for pair in zip(labels, answers, strict=True)], dtype=float).reshape(-1, 5)


def chair_counts(captions: Iterable[chair.Caption]) -> Array:
    """Return the counts of each caption, [P, 9].

    Columns: captions (1), whether it hallucinates, object words, hallucinated ones, objects recalled, objects
    in the picture, words, repeated object words, different objects named.
    """
    return np.array(
        [
            [
                1,
                bool(c.hallucinated),
                len(c.found.words),
                len(c.hallucinated),
                len(c.recalled),
                len(c.truth),
                c.length,
                c.repeated,
                len(c.found.words) - c.repeated,
            ]
            for c in captions
        ],
        dtype=float,
    ).reshape(-1, 9)


def long_rows(
    model: str, measured: Iterable[Measured], reference: str, compared: Sequence[tuple[str, str]] = ()
) -> list[Row]:
    """Return every score with its 95 % interval, and every difference with interval and p-value.

    A difference in accuracy of two methods with one answer to each question also has "fixed" and "broken",
    the questions that only the one, only the other answers rightly, and "mcnemar_p", the exact test on them;
    each question counts once there, however many kinds share it.

    Args:
        model: its name in the rows.
        measured: the tasks.
        reference: the method that every other is compared with; a difference is "method-reference".
        compared: further pairs; those of which a task lacks one are left out.
    """
    rows: list[Row] = []
    for task in measured:
        draws = Draws(task.counts)
        for place, method in enumerate(task.counts):
            for metric, score in task.scores.items():
                if place == 0 or metric not in task.once:
                    rows.append(_row(model, method, task, metric, draws.estimate(method, score)))
        pairs = [(method, reference) for method in task.counts if method != reference]
        for ours, theirs in dict.fromkeys([*pairs, *compared]):
            if ours in task.counts and theirs in task.counts:
                rows += _differences(model, task, draws, ours, theirs)
    return rows


def _differences(model: str, task: Measured, draws: Draws, ours: str, theirs: str) -> list[Row]:
    rows = []
    for metric, score in task.scores.items():
        if metric in task.once or (task.compared is not None and metric not in task.compared):
            continue
        found = draws.difference(ours, theirs, score)
        row = _row(model, f"{ours}-{theirs}", task, metric, found) | {"p_value": found.p_value}
        if metric == "accuracy" and ours in task.right and theirs in task.right:
            a, b = task.right[ours], task.right[theirs]
            fixed, broken = int((a & ~b).sum()), int((b & ~a).sum())
            row |= {"fixed": fixed, "broken": broken, "mcnemar_p": mcnemar(fixed, broken)}
        rows.append(row)
    return rows


def with_holm(rows: Iterable[Row], reference: str, methods: Collection[str]) -> list[Row]:
    """Return the rows with "p_holm" where several methods are compared with the reference.

    The family of tests: the differences of all `methods` from the reference in one task and one metric.
    """
    rows = list(rows)
    names = {f"{method}-{reference}" for method in methods}
    families: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        if "p_value" in row and row["method"] in names:
            families.setdefault((row["task"], row["metric"]), []).append(index)
    for members in families.values():
        if len(members) > 1:
            for index, p in zip(members, holm([rows[i]["p_value"] for i in members]), strict=True):
                rows[index] = rows[index] | {"p_holm": p}
    return rows


def _row(model: str, method: str, task: Measured, metric: str, found: Estimate) -> Row:
    return {
        "model": model,
        "method": method,
        "task": task.task,
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": task.n_of.get(metric, task.n),
    }


def trainings(decoder: Mapping[str, Any]) -> int:
    """Return how often a decoder's adapter or matcher was trained, as `run.json` describes it; 1 without any."""
    return max(1, len(decoder.get("adapters") or ()), len(decoder.get("matchers") or ()))


def drawn(decoders: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Return in words what the intervals of decoders draw with replacement, and what their p-values are of."""
    if any(trainings(decoder) > 1 for decoder in decoders):
        return "pictures and, where there are several, trainings", ", of these trainings"
    return "pictures", ""


def find(rows: Iterable[Row], method: str, task: str, metric: str) -> Row | None:
    """Return the row of a method, a task and a metric; None where there is none."""
    return next((r for r in rows if (r["method"], r["task"], r["metric"]) == (method, task, metric)), None)
