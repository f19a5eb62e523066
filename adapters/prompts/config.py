"""What a set of learnable prompts is made of: where they enter, how deep, how many, and how they start.

Sources of the pieces: CoOp (arXiv:2109.01134, shallow text), VPT (arXiv:2203.12119, vision), MaPLe
(arXiv:2210.03117, deep and coupled), DCAR (arXiv:2508.04028, dual prompts).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from lvlm_guard.adapters.prompts.peft_type import add_member
from lvlm_guard.errors import KnobError, did_you_mean

NAME = "DUAL_PROMPT"
CHOICES = {
    "sides": ("text", "vision", "both"),
    "coupling": ("none", "t2v"),
    "prompt_mode": ("replace", "residual"),
    "init": ("words", "normal"),
}

add_member(PeftType, NAME)


@dataclass
class DualPromptConfig(PeftConfig):
    """Learnable prompts in CLIP's encoders. Every option composes with every other, or is refused.

    Args:
        sides: "text", "vision" or "both" encoders.
        depth: how many layers from the first one on get prompts of their own; 1 is shallow. After the last of them
            the slots just flow on.
        n_ctx: prompts a layer, each a vector of the encoder's width.
        coupling: "none" gives each side its own prompts; "t2v" makes a layer's vision prompts from its text prompts,
            P = p F^T + b (MaPLe), so no vision prompt is free.
        coupling_rank: 0 for a full F [vision width, text width]; r replaces F by the product of two matrices of rank
            r, recommended below 10,000 pairs (ours, not the papers').
        prompt_mode: "replace" puts the prompt into the slot. "residual" adds it to what is in the slot and starts at
            zero, so that the text side starts as the hand-written prompt bit for bit at any depth. Vision slots have
            nothing in them at layer 0: there a small normal start is appended in either mode.
        init: of the text prompts at layer 0 under "replace": "words" takes embedding + position of the placeholder
            words, so that depth 1 starts as the hand-written prompt; "normal" draws from N(0, 0.02), as all others do.
        placeholder_ids: the n_ctx token ids that stand right after BOS in every caption and are overwritten; empty
            for "vision". `placeholders(tokenizer, n_ctx)` gives those of "a photo of a".
        target_modules: leave it out; it follows from `sides` and `depth`.

    Raises:
        KnobError: a value outside its range, or options that mean nothing together.
    """

    sides: str = "both"
    depth: int = 9
    n_ctx: int = 4
    coupling: str = "t2v"
    coupling_rank: int = 0
    prompt_mode: str = "replace"
    init: str = "words"
    placeholder_ids: list[int] = field(default_factory=list)
    target_modules: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type: Any = PeftType[NAME]
        for knob, choices in CHOICES.items():
            value = getattr(self, knob)
            if value not in choices:
                raise KnobError(
                    f"{knob} is {value!r}. {did_you_mean(str(value), choices)}Give one of {', '.join(choices)}."
                )
        for knob in ("depth", "n_ctx"):
            value = getattr(self, knob)
            if not isinstance(value, int) or value < 1:
                raise KnobError(f"{knob} is {value!r}: give a whole number of at least 1.")
        if not isinstance(self.coupling_rank, int) or self.coupling_rank < 0:
            raise KnobError(
                f"coupling_rank is {self.coupling_rank!r}: give 0 for a full matrix, or a rank of at least 1."
            )
        if self.coupling == "t2v" and self.sides != "both":
            raise KnobError(
                f"coupling='t2v' makes vision prompts from text prompts, but sides={self.sides!r} has not both: give "
                "sides='both', or coupling='none'."
            )
        if self.coupling == "none" and self.coupling_rank:
            raise KnobError(f"coupling_rank={self.coupling_rank} is of coupling='t2v', which is off: leave it out.")
        if self.prompt_mode == "residual" and self.init == "normal":
            raise KnobError("prompt_mode='residual' starts at zero, so init='normal' means nothing: leave it out.")
        self._check_placeholders()
        layers = "|".join(str(layer) for layer in range(self.depth))
        towers = "|".join(f"{side}_model" for side in ("text", "vision") if self.sides in (side, "both"))
        targets = rf".*({towers})\.encoder\.layers\.({layers})"
        if self.target_modules not in (None, targets):
            raise KnobError(
                f"target_modules is {self.target_modules!r}, but it follows from sides={self.sides!r} and "
                f"depth={self.depth}: leave it out."
            )
        self.target_modules = targets

    def _check_placeholders(self) -> None:
        if self.sides == "vision":
            if self.placeholder_ids:
                raise KnobError("placeholder_ids are the slots of text prompts, but sides='vision': leave them out.")
        elif len(self.placeholder_ids) != self.n_ctx:
            raise KnobError(
                f"placeholder_ids has {len(self.placeholder_ids)} ids for n_ctx={self.n_ctx} prompts: each needs one "
                "token that it overwrites, or it would overwrite words of the caption. "
                "lvlm_guard.adapters.prompts.placeholders(tokenizer, n_ctx) gives them."
            )

    @property
    def vision_slots(self) -> int:
        """How many tokens stand after an image's patches; every consumer of patch tokens drops them."""
        return 0 if self.sides == "text" else self.n_ctx
