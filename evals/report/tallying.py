"""Answers of one task counted outside a run: two runs as one, or what another harness wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.stats.reading import tallies_of
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
    found = tallies_of(_Again(batches), items, [task], frozenset())
    return found[task["name"], task["split"]]


@dataclass(frozen=True)
class _Again:
    """Batches, each time anew."""

    of: Callable[[], Iterable[pa.RecordBatch]]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield from self.of()
