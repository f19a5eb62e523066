"""What both trainings share: optimiser, schedule, progress lines, and a state file that survives a kill."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedded_training.labels import random_keep
from lvlm_guard.embedded.world import Scenes

EVERY = 100  # steps between progress lines, each followed by a saved state


def optimizer(
    parameters: Sequence[nn.Parameter], rate: float, slow: Sequence[nn.Parameter] = (), scale: float = 1.0
) -> torch.optim.AdamW:
    """Return AdamW: matrices decay, vectors do not; `slow` parameters learn at `scale` times the rate."""
    apart = {id(p) for p in slow}
    groups: list[dict[str, Any]] = []
    for some, factor in (([p for p in parameters if id(p) not in apart], 1.0), (list(slow), scale)):
        for decay, members in (
            (0.02, [p for p in some if p.ndim > 1]),
            (0.0, [p for p in some if p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "scale": factor})
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def schedule(step: int, steps: int, peak: float, warm: int) -> float:
    """Return the rate of a step: linear warm-up, then one cosine down to 2 % of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warm) * (cosine * 0.98 + 0.02)


def cut_out(
    rng: np.random.Generator, scenes: Scenes, i: int, rate: float
) -> tuple[NDArray[np.bool_] | None, NDArray[np.uint8]]:
    """Return (mask, picture): with probability `rate` a smooth region of scene i is painted black."""
    if rng.random() >= rate:
        return None, scenes.image[i]
    keep = random_keep(rng)
    return keep, np.asarray(scenes.image[i] * keep[..., None])


class Trainee:
    """One model's training: a fixed sequence of stages, resumed at the last saved step of the last stage begun.

    The state file holds everything a step depends on (modules, optimiser, generator), so a run that was killed and
    started again ends in the same weights as one that was not.
    """

    def __init__(self, name: str, stages: Sequence[str], folder: Path, rng: np.random.Generator) -> None:
        self.name, self.stages, self.folder, self.rng = name, list(stages), folder, rng
        self.state: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            self.state = torch.load(self._file, weights_only=False)

    @property
    def _file(self) -> Path:
        return self.folder / "state.pt"

    def _save(self, stage: str, step: int, modules: Mapping[str, nn.Module], opt: torch.optim.Optimizer) -> None:
        self.state = {
            "stage": stage,
            "step": step,
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimizer": opt.state_dict(),
            "rng": self.rng.bit_generator.state,
        }
        unfinished = self._file.with_suffix(".tmp")
        torch.save(self.state, unfinished)
        os.replace(unfinished, self._file)

    def train(
        self,
        stage: str,
        modules: Mapping[str, nn.Module],
        opt: torch.optim.Optimizer,
        step: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
        *,
        steps: int,
        rate: float,
        warm: int = 100,
        clip: float | None = 1.0,
        keep: Callable[[], None] | None = None,
    ) -> None:
        """Run one stage.

        Args:
            modules: what the stage trains or leaves to later stages, by name.
            step: gives the loss of step number i and the values to log.
            keep: called at every saved state, to write what can be used already.
        """
        first = 0
        if self.state:
            begun = self.state["stage"]
            if self.stages.index(begun) > self.stages.index(stage):
                return
            if begun == stage:
                for name, module in modules.items():
                    module.load_state_dict(self.state["modules"][name])
                opt.load_state_dict(self.state["optimizer"])
                self.rng.bit_generator.state = self.state["rng"]
                first = self.state["step"]
        parameters = [p for group in opt.param_groups for p in group["params"]]
        start, rows = time.time(), list[dict[str, float]]()
        for i in range(first, steps):
            loss, values = step(i)
            for group in opt.param_groups:
                group["lr"] = schedule(i, steps, rate, warm) * group["scale"]
            opt.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            opt.step()
            rows.append({name: float(value.detach()) for name, value in values.items()})
            if i == 20 or i % EVERY == EVERY - 1 or i == steps - 1:
                means = " ".join(f"{k} {np.nanmean([row[k] for row in rows]):.3f}" for k in values)
                print(f"{self.name} {stage} {i + 1}/{steps} {time.time() - start:.0f}s {means}", flush=True)
                rows = []
            if i % EVERY == EVERY - 1 or i == steps - 1:
                self._save(stage, i + 1, modules, opt)
                if keep is not None:
                    keep()
