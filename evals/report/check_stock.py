"""Whether the answers that lmms-eval wrote can be scored: its command line exits 0 on everything.

It writes `TIME_results.json` and, with `--log_samples`, `TIME_samples_TASK.jsonl` (checked with 0.7.3). What makes a
run of ours void makes its run void, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.report.check import SHOWN, Checked
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import Answer, table_of
from lvlm_guard.evals.stats.tally import FAILED_TEXT, short, tallies_of
from lvlm_guard.evals.stats.validity import Allowed, validity

_RESULTS, _SAMPLES = "_results.json", "_samples_"
Row = Mapping[str, Any]


def check_stock(found: Checked, allowed: Allowed) -> Checked:
    """Check every run of lmms-eval under a folder; raises `DataError` where there is none."""
    folder = found.folder
    results, samples = sorted(folder.rglob(f"*{_RESULTS}")), set(folder.rglob(f"*{_SAMPLES}*.jsonl"))
    if not results and not samples:
        raise DataError(
            f"{folder} holds neither a run of `lvlm-guard eval run` (asked.json) nor results of lmms-eval "
            f"(*{_RESULTS}): give the --out or --output_path of one."
        )
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
            file = path.with_name(f"{path.name.removesuffix(_RESULTS)}{_SAMPLES}{task}.jsonl")
            samples.discard(file)
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
            lost = list(_lost(task, model, wanted, rows))
            found.void.extend(lost)
            if not lost:
                _judge(found, model, task, settings[task].get("max_new_tokens"), rows, allowed)
    found.wrong.extend(
        f"{path.relative_to(folder)} has no results beside it: lmms-eval ended early. Run it again."
        for path in sorted(samples)
    )
    return found


def _lost(task: str, model: str, wanted: int, rows: Sequence[Row]) -> Iterator[str]:
    """Say what is there twice, missing or failed."""
    twice = [str(key) for key, count in Counter(row["doc_id"] for row in rows).items() if count > 1]
    failed = [f"{r['doc_id']}: {short(_text(r))}" for r in rows if _text(r).lstrip().startswith(FAILED_TEXT)]
    if twice:
        yield (
            f"{task}: {len(twice)} documents were answered more than once (first: {', '.join(twice[:SHOWN])}): two "
            "runs wrote into one file. Give each run an --output_path of its own."
        )
    elif len(rows) < wanted:
        yield f"{task}: {len(rows)} of {wanted} documents were answered; {wanted - len(rows)} are missing."
    if failed:
        told = "; ".join(failed[:SHOWN])
        yield f"{model} on {task}: {len(failed)} of {len(rows)} answers failed ({told}); they were scored as wrong."


def _judge(found: Checked, model: str, task: str, limit: Any, rows: Sequence[Row], allowed: Allowed) -> None:
    yes_no = all(_label(row) in ("yes", "no") for row in rows)
    items: list[dict[str, Any]] = []
    answers = []
    for row in rows:
        where = task, "test", str(row["doc_id"]), str(row["doc_id"])
        told = dict(zip(("task", "split", "item", "picture"), where, strict=True))
        items.append({**told, "rows": [task], "truth": _label(row) if yes_no else []})
        answers.append(Answer(*where, model, "reference", _text(row), ended=_ended(row, limit)))
    # which score it has is no matter here, only which answers can have one: captions need no labels
    kind = {"kind": "pope"} if yes_no else {"kind": "chair", "vocabulary": ["none"]}
    described = {"name": task, "split": "test", "rows": [task], "max_new_tokens": limit} | kind
    tallies = tallies_of(table_of(answers), items, [described])
    void, warnings = validity(tallies.values(), [{"name": model, "role": "reference", "seeds": 1}], model, allowed)
    found.void.extend(void)
    found.warnings.extend([*warnings, *(_misread(task, rows, model) if yes_no else ())])
    if not void:
        found.good.append(f"{model} on {task}: {len(rows)} documents, each with an answer.")


def _label(row: Row) -> str:
    return str(row.get("target")).strip().lower()


def _text(row: Row) -> str:
    """Return an answer: a text, or the first of several."""
    given = row["filtered_resps"]
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


def _misread(task: str, rows: Sequence[Row], model: str) -> Iterator[str]:
    """Tell how many answers lmms-eval's POPE counts as wrong though they say yes or no."""
    lost = [row for row in rows if pope.read(_text(row)) and pope.read(_text(row), "stock") is None]
    if lost:
        right = sum(pope.read(_text(row)) == _label(row) for row in rows)
        yield (
            f"{model} on {task}: {len(lost)} of {len(rows)} answers say yes or no in more than the bare word "
            f'({lost[0]["doc_id"]}: "{_text(lost[0]).strip()[:60]}"), which lmms-eval\'s POPE counts as wrong. Read by '
            f"the first such word, {right / len(rows):.1%} are right."
        )
