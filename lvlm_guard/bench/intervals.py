"""Medians of blocks with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000


def median_ratio(
    guarded: Sequence[float], plain: Sequence[float], seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Return the median over blocks of guarded over plain, and its 95 % bootstrap interval.

    Pairs are resampled together; with one pair there is no interval.

    Raises:
        ValueError: lengths differ, there is nothing, or a plain time is not positive.
    """
    top, bottom = np.asarray(guarded, dtype=float), np.asarray(plain, dtype=float)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        raise ValueError(f"Give as many guarded as plain times, at least one: got {top.shape} and {bottom.shape}.")
    if (bottom <= 0).any():
        raise ValueError("A plain time is zero or negative: the clock did not move.")
    return median_interval(top / bottom, seed)


def median_interval(values: Sequence[float] | NDArray[Any], seed: int = 0) -> tuple[float, float | None, float | None]:
    """Return the median and its 95 % percentile-bootstrap interval (None, None for a single value)."""
    held = np.asarray(values, dtype=float)
    if len(held) < 2:
        return float(np.median(held)), None, None
    drawn = np.random.default_rng(seed).integers(0, len(held), (RESAMPLES, len(held)))
    medians = np.median(held[drawn], axis=1)
    return float(np.median(held)), float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))
