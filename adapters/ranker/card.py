"""How a ranker's scores become answers, and `guard_ranker.json`, which says so in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from lvlm_guard.adapters.data.dataset import COUNTS
from lvlm_guard.adapters.loading import Card, pair
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError
from lvlm_guard.matching.platt import platt


def fit_absence(scores: ArrayLike, values: ArrayLike) -> tuple[float, float]:
    """Fit P(none) = sigmoid(a - b * score) on validation scores [N] and values [N], 0 for absent; return (a, b).

    Targets are Platt's, so that scores which separate present from absent have a finite fit.

    Raises:
        KnobError: one of the two is missing, a number is not finite, or all scores are equal.
    """
    s, y = np.asarray(scores, float), np.asarray(values, float)
    if s.ndim != 1 or s.shape != y.shape or not (np.isfinite(s).all() and np.isfinite(y).all()):
        raise KnobError(f"Give a finite score and value for each picture; got shapes {s.shape} and {y.shape}.")
    absent = y <= 0
    if absent.all() or not absent.any():
        raise KnobError(
            f"{int(absent.sum())} of {len(y)} validation pictures have the value 0: absence is calibrated on pictures "
            "with and without the object. Add the missing kind to the validation split."
        )
    spread = float(s.std())
    if not spread > 1e-12 * max(1.0, float(np.abs(s).max())):
        raise KnobError("All validation scores are equal, so they say nothing of absence: train the ranker first.")
    slope, offset = platt(-s, absent)
    return offset, slope


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
        calibration: (a, b), P(none) = sigmoid(a - b * value); None: not calibrated.
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
        """Return the instruction about an object; raises `TextError` where it names one and none is given."""
        if "{object}" in self.instruction and not name.strip():
            raise TextError(f"The instruction {self.instruction!r} is about an object: give its name.")
        return self.instruction.format(object=name.strip())

    def scale(self, instruction: str) -> tuple[float, float]:
        """Return (y_mean, y_std) of an instruction."""
        return self.scales.get(instruction, (self.y_mean, self.y_std))

    def absent(self, value: float) -> float:
        """Return P(none), 0 to 1, of a picture's value; raises `UnsupportedCallError` where it is not calibrated."""
        if self.calibration is None:
            raise UnsupportedCallError(
                "This ranker is not calibrated, so its scores give no probability. `lvlm-guard train ranker` does "
                "that on a validation split, if pictures there show none of the object."
            )
        a, b = self.calibration
        return float(expit(a - b * value))

    def doubts(self, said: float, value: float) -> bool:
        """Return whether a number that a text says is further from a picture's value than the ranker errs.

        Raises `UnsupportedCallError` where the error on validation is not known; the bound is 1.5 times it, 1 at least.
        """
        if self.mae is None:
            raise UnsupportedCallError(
                "This ranker's error on validation is not known: train it with a validation split."
            )
        return abs(said - value) > max(1.0, 1.5 * self.mae)

    @classmethod
    def _made(cls, told: dict[str, Any]) -> Self:
        told["settings"] = RankerSettings(**told["settings"])
        told["scales"] = {asked: (float(m), float(s)) for asked, (m, s) in told.get("scales", {}).items()}
        return cls(**told | {"calibration": pair(told.get("calibration"))})
