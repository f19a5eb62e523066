"""Descriptions and verdicts, each a run on the spine of all runs (`infer.store`), in a folder of its own.

What is on disk is not asked again; what was answered by other weights or code, on another device or by another version
is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.infer import record
from lvlm_guard.evals.infer.progress import Meter
from lvlm_guard.evals.infer.store import ANSWERS, COSTLY, Answers, Asked, Column
from lvlm_guard.evals.spec.items import EvalTask, Item, Said
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies.verify.judges import CALIBRATED, Judge

COMMAND = "eval verify"
MANY = 64  # mentions of a block
CODE = ("verify", *(f"evals/studies/verify/{name}.py" for name in ("asking", "judges", "mentions")))
"""What decides answers beside the code that decides those of all runs; to mend what scores and reports costs none."""

Answering = Callable[[Sequence[Item]], Mapping[str, list[Said]]]
"""Items -> decoder -> its answers."""


@dataclass(frozen=True)
class Asking:
    """How everything in a folder is asked."""

    folder: Path  # of the study
    settings: Settings  # of the model
    where: Mapping[str, str]  # device and number format
    echo: Callable[[str], object]  # told what happens, a line at a time
    bar: bool | None = None  # whether to draw a progress bar; None: on a terminal
    started_over: bool = False  # drop what an earlier run left

    def __call__(
        self, part: str, task: EvalTask, decoders: Sequence[Decoder], version: str, answer: Answering, **by: Any
    ) -> pa.Table:
        """Return the answers to a task with "seconds", asked for where they are not in the folder.

        Args:
            part: folder within that of the study.
            task: what is asked.
            decoders: who answers.
            version: what tells their answers from others'.
            answer: answers a block.
            by: settings that are others than the model's.

        Raises:
            DataError: the answers there are of others.
        """
        folder, settings = self.folder / part, replace(self.settings, **by)
        record.begin(folder, settings, [task], COMMAND, started_over=self.started_over, beside=CODE)
        with record.hold(folder):
            told = {"decoders": [d.describe() for d in decoders], "matcher": version, "where": dict(self.where)}
            record.with_answering(folder, json.loads(json.dumps(told | {"flags": [], "warnings": []})))
            columns = tuple(Column(d.name, d.role, d.baseline) for d in decoders)
            answers = Answers(folder, [Asked(task, columns)], settings.batch)
            self.echo(f"{part}: {len(task.items)} items, {answers.total - answers.left} answers are there already.")
            if answers.left:
                with answers.open(), Meter(answers.left, "answers", self.echo, self.bar) as meter:
                    for job in answers.jobs():
                        said = answer(job.items)
                        for who in job.todo:
                            answers.add(job, who, said[who[0]])
                        meter.advance(job.size, part)
                answers.read()
            if answers.whole:
                answers.drop_shards()
            else:
                answers.compact()
        seconds = pq.read_table(folder / COSTLY, columns=["seconds"])["seconds"]
        return pq.read_table(folder / ANSWERS).append_column("seconds", seconds)


@dataclass(frozen=True)
class Judged:
    """Who judges, and then what was said."""

    name: str  # of the matcher in the run; "" for the CLIP of the baselines
    training: int  # its number
    place: str  # registered name, folder or hub id
    judge: Judge  # that is asked
    answers: pa.Table = None  # with "seconds"; None before it was asked

    @property
    def decoders(self) -> list[Decoder]:
        """Its columns as who answers."""
        found = []
        for column, about in self.judge.columns.items():
            role: Any = "matcher" if self.name else "reference" if column == CALIBRATED else "control"
            baseline = None if column == CALIBRATED else CALIBRATED
            name = self.name + column
            found.append(Decoder(name, about, None, role=role, baseline=baseline, matchers=(self.place,)))
        return found

    def asked(self, ask: Asking, task: EvalTask) -> Judged:
        """Return it with its answers to mentions."""
        name = self.name or "baselines"
        part = f"verifiers/{name}-{sha256(self.place.encode()).hexdigest()[:8]}"
        by: dict[str, Any] = {"matchers": {name: (self.place,)}, "batch": MANY}
        return replace(self, answers=ask(part, task, self.decoders, self.judge.version, self._answer, **by))

    def _answer(self, items: Sequence[Item]) -> Mapping[str, list[Said]]:
        found: dict[str, list[Said]] = {self.name + column: [] for column in self.judge.columns}
        for _, group in groupby(items, key=lambda item: item.picture):
            mine = list(group)
            began = time.perf_counter()
            columns = self.judge(mine[0].pictures()[0], mine)
            seconds = (time.perf_counter() - began) / len(mine) / len(columns)
            for column, said in columns.items():
                found[self.name + column] += (replace(one, seconds=seconds) for one in said)
        return found

    def told(self, pictures: int) -> dict[str, Any]:
        """Return where it is from, its version, and its seconds a picture."""
        seconds = float(self.answers["seconds"].to_numpy().sum()) / pictures
        return {"from": self.place, "version": self.judge.version, "seconds": seconds}
