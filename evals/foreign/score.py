"""From files of answers to results, as a run's folder has them: `lvlm-guard eval score FILE --task T`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.foreign.tasks import Data, parts_of
from lvlm_guard.evals.report.numbers import said
from lvlm_guard.evals.stats.reading import BATCH
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.tasks.repope import rescored


def score_files(
    files: Mapping[str, Path], task: str, data: Data | None = None, allowed: Allowed | None = None
) -> dict[str, Any]:
    """Score files of answers; returns what `stats.score.score_answers` does.

    Args:
        files: name -> file; the name is the decoder's where the file names none.
        task: one of `tasks.TASKS`.
        data: what they are scored by.
        allowed: shares of answers that may be amiss.

    Raises:
        DataError: there is no such task, or the files can't be scored; the message names file and line.
    """
    data = data or Data()
    parts = parts_of(files, task, data)
    tasks: list[Any] = [part.describe() for part in parts]
    items: Iterable[Mapping[str, Any]] = chain.from_iterable(part.items() for part in parts)
    batches: Iterable[pa.RecordBatch] = [batch for part in parts for batch in part.found.answers.to_batches(BATCH)]
    notes = [note for part in parts for note in (*part.notes, *part.found.notes)]
    if data.repope:
        tasks, items, batches, note = rescored(data.repope, tasks, items, batches)
        notes.append(note)
    decoders: dict[str, dict[str, Any]] = {}
    for decoder in chain.from_iterable(part.found.decoders for part in parts):
        decoders.setdefault(decoder["name"], decoder)  # the first task has the controls too
    found = score_answers(batches, items, tasks, list(decoders.values()), allowed=allowed)
    found["warnings"] = list(dict.fromkeys([*notes, *_at_equal_length(found), *found["warnings"]]))
    return found | {"settings": {"model": f"{len(files)} file{'s' if len(files) > 1 else ''} of answers"}}


def _at_equal_length(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what captions differ by from the baseline's, both cut to the shorter of the two."""
    known = {(row["decoder"], row["baseline"], row["metric"]): row for row in found["rows"] if row["task"] == "chair"}
    for ours, theirs in [(d["control_of"], d["name"]) for d in found["decoders"] if d["control_of"]]:
        told = [row for metric in ("chair_s", "chair_i", "object_recall") if (row := known.get((ours, theirs, metric)))]
        if told:
            yield f"{ours} less {theirs}: " + "; ".join(f"{row['metric']} {said(row)}" for row in told) + "."
