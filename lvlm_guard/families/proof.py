"""What a model was proven to do under a guard; the engine offers no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """What was found when a branch was held against plain generate() on its own pictures.

    Args:
        way: how a late branch reads what it skipped: the prompt as generate() read it, then the answer in one call
            ("prompt+chunk") or token by token ("steps"); None: it must run from the first step on.
        stacks: whether its rows may join the global cache.
        alone: whether some requests of a batch may run without the others.
        crops: whether tokens can be taken back from its cache.
        error: how far the branch's logits are off, in units of their spread; 0 where nothing is read in other pieces.
        seen: how far the other picture moves the logits, in the same units.
    """

    way: str | None = "prompt+chunk"
    stacks: bool = True
    alone: bool = True
    crops: bool = True
    error: float = 0.0
    seen: float = 0.0
