"""`guard_dual_prompt.json`: what a retriever's folder must say beside PEFT's own files, to be used rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, Self, get_args

from lvlm_guard.adapters.backbone import Frame
from lvlm_guard.adapters.loading import Card, pair
from lvlm_guard.adapters.retrieval.encoding import TooLong
from lvlm_guard.errors import KnobError, UnsupportedModelError

FILE = "guard_dual_prompt.json"
Weighting = Literal["none", "two-stage", "pairwise"]


@dataclass(frozen=True)
class RetrieverCard(Card):
    """What a retriever stands on and how it is used.

    Args:
        backbone: hub id or folder of the CLIP; "embedded" for the tiny one of this package.
        text_width, image_width: of its encoders.
        adapter: whether prompts (or another adapter of PEFT) lie in the folder; False for an untuned CLIP.
        strength: lambda of the word weights, at least 0; 0 leaves captions as they are.
        weighting: how `rank` uses them: "none"; "two-stage" ranks without and then ranks the best `top` again by
            weights made for each pair; "pairwise" weighs every pair. The cost is one text pass for each weighed pair.
        top: how many are ranked again.
        too_long: what becomes of captions beyond the encoder's length: "raise" or "truncate".
        calibration: (a, b), P(match) = sigmoid(a * S + b), fitted on validation; None: not calibrated.
        configuration: the name of what was trained, for the reader.
        frame: how pictures of any shape become the CLIP's square.
        templates: sentences of a claim about an object, instead of "a photo of a dog"; {article} and {object} in each.
        sentences: object -> sentences that stand for the claim about it, beside those.
        temperature: of the softmax over a claim and its swaps, fitted on validation; None: the CLIP's own.

    Raises:
        KnobError: a value outside its range.
    """

    file = FILE
    kind = "dual-prompt"
    format = 2  # 1 had been trained on the middle of each picture

    backbone: str
    text_width: int
    image_width: int
    adapter: bool = True
    strength: float = 0.0
    weighting: Weighting = "none"
    top: int = 50
    too_long: TooLong = "raise"
    calibration: tuple[float, float] | None = None
    configuration: str = ""
    frame: Frame = "squashed"
    temperature: float | None = None
    templates: tuple[str, ...] = ()
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise KnobError(f"strength is {self.strength!r}: give a finite number of at least 0; 0 is off.")
        if self.weighting not in get_args(Weighting):
            raise KnobError(f"weighting is {self.weighting!r}: give one of {', '.join(get_args(Weighting))}.")
        if self.too_long not in get_args(TooLong):
            raise KnobError(f"too_long is {self.too_long!r}: give 'raise' or 'truncate'.")
        if self.top < 1:
            raise KnobError(f"top is {self.top}: give at least 1.")
        if self.frame not in get_args(Frame):
            raise KnobError(f"frame is {self.frame!r}: this release reads pictures {' or '.join(get_args(Frame))}.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise KnobError(f"temperature is {self.temperature}: give a finite number above 0, or None.")
        if self.calibration is not None and not all(map(isfinite, self.calibration)):
            raise KnobError(f"calibration is {self.calibration}: give two finite numbers, or None.")

    def require(self, clip: Any, name: str) -> None:
        """Raise `UnsupportedModelError` where a CLIP's encoders are not as wide as those it was trained on."""
        found = clip.config.text_config.hidden_size, clip.config.vision_config.hidden_size
        if found != (self.text_width, self.image_width):
            raise UnsupportedModelError(
                f"The retriever was trained on {self.backbone!r}, whose text encoder is {self.text_width} wide and "
                f"whose image encoder {self.image_width}, but {name!r} has {found[0]} and {found[1]}. Load it on "
                f"{self.backbone!r}, or train one for {name!r}."
            )

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        said = {name: tuple(each) for name, each in told.get("sentences", {}).items()}
        more = {"templates": tuple(told.get("templates", ())), "sentences": said}
        return cls(**told | more | {"calibration": pair(told.get("calibration"))})
