"""The kinds of tasks: what is counted for each question or caption, and the scores of those counts.

A new kind is one function and its entry in `KINDS`. The picture is the unit of the statistics, since its questions
depend on each other; where a decoder has several seeds, a picture's counts are their mean, but those of several
trainings are kept apart, since trainings are drawn too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair, mme, pope
from lvlm_guard.evals.stats.bootstrap import Array, Score
from lvlm_guard.evals.stats.results import CHAIR_SCORES, POPE_SCORES, Measured, chair_counts, pope_counts, share

Sample = Mapping[str, Any]
Parts = dict[str, list[int]]
"""Result row -> places of its samples."""

POPE_COMPARED = ("accuracy", "precision", "recall", "f1", "yes_ratio")
"""The scores of yes/no questions whose differences are tested; the other readings stand beside them."""


def _pope(
    task: Mapping[str, Any], samples: Sequence[Sample], parts: Parts, names: Sequence[str], trained: Collection[str]
) -> list[Measured]:
    labels = [_label(task, sample) for sample in samples]
    tables, right = {}, {}
    for name in names:
        runs = [_readings(labels, answers) for answers in _by_seed(samples, name)]
        tables[name] = _pooled(runs, name in trained)
        if len(runs) == 1:
            right[name] = (runs[0][:, 0] + runs[0][:, 2]) == 1
    chosen = dict(parts)
    if len(parts) > 1:
        chosen[_together(task, parts)] = [place for places in parts.values() for place in places]
    scores = POPE_SCORES | _POPE_MORE
    return [
        _measured(row, scores, samples, places, tables, right, compared=POPE_COMPARED, once=("label_yes",))
        for row, places in chosen.items()
    ]


def _readings(labels: Sequence[pope.Answer], answers: Sequence[str]) -> Array:
    """Return the counts of each question, [N, 17]: tp, fp, tn, fn, 1; unreadable, label yes; tp, fp, tn, fn as the
    authors' script reads, and as AGLA's does; right as lmms-eval reads."""
    ours = pope_counts(labels, answers)
    yes = np.array([label == "yes" for label in labels], dtype=float)
    unread = np.array([pope.read(answer) is None for answer in answers], dtype=float)
    official, agla, stock = (pope_counts(labels, answers, reading) for reading in ("official", "agla", "stock"))
    return np.column_stack([ours, unread, yes, official[:, :4], agla[:, :4], stock[:, 0] + stock[:, 2]])


def _read_as(start: int, metric: str) -> Score:
    """Return a POPE score of the counts that begin at a column of `_readings`."""
    return lambda c: POPE_SCORES[metric](np.concatenate([c[..., start : start + 4], c[..., 4:5]], axis=-1))


_POPE_MORE: dict[str, Score] = {
    "unreadable": lambda c: share(c[..., 5], c[..., 4]),
    "label_yes": lambda c: share(c[..., 6], c[..., 4]),
    **{f"{metric}_official": _read_as(7, metric) for metric in POPE_SCORES},
    **{f"{metric}_agla": _read_as(11, metric) for metric in POPE_SCORES},
    "accuracy_stock": lambda c: share(c[..., 15], c[..., 4]),
}


def _chair(
    task: Mapping[str, Any], samples: Sequence[Sample], parts: Parts, names: Sequence[str], trained: Collection[str]
) -> list[Measured]:
    vocabulary = task.get("vocabulary")
    truths = {place: sample["truth"] for place, sample in enumerate(samples)}
    tables = {}
    for name in names:
        runs = []
        for answers in _by_seed(samples, name):
            rows = [{"image_id": place, "caption": text} for place, text in enumerate(answers)]
            captions = chair.compare(rows, truths, vocabulary=vocabulary)
            counts = chair_counts(captions)
            if vocabulary is None:
                counts = np.hstack([counts, chair_counts(chair.in_dialect(captions, "pattern"))[:, [1, 2, 3, 4]]])
            runs.append(counts)
        tables[name] = _pooled(runs, name in trained)
    scores = CHAIR_SCORES | {"objects_named": lambda c: share(c[..., 8], c[..., 0])}
    if vocabulary is None:
        scores |= _CHAIR_OFFICIAL
    return [
        _measured(row, scores, samples, places, tables, compared=[*CHAIR_SCORES, "objects_named"])
        for row, places in parts.items()
    ]


_CHAIR_OFFICIAL: dict[str, Score] = {
    "chair_s_official": lambda c: share(c[..., 9], c[..., 0]),
    "chair_i_official": lambda c: share(c[..., 11], c[..., 10]),
    "object_recall_official": lambda c: share(c[..., 12], c[..., 5]),
}


def _mme(
    task: Mapping[str, Any], samples: Sequence[Sample], parts: Parts, names: Sequence[str], trained: Collection[str]
) -> list[Measured]:
    labels = [_label(task, sample) for sample in samples]
    pictures = [sample["picture"] for sample in samples]
    pairs = {
        row: [
            (places[a], places[b])
            for a, b in mme.pairs(row, [pictures[i] for i in places], [labels[i] for i in places])
        ]
        for row, places in parts.items()
    }
    tables, right = {}, {}
    for name in names:
        runs = [_mme_counts(labels, answers, pairs) for answers in _by_seed(samples, name)]
        tables[name] = _pooled(runs, name in trained)
        if len(runs) == 1:
            right[name] = (runs[0][:, 0] + runs[0][:, 2]) == 1
    measured = [
        _measured(row, _MME_SCORES, samples, places, tables, right, compared=_MME_COMPARED)
        for row, places in parts.items()
    ]
    if len(parts) > 1:
        width = tables[names[0]].shape[-1]
        blocks = {name: np.zeros((*table.shape[:-1], width * len(parts))) for name, table in tables.items()}
        for name, table in tables.items():
            for number, places in enumerate(parts.values()):
                blocks[name][..., places, number * width : (number + 1) * width] = table[..., places, :]
        scores = {metric: _over_tasks(metric, width, len(parts)) for metric in _MME_SCORES}
        every = [place for places in parts.values() for place in places]
        together = _together(task, parts)
        measured.append(_measured(together, scores, samples, every, blocks, right, compared=_MME_COMPARED))
    return measured


def _mme_counts(
    labels: Sequence[pope.Answer], answers: Sequence[str], pairs: Mapping[str, Sequence[tuple[int, int]]]
) -> Array:
    """Return the counts of each question, [N, 10]: tp, fp, tn, fn, 1, unreadable, right as the authors' evaluation
    reads; and with the first of a picture: 1, both right, both right as theirs reads."""
    ours = pope_counts(labels, answers)
    unread = np.array([mme.read(answer) is None for answer in answers], dtype=float)
    theirs = np.array([mme.read(a, "official") == label for a, label in zip(answers, labels, strict=True)], dtype=float)
    right = ours[:, 0] + ours[:, 2]
    of_pair = np.zeros((len(labels), 3))
    for first, second in (pair for of_row in pairs.values() for pair in of_row):
        of_pair[first] = 1, right[first] * right[second], theirs[first] * theirs[second]
    return np.column_stack([ours, unread, theirs, of_pair])


_MME_COMPARED = ("accuracy", "accuracy_plus", "score")
_MME_SCORES: dict[str, Score] = {
    "score": lambda c: 100 * (POPE_SCORES["accuracy"](c) + share(c[..., 8], c[..., 7])),
    "accuracy": POPE_SCORES["accuracy"],
    "accuracy_plus": lambda c: share(c[..., 8], c[..., 7]),
    "precision": POPE_SCORES["precision"],
    "recall": POPE_SCORES["recall"],
    "yes_ratio": POPE_SCORES["yes_ratio"],
    "unreadable": lambda c: share(c[..., 5], c[..., 4]),
    "score_official": lambda c: 100 * (share(c[..., 6], c[..., 4]) + share(c[..., 9], c[..., 7])),
}


def _over_tasks(metric: str, width: int, tasks: int) -> Score:
    """Return a score of several tasks' counts side by side: points are summed over tasks, counts are pooled."""
    score = _MME_SCORES[metric]

    def over_tasks(c: Array) -> Array:
        each = [c[..., k * width : (k + 1) * width] for k in range(tasks)]
        found: Array = np.sum([score(t) for t in each], 0) if metric.startswith("score") else score(np.sum(each, 0))
        return found

    return over_tasks


def _stock(
    task: Mapping[str, Any], samples: Sequence[Sample], parts: Parts, names: Sequence[str], trained: Collection[str]
) -> list[Measured]:
    told = [sample.get("metrics") or {} for sample in samples]
    metrics = list(dict.fromkeys(metric for of in told for name in names for metric in of.get(name, ())))
    if not metrics:
        raise DataError(f"{task['name']} has no metric: its samples need 'metrics' (decoder -> name -> number).")
    tables = {}
    for name in names:
        values = [[_number(of.get(name, {}).get(metric)) for metric in metrics] for of in told]
        found = np.array(values, dtype=float).reshape(len(samples), -1)
        tables[name] = np.hstack([np.nan_to_num(found), np.isfinite(found)])
    first = tables[names[0]][:, len(metrics) :]
    for name, table in tables.items():
        if not np.array_equal(table[:, len(metrics) :], first):
            raise DataError(f"{name} lacks metrics of {task['name']} that {names[0]} has: they can't be compared.")
    scores = {metric: _mean_of(at, len(metrics)) for at, metric in enumerate(metrics)}
    return [
        replace(
            _measured(row, scores, samples, places, tables),
            n_of={metric: int(first[places, at].sum()) for at, metric in enumerate(metrics)},
        )
        for row, places in parts.items()
    ]


def _mean_of(at: int, metrics: int) -> Score:
    return lambda c: share(c[..., at], c[..., metrics + at])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _measured(
    row: str,
    scores: Mapping[str, Score],
    samples: Sequence[Sample],
    places: Sequence[int],
    tables: Mapping[str, Array],
    right: Mapping[str, NDArray[np.bool_]] | None = None,
    *,
    compared: Sequence[str] | None = None,
    once: Sequence[str] = (),
) -> Measured:
    """Sum the chosen samples' counts over pictures, which stand in an order that does not depend on the samples'."""
    names = sorted({samples[place]["picture"] for place in places}, key=lambda name: (len(name), name))
    of = {name: number for number, name in enumerate(names)}
    index = [of[samples[place]["picture"]] for place in places]
    counts = {}
    for name, table in tables.items():
        counts[name] = np.zeros((*table.shape[:-2], len(names), table.shape[-1]))
        runs = table[..., places, :].reshape(-1, len(places), table.shape[-1])
        for sums, run in zip(counts[name].reshape(-1, len(names), table.shape[-1]), runs, strict=True):
            np.add.at(sums, index, run)
    distinct = sorted(set(places))
    answered = {name: hits[distinct] for name, hits in (right or {}).items()}
    return Measured(row, scores, len(places), counts, compared, once, answered)


def _by_seed(samples: Sequence[Sample], name: str) -> list[tuple[str, ...]]:
    """Return the decoder's answers to all samples, seed by seed."""
    return list(zip(*(sample["answers"][name] for sample in samples), strict=True))


def _pooled(runs: Sequence[Array], trained: bool) -> Array:
    """Return the mean counts of several seeds, [N, k]; those of several trainings one by one, [T, N, k]."""
    found: Array = np.stack(runs) if trained and len(runs) > 1 else np.mean(runs, axis=0)
    return found


def _label(task: Mapping[str, Any], sample: Sample) -> pope.Answer:
    label = sample["truth"]
    if label not in ("yes", "no"):
        raise DataError(f"Item {sample['key']!r} of {task['name']} has the truth {label!r}: it must be 'yes' or 'no'.")
    return "yes" if label == "yes" else "no"


def _together(task: Mapping[str, Any], parts: Parts) -> str:
    """Name several rows together: the words they begin with, and "all"."""
    words = takewhile(lambda column: len(set(column)) == 1, zip(*(row.split("_") for row in parts), strict=False))
    return "_".join([*(column[0] for column in words)] or [task["name"]]) + "_all"


Kind = Callable[[Mapping[str, Any], Sequence[Sample], Parts, Sequence[str], Collection[str]], list[Measured]]

KINDS: dict[str, Kind] = {"pope": _pope, "chair": _chair, "mme": _mme, "stock": _stock}
"""Kind of task -> its counts: of a task, its samples, the places of each row's samples, the decoders, and those of them
whose seeds are trainings."""
