"""Whether the answers that lmms-eval wrote can be scored: its command line exits 0 on everything.

It writes `TIME_results.json` and, with `--log_samples`, `TIME_samples_TASK.jsonl` (checked with 0.7.3). What makes a
run of ours void makes its run void, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.report.check.found import SHOWN, Checked
from lvlm_guard.evals.report.tallying import tally_of
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import Answer, table_of
from lvlm_guard.evals.stats.tally import FAILED_TEXT, short
from lvlm_guard.evals.stats.validity import Allowed, validity

_RESULTS, _SAMPLES = "_results.json", "_samples_"
Row = Mapping[str, Any]


def check_stock(folder: Path, allowed: Allowed) -> Checked:
    """Check every run of lmms-eval under a folder.

    Raises:
        DataError: there is none.
    """
    found = Checked(folder, "lmms-eval")
    results = sorted(folder.rglob(f"*{_RESULTS}"))
    samples = set(folder.rglob(f"*{_SAMPLES}*.jsonl"))
    if not results and not samples:
        raise DataError(
            f"{folder} holds neither a run of `lvlm-guard eval run` (asked.json) nor results of lmms-eval "
            f"(*{_RESULTS}): give the --out or --output_path of one."
        )
    for path in results:
        samples -= _check_results(found, path, allowed)
    for path in sorted(samples):
        found.wrong.append(f"{path.relative_to(folder)} has no results beside it: lmms-eval ended early. Run it again.")
    return found


def _check_results(found: Checked, path: Path, allowed: Allowed) -> set[Path]:
    """Check one run, and return the files of samples that it should have."""
    name = path.relative_to(found.folder)
    try:
        told = jsonl.document(path)
        sizes = {task: int(n["effective"]) for task, n in told["n-samples"].items()}
        configs = {task: dict(told["configs"].get(task) or {}) for task in sizes}
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        found.wrong.append(f"{name} can't be read as results of lmms-eval: {type(error).__name__}: {error}.")
        return set()
    if (told.get("usage") or {}).get("budget_exceeded"):
        found.void.append(f"{name}: lmms-eval stopped when its token budget was spent, so the scores are partial.")
    if not sizes:
        found.void.append(f"{name} holds no task: nothing was asked.")
    files = {task: path.with_name(path.name.removesuffix(_RESULTS) + f"{_SAMPLES}{task}.jsonl") for task in sizes}
    model = str((told.get("config") or {}).get("model") or told.get("model_name") or "the model")
    for task, file in files.items():
        if not file.exists():
            found.wrong.append(
                f"{name}: there are no answers of {task} ({file.name} is missing), so nothing shows that it was "
                "answered. Run lmms-eval with --log_samples."
            )
            continue
        try:
            rows = [row for _, row in jsonl.read(file, ("doc_id", "filtered_resps"), what="sample of lmms-eval")]
        except DataError as error:
            found.wrong.append(str(error))
            continue
        limit = (configs[task].get("generation_kwargs") or {}).get("max_new_tokens")
        _check_task(found, model, task, limit, sizes[task], rows, allowed)
    return set(files.values())


def _check_task(
    found: Checked, model: str, task: str, limit: Any, wanted: int, rows: Sequence[Row], allowed: Allowed
) -> None:
    twice = [str(key) for key, count in Counter(row["doc_id"] for row in rows).items() if count > 1]
    if twice:
        found.void.append(
            f"{task}: {len(twice)} documents were answered more than once (first: {', '.join(twice[:SHOWN])}): two "
            "runs wrote into one file. Give each run an --output_path of its own."
        )
        return
    if len(rows) < wanted:
        found.void.append(f"{task}: {len(rows)} of {wanted} documents were answered; {wanted - len(rows)} are missing.")
    yes_no = all(_label(row) in ("yes", "no") for row in rows)
    texts = [_text(row["filtered_resps"]) for row in rows]
    pairs = zip(rows, texts, strict=True)
    failed = [f"{row['doc_id']}: {short(text)}" for row, text in pairs if text.lstrip().startswith(FAILED_TEXT)]
    if failed:
        told = "; ".join(failed[:SHOWN])
        found.void.append(
            f"{model} on {task}: {len(failed)} of {len(rows)} answers failed ({told}), and lmms-eval scored them as "
            "wrong."
        )
        return
    items: list[dict[str, Any]] = [
        {"task": task, "split": "test", "item": str(row["doc_id"]), "picture": str(row["doc_id"]), "rows": [task]}
        | {"truth": _label(row) if yes_no else []}
        for row in rows
    ]
    answers = [
        Answer(task, "test", item["item"], item["picture"], model, "reference", text, ended=_ended(row, limit))
        for item, row, text in zip(items, rows, texts, strict=True)
    ]
    # which score it has is no matter here, only which answers can have one: captions need no labels
    kind = {"kind": "pope"} if yes_no else {"kind": "chair", "vocabulary": ["none"]}
    described = {"name": task, "split": "test", "rows": [task], "max_new_tokens": limit} | kind
    table = table_of(answers)
    tally = tally_of(described, items, table.to_batches)
    judged = validity([tally], [{"name": model, "role": "reference", "seeds": 1}], model, allowed)
    found.void.extend(judged.void)
    found.warnings.extend(judged.warnings)
    if yes_no:
        found.warnings.extend(_misread(task, rows, texts, model))
    if not judged.void:
        found.good.append(f"{model} on {task}: {len(rows)} documents, each with an answer.")


def _label(row: Row) -> str:
    return str(row.get("target")).strip().lower()


def _text(given: Any) -> str:
    """Return an answer: a text, or the first of several."""
    while isinstance(given, list):
        given = given[0] if given else ""
    return "" if given is None else str(given)


def _ended(row: Row, limit: Any) -> bool:
    """Return whether an answer ended by itself: as our model tells, else where it is shorter than the limit."""
    counts = (row.get("token_counts") or [None])[0]
    if not isinstance(counts, dict):
        return True
    if isinstance(counts.get("ended"), bool):
        return bool(counts["ended"])
    tokens = counts.get("output_tokens")
    return not (isinstance(tokens, int) and isinstance(limit, int) and tokens >= limit)


def _misread(task: str, rows: Sequence[Row], texts: Sequence[str], model: str) -> list[str]:
    """Tell how many answers lmms-eval's POPE counts as wrong though they say yes or no."""
    pairs = list(zip(rows, texts, strict=True))
    lost = [(row, text) for row, text in pairs if pope.read(text) and pope.read(text, "stock") is None]
    if not lost:
        return []
    right = sum(pope.read(text) == _label(row) for row, text in pairs)
    row, text = lost[0]
    return [
        f"{model} on {task}: {len(lost)} of {len(texts)} answers say yes or no in more than the bare word "
        f'({row["doc_id"]}: "{text.strip()[:60]}"), which lmms-eval\'s POPE counts as wrong. Read by the first such '
        f"word, {right / len(texts):.1%} are right."
    ]
