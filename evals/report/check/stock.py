"""Whether the answers that lmms-eval wrote can be scored: its command line exits 0 on everything.

It writes `TIME_results.json` and, with `--log_samples`, `TIME_samples_TASK.jsonl` (checked with 0.7.3). What makes a
run of ours void makes its run void, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.report.check.found import SHOWN, Checked
from lvlm_guard.evals.stats.validity import verdict

_RESULTS, _SAMPLES = "_results.json", "_samples_"


def check_stock(folder: Path, allow_empty: float, allow_truncated: float) -> Checked:
    """Check every run of lmms-eval under a folder.

    Raises:
        DataError: there is none, or a share is outside 0 to 1.
    """
    found = Checked(folder, "lmms-eval")
    results = sorted(folder.rglob(f"*{_RESULTS}"))
    samples = set(folder.rglob(f"*{_SAMPLES}*.jsonl"))
    if not results and not samples:
        raise DataError(
            f"{folder} holds neither a run of `lvlm-guard eval run` (run.json) nor results of lmms-eval "
            f"(*{_RESULTS}): give the --out or --output_path of one."
        )
    for path in results:
        samples -= _check_results(found, path, allow_empty, allow_truncated)
    for path in sorted(samples):
        found.wrong.append(f"{path.relative_to(folder)} has no results beside it: lmms-eval ended early. Run it again.")
    return found


def _check_results(found: Checked, path: Path, allow_empty: float, allow_truncated: float) -> set[Path]:
    """Check one run, and return the files of samples that it should have."""
    name = path.relative_to(found.folder)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        sizes = {task: int(n["effective"]) for task, n in told["n-samples"].items()}
        configs = {task: dict(told["configs"].get(task) or {}) for task in sizes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found.wrong.append(f"{name} can't be read as results of lmms-eval: {type(error).__name__}: {error}.")
        return set()
    if (told.get("usage") or {}).get("budget_exceeded"):
        found.void.append(f"{name}: lmms-eval stopped when its token budget was spent, so the scores are partial.")
    if not sizes:
        found.void.append(f"{name} holds no task: nothing was asked.")
    files = {task: path.with_name(path.name.removesuffix(_RESULTS) + f"{_SAMPLES}{task}.jsonl") for task in sizes}
    for task, file in files.items():
        if not file.exists():
            found.wrong.append(
                f"{name}: there are no answers of {task} ({file.name} is missing), so nothing shows that it was "
                "answered. Run lmms-eval with --log_samples."
            )
            continue
        try:
            rows = _rows(file)
        except (OSError, ValueError) as error:
            found.wrong.append(f"{file.relative_to(found.folder)} can't be read: {error}.")
            continue
        _check_task(found, told, configs[task], task, sizes[task], rows, allow_empty, allow_truncated)
    return set(files.values())


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON ({error})") from None
        if not isinstance(row, dict) or "doc_id" not in row or "filtered_resps" not in row:
            raise ValueError(f"line {number} has no doc_id or no filtered_resps")
        rows.append(row)
    return rows


def _check_task(
    found: Checked,
    told: Mapping[str, Any],
    config: Mapping[str, Any],
    task: str,
    wanted: int,
    rows: Sequence[Mapping[str, Any]],
    allow_empty: float,
    allow_truncated: float,
) -> None:
    model = str((told.get("config") or {}).get("model") or told.get("model_name") or "the model")
    twice = [str(key) for key, count in Counter(row["doc_id"] for row in rows).items() if count > 1]
    if twice:
        found.void.append(
            f"{task}: {len(twice)} documents were answered more than once (first: {', '.join(twice[:SHOWN])}): two "
            "runs wrote into one file. Give each run an --output_path of its own."
        )
        return
    limit = (config.get("generation_kwargs") or {}).get("max_new_tokens")
    yes_no = bool(rows) and all(str(row.get("target")).strip().lower() in ("yes", "no") for row in rows)
    kind = "pope" if yes_no else "stock"
    samples = [_sample(row, task, kind, model, limit) for row in rows]
    judged = verdict(
        samples,
        [{"name": task, "kind": kind, "n": wanted, "max_new_tokens": limit}],
        [{"name": model}],
        allow_empty=allow_empty,
        allow_truncated=allow_truncated,
    )
    found.void.extend(judged.void)
    found.warnings.extend(judged.warnings)
    if yes_no:
        found.warnings.extend(_misread(task, samples, model))
    if not judged.void:
        found.good.append(f"{model} on {task}: {len(rows)} documents, each with an answer.")


def _sample(row: Mapping[str, Any], task: str, kind: str, model: str, limit: Any) -> dict[str, Any]:
    """Return a logged sample as `void.verdict` takes it."""
    return {
        "task": task,
        "kind": kind,
        "key": str(row["doc_id"]),
        "truth": str(row.get("target")).strip().lower() if kind == "pope" else row.get("target"),
        "rows": [],
        "answers": {model: [_text(row["filtered_resps"])]},
        "ended": {model: [_ended(row, limit)]},
    }


def _text(given: Any) -> str:
    """Return an answer: a text, or the first of several."""
    while isinstance(given, list):
        given = given[0] if given else ""
    return "" if given is None else str(given)


def _ended(row: Mapping[str, Any], limit: Any) -> bool:
    """Return whether an answer ended by itself: as our model tells, else where it is shorter than the limit."""
    counts = (row.get("token_counts") or [None])[0]
    if not isinstance(counts, dict):
        return True
    if isinstance(counts.get("ended"), bool):
        return bool(counts["ended"])
    tokens = counts.get("output_tokens")
    return not (isinstance(tokens, int) and isinstance(limit, int) and tokens >= limit)


def _misread(task: str, samples: Sequence[Mapping[str, Any]], model: str) -> list[str]:
    """Tell how many answers lmms-eval's POPE counts as wrong though they say yes or no."""
    texts = [(sample["key"], sample["answers"][model][0], sample["truth"]) for sample in samples]
    lost = [(key, text) for key, text, _ in texts if pope.read(text) and pope.read(text, "stock") is None]
    if not lost:
        return []
    right = sum(pope.read(text) == truth for _, text, truth in texts)
    key, text = lost[0]
    return [
        f"{model} on {task}: {len(lost)} of {len(texts)} answers say yes or no in more than the bare word ({key}: "
        f'"{text.strip()[:60]}"), which lmms-eval\'s POPE counts as wrong. Read by the first such word, '
        f"{right / len(texts):.1%} are right."
    ]
