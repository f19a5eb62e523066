"""What was proven of a model, by which the engine goes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Proof:
    """What was found when a branch was held against plain generate() (`trial.py`).

    Args:
        way: how a late branch reads what it skipped: the prompt as generate() read it, then the answer in one call
            ("prompt+chunk") or token by token ("steps"); None: it must run from the first step on.
        stacks: whether its rows may join the global cache.
        alone: whether some requests of a batch may run without the others.
        crops: whether tokens can be taken back from its cache.
        hides: whether a branch may take a part of the picture out of the model's own cache.
        error: how far the branch's logits are off from the first step on; 0 where nothing is read in other pieces.
        seen: how far the other picture moves the logits.
        why: what was found where one of these is not offered.
    """

    way: str | None = "prompt+chunk"
    stacks: bool = True
    alone: bool = True
    crops: bool = True
    hides: bool = True
    error: float = 0.0
    seen: float = 0.0
    why: dict[str, str] = field(default_factory=dict)


UNPROVEN = Proof(stacks=False, alone=False, crops=False, hides=False)
"""What a model gets that nobody proved (check="never")."""
