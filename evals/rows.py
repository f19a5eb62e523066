"""From answers to result rows: counts for each picture, scores with intervals, differences with tests.

A row in long form is {"model", "method", "task", "metric", "value", "low", "high", "n"}; a difference
"a-b" has "p_value" too. The counts are those of the scorers, `pope.score` and `chair.score`, picture by
picture; where a decoder has several seeds, a picture's counts are their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lvlm_guard.evals import chair, pope
from lvlm_guard.evals.pope import Answer, Reading
from lvlm_guard.evals.statistics import Array, Score, bootstrap, paired

Row = dict[str, Any]


def _share(part: Array, whole: Array) -> Array:
    share: Array = np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=np.asarray(whole) != 0)
    return share


def _f1(c: Array) -> Array:
    return _share(2 * c[..., 0], 2 * c[..., 0] + c[..., 1] + c[..., 3])


POPE_SCORES: dict[str, Score] = {  # of tp, fp, tn, fn, questions
    "accuracy": lambda c: _share(c[..., 0] + c[..., 2], c[..., 4]),
    "precision": lambda c: _share(c[..., 0], c[..., 0] + c[..., 1]),
    "recall": lambda c: _share(c[..., 0], c[..., 0] + c[..., 3]),
    "f1": _f1,
    "yes_ratio": lambda c: _share(c[..., 0] + c[..., 1], c[..., 4]),
}

CHAIR_SCORES: dict[str, Score] = {  # of the columns of `chair_counts`
    "chair_s": lambda c: _share(c[..., 1], c[..., 0]),
    "chair_i": lambda c: _share(c[..., 3], c[..., 2]),
    "object_recall": lambda c: _share(c[..., 4], c[..., 5]),
    "length": lambda c: _share(c[..., 6], c[..., 0]),
    "repeats": lambda c: _share(c[..., 7], c[..., 2]),
}


@dataclass(frozen=True)
class Measured:
    """One task as every method did it.

    Args:
        task: its name in rows.
        scores: metric -> function of summed counts.
        n: how many questions or captions.
        counts: method -> [P, k], the same pictures in the same order for each.
    """

    task: str
    scores: Mapping[str, Score]
    n: int
    counts: dict[str, Array] = field(default_factory=dict)


def pope_counts(labels: Sequence[Answer], answers: Sequence[str], reading: Reading = "word") -> Array:
    """Return tp, fp, tn, fn and 1 for each question, [N, 5]."""
    known: dict[tuple[Answer, str], list[int]] = {}
    for pair in zip(labels, answers, strict=True):
        if pair not in known:
            scored = pope.score([{"question_id": 0, "label": pair[0], "answer": pair[1]}], reading)
            known[pair] = [scored["tp"], scored["fp"], scored["tn"], scored["fn"], scored["n"]]
    return np.array([known[pair] for pair in zip(labels, answers, strict=True)], dtype=float).reshape(-1, 5)


def chair_counts(captions: Iterable[chair.Caption]) -> Array:
    """Return the counts of each caption, [P, 8].

    Columns: captions (1), whether it hallucinates, object words, hallucinated ones, objects recalled, objects
    in the picture, words, repeated object words.
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
            ]
            for c in captions
        ],
        dtype=float,
    )


def long_rows(
    model: str, measured: Iterable[Measured], reference: str, compared: Sequence[tuple[str, str]] = ()
) -> list[Row]:
    """Return every score with its 95 % interval, and every difference with interval and p-value.

    Args:
        model: its name in the rows.
        measured: the tasks.
        reference: the method that every other is compared with; a difference is "method-reference".
        compared: further pairs; those of which a task lacks one are left out.
    """
    rows: list[Row] = []
    for task in measured:
        for method, counts in task.counts.items():
            for metric, score in task.scores.items():
                found = bootstrap(counts, score)
                rows.append(_row(model, method, task, metric, found.value, found.low, found.high))
        pairs = [(method, reference) for method in task.counts if method != reference]
        for ours, theirs in [*pairs, *compared]:
            if ours in task.counts and theirs in task.counts:
                for metric, score in task.scores.items():
                    d = paired(task.counts[ours], task.counts[theirs], score)
                    row = _row(model, f"{ours}-{theirs}", task, metric, d.value, d.low, d.high)
                    rows.append(row | {"p_value": d.p_value})
    return rows


def _row(
    model: str, method: str, task: Measured, metric: str, value: float, low: float | None, high: float | None
) -> Row:
    return {
        "model": model,
        "method": method,
        "task": task.task,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": task.n,
    }


def find(rows: Iterable[Row], method: str, task: str, metric: str) -> Row | None:
    """Return the row of a method, a task and a metric; None where there is none."""
    return next((r for r in rows if (r["method"], r["task"], r["metric"]) == (method, task, metric)), None)
