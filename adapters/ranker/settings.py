"""What a ranker is made of, and how it is trained: options of `lvlm-guard train ranker`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from typer import Option

from lvlm_guard.adapters.errors import check
from lvlm_guard.cli.settings import EMBEDDED, Usual
from lvlm_guard.errors import KnobError

Ties = Literal["half", "drop", "published"]
Pool = Literal["mean", "sum"]
Tuning = Literal["frozen", "tuned"]
Scale = Literal["auto", "raw", "standard"]
Start = Literal["aligned", "random"]

_REGRESSION = Option("--regression", min=0, help="Weight of the values' loss beside the pairs'.")
_RELATIONS = Option(min=1, help="Queries that compare two pictures.")
_START = Option(help="aligned: from CLIP's own projections; random: as the paper.")


@dataclass(frozen=True)
class RankerSettings:
    """Sizes and choices; the defaults are ours for a ViT-B/16, about 18 million parameters (69 width²).

    Args:
        width, heads: of every token inside (the release: 768), and of all attentions; heads divide the width.
        fusion_layers, post_layers: that look at the text; after them, that look at the picture alone.
        prompts: learnable vectors before the text; 0 for none.
        dropout: in the post layers, while training.
        ties: what a pair of equal values is told: "half" (neither is more), "drop" (nothing), "published" (the
            release's target: 0 for both, and for each picture with itself).
        pool: how a picture's tokens become one for its score. The release's "sum" makes it depend on the resolution.
        mask_text: whether padding after the text is hidden; the release looks at it.
        pair_norm: whether the pair's difference is normalised first, as in the release. That turns the tiny difference
            of two pictures that are nearly equal into a full-size one.

    Raises:
        KnobError: a size that is none, or an unknown choice.
    """

    width: Annotated[int, Option(min=1, help="Of the ranker."), Usual(512, embedded=64)] = 512
    heads: Annotated[int, Option(min=1, help="Of its attention."), Usual(8, embedded=4)] = 8
    fusion_layers: int = 2
    post_layers: int = 2
    prompts: int = 32
    relations: Annotated[int, _RELATIONS, Usual(16, embedded=8)] = 16
    dropout: float = 0.1
    ties: Annotated[Ties, Option(help="What pairs of equal values are told.")] = "half"
    regression_weight: Annotated[float, _REGRESSION, Usual(0.2, embedded=0.5)] = 0.2
    pool: Pool = "mean"
    mask_text: bool = True
    pair_norm: bool = False

    def __post_init__(self) -> None:
        least = {"width": 1, "heads": 1, "fusion_layers": 1, "post_layers": 0, "prompts": 0, "relations": 1}
        choices = {"ties": get_args(Ties), "pool": get_args(Pool)}
        check(self, least | {"regression_weight": 0.0, "dropout": 0.0}, choices)
        if self.width % self.heads:
            raise KnobError(
                f"width {self.width} can't be shared out among {self.heads} heads: give a multiple of them."
            )
        if not self.dropout < 1:
            raise KnobError(f"dropout is {self.dropout}: give a share from 0 to below 1.")


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Args:
        clip: "embedded", a folder or a hub id.
        trunk: "frozen", so that tokens are computed once, or "tuned".
        scale: "standard" has mean 0 and deviation 1 for each instruction; "auto" is raw where all lie within 0 to 10.

    Raises:
        KnobError: another scale or start.
    """

    clip: str = EMBEDDED
    settings: RankerSettings = field(default_factory=RankerSettings)
    trunk: Annotated[Tuning, Option(help="tuned: a LoRA in both towers.")] = "frozen"
    rank: Annotated[int, Option(min=1, help="Of that LoRA.")] = 8
    negatives: Annotated[float, Option(min=0, max=0.9, help="Share of a group without the object.")] = 0.2
    scale: Annotated[Scale, Option(help="Values as they are, or standardised.")] = "auto"
    start: Annotated[Start, _START] = "aligned"

    def __post_init__(self) -> None:
        check(self, choices={"scale": get_args(Scale), "start": get_args(Start)})
