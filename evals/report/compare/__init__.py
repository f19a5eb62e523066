"""Two saved runs against each other: the same questions, answered by two models, methods or versions.

    found = compare("runs/before", "runs/after")                             # every decoder that both have
    found = compare("runs/plain", "runs/guarded", decoder_a="greedy", decoder_b="agla")

Differences are b minus a. Runs are paired question by question, so both must have asked the same. Needs
neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.compare.fail_if import Rule, fail_if
from lvlm_guard.evals.report.compare.pairing import Pair, common_tasks, only_in_one, pairs_of
from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.saved import Run, finished, plain
from lvlm_guard.evals.report.tallying import tally_of
from lvlm_guard.evals.stats.bootstrap import holm
from lvlm_guard.evals.stats.results import Measured
from lvlm_guard.evals.stats.tally import Tally

__all__ = ["Changed", "Comparison", "Rule", "compare", "fail_if"]

_OWN = {"tasks", "methods", "knobs", "questions", "images", "annotations", "include"}  # told elsewhere, or mere paths
_TOLD = ("version", "code", "weights", "where")
Row = dict[str, Any]


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
        tasks: those that both have, as the first run describes them.
        rows: result rows with one column more, "run": "a" or "b" for values, "b-a" for differences, whose decoder is
            b's and whose baseline is a's. p_holm is adjusted over all differences of one metric.
        changed: for each pair and task.
        differs: sentences on what differs between the runs beside the answers.
        left_out: sentences on what only one of them has.
    """

    a: Run
    b: Run
    pairs: list[Pair]
    tasks: list[dict[str, Any]]
    rows: list[Row]
    changed: list[Changed]
    differs: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def results(self) -> Results:
        """The comparison as the results of one run, whose decoders are "a: NAME" and "b: NAME"."""
        rows = [
            row
            | {"decoder": f"{row['run'][0]}: {row['decoder']}"}
            | ({} if row["baseline"] is None else {"baseline": f"a: {row['baseline']}"})
            for row in self.rows
        ]
        decoders = [
            run.decoder(name) | {"name": f"{side}: {name}"}
            for pair in self.pairs
            for side, run, name in zip("ab", (self.a, self.b), pair, strict=True)
        ]
        data = {"rows": rows, "decoders": decoders, "tasks": self.tasks, "reference": "a", "verdicts": [], "void": []}
        return Results(data, {f"b: {y}": f"a: {x}" for x, y in self.pairs})

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
            }
        )
        return found


def compare(
    a: str | Path | Run, b: str | Path | Run, *, decoder_a: str | None = None, decoder_b: str | None = None
) -> Comparison:
    """Pair two runs and test their differences: paired bootstrap, randomization, Holm; what was fixed, what broken.

    Args:
        a, b: folders of runs, or runs that were read.
        decoder_a, decoder_b: the one decoder of each to compare; where only one is given, the other run's of that
            name. None: all that both runs have.

    Raises:
        DataError: a folder holds no finished run, the runs have no task or decoder in common, no such decoder, or
            they asked other questions or with other generation settings; the message lists what differs.
        VoidRunError: a run's answers are empty, failed or cut.
    """
    first, second = finished(a), finished(b)
    tasks = common_tasks(first, second)
    pairs = pairs_of(first, second, decoder_a, decoder_b)
    left_out = list(only_in_one(first, second, "tasks", {task["name"] for task in tasks}))
    if decoder_a is None and decoder_b is None:
        left_out += only_in_one(first, second, "decoders", {name for name, _ in pairs})
    rows: list[Row] = []
    changed: list[Changed] = []
    owners: dict[str, int] = {}
    for task in tasks:
        for row in task["rows"] or [task["name"]]:
            owners[row] = owners.get(row, 0) + 1
    for task in tasks:
        measured, own = _measured(first, second, pairs, task, owners)
        rows += own
        changed += _changed(measured.tally, pairs)
    if not changed:
        raise DataError("No task was answered by both decoders: there is nothing to compare.")
    differs = [*_knob_differences(first, second, pairs), *_differences(first.asked, second.asked)]
    return Comparison(first, second, pairs, tasks, _adjusted(rows), changed, differs, left_out)


def _measured(
    a: Run, b: Run, pairs: Sequence[Pair], task: Mapping[str, Any], owners: Mapping[str, int]
) -> tuple[Measured, list[Row]]:
    """Return a task of both runs as one, and its rows."""
    sides = {
        f"{side}:{name}": (side, run.decoder(name))
        for side, run, names in (("a", a, [x for x, _ in pairs]), ("b", b, [y for _, y in pairs]))
        for name in names
    }

    def batches() -> Iterator[pa.RecordBatch]:
        for side, run in (("a", a), ("b", b)):
            yield from _batches(run, side, task, sides)

    tally = tally_of(task, a.items[task["name"]].values(), batches)
    decoders = [decoder | {"name": name} for name, (_, decoder) in sides.items()]
    measured = Measured(tally, decoders, "", owners)
    rows = []
    for row in measured.rows([(f"b:{y}", f"a:{x}") for x, y in pairs]):
        (side, decoder), baseline = sides[row["decoder"]], row["baseline"]
        named = {"run": side, "decoder": decoder["name"]}
        if baseline is not None:
            named = {"run": "b-a", "decoder": decoder["name"], "baseline": sides[baseline][1]["name"]}
        rows.append(row | named)
    return measured, rows


def _batches(
    run: Run, side: str, task: Mapping[str, Any], sides: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> Iterator[pa.RecordBatch]:
    """Yield a run's answers under names that tell the runs apart."""
    names = [decoder["name"] for of, decoder in sides.values() if of == side]
    found = run.answers(task=task["name"], split=task["split"], decoder=names)
    at = found.schema.get_field_index("decoder")
    renamed = pc.binary_join_element_wise(f"{side}:", found["decoder"], "")
    yield from found.set_column(at, "decoder", renamed).combine_chunks().to_batches()


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with "p_holm": each difference for being one of all differences of its metric."""
    adjusted = [dict(row) for row in rows]
    metrics: dict[str, list[Row]] = {}
    for row in adjusted:
        if row["p"] is not None:
            metrics.setdefault(row["metric"], []).append(row)
    for members in metrics.values():
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = p
    return adjusted


def _changed(tally: Tally, pairs: Sequence[Pair]) -> Iterator[Changed]:
    for x, y in pairs:
        ours, theirs = tally.of(f"a:{x}"), tally.of(f"b:{y}")
        if ours and theirs:
            apart = sum((one.text != other.text).astype(int) for one, other in zip(ours, theirs, strict=False)) > 0
            yield Changed(x, y, tally.name, int(apart[tally.whole].sum()), int(tally.whole.sum()))


def _knob_differences(a: Run, b: Run, pairs: Sequence[Pair]) -> Iterator[str]:
    for x, y in pairs:
        left, right = a.decoder(x), b.decoder(y)
        if x == y:
            yield from _fields(f"{x}: ", left.get("knobs") or {}, right.get("knobs") or {})
        if left["seeds"] != right["seeds"]:
            yield f"{x} ran {left['seeds']} times and {y} {right['seeds']} times; means are compared."


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    settings = [{k: v for k, v in asked["settings"].items() if k not in _OWN} for asked in (a, b)]
    yield from _fields("setting ", *settings)
    yield from _fields("", *({k: asked.get(k) for k in _TOLD} for asked in (a, b)))
    for name in ("packages", "environment"):
        yield from _fields("", a.get(name) or {}, b.get(name) or {})


def _fields(prefix: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*left, *right]):
        if left.get(name) != right.get(name):
            yield f"{prefix}{name}: {left.get(name)!r} in a, {right.get(name)!r} in b."
