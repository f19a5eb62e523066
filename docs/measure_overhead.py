"""What the harness adds to a bare loop of guarded `generate()` calls over the same questions.

    OMP_NUM_THREADS=1 python docs/measure_overhead.py > docs/results/overhead.json

Each block of questions is asked twice, once by a loop as a user would write it (processor, `generate()`,
decode) and once by the harness, which also measures, reads ends, and writes each answer to disk; the order turns
around from block to block. Both begin with an empty memory of matches. The call of its own that tells a yes/no
question's score is no answer and is left out; scoring at the end is counted apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from lvlm_guard.bench.intervals import median_ratio
from lvlm_guard.cli.console import print_json, quiet_libraries
from lvlm_guard.evals.decoders.decoder import PLAIN, Decoder
from lvlm_guard.evals.infer.generate import Asker, Prepared, prepare, prepare_run
from lvlm_guard.evals.infer.store import ANSWERS, Answers, Asked, Job
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.score import score_answers

PICTURES = 96  # of each task
BATCHES = (1, 16)  # questions of one call


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
            known = {"model": prepared.settings.model, "method": decoder.name, "task": task.name, "batch": batch}
            known |= {"low": None, "high": None, "n": len(task.items)}
            rows += (known | told for told in _measured(prepared.answerer, task, decoder, batch, tick))
    return rows


def _measured(asker: Any, task: EvalTask, decoder: Decoder, batch: int, tick: Callable[[int], object]) -> Iterator[Row]:
    assert isinstance(asker, Asker)
    model: Any = asker.model
    guard, unscored, who = decoder.guard(0), replace(task, kind="stock"), (decoder.name, 0)
    options = {"guard": guard, "max_new_tokens": task.max_new_tokens, **PLAIN}

    def loop(job: Job) -> None:
        inputs = prepare(asker.processor, job.items).to(model.device, model.dtype)
        with torch.inference_mode():
            out = model.generate(**inputs, **options)
        asker.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def harness(job: Job) -> None:
        (said,) = asker.ask(unscored, job.items, [who])
        answers.add(job, who, said)

    times: dict[Callable[[Job], None], list[float]] = {loop: [], harness: []}
    with tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder), [Asked(task, [decoder.describe()])], batch)
        jobs = list(answers.jobs())
        with answers.open():
            loop(jobs[0])  # warm, as the harness is by its own first call
            harness(jobs[0])
            for job in jobs:
                for ask in (loop, harness) if job.block % 2 else (harness, loop):
                    if asker.matcher is not None:
                        asker.matcher.forget()
                    began = time.perf_counter()
                    ask(job)
                    times[ask].append(time.perf_counter() - began)
                tick(1)
        began = time.perf_counter()
        answers.read()
        answers.compact()
        items = ({"task": task.name, "split": task.split} | item.describe() for item in task.items)
        score_answers(pq.read_table(Path(folder) / ANSWERS), items, [task.describe()], [decoder.describe()])
        scoring = (time.perf_counter() - began) / len(task.items)
    value, low, high = median_ratio(times[harness], times[loop])
    yield {"metric": "harness_ratio", "value": value, "low": low, "high": high}
    yield {"metric": "bare_seconds", "value": sum(times[loop]) / len(task.items)}
    yield {"metric": "scoring_seconds", "value": scoring}


if __name__ == "__main__":
    quiet_libraries()
    made = prepare_run(Settings(limit=PICTURES, captions=PICTURES, controls=False))
    print_json("docs/measure_overhead.py", [row for batch in BATCHES for row in overhead(made, batch)])
