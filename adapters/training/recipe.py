"""What decides a training, besides its data and its model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lvlm_guard.errors import KnobError

Optimizer = Literal["adamw", "sgd"]
Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast, and how often is looked.

    Args:
        steps: of the optimiser.
        batch: pairs of a step over all processes, or pictures of a group.
        accumulate: batches whose mean gradient makes a step. Groups are spread over the processes, so that there are
            at least as many.
        rate: peak learning rate; it rises linearly over `warm` of the steps and falls by a cosine to 0.
        warm: share of the steps.
        optimizer: "adamw", or "sgd" with momentum .9 (MaPLe's and CoPrompt's, rate .0035).
        decay: weight decay, of matrices alone.
        clip: bound of the gradient's norm.
        seed: of the first weights and of what is drawn.
        measure_every: steps between measurements on validation, each of which makes a candidate.
        patience: measurements without a better one after which training ends; 0 for to the end.
        save_every: steps between saved states; a measurement is followed by one too.
        precision: of the model's matrices: "auto" is bfloat16 where a GPU has it, else float32.

    Raises:
        KnobError: a value outside its range.
    """

    steps: int
    batch: int
    rate: float
    accumulate: int = 1
    warm: float = 0.05
    optimizer: Optimizer = "adamw"
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    measure_every: int = 50
    patience: int = 0
    save_every: int = 50
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch", 2),
            ("accumulate", 1),
            ("measure_every", 1),
            ("patience", 0),
            ("save_every", 1),
        ):
            if getattr(self, name) < least:
                raise KnobError(f"{name} is {getattr(self, name)}: give {least} or more.")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise KnobError(f"{name} is {getattr(self, name)}: give a finite number above 0.")
        if not 0 <= self.warm < 1 or not 0 <= self.decay < math.inf:
            raise KnobError(f"warm is {self.warm} and decay {self.decay}: give a share below 1, and 0 or more.")
        for name, choices in (("optimizer", get_args(Optimizer)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise KnobError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(choices)}.")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, round(self.warm * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON data."""
        return asdict(self)


def about(what: str, plan: dict[str, Any], recipe: Recipe, data: Any, device: str) -> dict[str, Any]:
    """Return what tells a training from another: what, how, on which data, in how many processes."""
    from accelerate import PartialState

    return {
        "what": what,
        "plan": plan,
        "recipe": recipe.to_dict(),
        "data": {"data": data.name, "digest": data.digest},
        "processes": PartialState(cpu=device == "cpu").num_processes,
    }
