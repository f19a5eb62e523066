"""The sizes of a ranker, and a switch for each place where it departs from the release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lvlm_guard.errors import KnobError

Ties = Literal["half", "drop", "published"]
Pool = Literal["mean", "sum"]


@dataclass(frozen=True)
class RankerSettings:
    """Sizes and choices; the defaults are ours for a ViT-B/16, about 18 million parameters (69 width²).

    Args:
        width: of every token inside (the release: 768).
        heads: of all attentions; divides the width.
        fusion_layers: layers that look at the text.
        post_layers: layers after the fusion, which look at the picture alone.
        prompts: learnable vectors before the text; 0 for none.
        relations: learnable queries by which two pictures are compared.
        dropout: in the post layers, while training.
        ties: what a pair of equal values is told: "half" (neither is more), "drop" (nothing), "published" (the
            release's target: 0 for both, and for each picture with itself).
        regression_weight: of the score's loss beside the pairs'.
        pool: how a picture's tokens become one for its score. The release's "sum" makes it depend on the resolution.
        mask_text: whether padding after the text is hidden; the release looks at it.
        pair_norm: whether the pair's difference is normalised first, as in the release. That turns the tiny difference
            of two pictures that are nearly equal into a full-size one.

    Raises:
        KnobError: a size that is none, or an unknown choice.
    """

    width: int = 512
    heads: int = 8
    fusion_layers: int = 2
    post_layers: int = 2
    prompts: int = 32
    relations: int = 16
    dropout: float = 0.1
    ties: Ties = "half"
    regression_weight: float = 0.2
    pool: Pool = "mean"
    mask_text: bool = True
    pair_norm: bool = False

    def __post_init__(self) -> None:
        low = {"width": 1, "heads": 1, "fusion_layers": 1, "post_layers": 0, "prompts": 0, "relations": 1}
        for name, least in low.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise KnobError(f"{name} is {value!r}: give a whole number of {least} or more.")
        if self.width % self.heads:
            raise KnobError(
                f"width {self.width} can't be shared out among {self.heads} heads: give a multiple of them."
            )
        if not 0 <= self.dropout < 1:
            raise KnobError(f"dropout is {self.dropout}: give a share from 0 to below 1.")
        if not self.regression_weight >= 0:
            raise KnobError(f"regression_weight is {self.regression_weight}: give 0 or more.")
        for name, choices in (("ties", get_args(Ties)), ("pool", get_args(Pool))):
            if getattr(self, name) not in choices:
                raise KnobError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(choices)}.")
