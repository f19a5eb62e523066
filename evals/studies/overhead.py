"""What the harness adds to a bare loop of guarded `generate()` calls over the same questions.

    rows = overhead(prepare_run(Settings(limit=64, captions=64)), batch=1)

Each block of questions is asked twice, once by a loop as a user would write it (processor, `generate()`,
decode) and once by the harness, which also measures, reads ends, and writes each answer to disk; the order turns
around from block to block. Both begin with an empty memory of matches. Scoring at the end is counted apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lvlm_guard.bench.intervals import median_ratio
from lvlm_guard.evals.decoders.decoder import PLAIN, Decoder
from lvlm_guard.evals.infer.generate import Asker, prepare
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.infer.run import samples_of
from lvlm_guard.evals.infer.store import Answers, Asked
from lvlm_guard.evals.report.saved import write_samples
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.score import measure


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
        task = replace(whole, items=list({item.picture: item for item in whole.items}.values()))
        for decoder in (d for d in prepared.decoders if d.name in decoders):
            rows += _measured(prepared, task, decoder, batch, tick)
    return rows


def _measured(
    prepared: Prepared, task: EvalTask, decoder: Decoder, batch: int, tick: Callable[[int], object]
) -> list[Row]:
    asker = prepared.answerer
    assert isinstance(asker, Asker)
    bare: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder), [Asked(task, {decoder.name: 1})], batch)

        def harness(block: int, items: Sequence[Item]) -> None:
            (said,) = asker.ask(task, items, [(decoder.name, 0)])
            answers.add((decoder.name, task.name, 0, block), said)

        _loop(asker, task, task.block(0, batch), decoder)  # warm, as the harness is by its own first call
        harness(0, task.block(0, batch))
        for block in task.blocks(batch):
            items = task.block(block, batch)
            arms: list[tuple[list[float], Callable[[], object]]] = [
                (bare, partial(_loop, asker, task, items, decoder)),
                (ours, partial(harness, block, items)),
            ]
            for times, arm in arms[:: 1 if block % 2 else -1]:
                if asker.matcher is not None:
                    asker.matcher.forget()
                began = time.perf_counter()
                arm()
                times.append(time.perf_counter() - began)
            tick(1)
        began = time.perf_counter()
        samples = samples_of(answers)
        measure(samples, [task.describe()], [decoder.describe()])
        write_samples(folder, samples)
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
