"""Two saved runs against each other: the same questions, answered by two models, methods or versions.

    found = compare("runs/before", "runs/after")                             # every decoder that both have
    found = compare("runs/plain", "runs/guarded", decoder_a="greedy", decoder_b="agla")

Differences are b minus a. Runs are paired question by question, so both must have asked the same. Needs
neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.compare.fail_if import Rule, fail_if
from lvlm_guard.evals.report.compare.pairing import (
    Pair,
    check_finished,
    common_tasks,
    decoder_of,
    items_of,
    only_in_one,
    pairs_of,
)
from lvlm_guard.evals.report.saved import Saved, plain, read_run
from lvlm_guard.evals.stats.bootstrap import holm
from lvlm_guard.evals.stats.results import Row, long_rows
from lvlm_guard.evals.stats.score import measure

__all__ = ["Changed", "Comparison", "Rule", "compare", "fail_if"]

_OWN = {"tasks", "methods", "knobs", "questions", "images", "annotations", "include"}  # told elsewhere, or mere paths


@dataclass(frozen=True)
class Changed:
    """How many items got another answer (from any seed that both ran)."""

    a: str
    b: str
    task: str
    changed: int
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired.

    Args:
        a, b: the runs; differences are b minus a.
        pairs: names of the decoders that were paired, a's and b's.
        tasks: those that both have, as `run.json` describes them.
        rows: long rows; methods are "a:NAME", "b:NAME" and, with p_value, p_holm and for accuracy McNemar's
            counts, "b:NAME-a:NAME". p_holm is adjusted over all differences of one metric.
        times: rows of seconds an answer and peak memory; they come from two runs, so mind the machines.
        changed: for each pair and task.
        differs: sentences on what differs between the runs beside the answers.
        left_out: sentences on what only one of them has.
    """

    a: Saved
    b: Saved
    pairs: list[Pair]
    tasks: list[dict[str, Any]]
    rows: list[Row]
    times: list[Row]
    changed: list[Changed]
    differs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON data, its results in long rows."""
        found: dict[str, Any] = plain(
            {
                "command": "eval compare",
                "version": lvlm_guard.__version__,
                "a": str(self.a.folder),
                "b": str(self.b.folder),
                "pairs": self.pairs,
                "tasks": self.tasks,
                "differs": self.differs,
                "left_out": self.left_out,
                "rows": self.rows,
                "changed": [vars(one) for one in self.changed],
                "times": {"rows": self.times},
            }
        )
        return found


def compare(
    a: str | Path | Saved, b: str | Path | Saved, *, decoder_a: str | None = None, decoder_b: str | None = None
) -> Comparison:
    """Pair two runs and test their differences: McNemar, paired bootstrap, randomization, Holm.

    Args:
        a, b: folders of runs, or runs that were read.
        decoder_a, decoder_b: the one decoder of each to compare; where only one is given, the other run's of that
            name. None: all that both runs have.

    Raises:
        DataError: a folder holds no finished run, the runs have no task or decoder in common, no such decoder, or
            they asked other questions or with other generation settings; the message lists what differs.
        VoidRunError: a run's answers are empty, failed or cut.
    """
    first, second = (run if isinstance(run, Saved) else read_run(run) for run in (a, b))
    for saved in (first, second):
        check_finished(saved)
    tasks = common_tasks(first, second)
    names = {task["name"] for task in tasks}
    pairs = pairs_of(first, second, decoder_a, decoder_b)
    left_out = list(only_in_one(first, second, "tasks", names))
    if decoder_a is None and decoder_b is None:
        left_out += only_in_one(first, second, "decoders", {name for name, _ in pairs})
    samples = _merged(first, second, pairs, tasks)
    decoders = [
        *(decoder_of(first, x) | {"name": f"a:{x}"} for x in _firsts(pairs)),
        *(decoder_of(second, y) | {"name": f"b:{y}"} for y in _seconds(pairs)),
    ]
    rows = long_rows("", measure(samples, tasks, decoders), "", [(f"b:{y}", f"a:{x}") for x, y in pairs])
    return Comparison(
        first,
        second,
        pairs,
        tasks,
        _adjusted([row | {"model": _model(row, first, second)} for row in rows]),
        [*_times(first, "a", set(_firsts(pairs)), names), *_times(second, "b", set(_seconds(pairs)), names)],
        list(_changed(samples, pairs)),
        [*_knob_differences(first, second, pairs), *_differences(first.run, second.run)],
        left_out,
    )


def _firsts(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(a for a, _ in pairs))


def _seconds(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(b for _, b in pairs))


def _merged(a: Saved, b: Saved, pairs: Sequence[Pair], tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row an item, with both runs' answers."""
    merged = []
    for task in tasks:
        other = items_of(b, task["name"])
        for key, sample in items_of(a, task["name"]).items():
            row = dict(sample)
            for part in ("answers", "ended", "failed", "metrics"):
                left, right = sample.get(part) or {}, other[key].get(part) or {}
                row[part] = {f"a:{x}": left[x] for x in _firsts(pairs) if x in left}
                row[part] |= {f"b:{y}": right[y] for y in _seconds(pairs) if y in right}
            if row["answers"]:
                merged.append(row)
    if not any(f"b:{y}" in row["answers"] and f"a:{x}" in row["answers"] for row in merged for x, y in pairs):
        raise DataError("No task was answered by both decoders: there is nothing to compare.")
    return merged


def _model(row: Row, a: Saved, b: Saved) -> str:
    ours, theirs = (str(saved.run["settings"].get("model")) for saved in (a, b))
    if row["method"].startswith("a:") or ours == theirs:
        return ours
    return f"{theirs} - {ours}" if "p_value" in row else theirs


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with "p_holm": each difference for being one of all differences of its metric."""
    adjusted = [dict(row) for row in rows]
    metrics: dict[str, list[Row]] = {}
    for row in adjusted:
        if row.get("p_value") is not None:
            metrics.setdefault(row["metric"], []).append(row)
    for members in metrics.values():
        for row, p in zip(members, holm([row["p_value"] for row in members]), strict=True):
            row["p_holm"] = p
    return adjusted


def _times(saved: Saved, side: str, names: set[str], tasks: set[str]) -> list[Row]:
    rows = (saved.run.get("times") or {}).get("rows") or []
    kept = ("seconds", "peak_memory_mib")
    return [
        row | {"method": f"{side}:{row['method']}"}
        for row in rows
        if row["method"] in names and row["task"] in tasks and row["metric"] in kept
    ]


def _changed(samples: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> Iterator[Changed]:
    for task in dict.fromkeys(sample["task"] for sample in samples):
        for x, y in pairs:
            told = [
                (s["answers"][f"a:{x}"], s["answers"][f"b:{y}"])
                for s in samples
                if s["task"] == task and f"a:{x}" in s["answers"] and f"b:{y}" in s["answers"]
            ]
            if told:
                changed = sum(any(p != q for p, q in zip(left, right, strict=False)) for left, right in told)
                yield Changed(x, y, task, changed, len(told))


def _knob_differences(a: Saved, b: Saved, pairs: Sequence[Pair]) -> Iterator[str]:
    for x, y in pairs:
        left, right = decoder_of(a, x), decoder_of(b, y)
        if x == y:
            yield from _fields(f"{x}: ", left.get("knobs") or {}, right.get("knobs") or {})
        if left.get("seeds", 1) != right.get("seeds", 1):
            yield f"{x} ran {left.get('seeds', 1)} times and {y} {right.get('seeds', 1)} times; means are compared."


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    settings = [{k: v for k, v in run["settings"].items() if k not in _OWN} for run in (a, b)]
    yield from _fields("setting ", *settings)
    yield from _fields("", *({k: run.get(k) for k in ("version", "code", "weights", "reference")} for run in (a, b)))
    yield from _fields("", a.get("environment") or {}, b.get("environment") or {})


def _fields(prefix: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            yield f"{prefix}{name}: {left.get(name)!r} in a, {right.get(name)!r} in b."
