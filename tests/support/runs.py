"""Small run folders made by hand, scored as real ones are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.report.saved import Run, read_run
from lvlm_guard.evals.spec.answers import COSTS, Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.validity import Allowed

PLAIN = {"do_sample": False, "num_beams": 1}
NOUNS = ("dog", "cat", "cup", "bus")
ROLES = {"greedy": "reference", "sample": "plain", "matcher": "matcher"}


def decoder(name: str, seeds: int = 1, **more: Any) -> dict[str, Any]:
    """A decoder as `Decoder.describe()` has it: a method, but for the names of `ROLES`."""
    role = ROLES.get(name, "method")
    known = {"name": name, "about": name, "role": role, "baseline": None if role == "reference" else "greedy"}
    known |= {
        "method": name if role == "method" else None,
        "knobs": {},
        "point": {},
        "derive": None,
        "control_of": None,
    }
    known |= {
        "control_of": None,
        "options": PLAIN,
        "seeds": seeds,
        "sampled": False,
        "yes_no_only": False,
        "adapters": [],
        "matchers": [],
    }
    return known | more


def pope(labels: Sequence[str], name: str = "world_pope", rows: Sequence[str] = ("pope_random",), each: int = 2) -> Any:
    """A task of yes/no questions, `each` about every picture; the items take the rows in turn."""
    items = [
        Item(str(i), f"p{i // each}", f"question {i}", (), truth=label, rows=(rows[i % len(rows)],))
        for i, label in enumerate(labels)
    ]
    return EvalTask(name, "pope", items, 4)


def captions(truths: Sequence[Sequence[str]], name: str = "world_chair") -> Any:
    """A task of captions, one of every picture."""
    items = [Item(str(i), str(i), "describe", (), truth=list(truth), rows=("chair",)) for i, truth in enumerate(truths)]
    return EvalTask(name, "chair", items, 64, vocabulary=NOUNS)


def saved(
    folder: Path,
    task: Any,
    answers: Mapping[str, Sequence[str] | Sequence[Sequence[str]]],
    *,
    settings: Settings | None = None,
    decoders: Mapping[str, Mapping[str, Any]] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    scored: bool = True,
    allowed: Allowed | None = None,
    **more: Any,
) -> Run:
    """Write a run: decoder -> an answer (or one a seed) for each item of the task; `more` goes to asked.json."""
    settings = settings or Settings()
    given = {name: [[a] if isinstance(a, str) else list(a) for a in texts] for name, texts in answers.items()}
    described = [decoder(name, len(texts[0])) | dict((decoders or {}).get(name, {})) for name, texts in given.items()]
    rows = [
        Answer(
            text,
            task=task.name,
            split=task.split,
            item=item.key,
            picture=item.picture,
            decoder=told["name"],
            role=told["role"],
            baseline=told["baseline"],
            seed=seed,
            score=None if scores is None or told["name"] not in scores else scores[told["name"]][i],
            mass=None if scores is None else 1.0,
            tokens=len(text.split()),
        )
        for i, item in enumerate(task.items)
        for told in described
        for seed, text in enumerate(given[told["name"]][i])
    ]
    asked: dict[str, Any] = {
        "command": "eval run",
        "version": "0",
        "started": "2026-01-01T00:00:00+00:00",
        "settings": settings.to_dict(),
        "questions": {task.name: task.digest()},
        "code": "c0de",
        "weights": "77",
        "packages": {"torch": "2"},
        "tasks": [task.describe()],
        "environment": {"python": "3.11"},
        "decoders": described,
        "identity": "1d",
    } | more
    items = [
        {"task": task.name, "split": task.split, "kind": task.kind, "item": item.key, "picture": item.picture}
        | {"prompt": item.prompt, "question": item.question or item.prompt, "truth": item.truth}
        | {"rows": list(item.rows), "tags": dict(item.tags)}
        for item in task.items
    ]
    spent = {"seconds": 0.25, "peak_mib": 9.0}
    costs = [{name: getattr(row, name) for name in COSTS.names if name not in spent} | spent for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    pq.write_table(table_of(rows), folder / "answers.parquet")
    pq.write_table(pa.Table.from_pylist(costs, schema=COSTS), folder / "costs.parquet")
    if scored:
        score(folder, allowed=allowed)
    return read_run(folder)
