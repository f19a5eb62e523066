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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report import terminal
from lvlm_guard.evals.report.layout import Mark, Results, Row, judged
from lvlm_guard.evals.report.saved import Run, finished
from lvlm_guard.evals.stats.results import Measured, with_holm
from lvlm_guard.evals.stats.score import VERDICTS
from lvlm_guard.evals.stats.tally import Tally, tallies_of

Pair = tuple[str, str]  # a decoder of the first run, and the one of the second that it is compared with
_ASKED = ("picture", "prompt", "truth", "rows")  # of an item; its key pairs it
_PROTOCOL = ("kind", "split", "max_new_tokens", "until", "vocabulary", "n", "pictures")
_OWN = {"tasks", "methods", "knobs", "questions", "images", "annotations", "include"}  # told elsewhere, or mere paths
_TOLD = ("version", "code", "weights", "where")

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
        decoder is b's and whose baseline is a's."""
        found = []
        for row in self.results.rows:
            baseline = row["baseline"] and row["baseline"][3:]  # "a: NAME"
            told = {"decoder": row["decoder"][3:], "baseline": baseline}
            found.append({**row, **told, "run": "b-a" if row["baseline"] else row["decoder"][0]})
        return found

    def to_dict(self) -> dict[str, Any]:
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
    tasks, pairs = _common_tasks(*runs), _pairs_of(*runs, decoder_a, decoder_b)
    left_out = list(_only_in_one(*runs, "tasks", {task["name"] for task in tasks}))
    if decoder_a is None and decoder_b is None:
        left_out += _only_in_one(*runs, "decoders", {name for name, _ in pairs})
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
    differs = [f"{told}." for told in _differences(*runs, pairs)]
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
    """Return what a reader must know beside the tables: what each difference tells, and what else differs. Of many
    differences only the clear ones are told one by one: those that stay so when p is adjusted (Holm) for all
    differences of their metric."""
    told = [
        (_clear(row), row, pair)
        for task in found.results.tasks
        for row_task in found.results.row_tasks(task)
        for pair in found.pairs
        for _, metric in found.results.main(task)[:1]
        if (row := found.results.difference(row_task, f"b: {pair[1]}", metric)) is not None
    ]
    shown = told if len(told) <= MANY else [one for one in told if one[0]]
    return terminal.worded(
        "compare", found=found, shown=shown, quiet=len(told) - len(shown), beside=BESIDE, tells=TELLS
    )


def _clear(row: Row) -> Mark:
    """Return "good" or "bad" for a difference that is clear after the adjustment for how many there are."""
    p = row.get("p_holm")
    return judged(row) if p is None or p < CLEAR else ""


def _common_tasks(a: Run, b: Run) -> list[dict[str, Any]]:
    """Return the tasks that both asked, as they were scored; raises `DataError` where there is none, or what differs in
    one of the same name."""
    ours, theirs = ({task["name"]: task for task in run.asked["tasks"]} for run in (a, b))
    common = [name for name in ours if name in theirs]
    if not common:
        told = [f"{run.folder} has {', '.join(own) or 'none'}" for run, own in ((a, ours), (b, theirs))]
        raise DataError(f"The runs have no task in common: {told[0]}, {told[1]}.")
    problems = [f"{name} ({why})" for name in common if (why := ", ".join(_unlike(a, b, ours[name], theirs[name])))]
    if problems:
        why = f"did not ask the same, so their answers can't be paired: {'; '.join(problems)}"
        raise DataError(f"{a.folder} and {b.folder} {why}. Run one again with the other's tasks and settings.")
    return [ours[name] | {"about": _about(ours[name], a, b)} for name in common]


def _about(task: Mapping[str, Any], a: Run, b: Run) -> dict[str, Any]:
    """Return what scoring knew of a task, in either run: CHAIR's dialects, and the verdicts in their folders."""
    about = dict(task.get("about") or {})
    for run in (a, b):
        told = next((one.get("about") or {} for one in run.results.tasks if one["name"] == task["name"]), {})
        found = {"dialects": told.get("dialects", ())}
        found["verdicts"] = [str(path) for path in sorted((run.folder / VERDICTS).glob("*.json"))]
        for name in found.keys() & told.keys():
            about[name] = list(dict.fromkeys([*about.get(name, ()), *found[name]]))
    return about


def _unlike(a: Run, b: Run, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = list(apart("", *({name: task.get(name) for name in _PROTOCOL} for task in (ours, theirs))))
    left, right = a.items[ours["name"]], b.items[theirs["name"]]
    for mine, other, folder in ((left, right, a.folder), (right, left, b.folder)):
        if only := mine.keys() - other.keys():
            found.append(f"{len(only)} items are only in {folder}")
    for name in _ASKED:
        keys = [key for key in left if key in right and left[key].get(name) != right[key].get(name)]
        if keys:
            before, after = (repr(side[keys[0]].get(name))[:60] for side in (left, right))
            found.append(f"{name} differs in {len(keys)} items, first in {keys[0]!r}: {before} and {after}")
    if not found and ours.get("digest") != theirs.get("digest"):
        found.append(f"{next(apart('', ours, theirs))}; `lvlm-guard eval check` tells which is wrong")
    return found


def apart(prefix: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    """Say which values of two mappings differ."""
    for name in {**left, **right}:
        if left.get(name) != right.get(name):
            yield f"{prefix}{name} is {left.get(name)!r} and {right.get(name)!r}"


def _pairs_of(a: Run, b: Run, decoder_a: str | None, decoder_b: str | None) -> list[Pair]:
    """Return which decoders to compare: those named, else all that both asked; raises `DataError` for what can't be."""
    pairs = [(decoder_a or decoder_b or "", decoder_b or decoder_a or "")]
    if decoder_a is None and decoder_b is None:
        ours, theirs = ([d["name"] for d in run.asked["decoders"] if not d.get("derive")] for run in (a, b))
        pairs = [(name, name) for name in ours if name in theirs]
        if not pairs:
            has = f"{a.folder} has {', '.join(ours)}, {b.folder} has {', '.join(theirs)}"
            raise DataError(f"The runs have no decoder in common: {has}. Name one of each (decoder_a, decoder_b).")
    for mine, other in pairs:
        alone = mine != other  # two ways of decoding: then nothing else may differ
        if differing := ", ".join(apart("", _decided_by(a, mine, alone), _decided_by(b, other, alone))):
            told = f"answered under other settings ({differing}), so that would be what is compared"
            raise DataError(f"{mine} of {a.folder} and {other} of {b.folder} {told}. Pair what decodes alike.")
    return pairs


def _decided_by(run: Run, decoder: str, alone: bool) -> dict[str, Any]:
    """Return what a decoder's answers depend on beside what it is."""
    settings, told = run.asked["settings"], dict(run.decoder(decoder).get("options") or {})
    if alone:
        told |= {"dtype": settings.get("dtype"), "weights": run.asked.get("weights")}
        # a server may give the guarded model a name of its own
        told |= {} if settings.get("server") else {"model": settings.get("model")}
    return told


def _only_in_one(a: Run, b: Run, what: str, common: set[str]) -> Iterator[str]:
    """Say which tasks or decoders (`what`) only one of the runs has."""
    for run in (a, b):
        names = [one["name"] for one in run.asked[what] if one["name"] not in common and not one.get("derive")]
        if names:
            yield f"Only {run.folder} has the {what} {', '.join(names)}."


def _differences(a: Run, b: Run, pairs: list[Pair]) -> Iterator[str]:
    """Say what differs between two runs beside their answers."""
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
