"""The table of answers, gone through batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Items
from lvlm_guard.evals.spec.answers import SCHEMA
from lvlm_guard.evals.stats.tally import Tally, grouped

BATCH = 2**15  # rows worked on at once
UNREAD = ("picture", "role", "baseline", "proof")  # columns that no score needs

Answers = Iterable[Any]
"""A table, or batches of its rows."""
Tallies = dict[tuple[str, str], Tally]
"""By task and split."""


@dataclass(frozen=True)
class Stored:
    """A parquet file as batches of rows, with the columns of a schema; read anew each time they are gone through."""

    path: Path
    schema: pa.Schema = SCHEMA

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; raises `DataError` where the file can't be read, or lacks a column."""
        wanted = [name for name in self.schema.names if name not in UNREAD]
        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH, columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} can't be read: {error}. Is it a table of answers, and whole?") from error


def tallies_of(
    answers: Answers,
    items: Iterable[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    keep: frozenset[str] = frozenset(),
) -> Tallies:
    """Count answers: task and split -> tally, in the order of the tasks; items of others are passed over.

    Arguments as of `score.score_answers`, `keep` as of `Tally`. Raises `DataError` where an answer stands twice or
    belongs to no item, or an item can't be scored.
    """
    listed: dict[tuple[str, str], Items] = {}
    for row in items:
        of = listed.setdefault((row["task"], row["split"]), Items())
        of.keys.append(row["item"])
        of.pictures.append(row["picture"])
        of.truths.append(row.get("truth"))
        of.tags.append(row.get("tags") or {})
        of.rows.append(tuple(dict.fromkeys(row.get("rows") or (row["task"],))))
    found = {
        name: Tally(task, name[1], listed[name], keep) for task in tasks for name in listed if name[0] == task["name"]
    }
    for name, batch in split_up(answers):
        if name not in found:
            raise DataError(f"There are answers to {name[0]} ({name[1]}), of which no item is listed.")
        found[name].add(batch)
    for tally in found.values():
        tally.seen()
    return found


def split_up(rows: Answers) -> Iterator[tuple[tuple[str, str], pa.RecordBatch]]:
    """Yield the rows of each task and split."""
    for batch in rows.to_batches(max_chunksize=BATCH) if isinstance(rows, pa.Table) else rows:
        names = [batch[column].dictionary_encode() for column in ("task", "split")]
        for codes, chosen in grouped(*(name.indices.to_numpy() for name in names)):
            task, split = (name.dictionary[code].as_py() for name, code in zip(names, codes, strict=True))
            yield (task, split), batch.take(pa.array(chosen))
