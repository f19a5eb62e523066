"""Answers in hand, scored as a run's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_guard.evals.spec.answers import Answer, table_of
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.stats.validity import Allowed as Allowed

Row = dict[str, Any]
ROLES = {"greedy": "reference", "sample": "plain"}


def decoder(name: str, **more: Any) -> Row:
    """A decoder as `describe()` has it; greedy and sample are the plain ones, everything else a method."""
    role = ROLES.get(name, "method")
    known = {"name": name, "about": name, "role": role, "baseline": None if name == "greedy" else "greedy", "seeds": 1}
    known |= {"method": name if role == "method" else None, "sampled": name.startswith("sample"), "control_of": None}
    return (
        known | {"knobs": {}, "point": {}, "adapters": [], "matchers": [], "derive": None, "yes_no_only": False} | more
    )


def item(key: Any, picture: Any, truth: Any, rows: Sequence[str] = (), task: str = "quiz", **more: Any) -> Row:
    """A row of items.jsonl."""
    known = {"task": task, "split": "test", "kind": "pope", "item": str(key), "picture": str(picture), "tags": {}}
    return known | {"prompt": "", "question": "", "truth": truth, "rows": list(rows)} | more


def answer(asked: Row, name: str, text: str, **more: Any) -> Answer:
    """An answer to an item."""
    known = {key: asked[key] for key in ("task", "split", "item", "picture")}
    baseline = None if name == "greedy" else "greedy"
    return Answer(decoder=name, role=ROLES.get(name, "method"), baseline=baseline, text=text, **(known | more))


def scored(
    items: Sequence[Row],
    answers: Sequence[Answer | Row],
    decoders: Sequence[Mapping[str, Any]],
    kind: str = "pope",
    task: Mapping[str, Any] | None = None,
    **more: Any,
) -> Row:
    """Score answers; every task is of one kind, with the same further properties."""
    names = dict.fromkeys(row["task"] for row in items)
    tasks = [
        {"name": name, "kind": kind, "split": "test", "max_new_tokens": 4, "about": {}} | (task or {}) for name in names
    ]
    return score_answers(table_of(answers), items, tasks, decoders, **more)


def of_texts(
    items: Sequence[Row],
    texts: Mapping[str, Sequence[str | Sequence[str]]],
    described: Mapping[str, Row] | None = None,
    **more: Any,
) -> Row:
    """Score texts: decoder -> an answer, or one a seed, for each item."""
    answers, decoders = [], []
    for name, said in texts.items():
        each = [[one] if isinstance(one, str) else list(one) for one in said]
        decoders.append(decoder(name, seeds=len(each[0])) | (described or {}).get(name, {}))
        answers += [
            answer(of, name, text, seed=s)
            for of, of_item in zip(items, each, strict=True)
            for s, text in enumerate(of_item)
        ]
    return scored(items, answers, decoders, **more)


def questions(
    n: int = 240,
    seed: int = 3,
    tilt: float = 0.0,
    noise: float = 1.0,
    name: str = "greedy",
    rows: Sequence[str] = ("pope_random", "pope_popular"),
) -> Any:
    """Items and one decoder's scored answers: those of the second kind are harder."""
    truth, luck = np.random.default_rng(seed), np.random.default_rng([seed, len(name)])
    yes = truth.random(n) < 0.5
    base = np.where(yes, 1.0, -1.0) * np.where(np.arange(n) % 2, 0.5, 2.0) + truth.normal(size=n) * 0.8
    items = [item(i, i // 6, "yes" if yes[i] else "no", [rows[i % 2]]) for i in range(n)]
    scores = base + noise * luck.normal(size=n) + tilt
    answers = [
        answer(item, name, "Yes" if s > 0 else "No", score=float(s), mass=0.9)
        for item, s in zip(items, scores, strict=True)
    ]
    return items, answers, scores, yes
