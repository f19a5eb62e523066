"""Two saved runs against each other: the same questions, answered by two models, methods or versions.

    found = compare("runs/before", "runs/after")                             # every decoder that both have
    found = compare("runs/plain", "runs/guarded", decoder_a="greedy", decoder_b="agla")

Differences are b minus a. Runs are paired question by question, so both must have asked the same. Needs
neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report import terminal
from lvlm_guard.evals.report.layout import Mark, Results, Row, judged, p_text, said, title
from lvlm_guard.evals.report.pairing import Pair, common_tasks, differences, only_in_one, pairs_of
from lvlm_guard.evals.report.saved import Run, finished
from lvlm_guard.evals.stats.results import Measured, with_holm
from lvlm_guard.evals.stats.tally import Tally, tallies_of

MANY = 10  # differences beyond which only the clear ones are told in sentences
CLEAR = 0.05  # the adjusted p-value below which a difference of several is called one
TELLS = {"good": "b is better", "bad": "b is worse", "": "no clear difference"}
BESIDE = ("accuracy_matched", "auroc", "object_recall", "length")
CAPTION = (
    "Beside b's value its difference b − a on the same questions, below it that difference's 95 % interval, "
    "pictures drawn with replacement; coloured where it leaves out zero."
)


class Changed(NamedTuple):
    """How many of a task's items got another answer (from any seed that both ran) by a pair of decoders."""

    a: str
    b: str
    task: str
    changed: int
    n: int


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired; p_holm is adjusted over all differences of one metric."""

    a: Run
    b: Run
    pairs: list[Pair]  # decoders that were paired, a's and b's
    results: Results  # as of one run, whose decoders are "a: NAME" and "b: NAME"
    changed: list[Changed]
    differs: list[str]  # sentences on what differs between the runs beside the answers
    left_out: list[str]  # sentences on what only one of them has
    warnings: list[str]  # what scoring warns of

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, with one column more than a run's, "run": "a" or "b" for values, "b-a" for differences, whose
        decoder is b's and whose baseline is a's.
        """
        found = []
        for row in self.results.rows:
            baseline = row["baseline"] and row["baseline"][3:]  # "a: NAME"
            told = {"decoder": row["decoder"][3:], "baseline": baseline}
            found.append({**row, **told, "run": "b-a" if row["baseline"] else row["decoder"][0]})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON data, its results in long rows."""
        told: dict[str, Any] = {"command": "eval compare", "version": lvlm_guard.__version__}
        told |= {"a": str(self.a.folder), "b": str(self.b.folder), "tasks": self.results.tasks}
        told |= {name: getattr(self, name) for name in ("pairs", "differs", "left_out", "warnings", "rows")}
        return told | {"changed": [one._asdict() for one in self.changed]}


def compare(
    a: str | Path | Run, b: str | Path | Run, *, decoder_a: str | None = None, decoder_b: str | None = None
) -> Comparison:
    """Pair two runs and test their differences: paired bootstrap, randomization, Holm; what was fixed, what broken.

    Without `decoder_a` and `decoder_b`, all decoders that both runs have; with one alone, the other of that name.
    Raises `VoidRunError`, and `DataError` where a folder holds no finished run, or the runs have no task or decoder in
    common, or asked other questions or with other generation settings; the message lists what differs.
    """
    runs = first, second = finished(a), finished(b)
    tasks, pairs = common_tasks(*runs), pairs_of(*runs, decoder_a, decoder_b)
    left_out = list(only_in_one(*runs, "tasks", {task["name"] for task in tasks}))
    if decoder_a is None and decoder_b is None:
        left_out += only_in_one(*runs, "decoders", {name for name, _ in pairs})
    owners = Counter(row for task in tasks for row in task["rows"] or [task["name"]])
    sides = [(side, run, name) for pair in pairs for side, run, name in zip("ab", runs, pair, strict=True)]
    decoders = [run.decoder(name) | {"name": f"{side}: {name}"} for side, run, name in sides]
    baselines = {f"b: {y}": f"a: {x}" for x, y in pairs}
    rows: list[dict[str, Any]] = []
    changed: list[Changed] = []
    warnings: list[str] = []
    for task in tasks:
        names = [[name for side, _, name in sides if side == own] for own in "ab"]
        told = pa.concat_tables(_answers(*one, task) for one in zip("ab", runs, names, strict=True))
        (tally,) = tallies_of(told, first.items[task["name"]].values(), [task]).values()
        measured = Measured(tally, decoders, "", owners)
        rows += measured.rows(baselines.items())
        warnings += measured.warnings
        changed += _changed(tally, pairs)
    if not changed:
        raise DataError("No task was answered by both decoders: there is nothing to compare.")
    with_holm(rows, lambda row: row["metric"])
    data = {"rows": rows, "decoders": decoders, "tasks": tasks, "reference": "a", "verdicts": [], "void": []}
    differs = [f"{told}." for told in differences(*runs, pairs)]
    return Comparison(first, second, pairs, Results(data, baselines), changed, differs, left_out, warnings)


def _answers(side: str, run: Run, names: Sequence[str], task: Row) -> pa.Table:
    """Return a run's answers under names that tell the runs apart."""
    found = run.answers(task=task["name"], split=task["split"], decoder=list(names))
    at = found.schema.get_field_index("decoder")
    return found.set_column(at, found.field(at), pc.binary_join_element_wise(f"{side}: ", found["decoder"], ""))


def _changed(tally: Tally, pairs: Sequence[Pair]) -> Iterator[Changed]:
    for x, y in pairs:
        ours, theirs = tally.of(f"a: {x}"), tally.of(f"b: {y}")
        if ours and theirs:
            other = np.any([one.text != two.text for one, two in zip(ours, theirs, strict=False)], axis=0)
            yield Changed(x, y, tally.name, int(other[tally.whole].sum()), int(tally.whole.sum()))


def tables(found: Comparison, width: int = 120) -> list[Table]:
    """Return a table for each task; narrower terminals get fewer columns, never cut ones."""
    return terminal.tables(found.results, width, f"{found.a.folder} (a) → {found.b.folder} (b)", CAPTION)


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know beside the tables: what each difference tells, and what else differs.

    Of many differences only the clear ones are told one by one: those that stay so when p is adjusted (Holm) for all
    differences of their metric.
    """
    told = [
        (_clear(row), _sentence(found, row, pair))
        for task in found.results.tasks
        for row_task in found.results.row_tasks(task)
        for pair in found.pairs
        for _, metric in found.results.main(task)[:1]
        if (row := found.results.difference(row_task, f"b: {pair[1]}", metric)) is not None
    ]
    shown = told if len(told) <= MANY else [one for one in told if one[0]]
    sentences = [sentence for _, sentence in shown]
    if len(shown) < len(told):
        sentences.append(f"No clear difference in the other {len(told) - len(shown)}.")
    moved = [c for c in found.changed if c.changed]
    sentences += [f"{_named(c.a, c.b)} on {c.task}: {c.changed} of {c.n} answers changed." for c in moved]
    if len(moved) < len(found.changed):
        sentences.append(f"No answer changed in the other {len(found.changed) - len(moved)} pairs of decoder and task.")
    return [*sentences, *(f"a and b differ: {one}" for one in found.differs), *found.left_out, *found.warnings]


def _named(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _clear(row: Row) -> Mark:
    """Return "good" or "bad" for a difference that is clear after the adjustment for how many there are."""
    p = row.get("p_holm")
    return judged(row) if p is None or p < CLEAR else ""


def _sentence(found: Comparison, row: Row, pair: Pair) -> str:
    beside = {
        metric: found.results.difference(row["task"], f"b: {pair[1]}", metric) for metric in (*BESIDE, "yes_ratio")
    }
    yes, adjusted = beside.pop("yes_ratio"), row.get("p_holm")
    told = f"{row['fixed']} fixed, {row['broken']} broken, " if "fixed" in row else ""
    told += f"{title(row['metric'])} {said(row)}"
    told += f" (adjusted {p_text(adjusted)})" if adjusted not in (None, row["p"]) else ""
    told += f": {TELLS[_clear(row)]}"
    told += "".join(f", {title(metric)} {said(other)}" for metric, other in beside.items() if other is not None)
    lean = ""
    if yes is not None and yes["bold"]:
        lean = f" It says yes {'less' if yes['value'] < 0 else 'more'} often ({said(yes)})."
    return f"{_named(*pair)} on {row['task']}: {told}.{lean}"
