"""Small runs against `openai_endpoint.OpenAIEndpoint`, and what they wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.server.asker import ServerAsker
from lvlm_guard.evals.infer.store import Job
from lvlm_guard.evals.spec.settings import Settings

SMALL = Settings(tasks=("world_pope",), methods=("agla",), controls=False, limit=1, batch=4)


def ask_some(asker: ServerAsker, task: Any, items: Any, todo: Any) -> Any:
    """Return the answers of each (decoder, seed) to some items of a task."""
    found = {}
    jobs = (Job(0, task, place, [item], tuple(todo)) for place, item in enumerate(items))
    asker.ask_all(jobs, lambda job, who, said: found.update({(job.block, who): said[0]}))
    return [[found[place, who] for place in range(len(items))] for who in todo]


def quiet(_: str) -> None:
    pass


def rows(folder: Any) -> list[dict[str, Any]]:
    """Return the answers that a run wrote."""
    return pq.read_table(folder / "answers.parquet").to_pylist()


def go(served: Any, folder: Any, settings: Settings = SMALL, **options: Any) -> Any:
    """Run `ask` through a server; returns the run's folder."""
    return ask(replace(settings, server=served.url), folder, echo=quiet, bar=False, **options)
