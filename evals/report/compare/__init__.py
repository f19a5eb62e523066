"""Two saved runs against each other: the same questions, answered by two models, methods or versions.

    found = compare("runs/before", "runs/after")                             # every decoder that both have
    found = compare("runs/plain", "runs/guarded", decoder_a="greedy", decoder_b="agla")

Differences are b minus a. Runs are paired question by question, so both must have asked the same. Needs
neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.compare.fail_if import Rule, fail_if
from lvlm_guard.evals.report.compare.pairing import Pair, apart, common_tasks, only_in_one, pairs_of
from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.saved import Run, finished, plain
from lvlm_guard.evals.stats.bootstrap import holm
from lvlm_guard.evals.stats.reading import tallies_of
from lvlm_guard.evals.stats.results import Measured
from lvlm_guard.evals.stats.tally import Tally

__all__ = ["Changed", "Comparison", "Rule", "compare", "fail_if"]

_OWN = {"tasks", "methods", "knobs", "questions", "images", "annotations", "include"}  # told elsewhere, or mere paths
_TOLD = ("version", "code", "weights", "where")
Row = dict[str, Any]
Sides = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name of a decoder in the common table -> which run's it is ("a", "b"), and the decoder."""


class Changed(NamedTuple):
    """How many of a task's items got another answer (from any seed that both ran) by a pair of decoders."""

    a: str
    b: str
    task: str
    changed: int
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired.

    A row has one column more than a run's, "run": "a" or "b" for values, "b-a" for differences, whose decoder is b's
    and whose baseline is a's. p_holm is adjusted over all differences of one metric.
    """

    a: Run
    b: Run
    pairs: list[Pair]  # decoders that were paired, a's and b's
    tasks: list[dict[str, Any]]  # those that both have, as the first run describes them
    rows: list[Row]
    changed: list[Changed]
    differs: list[str]  # sentences on what differs between the runs beside the answers
    left_out: list[str]  # sentences on what only one of them has

    @cached_property
    def results(self) -> Results:
        """The comparison as the results of one run, whose decoders are "a: NAME" and "b: NAME"."""
        rows = [
            row
            | {"decoder": f"{row['run'][0]}: {row['decoder']}"}
            | {"baseline": row["baseline"] and f"a: {row['baseline']}"}
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
        told = {"command": "eval compare", "version": lvlm_guard.__version__}
        told |= {"a": str(self.a.folder), "b": str(self.b.folder)}
        kept = {name: getattr(self, name) for name in ("pairs", "tasks", "differs", "left_out", "rows")}
        found: dict[str, Any] = plain({**told, **kept, "changed": [one._asdict() for one in self.changed]})
        return found


def compare(
    a: str | Path | Run, b: str | Path | Run, *, decoder_a: str | None = None, decoder_b: str | None = None
) -> Comparison:
    """Pair two runs and test their differences: paired bootstrap, randomization, Holm; what was fixed, what broken.

    Without `decoder_a` and `decoder_b`, all decoders that both runs have; with one alone, the other of that name.

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
    owners = Counter(row for task in tasks for row in task["rows"] or [task["name"]])
    rows: list[Row] = []
    changed: list[Changed] = []
    sides = {
        f"{side}:{name}": (side, run.decoder(name))
        for pair in pairs
        for side, run, name in zip("ab", (first, second), pair, strict=True)
    }
    for task in tasks:
        tables = [_answers(run, side, task, sides) for side, run in (("a", first), ("b", second))]
        tally = tallies_of(pa.concat_tables(tables), first.items[task["name"]].values(), [task], frozenset())
        (counted,) = tally.values()
        rows += _rows(Measured(counted, [d | {"name": n} for n, (_, d) in sides.items()], "", owners), pairs, sides)
        changed += _changed(counted, pairs)
    if not changed:
        raise DataError("No task was answered by both decoders: there is nothing to compare.")
    differs = [f"{told}." for told in _differences(first, second, pairs)]
    return Comparison(first, second, pairs, tasks, _adjusted(rows), changed, differs, left_out)


def _answers(run: Run, side: str, task: Mapping[str, Any], sides: Sides) -> pa.Table:
    """Return a run's answers under names that tell the runs apart."""
    names = [decoder["name"] for of, decoder in sides.values() if of == side]
    found = run.answers(task=task["name"], split=task["split"], decoder=names)
    at = found.schema.get_field_index("decoder")
    return found.set_column(at, found.field(at), pc.binary_join_element_wise(f"{side}:", found["decoder"], ""))


def _rows(measured: Measured, pairs: Sequence[Pair], sides: Sides) -> Iterator[Row]:
    for row in measured.rows([(f"b:{y}", f"a:{x}") for x, y in pairs]):
        (side, decoder), baseline = sides[row["decoder"]], sides.get(row["baseline"])
        named = {"baseline": baseline[1]["name"] if baseline else None, "run": "b-a" if baseline else side}
        yield row | {"decoder": decoder["name"]} | named


def _adjusted(rows: list[Row]) -> list[Row]:
    """Return the rows with "p_holm": each difference for being one of all differences of its metric."""
    for metric in dict.fromkeys(row["metric"] for row in rows):
        members = [row for row in rows if row["metric"] == metric and row["p"] is not None]
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = p
    return rows


def _changed(tally: Tally, pairs: Sequence[Pair]) -> Iterator[Changed]:
    for x, y in pairs:
        ours, theirs = tally.of(f"a:{x}"), tally.of(f"b:{y}")
        if ours and theirs:
            other = np.any([one.text != two.text for one, two in zip(ours, theirs, strict=False)], axis=0)
            yield Changed(x, y, tally.name, int(other[tally.whole].sum()), int(tally.whole.sum()))


def _differences(a: Run, b: Run, pairs: Sequence[Pair]) -> Iterator[str]:
    """Say what differs between the runs beside the answers."""
    for x, y in pairs:
        left, right = a.decoder(x), b.decoder(y)
        if x == y:
            yield from apart(f"{x}: ", left.get("knobs") or {}, right.get("knobs") or {})
        if left["seeds"] != right["seeds"]:
            yield f"{x} ran {left['seeds']} times and {y} {right['seeds']} times; means are compared"
    settings = [{k: v for k, v in run.asked["settings"].items() if k not in _OWN} for run in (a, b)]
    yield from apart("setting ", *settings)
    yield from apart("", *({k: run.asked.get(k) for k in _TOLD} for run in (a, b)))
    for name in ("packages", "environment"):
        yield from apart("", *(run.asked.get(name) or {} for run in (a, b)))
