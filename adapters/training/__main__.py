"""Time the loop against a bare loop of the same model: `python -m lvlm_guard.adapters.training`.

The bare loop makes the same batches, computes the same loss and takes the same steps, with torch alone: no accelerate,
no checks, no log, no state. Blocks of both alternate, so that a busy machine slows both; the processor's time is
compared, and the wall's is told beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.training import ranker
from lvlm_guard.adapters.training.checkpoint import Checkpoint, learning
from lvlm_guard.adapters.training.loop import train
from lvlm_guard.adapters.training.ranking import RankingTask
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.world import ranks
from lvlm_guard.adapters.world.pictures import Pictures
from lvlm_guard.bench.intervals import median_ratio


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
        loss, _ = task.loss(task.model, task.batch(step))
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
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.adapters.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [*ranks("train", n=200).rows, *ranks("val", n=60).rows]
    data = RankData(rows, Pictures(), "counts", exhaustive=sorted({row.object for row in rows})).teaching("skip")
    plan = ranker.Plan(settings=RankerSettings(width=args.width, heads=4, relations=8, prompts=8))
    pictures = ranker.Pictures.read(data, plan)
    recipe = Recipe(steps=args.steps, batch=args.batch, rate=1e-3, measure_every=10**6, save_every=10**6)
    ours: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for block in range(-1, args.blocks):  # the first warms up
        task = Unmeasured(ranker.build(plan, data), pictures.train, pictures.lists, pictures.seen, recipe)
        with tempfile.TemporaryDirectory() as folder:
            kept = Checkpoint(Path(folder), {})
            with_loop = timed(partial(train, task, recipe, kept, lambda _: None, device="cpu"))
        alone = timed(partial(bare, task, recipe))
        if block >= 0:
            ours.append(with_loop)
            plain.append(alone)
    samples = args.steps * args.batch
    for place, what in enumerate(("processor", "wall")):
        ratio, low, high = median_ratio([one[place] for one in ours], [one[place] for one in plain])
        ends = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        rate = samples / sorted(one[place] for one in ours)[len(ours) // 2]
        print(f"{what}: loop over bare loop {ratio:.3f}{ends}, {rate:.0f} samples/s, n = {len(ours)} blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
