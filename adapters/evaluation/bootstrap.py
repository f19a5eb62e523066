"""Intervals over pictures and trainings: both are drawn again, so that neither's luck is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000

Picked = NDArray[np.int64]
Figure = Callable[[Picked, Picked], float]
"""(trainings drawn, pictures drawn) -> the figure of these."""


class Interval(NamedTuple):
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interval(figure: Figure, trainings: int, pictures: int, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return a figure with its interval; trainings and pictures are drawn with replacement, independently.

    A figure that is NaN on all of them has no interval.

    Args:
        figure: a mean over trainings; the same draws for the same seed, so that differences of two are paired.
        trainings, pictures: how many there are.
        draws: of the bootstrap.
        seed: of the draws.
    """
    whole = figure(np.arange(trainings), np.arange(pictures))
    if math.isnan(whole):
        return Interval(whole, whole, whole)
    rng = np.random.default_rng(seed)
    drawn = [figure(rng.integers(0, trainings, trainings), rng.integers(0, pictures, pictures)) for _ in range(draws)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(whole, float(low), float(high))


def less(one: Figure, other: Figure) -> Figure:
    """Return the difference of two figures, on the same trainings and pictures."""
    return lambda trainings, pictures: one(trainings, pictures) - other(trainings, pictures)
