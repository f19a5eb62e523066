"""`guard_ranker.json`: what a ranker's folder must say beside PEFT's own files, to be used rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Self

from lvlm_guard.adapters.card import Card, pair
from lvlm_guard.adapters.data.views import COUNTS
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.ranker.trunk import Trunk
from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError

FILE = "guard_ranker.json"


@dataclass(frozen=True)
class RankerCard(Card):
    """What a trained ranker stands on and what its numbers mean.

    Args:
        backbone: hub id or folder of the CLIP.
        image_width, text_width: of its tokens.
        settings: of the ranker.
        instruction: a sentence; where it holds "{object}", the object's name stands there.
        y_mean, y_std: a score times y_std plus y_mean is a value, in the units of the data.
        scales: instruction -> (y_mean, y_std), for those trained on another scale.
        calibration: (a, b), P(none) = sigmoid(a - b * value), see `calibration`; None: not calibrated.
        mae: mean absolute error on validation, in the units of the data; None: not known.

    Raises:
        KnobError: the instruction has another placeholder than {object}, or a scale is none.
    """

    file = FILE
    kind = "ranker"

    backbone: str
    image_width: int
    text_width: int
    settings: RankerSettings = field(default_factory=RankerSettings)
    instruction: str = COUNTS
    y_mean: float = 0.0
    y_std: float = 1.0
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    calibration: tuple[float, float] | None = None
    mae: float | None = None

    def __post_init__(self) -> None:
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.instruction) if name is not None]
        except ValueError as error:
            raise KnobError(f"The instruction {self.instruction!r} can't be read: {error}.") from error
        if any(name != "object" for name in names) or not self.instruction.strip():
            raise KnobError(
                f"The instruction is {self.instruction!r}: give a sentence, {{object}} where the name goes."
            )
        for mean, std in ((self.y_mean, self.y_std), *self.scales.values()):
            if not (abs(mean) < float("inf") and 0 < std < float("inf")):
                raise KnobError(f"A scale has mean {mean} and deviation {std}: the deviation must be above 0.")

    def asked(self, name: str = "") -> str:
        """Return the instruction about an object.

        Raises:
            TextError: the instruction names an object and none is given.
        """
        if "{object}" in self.instruction and not name.strip():
            raise TextError(f"The instruction {self.instruction!r} is about an object: give its name.")
        return self.instruction.format(object=name.strip())

    def scale(self, instruction: str) -> tuple[float, float]:
        """Return (y_mean, y_std) of an instruction."""
        return self.scales.get(instruction, (self.y_mean, self.y_std))

    def require(self, trunk: Trunk, name: str) -> None:
        """Raise `UnsupportedModelError` where a CLIP's tokens are not of the widths that the ranker was trained on."""
        if (trunk.image_width, trunk.text_width) != (self.image_width, self.text_width):
            raise UnsupportedModelError(
                f"The ranker was trained on {self.backbone!r}, with image tokens of width {self.image_width} and text "
                f"tokens of width {self.text_width}, but {name!r} has {trunk.image_width} and {trunk.text_width}. Load "
                f"it on {self.backbone!r}, or train one for {name!r}."
            )

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        told["settings"] = RankerSettings(**told["settings"])
        told["scales"] = {asked: (float(m), float(s)) for asked, (m, s) in told.get("scales", {}).items()}
        return cls(**told | {"calibration": pair(told.get("calibration"))})
