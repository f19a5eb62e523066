"""Small run folders made by hand, scored as real ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.report.saved import Saved, read_run, write_run, write_samples
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score_run
from lvlm_guard.evals.stats.validity import verdict

PLAIN = {"do_sample": False, "num_beams": 1}
NOUNS = ("dog", "cat", "cup", "bus")


def decoder(name: str, seeds: int = 1, **more: Any) -> dict[str, Any]:
    known = {"name": name, "about": name, "method": None if name in ("greedy", "sample") else name, "knobs": {}}
    return known | {"options": PLAIN, "seeds": seeds, "sampled": False, "control_of": None} | more


def pope(labels: Sequence[str], name: str = "world_pope", rows: Sequence[str] = ("pope_random",), each: int = 2) -> Any:
    """A task of yes/no questions, `each` about every picture; the items take the rows in turn."""
    items = [
        Item(str(i), f"p{i // each}", f"question {i}", (), truth=label, rows=(rows[i % len(rows)],))
        for i, label in enumerate(labels)
    ]
    return EvalTask(name, "pope", items, 4)


def captions(truths: Sequence[Sequence[str]], name: str = "world_chair") -> Any:
    items = [Item(str(i), str(i), "describe", (), truth=list(truth), rows=("chair",)) for i, truth in enumerate(truths)]
    return EvalTask(name, "chair", items, 64, vocabulary=NOUNS)


def saved(
    folder: Path,
    task: Any,
    answers: Mapping[str, Sequence[str] | Sequence[Sequence[str]]],
    *,
    settings: Settings | None = None,
    decoders: Mapping[str, Mapping[str, Any]] | None = None,
    **more: Any,
) -> Saved:
    """Write a finished run: decoder -> an answer (or one a seed) for each item of the task; `more` goes to run.json."""
    settings = settings or Settings()
    given = {name: [[a] if isinstance(a, str) else list(a) for a in texts] for name, texts in answers.items()}
    samples = [
        {
            "task": task.name,
            "kind": task.kind,
            "key": item.key,
            "picture": item.picture,
            "prompt": item.prompt,
            "question": item.question or item.prompt,
            "truth": item.truth,
            "rows": list(item.rows),
            "tags": {},
            "answers": {name: texts[i] for name, texts in given.items()},
            "ended": {name: [True] * len(texts[i]) for name, texts in given.items()},
            "failed": {name: [None] * len(texts[i]) for name, texts in given.items()},
        }
        for i, item in enumerate(task.items)
    ]
    described = [decoder(name, len(texts[0])) | dict((decoders or {}).get(name, {})) for name, texts in given.items()]
    found = verdict(samples, [task.describe()], described)
    run: dict[str, Any] = {
        "command": "eval run",
        "version": "0",
        "status": "void" if found.void else "complete",
        "void": found.void,
        "warnings": found.warnings,
        "flags": [],
        "settings": settings.to_dict(),
        "decoders": described,
        "tasks": [task.describe()],
        "environment": {"python": "3.11", "torch": "2"},
        "code": "c0de",
        "weights": "77",
        "reference": "greedy",
        "compared": [],
        "sweep": None,
        "rows": [],
        "times": {
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 1.0,
            "rows": [
                {"model": settings.model, "method": name, "task": task.name, "metric": "seconds", "value": 0.25}
                | {"low": None, "high": None, "n": len(samples)}
                for name in given
            ],
        },
    } | more
    if not found.void:
        run["rows"] = score_run(run, samples)
    write_samples(folder, samples)
    write_run(folder, run)
    return read_run(folder)
