"""Time the loop against a bare loop of the same model: `python -m embedded_training.overhead`.

The bare loop makes the same batches, computes the same loss and takes the same steps, with torch alone: no accelerate,
no checks, no log, no states, of which ours saves as many as a training does, and begins and ends in every block. Blocks
of both alternate, and who comes first too, so that a busy machine slows both; the processor's time is compared, and
the wall's is told beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.training import ranker
from lvlm_guard.adapters.training.ranker import RankingTask
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.trainer import learning, train
from lvlm_guard.bench.intervals import median_ratio
from lvlm_guard.cli.console import print_json
from lvlm_guard.embedded.captioned import Pictures


class Unmeasured(RankingTask):
    """A task whose last step is followed by no measurement, which a bare loop has not either."""

    def measure(self) -> dict[str, float]:
        """Return nothing worth knowing."""
        return dict.fromkeys(("srcc", "mae", "plcc", "accuracy", "pair_accuracy", "absence_auroc"), 0.0)


def bare(task: RankingTask, recipe: Recipe) -> None:
    """Take the steps of a training with torch alone."""
    optimizer = torch.optim.AdamW(list(learning(task.model).values()), lr=recipe.rate)
    for step in range(recipe.steps):
        task.model.train()
        loss, _ = task.loss(task.model, task.batches.batch(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(learning(task.model).values()), recipe.clip)
        optimizer.step()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return (processor's, wall's) seconds of a piece of work."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.overhead", description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of a block")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one object instead of lines")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [*world_facts("count", "train", 200).ranks.rows, *world_facts("count", "val", 60).ranks.rows]
    data = RankData(rows, Pictures(), "counts", exhaustive=sorted({row.object for row in rows})).teaching("skip")
    plan = ranker.Plan(settings=RankerSettings(width=args.width, heads=4, relations=8, prompts=8))
    pictures = ranker.Pictures.read(data, plan)
    recipe = Recipe(steps=args.steps, batch=args.batch, rate=1e-3, measure_every=10**6)

    def ours() -> tuple[float, float]:
        task = Unmeasured(ranker.build(plan, data), pictures, recipe)
        with tempfile.TemporaryDirectory() as folder:
            return timed(partial(train, task, recipe, Path(folder), lambda _: None, device="cpu"))

    def plain() -> tuple[float, float]:
        task = Unmeasured(ranker.build(plan, data), pictures, recipe)
        return timed(partial(bare, task, recipe))

    found: dict[str, list[tuple[float, float]]] = {"loop": [], "bare": []}
    for block in range(-1, args.blocks):  # the first warms up
        pair = (("loop", ours), ("bare", plain))
        for name, run in pair if block % 2 else reversed(pair):
            seconds = run()
            if block >= 0:
                found[name].append(seconds)
    told = [figures(found, place, clock, args.steps * args.batch) for place, clock in enumerate(("processor", "wall"))]
    if args.json:
        print_json("python -m embedded_training.overhead", told, settings=vars(args))
        return 0
    for row in told:
        ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        rates = f"{row['samples_per_second']:.0f} samples/s, bare {row['bare_samples_per_second']:.0f}"
        print(f"{row['clock']}: loop over bare loop {row['value']:.3f}{ends}, {rates}, n = {row['n']} blocks")
    return 0


def figures(found: Mapping[str, Sequence[tuple[float, float]]], place: int, clock: str, samples: int) -> dict[str, Any]:
    """Return a clock's row: the median over blocks of loop over bare loop, its interval, and both rates."""
    loop, bare = ([one[place] for one in found[name]] for name in ("loop", "bare"))
    ratio, low, high = median_ratio(loop, bare)
    rates = {"samples_per_second": samples / median(loop), "bare_samples_per_second": samples / median(bare)}
    return {
        "clock": clock,
        "metric": "loop_over_bare",
        "value": ratio,
        "low": low,
        "high": high,
        "n": len(loop),
    } | rates


if __name__ == "__main__":
    sys.exit(main())
