"""Train both models of the embedded world from nothing: `python -m embedded_training`.

One command, fixed seeds, a process of one thread for each model. The shipped run took 37 minutes for the LVLM and 21
for the matcher side by side, on two cores that other work shared (lvlm_guard/embedded/train_log.txt). Progress is
saved every 100 steps under --out; the same command goes on after a kill. `python -m embedded_training.export` then
writes the half-precision folders of the package, and `python -m embedded_training.accept` measures them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE: dict[str, dict[str, dict[str, Any]]] = {
    "llava": {
        "tower": {"steps": 1200, "batch": 48, "rate": 1e-3},
        "align": {"steps": 250, "batch": 48, "rate": 3e-3},
        "main": {
            "steps": 3600,
            "batch": 24,
            "rate": 1.2e-3,
            "questions": 12,
            "captions": 1,
            "frozen": 300,  # steps before the tower joins
            "tower_scale": 0.1,  # at the full rate it forgets: yes/no CE rose from .565 to .634 (sketch)
            "cutout": 0.5,
        },
        "captions": {
            "steps": 1600,
            "batch": 24,
            "rate": 6e-4,
            "questions": 8,
            "captions": 4,
            "frozen": 0,
            "tower_scale": 0.1,
            "cutout": 0.5,
        },
    },
    "blip": {
        "tower": {"steps": 1200, "batch": 48, "rate": 1e-3},
        "main": {
            "steps": 330,  # the matcher is another witness, not a better one: 420 steps judged .06 better than greedy
            "batch": 24,
            "rate": 1e-3,
            "texts": 6,
            "cutout": 0.2,
            "empty": 0.12,
            "itc_temperature": 0.12,
            "itc_offset": 0.7,
            "itc_weight": 0.5,
            "ground_weight": 0.3,
            "clutter_weight": 0.6,
            "ground_layer": 0,
        },
    },
}


def recipe(model: str, short: float = 1.0) -> dict[str, dict[str, Any]]:
    """Return the knobs of one model's stages, the step counts scaled by `short` (at least 2 steps each)."""
    return {stage: {**knobs, "steps": max(2, int(knobs["steps"] * short))} for stage, knobs in RECIPE[model].items()}


def train_one(model: str, seed: int, short: float, out: Path) -> None:
    """Train "llava" or "blip" in this process, on one thread."""
    import torch
    from transformers.utils import logging

    from embedded_training import blip, llava
    from lvlm_guard.embedded.world import scenes

    start = time.time()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    share = min(1.0, 10 * short)  # a smoke run need not wait for 30 000 scenes
    world = scenes("train", int(30_000 * share))
    print(f"{model} scenes {len(world)} {time.time() - start:.0f}s", flush=True)
    if model == "llava":
        llava.train(seed, recipe(model, short), world, out / model)
    else:
        empty = scenes("train_empty", int(2_500 * share))
        blip.train(seed, recipe(model, short), world, empty, out / model)
    print(f"{model} done in {time.time() - start:.0f}s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training", description=__doc__)
    parser.add_argument("model", nargs="?", choices=list(RECIPE), help="only this one, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/embedded"))
    parser.add_argument("--short", type=float, default=1.0, help="scale of all step counts, for smoke runs")
    args = parser.parse_args(argv)
    if args.model:
        train_one(args.model, args.seed, args.short, args.out)
        return 0
    options = ["--seed", str(args.seed), "--out", str(args.out), "--short", str(args.short)]
    run = [sys.executable, "-m", "embedded_training"]
    jobs = [subprocess.Popen([*run, model, *options]) for model in RECIPE]
    return max(abs(job.wait()) for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
