"""What answers cost: model calls and masks, which repeat exactly, and time and memory, which do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvlm_guard.evals.infer.store import Answers
from lvlm_guard.evals.spec.items import Said
from lvlm_guard.evals.stats.bootstrap import Array, bootstrap
from lvlm_guard.evals.stats.results import Row

WORK = {
    "tokens": "tokens",
    "forwards": "global_forwards",
    "local_forwards": "local_forwards",
    "local_tokens": "local_tokens",
    "masks": "masks",
}
"""Fields of an answer -> metrics: means an answer; calls and masks of a batch are shared by its answers."""


def work_rows(model: str, answers: Answers) -> list[Row]:
    """Return tokens, forwards, those of second branches, and masks an answer, for each task and decoder."""
    rows = []
    for task, each in answers.asked.items():
        for decoder, seeds in each.seeds.items():
            said = [one for seed in range(seeds) for one in _there(answers, decoder, task, seed)]
            for name, metric in WORK.items():
                value = float(np.mean([getattr(one, name) for one in said])) if said else None
                rows.append(_row(model, decoder, task, metric, value, len(said)))
    return rows


def cost_rows(model: str, answers: Answers, reference: str) -> list[Row]:
    """Return seconds an answer, their ratio to the reference's, and peak memory, for each task and decoder.

    The ratio compares the same blocks of questions in one run; its 95 % interval draws blocks with replacement.
    """
    rows = []
    for task, each in answers.asked.items():
        plain = _seconds(answers, reference, task, each.seeds.get(reference, 0))
        for decoder, seeds in each.seeds.items():
            blocks = _seconds(answers, decoder, task, seeds)
            said = [one for seed in range(seeds) for one in _there(answers, decoder, task, seed)]
            if not said:
                continue
            rows.append(_row(model, decoder, task, "seconds", float(np.mean([one.seconds for one in said])), len(said)))
            if len(plain) == len(blocks) and plain.sum() > 0:
                ratio = bootstrap(np.stack([blocks, plain], -1), lambda c: c[..., 0] / np.maximum(c[..., 1], 1e-12))
                low, high = (ratio.low, ratio.high) if len(blocks) > 1 else (None, None)
                rows.append(_row(model, decoder, task, "time_ratio", ratio.value, len(said), low, high))
            peaks = [one.peak_mib for one in said if one.peak_mib is not None]
            if peaks:
                rows.append(_row(model, decoder, task, "peak_memory_mib", max(peaks), len(peaks)))
    return rows


def _there(answers: Answers, decoder: str, task: str, seed: int) -> list[Said]:
    return [one for one in answers.of(decoder, task, seed) if one is not None and one.failed is None]


def _seconds(answers: Answers, decoder: str, task: str, seeds: int) -> Array:
    """Return the seconds of each block, mean over seeds, [blocks]; empty where answers are missing."""
    runs: list[list[float]] = []
    for seed in range(seeds):
        said: Sequence[Said | None] = answers.of(decoder, task, seed)
        if any(one is None for one in said):
            return np.empty(0)
        each = [one.seconds for one in said if one is not None]
        runs.append([sum(each[i : i + answers.batch]) for i in range(0, len(each), answers.batch)])
    return np.mean(runs, axis=0) if runs else np.empty(0)


def _row(
    model: str,
    method: str,
    task: str,
    metric: str,
    value: float | None,
    n: int,
    low: float | None = None,
    high: float | None = None,
) -> Row:
    return {
        "model": model,
        "method": method,
        "task": task,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }
