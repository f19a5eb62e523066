"""Whether a folder's scores follow from its answers, and whether those answers can be scored at all.

    found = check("runs/first")       # a run of `lvlm-guard eval run`: everything in run.json is computed again
    found = check("lmms-eval-out")    # an --output_path of stock lmms-eval, whose command line exits 0 on everything
    found.outcome                     # "ok", "wrong" (exit code 1) or "void" (3)

Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.identity import code_digest
from lvlm_guard.evals.report.check.found import SHOWN, Checked, sentences
from lvlm_guard.evals.report.check.stock import check_stock
from lvlm_guard.evals.report.saved import BEGUN, RUN, SAMPLES, Saved, plain, read_run
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.costs import WORK
from lvlm_guard.evals.stats.score import score_run
from lvlm_guard.evals.stats.validity import verdict

__all__ = ["Checked", "check", "sentences"]

LAST_DIGITS = 1e-9  # relative: what another release of NumPy may sum up otherwise


def check(folder: str | Path, *, allow_empty: float | None = None, allow_truncated: float | None = None) -> Checked:
    """Check a finished run, or what lmms-eval wrote.

    Args:
        folder: `--out` of `lvlm-guard eval run`, or `--output_path` of lmms-eval with `--log_samples`.
        allow_empty, allow_truncated: shares of answers, 0 to 1, that may be empty, or cut at the token limit; None:
            what the run itself allowed, for lmms-eval none.

    Raises:
        DataError: there is no such folder, it holds neither, or a share is outside 0 to 1.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"{place} is no folder: give the --out folder of a run, or lmms-eval's --output_path.")
    if (place / RUN).exists() or (place / BEGUN).exists():
        return _check_run(place, allow_empty, allow_truncated)
    return check_stock(place, allow_empty or 0.0, allow_truncated or 0.0)


def _check_run(folder: Path, allow_empty: float | None, allow_truncated: float | None) -> Checked:
    found = Checked(folder, "lvlm-guard")
    try:
        saved = read_run(folder)
    except DataError as error:  # what is found wrong, not a wrong call
        found.wrong.append(str(error))
        return found
    run = saved.run
    if run["status"] not in ("complete", "void"):
        found.wrong.append(
            f"{folder} has not finished: give the run's command again, it goes on from where it stopped."
        )
        return found
    for task in run["tasks"]:
        (found.wrong if (trouble := _asked(task, saved)) else found.good).append(
            trouble or f"{task['name']}: {task['n']} items on {task['pictures']} pictures, digest {task['digest']}."
        )
    found.wrong.extend(_answers(saved))
    _judge(found, saved, allow_empty, allow_truncated)
    if run["status"] == "complete":  # void runs have no scores
        _rescore(found, saved)
    if run.get("code") != code_digest():
        found.warnings.append(
            f"The answers were made by other code (lvlm-guard {run.get('version')}, {run.get('code')}) than this "
            f"({lvlm_guard.__version__}, {code_digest()})."
        )
    return found


def _asked(task: Mapping[str, Any], saved: Saved) -> str:
    """Say how the items in `samples.jsonl` are not those of the task; "" where they are."""
    mine = [sample for sample in saved.samples if sample["task"] == task["name"]]
    items = [
        Item(s["key"], s["picture"], s.get("prompt", ""), (), truth=s.get("truth"), rows=tuple(s.get("rows") or ()))
        for s in mine
    ]
    again = EvalTask(task["name"], task["kind"], items, task["max_new_tokens"], tuple(task["until"])).describe()
    differing = [
        f"{name} {again[name]} where {RUN} has {task[name]}"
        for name in ("n", "pictures", "rows", "digest")
        if again[name] != task[name]
    ]
    if not differing:
        return ""
    return f"{task['name']}: {SAMPLES} and {RUN} don't belong together: {'; '.join(differing)}."


def _answers(saved: Saved) -> Iterator[str]:
    """Say where answers in `samples.jsonl` are not those in `answers/`, which were written as they came."""
    for decoder in saved.run["decoders"]:
        path = saved.folder / "answers" / f"{decoder['name']}.jsonl"
        if not path.exists():
            continue
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            came = {(row["task"], row["key"], row["seed"]): row["text"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            yield f"{path} can't be read ({error}): was it changed, or cut?"
            continue
        differing = [
            f"{sample['task']} {sample['key']}"
            for sample in saved.samples
            for seed, text in enumerate(sample["answers"].get(decoder["name"], []))
            if came.get((sample["task"], sample["key"], seed), text) != text
        ]
        if differing:
            told = ", ".join(differing[:SHOWN])
            yield f"{len(differing)} answers of {decoder['name']} are others in {SAMPLES} than in {path} ({told})."


def _judge(found: Checked, saved: Saved, allow_empty: float | None, allow_truncated: float | None) -> None:
    run, allowed = saved.run, saved.run.get("allowed") or {}
    empty = allow_empty if allow_empty is not None else float(allowed.get("empty", 0.0))
    truncated = allow_truncated if allow_truncated is not None else float(allowed.get("truncated", 0.0))
    judged = verdict(saved.samples, run["tasks"], run["decoders"], allow_empty=empty, allow_truncated=truncated)
    found.void.extend(judged.void)
    found.warnings.extend(judged.warnings)
    if not judged.void:
        found.good.append("No answer failed; none is missing, empty or cut beyond what was allowed.")
    given = allow_empty is not None or allow_truncated is not None
    if not given and bool(judged.void) != (run["status"] == "void"):
        told = "void, and its answers are not" if run["status"] == "void" else "complete, and its answers make it void"
        found.wrong.append(f"{RUN} calls the run {told}: one of the files was changed.")


def _rescore(found: Checked, saved: Saved) -> None:
    """Compute every score again and hold it against `run.json`."""
    run = saved.run
    # costs follow from what was measured while asking, not from the texts
    written = {_name(row): row for row in run["rows"] if row["metric"] not in WORK.values()}
    try:
        again = {_name(row): row for row in plain(score_run(run, saved.samples))}
    except DataError as error:
        found.wrong.append(f"{SAMPLES} can't be scored: {error}")
        return
    numbers = [*_numbers(written, again)]
    far = [told for told, apart in numbers if apart > LAST_DIGITS]
    near = [told for told, apart in numbers if apart <= LAST_DIGITS]
    lost = [name for name in (*again, *written) if (name in again) != (name in written)]
    if far:
        found.wrong.append(f"{len(far)} numbers of {RUN} do not follow from {SAMPLES}: {'; '.join(far[:SHOWN])}.")
    if lost:
        told = "; ".join(" ".join(name) for name in lost[:SHOWN])
        found.wrong.append(f"{len(lost)} rows are only in {RUN}, or only follow from {SAMPLES}: {told}.")
    if near:
        found.warnings.append(
            f"{len(near)} numbers of {RUN} differ from {SAMPLES} in their last digits ({near[0]}), as they do between "
            "releases of NumPy."
        )
    if not (far or lost or near):
        found.good.append(f"{len(again)} rows follow from {SAMPLES}, all as in {RUN} to the last digit.")


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["method"], row["task"], row["metric"]


def _numbers(written: Mapping[Any, Mapping[str, Any]], again: Mapping[Any, Mapping[str, Any]]) -> Iterator[Any]:
    """Yield each number that differs, in words, with how far it is off (infinite where one is no number)."""
    for name, row in again.items():
        before = written.get(name, row)
        for key in dict.fromkeys([*row, *before]):
            a, b = before.get(key), row.get(key)
            if a != b:
                yield f"{' '.join(name)} {key} is {a}, and should be {b}", _apart(a, b)


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) / max(abs(a), abs(b), 1.0)
    return math.inf
