"""How the LoRA of a distillation learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from lvlm_guard.adapters.errors import TrainingError, check
from lvlm_guard.cli.settings import Usual

_RATE = Option(min=1e-8, help="Peak learning rate.")
_PROJECTOR = Option("--projector", help="Adapt the layers that feed in the picture too; vLLM can't serve that.")
_SOFT = Option("--soft/--hard", help="Learn the guard's distribution where it had a choice, or its token.")
_KEEP = Option("--keep/--no-keep", help="Hold on to the plain distribution where the guard had no say.")
_FRESH = Option(min=0, help="Leave out what is named again where the rest holds this share; above 1: keep.")
_CHECKPOINTING = Option("--checkpointing", help="Recompute activations: slower, less memory.")


@dataclass(frozen=True)
class Recipe:
    """How the LoRA learns, by AdamW whose rate falls by a cosine.

    A batch is pictures that are in memory together, in each process. On the embedded world a short training learnt as
    much without the projector. `fresh` is the share of the guard's distribution that words naming nothing again must
    hold for what it names again to be left out of a description's lesson, with `soft`.

    Raises:
        TrainingError: a value outside its range.
    """

    steps: Annotated[int, Option(min=1, help="Of training.")] = 500
    batch: Annotated[int, Option(min=1, help="Pictures that are in memory together."), Usual(2, embedded=24)] = 24
    accumulate: Annotated[int, Option(min=1, help="Batches of one step."), Usual(12, embedded=1)] = 1
    questions: int = 12  # about one picture, in one step; one free prompt comes with them
    rate: Annotated[float, _RATE, Usual(2e-4, embedded=2e-3)] = 2e-3
    rank: Annotated[int, Option(min=1, help="Of the LoRA; its alpha is twice that.")] = 16
    alpha: int = 32
    projector: Annotated[bool, _PROJECTOR] = False
    soft: Annotated[bool, _SOFT] = True
    keep: Annotated[bool, _KEEP] = True
    fresh: Annotated[float, _FRESH] = 0.1
    checkpointing: Annotated[bool, _CHECKPOINTING] = False
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 50

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "rank": 1, "save_every": 1, "questions": 0, "fresh": 0.0}
        check(self, least, error=TrainingError)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise TrainingError(
                f"The learning rate is {self.rate}: give a positive number, such as 2e-4 for a 7B model."
            )
