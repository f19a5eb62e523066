"""Answers on disk: shards of JSON lines by rank while a run asks, one table in a fixed order once it is whole.

A shard's line is a row of the table (`spec.answers`) with what it cost and the item's place. Blocks are written at
once and are the unit of resuming: of a block that was cut off nothing counts. Of two answers to one question, as after
a crash, the first counts. The table is a stream from the shards to parquet: of a row this holds ten bytes, never its
text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.errors import RunError, disk_trouble
from lvlm_guard.evals.spec.answers import COSTS, SCHEMA
from lvlm_guard.evals.spec.items import EvalTask, Item, Said

ANSWERS, COSTLY, SHARDS = "answers.parquet", "costs.parquet", "answers"
STALE = ("results.json", "report.html")  # made from a table that another one replaces
BATCH = 8192  # rows of a row group

Who = tuple[str, int]
"""A decoder's name and one of its seeds."""

_BYTES = 40  # bits of a line's place that say where in its shard it begins


@dataclass(frozen=True)
class Column:
    """A decoder as the table has it: see `spec.answers.Answer`."""

    name: str
    role: str
    baseline: str | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Asked:
    """Items of one split of a task, and who answers them."""

    task: EvalTask
    columns: tuple[Column, ...]

    @cached_property
    def pairs(self) -> list[tuple[Column, int]]:
        """Every decoder with each of its seeds, in the table's order."""
        return [(column, seed) for column in self.columns for seed in range(column.seeds)]

    @property
    def size(self) -> int:
        """How many answers there will be."""
        return len(self.task.items) * len(self.pairs)


@dataclass(frozen=True)
class Job:
    """A block of items of a part of what is asked, and the (decoder, seed) pairs that have not answered it."""

    part: int
    task: EvalTask
    block: int
    items: Sequence[Item]
    todo: tuple[Who, ...]

    @property
    def size(self) -> int:
        """How many answers it asks for."""
        return len(self.items) * len(self.todo)


Took = Callable[[Job, Who, Sequence[Said]], object]
"""Is handed the answers of a decoder and seed to a job."""


class Answers:
    """The answers of a run.

    Args:
        folder: of the run.
        asked: what is asked of whom, in the table's order.
        batch: items of a block. Another size may end in other bits, so it is another run.
    """

    def __init__(self, folder: Path, asked: Sequence[Asked], batch: int) -> None:
        self.folder, self.asked, self.batch = folder, asked, batch
        self._first = np.cumsum([0, *(part.size for part in asked)])
        self._pairs = [{(c.name, seed): place for place, (c, seed) in enumerate(part.pairs)} for part in asked]
        self._parts = {(part.task.name, part.task.split): place for place, part in enumerate(asked)}
        self._shard: IO[bytes] | None = None
        self.read()

    @property
    def total(self) -> int:
        """How many answers there will be."""
        return int(self._first[-1])

    @property
    def left(self) -> int:
        """How many are missing, or failed when they were asked."""
        return self.total - int(self._good.sum())

    @property
    def covered(self) -> bool:
        """Whether every question was asked, though some may have failed."""
        return bool((self._good | self._failed).all())

    @property
    def whole(self) -> bool:
        """Whether the table is there and no shard has better."""
        return self._table and not self._better

    def read(self) -> None:
        """Find what is on disk, this rank's and that of others."""
        self._places = np.full(self.total, -1, np.int64)
        self._good, self._failed = np.zeros(self.total, bool), np.zeros(self.total, bool)
        self._better = False
        self._files = sorted((self.folder / SHARDS).glob("rank-*.jsonl"), key=lambda path: (len(path.name), path.name))
        for number, path in enumerate(self._files):
            if path.is_file():
                self._scan(number, path)
        # looked for last: whoever compacts removes shards when the table is there
        self._table = (self.folder / ANSWERS).exists()
        if self._table:
            failed = pq.read_table(self.folder / ANSWERS, columns=["failed"])["failed"].is_valid().to_numpy()
            if len(failed) != self.total:
                raise RunError(
                    f"{self.folder / ANSWERS} has {len(failed)} rows where {self.total} were asked for: it is of "
                    "another run. Give another --out, or --start-over to drop it."
                )
            self._better = bool((failed & self._good).any())
            self._good |= ~failed
            self._failed |= failed
        self._failed &= ~self._good

    def jobs(self, rank: int = 0, world: int = 1) -> Iterator[Job]:
        """Yield what a rank has left to ask, block after block; every decoder is asked before the next block.

        Ranks share all blocks, not the open ones, so that they agree without a word. Whoever is asked first about new
        pictures is slower, so the order turns from block to block.
        """
        number = 0
        for place, part in enumerate(self.asked):
            for block in part.task.blocks(self.batch):
                mine, number = number % world == rank, number + 1
                if not mine:
                    continue
                good = np.asarray(self._good[self._block(place, block)].reshape(-1, len(part.pairs)).all(axis=0))
                todo = tuple((c.name, s) for (c, s), done in zip(part.pairs, good, strict=True) if not done)
                if todo:
                    turn = block % len(todo)
                    items = part.task.block(block, self.batch)
                    yield Job(place, part.task, block, items, todo[turn:] + todo[:turn])

    @contextmanager
    def open(self, rank: int = 0) -> Iterator[None]:
        """Hold a rank's shard open to write. A last line that was cut off is dropped.

        Raises:
            RunError: the system refuses.
        """
        path = self.folder / SHARDS / f"rank-{rank}.jsonl"
        with disk_trouble(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                _drop_torn(path)
            shard = self._shard = path.open("ab")
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk was told when it was met
                shard.close()

    def add(self, job: Job, who: Who, said: Sequence[Said]) -> None:
        """Write the answers of a decoder and seed to a block, at once.

        Raises:
            RunError: the disk is full or can't be written to; what was written before is kept.
        """
        assert self._shard is not None
        column, seed = self.asked[job.part].pairs[self._pairs[job.part][who]]
        begin = job.block * self.batch
        known: dict[str, Any] = {"task": job.task.name, "split": job.task.split}
        known |= {"decoder": column.name, "baseline": column.baseline, "role": column.role, "seed": seed}
        lines = [
            json.dumps({**known, "item": item.key, "place": begin + place, "picture": item.picture} | _plain(one))
            for place, (item, one) in enumerate(zip(job.items, said, strict=True))
        ]
        with disk_trouble(self.folder):
            self._shard.write(("\n".join(lines) + "\n").encode())
            self._shard.flush()

    def compact(self) -> None:
        """Write the table and the costs from all shards, whole or not at all, and drop the shards.

        Raises:
            RunError: the disk is full; nothing is lost.
        """
        parts = [self.folder / f"{name}.{os.getpid()}.part" for name in (ANSWERS, COSTLY)]
        files = [path.open("rb") if path.is_file() else None for path in self._files]
        try:
            with disk_trouble(self.folder):
                with pq.ParquetWriter(parts[0], SCHEMA) as answers, pq.ParquetWriter(parts[1], COSTS) as costs:
                    for rows in self._batches(files):
                        answers.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                        costs.write_batch(pa.RecordBatch.from_pylist(rows, COSTS))
                for name in STALE:
                    (self.folder / name).unlink(missing_ok=True)
                parts[1].replace(self.folder / COSTLY)
                parts[0].replace(self.folder / ANSWERS)
        finally:
            for file in filter(None, files):
                file.close()
            for path in parts:
                path.unlink(missing_ok=True)
        self.drop_shards()
        self.read()

    def drop_shards(self) -> None:
        """Remove the shards, whose answers the table has."""
        for path in self._files:
            path.unlink(missing_ok=True)

    def _block(self, part: int, block: int) -> slice:
        width = len(self.asked[part].pairs)
        begin = int(self._first[part]) + block * self.batch * width
        return slice(begin, min(begin + self.batch * width, int(self._first[part + 1])))

    def _scan(self, number: int, path: Path) -> None:
        with path.open("rb") as file:
            while line := file.readline():
                if not line.endswith(b"\n"):
                    return  # cut off, or being written
                place = self._place(line)
                if place is None:
                    continue
                at, failed = place
                if not self._good[at] and not (failed and self._failed[at]):
                    self._places[at] = (number << _BYTES) | (file.tell() - len(line))
                    self._good[at], self._failed[at] = not failed, failed

    def _place(self, line: bytes) -> tuple[int, bool] | None:
        """Return a line's place in the table and whether its answer failed; None: no line of this run."""
        try:
            row = json.loads(line)
            part = self._parts[row["task"], row["split"]]
            pair, place = self._pairs[part][row["decoder"], row["seed"]], int(row["place"])
            if self.asked[part].task.items[place].key != row["item"]:
                return None
            return int(self._first[part]) + place * len(self._pairs[part]) + pair, row["failed"] is not None
        except (ValueError, KeyError, TypeError, IndexError):
            return None

    def _batches(self, files: Sequence[IO[bytes] | None]) -> Iterator[list[dict[str, Any]]]:
        earlier = self._earlier()
        for begin in range(0, self.total, BATCH):
            rows = []
            for at, place in enumerate(self._places[begin : begin + BATCH].tolist(), begin):
                row = next(earlier, None)
                if place >= 0 and (row is None or row["failed"] is not None):
                    file = files[place >> _BYTES]
                    assert file is not None
                    file.seek(place & ((1 << _BYTES) - 1))
                    row = json.loads(file.readline())
                assert row is not None, f"row {at} was never asked"
                rows.append(row)
            yield rows

    def _earlier(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table that is there."""
        if not self._table:
            return
        with pq.ParquetFile(self.folder / ANSWERS) as answers, pq.ParquetFile(self.folder / COSTLY) as costs:
            both = zip(answers.iter_batches(BATCH), costs.iter_batches(BATCH), strict=True)
            for one, other in both:
                for row, cost in zip(one.to_pylist(), other.to_pylist(), strict=True):
                    yield row | cost


def _plain(said: Said) -> dict[str, Any]:
    """Return an answer as JSON data: what was not measured is null, half a surrogate pair a question mark."""
    told = {name: None if value != value else value for name, value in asdict(said).items()}
    return told | {"text": said.text.encode("utf-8", "replace").decode()}


def _drop_torn(path: Path) -> None:
    """Cut a file off behind its last line break."""
    with path.open("r+b") as file:
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)
