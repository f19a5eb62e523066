"""Whether a folder's scores follow from its answers, and whether those answers can be scored at all.

    found = check("runs/first")       # a run of `lvlm-guard eval run`: everything in results.json is computed again
    found = check("lmms-eval-out")    # an --output_path of stock lmms-eval, whose command line exits 0 on everything
    found.outcome                     # "ok", "wrong" (exit code 1) or "void" (3)

Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.saved import ANSWERS, ASKED, ITEMS, RESULTS, Run, read_run
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.score import identity, score_answers, stored
from lvlm_guard.evals.stats.tally import tallies_of
from lvlm_guard.evals.stats.validity import Allowed, validity

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
        told = {"command": "eval check", "version": lvlm_guard.__version__, "outcome": self.outcome}
        return told | vars(self) | {"folder": str(self.folder)}


def sentences(found: Checked) -> list[str]:
    """Return what was found as lines to print, the worst first."""
    parts = {"void": found.void, "wrong": found.wrong, "note": found.warnings, "ok": found.good}
    return [f"{kind}: {told}" for kind, sentences in parts.items() for told in sentences]


def check(folder: str | Path, *, allow_empty: float | None = None, allow_truncated: float | None = None) -> Checked:
    """Check a finished run, or an `--output_path` of lmms-eval with `--log_samples`. `allow_empty` and
    `allow_truncated` are shares of answers, 0 to 1; None: what the run itself allowed, for lmms-eval none. Raises
    `DataError` of a folder that is not there or holds neither, and of a share outside 0 to 1."""
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{place} is no folder: give the --out folder of a run, or lmms-eval's --output_path.")
    shares = {"empty": allow_empty, "truncated": allow_truncated}
    given = {name: share for name, share in shares.items() if share is not None}
    allowed = Allowed(**given)
    if not (place / ASKED).exists():
        return _check_stock(Checked(place, "lmms-eval"), allowed)
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
            there = f"as {told[0]} against {told[1]}, and in {ASKED} it is {noted[0]} against {noted[1]}"
            yield f"{ANSWERS} has answers of {row['decoder']} {there}: the files don't belong together."


def _rescore(found: Checked, run: Run, given: Mapping[str, float]) -> None:
    written, asked = run.results.data, {task["name"] for task in run.asked["tasks"]}
    answers, items, costs = stored(run.folder)
    # as they were scored: with the dialects and verdicts that scoring was told of
    tasks = [task for task in written["tasks"] if task["name"] in asked]
    allowed = replace(Allowed(**written.get("allowed", {})), **given)
    again = score_answers(answers, items, tasks, run.asked["decoders"], costs=costs, allowed=allowed)
    found.void.extend(again["void"])
    found.warnings.extend(again["warnings"])
    if not again["void"]:
        found.good.append("No answer failed; none is missing, empty or cut beyond what was allowed.")
    if not given and bool(again["void"]) != (run.status == "void"):
        told = "void, and its answers are not" if run.status == "void" else "complete, and its answers make it void"
        found.wrong.append(f"{RESULTS} calls the run {told}: one of the files was changed.")
    if written.get("identity") != identity():
        told = f"The scores were made by other code ({written.get('identity')}) than this ({identity()})"
        found.warnings.append(f"{told}: `lvlm-guard eval score {run.folder}` makes them anew.")
    if not again["void"] and run.status == "complete":
        others = [task for task in run.results.tasks if task["name"] not in asked]
        skipped = {row for task in others for row in (*run.results.row_tasks(task), task["name"])}
        _compare(found, {name: [row for row in written[name] if row["task"] not in skipped] for name in HELD}, again)
        told = "was scored by labels that are not in the folder: its scores were not checked"
        found.warnings.extend(f"{task['name']} {told}." for task in others)


def _compare(found: Checked, written: Row, again: Row) -> None:
    before, after = ({_name(row): row for row in [*of["rows"], *of["costs"]]} for of in (written, again))
    far = [
        f"{name} {key} is {before[name].get(key)}, and should be {row.get(key)}"
        for name, row in after.items()
        for key in {**row, **before.get(name, row)}
        if not _alike(before.get(name, row).get(key), row.get(key))
    ]
    lost = [name for name in (*after, *before) if (name in after) != (name in before)]
    for told, examples in (
        (f"{len(far)} numbers of {RESULTS} do not follow from {ANSWERS}", far),
        (f"{len(lost)} rows are only in {RESULTS}, or only follow from {ANSWERS}", lost),
    ):
        found.wrong.extend([f"{told}: {'; '.join(examples[:SHOWN])}."] if examples else [])
    if again["verdicts"] != written["verdicts"]:
        found.wrong.append(f"The verdicts of {RESULTS} do not follow from {ANSWERS}.")
    if not far and not lost:
        found.good.append(f"{len(after)} rows follow from {ANSWERS}, all as in {RESULTS}.")


def _name(row: Row) -> str:
    baseline = f" − {row['baseline']}" if row["baseline"] else ""
    return f"{row['decoder']}{baseline} {row['task']} {row['metric']}"


def _alike(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=LAST_DIGITS, abs_tol=LAST_DIGITS) if numbers else bool(a == b)


def _check_stock(found: Checked, allowed: Allowed) -> Checked:
    folder, end, middle = found.folder, "_results.json", "_samples_"
    results, samples = sorted(folder.rglob(f"*{end}")), set(folder.rglob(f"*{middle}*.jsonl"))
    if not results and not samples:
        told = f"neither a run of `lvlm-guard eval run` ({ASKED}) nor results of lmms-eval (*{end})"
        raise DataError(f"{folder} holds {told}: give the --out or --output_path of one.")
    for path in results:
        name = path.relative_to(folder)
        try:
            told = jsonl.document(path)
            sizes = {task: int(n["effective"]) for task, n in told["n-samples"].items()}
            settings = {task: (told["configs"].get(task) or {}).get("generation_kwargs") or {} for task in sizes}
        except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.wrong.append(f"{name} can't be read as results of lmms-eval: {type(error).__name__}: {error}.")
            continue
        if (told.get("usage") or {}).get("budget_exceeded"):
            found.void.append(f"{name}: lmms-eval stopped when its token budget was spent, so the scores are partial.")
        if not sizes:
            found.void.append(f"{name} holds no task: nothing was asked.")
        model = str((told.get("config") or {}).get("model") or told.get("model_name") or "the model")
        for task, wanted in sizes.items():
            file = path.with_name(f"{path.name.removesuffix(end)}{middle}{task}.jsonl")
            samples.discard(file)
            try:
                if not file.exists():
                    raise DataError(f"{name}: {file.name} is missing. Run lmms-eval with --log_samples.")
                rows = [row for _, row in jsonl.read(file, ("doc_id", "filtered_resps"), what="sample of lmms-eval")]
                _judge(found, model, task, wanted, settings[task].get("max_new_tokens"), rows, allowed)
            except DataError as error:
                found.wrong.append(str(error))
    told = "has no results beside it: lmms-eval ended early. Run it again"
    found.wrong.extend(f"{path.relative_to(folder)} {told}." for path in sorted(samples))
    return found


def _judge(
    found: Checked, model: str, task: str, wanted: int, limit: Any, rows: Sequence[Row], allowed: Allowed
) -> None:
    twice = [str(key) for key, count in Counter(row["doc_id"] for row in rows).items() if count > 1]
    if twice:
        told = f"{task}: {len(twice)} documents were answered more than once (first: {', '.join(twice[:SHOWN])})"
        found.void.append(f"{told}: two runs wrote into one file. Give each an --output_path of its own.")
        return
    missing, few = wanted - len(rows), len(found.void)
    if missing > 0:
        found.void.append(f"{task}: {len(rows)} of {wanted} documents were answered; {missing} are missing.")
    labels = [str(row.get("target")).strip().lower() for row in rows]
    yes_no = {*labels} <= {"yes", "no"}
    items: list[dict[str, Any]] = []
    answers = []
    for row, label in zip(rows, labels, strict=True):
        key = str(row["doc_id"])
        asked: dict[str, Any] = {"task": task, "split": "test", "item": key, "picture": key}
        items.append({**asked, "rows": [task], "truth": label if yes_no else []})
        answers.append(Answer(_text(row), ended=_ended(row, limit), decoder=model, role="reference", **asked))
    # which score it has is no matter here, only which answers can have one: captions need no labels
    kind = {"kind": "pope"} if yes_no else {"kind": "chair", "vocabulary": ["none"]}
    described = {"name": task, "split": "test", "rows": [task], "max_new_tokens": limit} | kind
    tallies = tallies_of(table_of(answers), items, [described])
    # lmms-eval has scored a failed request as a wrong answer: none is allowed
    decoders = [{"name": model, "role": "reference", "seeds": 1}]
    void, warnings = validity(tallies.values(), decoders, model, allowed)
    failed = [w for w in warnings if " answers failed (" in w]
    found.void.extend([*void, *failed])
    found.warnings.extend(w for w in warnings if w not in failed)
    if len(found.void) == few:
        found.good.append(f"{model} on {task}: {len(rows)} documents, each with an answer.")


def _text(row: Row) -> str:
    given = row["filtered_resps"]
    while isinstance(given, list):
        given = given[0] if given else ""
    return "" if given is None else str(given)


def _ended(row: Row, limit: Any) -> bool:
    """Return whether an answer ended by itself: as our model tells, else where it is shorter than the limit."""
    counts = (row.get("token_counts") or [None])[0]
    counts = counts if isinstance(counts, dict) else {}
    tokens = counts.get("output_tokens")
    full = isinstance(tokens, int) and isinstance(limit, int) and tokens >= limit
    return bool(counts.get("ended", not full))
