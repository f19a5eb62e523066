"""From a score to the probability that there is none, and from a number in a text to a doubt."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.platt import platt


def fit_absence(scores: ArrayLike, values: ArrayLike) -> tuple[float, float]:
    """Fit P(none) = sigmoid(a - b * score) on validation scores; return (a, b).

    Targets are Platt's, so that scores which separate present from absent have a finite fit.

    Args:
        scores: [N].
        values: [N]; 0 is absent, above 0 is present.

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


def absence(score: float, calibration: tuple[float, float]) -> float:
    """Return P(none), 0 to 1, of a score under a calibration (a, b)."""
    a, b = calibration
    x = a - b * score
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def count_is_doubtful(said: float, score: float, error: float) -> bool:
    """Return whether a number in a text is further from the score than the ranker errs.

    Args:
        said: the number.
        score: of the picture.
        error: mean absolute error on validation; the bound is 1.5 times it, and 1 at least.
    """
    return abs(said - score) > max(1.0, 1.5 * error)
