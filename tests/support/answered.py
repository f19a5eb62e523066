"""Whole tasks, answered by functions and scored as a run is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import scoring

from lvlm_guard.evals.spec.answers import table_of
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.score import score_answers


def answered(tasks: Sequence[EvalTask], **said: Sequence[Callable[[Item], str]]) -> dict[str, Any]:
    """Return the results of decoders, each a function from item to answer a seed."""
    rows = [
        scoring.item(i.key, i.picture, i.truth, i.rows, task.name, kind=task.kind, split=task.split, tags=dict(i.tags))
        | {"of": i}
        for task in tasks
        for i in task.items
    ]
    decoders = [scoring.decoder(name, seeds=len(each)) for name, each in said.items()]
    answers = [
        scoring.answer(row, name, say(row["of"]), seed=seed)
        for row in rows
        for name, each in said.items()
        for seed, say in enumerate(each)
    ]
    return score_answers(table_of(answers), rows, [task.describe() for task in tasks], decoders, allowed=LENIENT)


LENIENT = scoring.Allowed(1.0, 1.0, 1.0)
