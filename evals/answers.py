"""Answers of many decoders to the same questions: asked in blocks, written as they come, resumed.

Every decoder answers a block before the next block is asked, so pictures are prepared and matched
once, and what is on disk after an interruption covers the same questions for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lvlm_guard.evals.decoders import Decoder
from lvlm_guard.matching import Matcher

Key = tuple[str, str, int, int]
"""Decoder, task, seed, block."""


@dataclass(frozen=True)
class Item:
    """One thing to be asked: the picture's number, its picture, and the text."""

    picture: int
    image: Image.Image
    text: str


@dataclass(frozen=True)
class Task:
    """Items asked alike.

    Args:
        name: "pope" or "chair".
        items: what is asked, in order.
        max_new_tokens: of an answer.
        decoders: who is asked.
    """

    name: str
    items: Sequence[Item]
    max_new_tokens: int
    decoders: Sequence[Decoder]

    def block(self, number: int, batch: int) -> Sequence[Item]:
        """Return the items of a block of `batch`."""
        return self.items[number * batch : (number + 1) * batch]

    def blocks(self, batch: int) -> range:
        """Return the numbers of the blocks of `batch`."""
        return range(-(-len(self.items) // batch))


class Answers:
    """Answers on disk: one JSON-lines file a decoder, a line an answer.

    Args:
        folder: made if need be.
        tasks: what is asked.
        batch: items of a block. Blocks are the unit of resuming and of seeds, so another size is another run.
        keep: keep the answers of whole blocks that are there already (a block that was cut off is asked
            again); otherwise they are those of another run and are written over.
    """

    def __init__(self, folder: Path, tasks: Sequence[Task], batch: int, *, keep: bool = True) -> None:
        self.folder = folder
        self.tasks = {task.name: task for task in tasks}
        self.batch = batch
        self._held: dict[Key, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in {decoder.name for task in tasks for decoder in task.decoders}:
            if keep:
                self._load(name)
            else:
                self._path(name).unlink(missing_ok=True)

    def has(self, key: Key) -> bool:
        """Return whether a block was answered."""
        return key in self._held

    def add(self, key: Key, answers: list[str]) -> None:
        """Write a block's answers."""
        decoder, task, seed, block = key
        items = self.tasks[task].block(block, self.batch)
        lines = [
            json.dumps(
                {
                    "task": task,
                    "seed": seed,
                    "block": block,
                    "picture": item.picture,
                    "question": item.text,
                    "answer": answer,
                }
            )
            for item, answer in zip(items, answers, strict=True)
        ]
        with self._path(decoder).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        self._held[key] = answers

    def of(self, decoder: Decoder, task: Task, seed: int) -> list[str]:
        """Return a decoder's answers to a task, in the order of its items; shorter where blocks are missing."""
        found: list[str] = []
        for block in task.blocks(self.batch):
            if not self.has((decoder.name, task.name, seed, block)):
                break
            found += self._held[decoder.name, task.name, seed, block]
        return found

    def _path(self, decoder: str) -> Path:
        return self.folder / f"{decoder}.jsonl"

    def _load(self, decoder: str) -> None:
        path = self._path(decoder)
        if not path.exists():
            return
        lines: dict[Key, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                lines.setdefault((decoder, row["task"], row["seed"], row["block"]), []).append(line)
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # cut off in the middle of a line
        whole = {key: rows for key, rows in lines.items() if self._fits(key, rows)}
        part = path.with_suffix(".part")
        part.write_text("".join(line + "\n" for rows in whole.values() for line in rows), encoding="utf-8")
        part.replace(path)
        self._held |= {key: [json.loads(line)["answer"] for line in rows] for key, rows in whole.items()}

    def _fits(self, key: Key, lines: list[str]) -> bool:
        _, name, _, block = key
        if name not in self.tasks:
            return False
        items = self.tasks[name].block(block, self.batch)
        rows = [json.loads(line) for line in lines]
        return [(row["picture"], row["question"]) for row in rows] == [(item.picture, item.text) for item in items]


def conversation(item: Item) -> list[dict[str, Any]]:
    """Return an item as chat messages."""
    parts = [{"type": "image", "image": item.image}, {"type": "text", "text": item.text}]
    return [{"role": "user", "content": parts}]


def prepare(processor: Any, items: Sequence[Item]) -> Any:
    """Return the inputs of a block, by the guarded processor's chat template."""
    return processor.apply_chat_template(
        [conversation(item) for item in items],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )


def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    decoder: Decoder,
    seed: int,
    block: int,
    max_new_tokens: int,
) -> list[str]:
    """Return a decoder's answers to prepared inputs; torch's random state is left as it was.

    A block's random stream depends on the seed and the block alone, so a resumed run gives the same answers.
    """
    if decoder.guard is None:
        raise ValueError(f"{decoder.name} answers without the model: ask `matcher_answers`.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1_000_003 * (seed + 1) + block)
        tokens = model.generate(**inputs, guard=decoder.guard(seed), max_new_tokens=max_new_tokens, **decoder.options)
    texts: list[str] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def matcher_answers(matcher: Matcher, items: Sequence[Item]) -> list[str]:
    """Return the matcher's own answers: yes where it gives the question more than one half."""
    support = matcher.support_pairs([item.image for item in items], [item.text for item in items])
    return ["yes" if p > 0.5 else "no" for p in support.tolist()]


@dataclass(frozen=True)
class Asker:
    """Who answers: a guarded model with its guarded processor, and the matcher for decoders without a model."""

    model: Any
    processor: Any
    matcher: Matcher

    def ask(self, task: Task, block: int, items: Sequence[Item], todo: Sequence[tuple[str, int]]) -> list[list[str]]:
        """Return the answers of each (decoder, seed) of `todo` to one block."""
        decoders = {decoder.name: decoder for decoder in task.decoders}
        inputs = None
        found = []
        for name, seed in todo:
            decoder = decoders[name]
            if decoder.guard is None:
                found.append(matcher_answers(self.matcher, items))
                continue
            inputs = prepare(self.processor, items) if inputs is None else inputs
            found.append(answer(self.model, self.processor, inputs, decoder, seed, block, task.max_new_tokens))
        return found


@dataclass(frozen=True)
class Job:
    """A block and the (decoder, seed) pairs that have not answered it."""

    task: str
    block: int
    todo: tuple[tuple[str, int], ...]


def open_jobs(answers: Answers) -> list[Job]:
    """Return what is left to ask, block after block; every decoder is asked before the next block."""
    jobs = []
    for task in answers.tasks.values():
        for block in task.blocks(answers.batch):
            todo = tuple(
                (decoder.name, seed)
                for decoder in task.decoders
                for seed in range(decoder.seeds)
                if not answers.has((decoder.name, task.name, seed, block))
            )
            if todo:
                jobs.append(Job(task.name, block, todo))
    return jobs


def ask_all(asker: Asker, answers: Answers, done: Callable[[str, int], object] = lambda task, asked: None) -> None:
    """Ask everything that is not answered yet, here and now.

    Args:
        asker: who answers.
        answers: what is asked, and where answers go.
        done: told the task and the number of new answers, decoder by decoder.
    """
    for job in open_jobs(answers):
        task = answers.tasks[job.task]
        items = task.block(job.block, answers.batch)
        for name, seed in job.todo:
            (found,) = asker.ask(task, job.block, items, [(name, seed)])
            answers.add((name, job.task, seed, job.block), found)
            done(job.task, len(found))
