"""Answers of many decoders on disk: written block by block as they come, found again after any end.

Every decoder answers a block before the next block is asked, so what is on disk after an interruption
covers the same questions for all. One JSON-lines file a decoder, a line an answer; blocks are the unit of
resuming, and a block that was cut off is asked again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.spec.items import EvalTask, Said

Key = tuple[str, str, int, int]
"""Decoder, task, seed, block."""

Who = tuple[str, int]
"""A decoder's name and one of its seeds."""

_SAID = [field.name for field in fields(Said)]


@dataclass(frozen=True)
class Asked:
    """A task and who answers it: decoders by name, each with its number of seeds."""

    task: EvalTask
    seeds: dict[str, int]


@dataclass(frozen=True)
class Job:
    """A block and the (decoder, seed) pairs that have not answered it."""

    task: str
    block: int
    todo: tuple[Who, ...]


class Answers:
    """Answers on disk.

    Args:
        folder: made if need be.
        asked: the tasks, and who answers them.
        batch: items of a block. Blocks are the unit of resuming, so another size is another run.
        keep: keep the answers of whole blocks that are there already; otherwise they are those of another
            run and are written over.

    Raises:
        RunError: the disk is full or can't be written to.
    """

    def __init__(self, folder: Path, asked: Sequence[Asked], batch: int, *, keep: bool = True) -> None:
        self.folder = folder
        self.asked = {each.task.name: each for each in asked}
        self.batch = batch
        self._held: dict[Key, list[Said]] = {}
        with disk_trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in sorted({name for each in asked for name in each.seeds}):
                if keep:
                    self._load(name)
                else:
                    self._path(name).unlink(missing_ok=True)

    def has(self, key: Key) -> bool:
        """Return whether a block was answered."""
        return key in self._held

    def add(self, key: Key, said: Sequence[Said]) -> None:
        """Write a block's answers; answers that failed are not kept, so that they are asked for again.

        Raises:
            RunError: the disk is full or can't be written to; what was written before is kept.
        """
        decoder, task, seed, block = key
        self._held[key] = list(said)
        if any(one.failed is not None for one in said):
            return
        items = self.asked[task].task.block(block, self.batch)
        lines = [
            json.dumps(
                {"task": task, "seed": seed, "block": block, "key": item.key, "prompt": item.prompt} | asdict(one)
            )
            for item, one in zip(items, said, strict=True)
        ]
        with disk_trouble(self.folder), self._path(decoder).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def of(self, decoder: str, task: str, seed: int) -> list[Said | None]:
        """Return a decoder's answers to a task, in the order of its items; None where there is none."""
        found: list[Said | None] = []
        asked = self.asked[task].task
        for block in asked.blocks(self.batch):
            size = len(asked.block(block, self.batch))
            found += self._held.get((decoder, task, seed, block)) or [None] * size
        return found

    def open_jobs(self) -> list[Job]:
        """Return what is left to ask, block after block; every decoder is asked before the next block.

        Whoever is asked first about new pictures is slower, so the order turns from block to block.
        """
        jobs = []
        for name, each in self.asked.items():
            for block in each.task.blocks(self.batch):
                todo = tuple(
                    (decoder, seed)
                    for decoder, seeds in each.seeds.items()
                    for seed in range(seeds)
                    if not self.has((decoder, name, seed, block))
                )
                if todo:
                    first = block % len(todo)
                    jobs.append(Job(name, block, todo[first:] + todo[:first]))
        return jobs

    def size(self, job: Job) -> int:
        """Return how many answers a job asks for."""
        return len(self.asked[job.task].task.block(job.block, self.batch)) * len(job.todo)

    def _path(self, decoder: str) -> Path:
        return self.folder / f"{decoder}.jsonl"

    def _load(self, decoder: str) -> None:
        path = self._path(decoder)
        if not path.exists():
            return
        rows: dict[Key, list[dict[str, Any]]] = {}
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                rows.setdefault((decoder, row["task"], row["seed"], row["block"]), []).append(row)
            except (ValueError, KeyError, TypeError):
                continue  # cut off in the middle of a line
        whole = {key: found for key, found in rows.items() if self._fits(key, found)}
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for found in whole.values() for row in found), encoding="utf-8")
        part.replace(path)
        self._held |= {key: [Said(**{k: row[k] for k in _SAID}) for row in found] for key, found in whole.items()}

    def _fits(self, key: Key, rows: list[dict[str, Any]]) -> bool:
        decoder, name, seed, block = key
        each = self.asked.get(name)
        if each is None or seed >= each.seeds.get(decoder, 0):
            return False
        items = each.task.block(block, self.batch)
        same = [(row.get("key"), row.get("prompt")) for row in rows] == [(item.key, item.prompt) for item in items]
        return same and all(set(_SAID) <= row.keys() for row in rows)
