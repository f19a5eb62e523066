"""Answers of one task counted outside a run: two runs as one, or what another harness wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.metrics.metric import Items
from lvlm_guard.evals.stats.tally import Tally


def tally_of(
    task: Mapping[str, Any], items: Iterable[Mapping[str, Any]], batches: Callable[[], Iterable[pa.RecordBatch]]
) -> Tally:
    """Return the answers of a task, counted.

    Args:
        task: as `EvalTask.describe()` has it.
        items: rows of `items.jsonl`.
        batches: yields the answers, each time anew: they are gone through twice.

    Raises:
        DataError: an answer stands twice or belongs to no item.
    """
    listed = Items()
    for item in items:
        listed.keys.append(item["item"])
        listed.pictures.append(item["picture"])
        listed.truths.append(item["truth"])
        listed.tags.append(item.get("tags") or {})
        listed.rows.append(tuple(item.get("rows") or ()))
    tally = Tally(task, task["split"], listed)
    for batch in batches():
        tally.see(batch)
    tally.seen()
    for batch in batches():
        tally.add(batch)
    tally.counted()
    return tally
