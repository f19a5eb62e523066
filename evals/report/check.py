"""Whether a folder's scores follow from its answers, and whether those answers can be scored at all.

    found = check("runs/first")       # a run of `lvlm-guard eval run`: everything in results.json is computed again
    found = check("lmms-eval-out")    # an --output_path of stock lmms-eval, whose command line exits 0 on everything
    found.outcome                     # "ok", "wrong" (exit code 1) or "void" (3)

Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.saved import ANSWERS, ASKED, ITEMS, RESULTS, Run, plain, read_run
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.score import identity, score_answers, stored
from lvlm_guard.evals.stats.validity import Allowed

LAST_DIGITS = 1e-9  # relative: what another release of NumPy may sum up otherwise
SHOWN = 3  # examples of a finding
HELD = ("rows", "costs", "verdicts")  # what is held against each other
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Checked:
    """What a check found in a folder that one of two programs wrote, in sentences."""

    folder: Path
    kind: Literal["lvlm-guard", "lmms-eval"]
    good: list[str] = field(default_factory=list)  # what is as it should be
    warnings: list[str] = field(default_factory=list)  # what to know before reading the scores
    wrong: list[str] = field(default_factory=list)  # files that were changed, cut or mixed (exit code 1)
    void: list[str] = field(default_factory=list)  # answers that can't be scored (exit code 3)

    @property
    def outcome(self) -> Literal["ok", "wrong", "void"]:
        """The worst of it: answers that can't be scored before files that don't fit."""
        return "void" if self.void else "wrong" if self.wrong else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON data."""
        told = {"command": "eval check", "version": lvlm_guard.__version__, "outcome": self.outcome}
        return told | vars(self) | {"folder": str(self.folder)}


def sentences(found: Checked) -> list[str]:
    """Return what was found as lines to print, the worst first."""
    parts = {"void": found.void, "wrong": found.wrong, "note": found.warnings, "ok": found.good}
    return [f"{kind}: {told}" for kind, sentences in parts.items() for told in sentences]


def check(folder: str | Path, *, allow_empty: float | None = None, allow_truncated: float | None = None) -> Checked:
    """Check a finished run, or an `--output_path` of lmms-eval with `--log_samples`.

    `allow_empty` and `allow_truncated` are shares of answers, 0 to 1; None: what the run itself allowed, for
    lmms-eval none. Raises `DataError` of a folder that is not there or holds neither, and of a share outside 0 to 1.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{place} is no folder: give the --out folder of a run, or lmms-eval's --output_path.")
    shares = {"empty": allow_empty, "truncated": allow_truncated}
    given = {name: share for name, share in shares.items() if share is not None}
    allowed = Allowed(**given)
    if not (place / ASKED).exists():
        from lvlm_guard.evals.report.check_stock import check_stock

        return check_stock(Checked(place, "lmms-eval"), allowed)
    found = Checked(place, "lvlm-guard")
    try:
        run = read_run(place)
        if run.status in ("stopped", "unscored"):
            raise DataError(run.todo)
        for task in run.asked["tasks"]:
            trouble = _asked(task, run.items[task["name"]].values())
            told = f"{task['name']}: {task['n']} items on {task['pictures']} pictures, digest {task['digest']}."
            (found.wrong if trouble else found.good).append(trouble or told)
        found.wrong.extend(_answers(run))
        _rescore(found, run, given)
    except DataError as error:  # what is found wrong, not a wrong call
        found.wrong.append(str(error))
    return found


def _asked(task: Row, rows: Any) -> str:
    """Say how the items in `items.jsonl` are not those of the task; "" where they are."""
    items = []
    for row in rows:
        given = row["item"], row["picture"], row.get("prompt", ""), (), row.get("question", ""), row["truth"]
        items.append(Item(*given, rows=tuple(row.get("rows") or ())))
    again = EvalTask(task["name"], task["kind"], items, task["max_new_tokens"], tuple(task["until"])).describe()
    fields = [name for name in ("n", "pictures", "rows", "digest") if again[name] != task[name]]
    told = "; ".join(f"{name} {again[name]} where {ASKED} has {task[name]}" for name in fields)
    return told and f"{task['name']}: {ITEMS} and {ASKED} don't belong together: {told}."


def _answers(run: Run) -> Iterator[str]:
    """Say where the table calls decoders otherwise than `asked.json` does."""
    known = {d["name"]: (d["role"], d["baseline"]) for d in run.asked["decoders"]}
    table = run.answers(("decoder", "role", "baseline")).group_by(["decoder", "role", "baseline"]).aggregate([])
    for row in sorted(table.to_pylist(), key=str):
        told, noted = (row["role"], row["baseline"]), known.get(row["decoder"], ("no decoder of the run", None))
        if noted != told:
            yield (
                f"{ANSWERS} has answers of {row['decoder']} as {told[0]} against {told[1]}, and in {ASKED} it is "
                f"{noted[0]} against {noted[1]}: the files don't belong together."
            )


def _rescore(found: Checked, run: Run, given: Mapping[str, float]) -> None:
    """Compute everything again and hold it against `results.json`."""
    written, asked = run.results.data, {task["name"] for task in run.asked["tasks"]}
    answers, items, costs = stored(run.folder)
    # as they were scored: with the dialects and verdicts that scoring was told of
    tasks = [task for task in written["tasks"] if task["name"] in asked]
    allowed = replace(Allowed(**written.get("allowed", {})), **given)
    again = plain(score_answers(answers, items, tasks, run.asked["decoders"], costs=costs, allowed=allowed))
    found.void.extend(again["void"])
    found.warnings.extend(again["warnings"])
    if not again["void"]:
        found.good.append("No answer failed; none is missing, empty or cut beyond what was allowed.")
    if not given and bool(again["void"]) != (run.status == "void"):
        told = "void, and its answers are not" if run.status == "void" else "complete, and its answers make it void"
        found.wrong.append(f"{RESULTS} calls the run {told}: one of the files was changed.")
    if written.get("identity") != identity():
        found.warnings.append(
            f"The scores were made by other code ({written.get('identity')}) than this ({identity()}): `lvlm-guard "
            f"eval score {run.folder}` makes them anew."
        )
    if not again["void"] and run.status == "complete":
        others = [task for task in run.results.tasks if task["name"] not in asked]
        skipped = {row for task in others for row in (*run.results.row_tasks(task), task["name"])}
        _compare(found, {name: [row for row in written[name] if row["task"] not in skipped] for name in HELD}, again)
        found.warnings.extend(
            f"{task['name']} was scored by labels that are not in the folder: its scores were not checked."
            for task in others
        )


def _compare(found: Checked, written: Row, again: Row) -> None:
    before, after = ({_name(row): row for row in [*of["rows"], *of["costs"]]} for of in (written, again))
    apart = list(_apart(before, after))
    far = [told for told, distance in apart if distance > LAST_DIGITS]
    near = [told for told, distance in apart if distance <= LAST_DIGITS]
    lost = [name for name in (*after, *before) if (name in after) != (name in before)]
    if far:
        found.wrong.append(f"{len(far)} numbers of {RESULTS} do not follow from {ANSWERS}: {'; '.join(far[:SHOWN])}.")
    if lost:
        told = "; ".join(lost[:SHOWN])
        found.wrong.append(f"{len(lost)} rows are only in {RESULTS}, or only follow from {ANSWERS}: {told}.")
    if not near and again["verdicts"] != written["verdicts"]:
        found.wrong.append(f"The verdicts of {RESULTS} do not follow from {ANSWERS}.")
    if near:
        told = f"{len(near)} numbers of {RESULTS} differ from {ANSWERS} in their last digits ({near[0]})"
        found.warnings.append(f"{told}, as they do between releases of NumPy.")
    if not apart and not lost:
        found.good.append(f"{len(after)} rows follow from {ANSWERS}, all as in {RESULTS} to the last digit.")


def _name(row: Row) -> str:
    baseline = f" − {row['baseline']}" if row["baseline"] else ""
    return f"{row['decoder']}{baseline} {row['task']} {row['metric']}"


def _apart(before: Mapping[str, Row], after: Mapping[str, Row]) -> Iterator[tuple[str, float]]:
    """Yield each number that differs, in words, with how far it is off (infinite where one is no number)."""
    for name, row in after.items():
        other = before.get(name, row)
        for key in (key for key in {**row, **other} if other.get(key) != row.get(key)):
            a, b = other.get(key), row.get(key)
            numbers = [x for x in (a, b) if isinstance(x, int | float)]
            off = abs(numbers[0] - numbers[1]) / max(abs(x) for x in (*numbers, 1)) if len(numbers) == 2 else math.inf
            yield f"{name} {key} is {a}, and should be {b}", off
