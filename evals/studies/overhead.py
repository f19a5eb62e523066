"""What the harness adds to a bare loop of guarded `generate()` calls over the same questions.

    rows = overhead(prepare_run(Settings(limit=64, captions=64)), batch=1)

Each block of questions is asked twice, once by a loop as a user would write it (processor, `generate()`,
decode) and once by the harness, which also measures, reads ends, and writes each answer to disk; the order turns
around from block to block. Both begin with an empty memory of matches. The call of its own that tells a yes/no
question's score is no answer and is left out; scoring at the end is counted apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from lvlm_guard.bench.intervals import median_ratio
from lvlm_guard.evals.decoders.decoder import PLAIN, Decoder
from lvlm_guard.evals.infer.generate import Asker, prepare
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.infer.store import ANSWERS, Answers, Asked, Column, Job
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.score import score_answers


def overhead(
    prepared: Prepared, batch: int, decoders: Sequence[str] = ("greedy", "agla"), tick: Callable[[int], object] = abs
) -> list[Row]:
    """Return the harness's time over the bare loop's, for each task and decoder.

    Args:
        prepared: a run with a model in this process; one question a picture is asked.
        batch: questions of one call.
        decoders: greedy ones.
        tick: told how many blocks have just been measured.

    Returns:
        Long rows: "harness_ratio" (median over blocks, 95 % bootstrap interval), "bare_seconds" and
        "scoring_seconds" (an answer).
    """
    rows: list[Row] = []
    for whole in prepared.tasks:
        task = replace(whole, items=list({item.picture: item for item in whole.items}.values()), calibration=())
        for decoder in (d for d in prepared.decoders if d.name in decoders):
            rows += _measured(prepared, task, decoder, batch, tick)
    return rows


def _measured(
    prepared: Prepared, task: EvalTask, decoder: Decoder, batch: int, tick: Callable[[int], object]
) -> list[Row]:
    asker, who = prepared.answerer, (decoder.name, 0)
    assert isinstance(asker, Asker)
    unscored = replace(task, kind="stock")
    bare: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked(task, (Column(decoder.name, decoder.role, decoder.baseline),))
        answers = Answers(Path(folder), [asked], batch)
        jobs = list(answers.jobs())
        with answers.open():

            def harness(job: Job) -> None:
                (said,) = asker.ask(unscored, job.items, [who])
                answers.add(job, who, said)

            _loop(asker, task, jobs[0].items, decoder)  # warm, as the harness is by its own first call
            harness(jobs[0])
            for job in jobs:
                both: list[tuple[list[float], Callable[[], object]]] = [
                    (bare, partial(_loop, asker, task, job.items, decoder)),
                    (ours, partial(harness, job)),
                ]
                for times, ask in both[:: 1 if job.block % 2 else -1]:
                    if asker.matcher is not None:
                        asker.matcher.forget()
                    began = time.perf_counter()
                    ask()
                    times.append(time.perf_counter() - began)
                tick(1)
        began = time.perf_counter()
        answers.read()
        answers.compact()
        items = ({"task": task.name, "split": task.split} | item.describe() for item in task.items)
        score_answers(pq.read_table(Path(folder) / ANSWERS), items, [task.describe()], [decoder.describe()])
        scoring = (time.perf_counter() - began) / len(task.items)
    value, low, high = median_ratio(ours, bare)
    found: Row = {"model": prepared.settings.model, "method": decoder.name, "task": task.name, "batch": batch}
    found |= {"low": None, "high": None, "n": len(task.items)}
    return [
        found | {"metric": "harness_ratio", "value": value, "low": low, "high": high},
        found | {"metric": "bare_seconds", "value": sum(bare) / len(task.items)},
        found | {"metric": "scoring_seconds", "value": scoring},
    ]


def _loop(asker: Asker, task: EvalTask, items: Sequence[Item], decoder: Decoder) -> list[str]:
    assert decoder.guard is not None
    model: Any = asker.model
    inputs = prepare(asker.processor, items).to(model.device, model.dtype)
    with torch.inference_mode():
        out = model.generate(**inputs, guard=decoder.guard(0), max_new_tokens=task.max_new_tokens, **PLAIN)
    texts: list[str] = asker.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
