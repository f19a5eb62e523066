"""From a run's samples to its result rows.

    rows = score_run(run, samples)  # plain data in, plain data out; the same every time

How a kind of task is scored is an entry of `kinds.KINDS`. Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.registry import KINDS, Parts, Sample
from lvlm_guard.evals.stats.results import Measured, Row, long_rows, trainings, with_holm


def score_run(run: Mapping[str, Any], samples: Sequence[Sample]) -> list[Row]:
    """Return the rows of a run: scores with intervals, differences with intervals and p-values.

    Every decoder is compared with `run["reference"]`, and each pair of `run["compared"]`; see `rows.long_rows`.
    "p_holm" is the p-value adjusted for all decoders that are compared with the reference in that task and metric.

    Args:
        run: what `run.json` holds: "settings", "decoders", "tasks", "reference", "compared".
        samples: what `samples.jsonl` holds.

    Raises:
        DataError: an answer is missing, or a sample can't be scored.
    """
    pairs = [(pair[0], pair[1]) for pair in run["compared"]]
    measured = measure(samples, run["tasks"], run["decoders"])
    rows = long_rows(run["settings"]["model"], measured, run["reference"], pairs)
    return with_holm(rows, run["reference"], [decoder["name"] for decoder in run["decoders"]])


def measure(
    samples: Sequence[Sample], tasks: Sequence[Mapping[str, Any]], decoders: Sequence[Mapping[str, Any]]
) -> list[Measured]:
    """Return the counts of every decoder in every row task, picture by picture: means over seeds, trainings apart.

    An item counts in each of its "rows". Several rows of yes/no questions also stand together, in "pope_all" for
    "pope_random" and "pope_popular". A row name that two tasks share is told apart as "chair@world_chair".

    Args:
        samples: items with every decoder's answers; their order does not matter.
        tasks: the tasks as `EvalTask.describe` gives them.
        decoders: the decoders, in the order of the rows.

    Raises:
        DataError: an answer is missing, decoders differ in what they answered, or a sample can't be scored.
    """
    owners: dict[str, set[str]] = {}
    for sample in samples:
        for row in _rows_of(sample):
            owners.setdefault(row, set()).add(sample["task"])
    trained = {decoder["name"] for decoder in decoders if trainings(decoder) > 1}
    measured: list[Measured] = []
    for task in tasks:
        kind = KINDS.get(task["kind"])
        if kind is None:
            raise DataError(f"{task['name']} is of the kind {task['kind']!r}; known are {', '.join(KINDS)}.")
        mine = [sample for sample in samples if sample["task"] == task["name"]]
        if not mine:
            continue
        names = _answering(task["name"], mine, decoders)
        parts: Parts = {}
        for place, sample in enumerate(mine):
            for row in _rows_of(sample):
                parts.setdefault(row, []).append(place)
        shared = any(len(owners[row]) > 1 for row in parts)
        for found in kind(task, mine, parts, names, trained):
            measured.append(replace(found, task=f"{found.task}@{task['name']}") if shared else found)
    return measured


def _rows_of(sample: Sample) -> Sequence[str]:
    return list(dict.fromkeys(sample.get("rows") or [sample["task"]]))


def _answering(task: str, samples: Sequence[Sample], decoders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the decoders that answer a task, and see that each has an answer to every item."""
    first = samples[0]["answers"]
    names = [decoder["name"] for decoder in decoders if decoder["name"] in first]
    unknown = set(first) - set(names)
    if unknown or not names:
        raise DataError(f"{task} was answered by {', '.join(sorted(unknown)) or 'none'} of no listed decoder.")
    for sample in samples:
        answers = sample["answers"]
        if set(answers) != set(first) or any(len(answers[name]) != len(first[name]) for name in names):
            raise DataError(
                f"Item {sample['key']!r} of {task} was not answered by the same decoders and seeds as the others: "
                "they can't be compared."
            )
        for name, reasons in (sample.get("failed") or {}).items():
            if any(reasons):
                raise DataError(
                    f"{name} has no answer to item {sample['key']!r} of {task} ({next(filter(None, reasons))}). A "
                    "missing answer can't be scored, nor taken for a wrong one. The same command asks again."
                )
    return names
