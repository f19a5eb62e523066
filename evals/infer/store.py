"""Answers on disk: shards of JSON lines by rank while a run asks, one table in a fixed order once it is whole.

A shard's line is a row of the table (`spec.answers`) with what it cost and the item's place. Blocks are written at
once and are the unit of resuming: of a block that was cut off nothing counts. Of two answers to one question, as after
a crash, the first counts. The table is a stream from the shards to parquet: of a row this holds nine bytes, never its
text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
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
Who = tuple[str, int]  # a decoder's name and one of its seeds
_MISSING, _FAILED, _GOOD = range(3)  # what is known of an answer; more beats less
_BYTES = 40  # bits of a line's place that say where in its shard it begins


@dataclass(frozen=True)
class Asked:
    """Items of one split of a task, and who answers them, as decoders describe themselves."""

    task: EvalTask
    decoders: Sequence[Mapping[str, Any]]

    @cached_property
    def pairs(self) -> dict[Who, Mapping[str, Any]]:
        """Every decoder with each of its seeds, in the table's order."""
        return {(d["name"], seed): d for d in self.decoders for seed in range(d["seeds"])}


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
        return len(self.items) * len(self.todo)


Took = Callable[[Job, Who, Sequence[Said]], object]  # is handed the answers of a decoder and seed to a job


class Answers:
    """The answers in a folder to what is `asked`, in the table's order. A block has `batch` items; another size may end
    in other bits, so it is another run."""

    def __init__(self, folder: Path, asked: Sequence[Asked], batch: int) -> None:
        self.folder, self.asked, self.batch = folder, asked, batch
        self._first = np.cumsum([0, *(len(part.task.items) * len(part.pairs) for part in asked)]).tolist()
        self.total: int = self._first[-1]  # how many answers there will be
        self._columns = {  # where a decoder's first answer stands in the table, the next ones' distance, and the items
            (part.task.name, part.task.split, *who): (first + place, len(part.pairs), part.task.items)
            for first, part in zip(self._first[:-1], asked, strict=True)
            for place, who in enumerate(part.pairs)
        }
        self._shard: IO[bytes] | None = None
        self.read()

    @property
    def left(self) -> int:
        """How many are missing, or failed when they were asked."""
        return self.total - int((self._known == _GOOD).sum())

    @property
    def covered(self) -> bool:
        """Whether every question was asked, though some may have failed."""
        return bool((self._known > _MISSING).all())

    @property
    def whole(self) -> bool:
        """Whether the table is there and no shard has better."""
        return self._table and not self._better

    def read(self) -> None:
        """Find what is on disk, this rank's and that of others."""
        self._known, self._places = np.zeros(self.total, np.uint8), np.full(self.total, -1, np.int64)
        self._files = sorted((self.folder / SHARDS).glob("rank-*.jsonl"), key=lambda path: (len(path.name), path.name))
        for number, path in enumerate(self._files):
            if path.is_file():
                self._scan(number, path)
        # looked for last: whoever compacts removes shards when the table is there
        self._better, self._table = False, (self.folder / ANSWERS).exists()
        if self._table:
            failed = pq.read_table(self.folder / ANSWERS, columns=["failed"])["failed"].is_valid().to_numpy()
            if len(failed) != self.total:
                told = f"{len(failed)} rows where {self.total} were asked for: it is of another run"
                raise RunError(f"{self.folder / ANSWERS} has {told}. Give another --out, or --start-over.")
            there = np.where(failed, _FAILED, _GOOD).astype(np.uint8)
            self._better = bool((self._known > there).any())
            self._known = np.maximum(self._known, there)

    def _scan(self, number: int, path: Path) -> None:
        with path.open("rb") as file:
            while (line := file.readline()).endswith(b"\n"):  # the last may be cut off, or being written
                try:
                    row = json.loads(line)
                    first, step, items = self._columns[row["task"], row["split"], row["decoder"], row["seed"]]
                    place, known = int(row["place"]), _GOOD if row["failed"] is None else _FAILED
                    if items[place].key != row["item"]:
                        continue
                except (ValueError, KeyError, TypeError, IndexError):  # no line of this run
                    continue
                if known > self._known[at := first + place * step]:
                    self._known[at], self._places[at] = known, (number << _BYTES) | (file.tell() - len(line))

    def jobs(self, rank: int = 0, world: int = 1) -> Iterator[Job]:
        """Yield what a rank has left to ask, block after block; every decoder is asked before the next block. Ranks
        share all blocks, not the open ones, so that they agree without a word. Whoever is asked first about new
        pictures is slower, so the order turns from block to block."""
        number = count()
        for at, part in enumerate(self.asked):
            known = self._known[self._first[at] : self._first[at + 1]].reshape(-1, max(1, len(part.pairs)))
            for block in part.task.blocks(self.batch):
                if next(number) % world != rank:
                    continue
                done = (known[block * self.batch : (block + 1) * self.batch] == _GOOD).all(axis=0)
                if todo := [who for who, good in zip(part.pairs, done, strict=True) if not good]:
                    turn = block % len(todo)
                    items = part.task.block(block, self.batch)
                    yield Job(at, part.task, block, items, (*todo[turn:], *todo[:turn]))

    @contextmanager
    def open(self, rank: int = 0) -> Iterator[None]:
        """Hold a rank's shard open to write, less a last line that was cut off; raises `RunError` as `add`."""
        path = self.folder / SHARDS / f"rank-{rank}.jsonl"
        with disk_trouble(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                with path.open("r+b") as file:
                    file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
            shard = self._shard = path.open("ab")
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk was told when it was met
                shard.close()

    def add(self, job: Job, who: Who, said: Sequence[Said]) -> None:
        """Write the answers of a decoder and seed to a block, at once. Raises `RunError` where the disk is full or
        can't be written to; what was written before is kept."""
        assert self._shard is not None
        decoder = self.asked[job.part].pairs[who]
        known = {"task": job.task.name, "split": job.task.split, "decoder": who[0], "seed": who[1]}
        known |= {name: decoder[name] for name in ("baseline", "role")}
        lines = [
            json.dumps({**known, "item": item.key, "place": place, "picture": item.picture} | _plain(one)) + "\n"
            for place, (item, one) in enumerate(zip(job.items, said, strict=True), job.block * self.batch)
        ]
        with disk_trouble(self.folder):
            self._shard.write("".join(lines).encode())
            self._shard.flush()

    def compact(self) -> None:
        """Write the table and the costs from all shards, whole or not at all (`RunError`), and drop the shards."""
        if not self.whole:
            parts = {name: self.folder / f"{name}.{os.getpid()}.part" for name in (COSTLY, ANSWERS)}
            try:
                with disk_trouble(self.folder):
                    self._write(parts)
                    for name in STALE:
                        (self.folder / name).unlink(missing_ok=True)
                    for name, part in parts.items():
                        part.replace(self.folder / name)
            finally:
                for part in parts.values():
                    part.unlink(missing_ok=True)
        for path in self._files:  # whose answers the table has
            path.unlink(missing_ok=True)
        self.read()

    def _write(self, parts: dict[str, Path]) -> None:
        earlier = self._earlier()
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) if path.is_file() else None for path in self._files]
            answers = stack.enter_context(pq.ParquetWriter(parts[ANSWERS], SCHEMA))
            costs = stack.enter_context(pq.ParquetWriter(parts[COSTLY], COSTS))
            for begin in range(0, self.total, BATCH):
                rows = []
                for place in self._places[begin : begin + BATCH].tolist():
                    row = next(earlier, None)
                    if place >= 0 and (row is None or row["failed"] is not None):
                        file = files[place >> _BYTES]
                        assert file is not None
                        file.seek(place & ((1 << _BYTES) - 1))
                        row = json.loads(file.readline())
                    rows.append(row)
                answers.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                costs.write_batch(pa.RecordBatch.from_pylist(rows, COSTS))

    def _earlier(self) -> Iterator[dict[str, Any]]:
        if not self._table:
            return
        with pq.ParquetFile(self.folder / ANSWERS) as answers, pq.ParquetFile(self.folder / COSTLY) as costs:
            for both in zip(answers.iter_batches(BATCH), costs.iter_batches(BATCH), strict=True):
                for row, cost in zip(*(batch.to_pylist() for batch in both), strict=True):
                    yield row | cost


def failures(folder: Path) -> tuple[int, int, str]:
    """Return how many answers a folder's table has, how many of them failed, and why the first did."""
    column = pq.read_table(folder / ANSWERS, columns=["failed"])["failed"]
    failed = column.drop_null()
    return len(column), len(failed), str(failed[0]) if len(failed) else ""


def _plain(said: Said) -> dict[str, Any]:
    """Return an answer as JSON data: what was not measured is null, half a surrogate pair a question mark."""
    told = {name: None if value != value else value for name, value in asdict(said).items()}
    return told | {"text": said.text.encode("utf-8", "replace").decode()}
