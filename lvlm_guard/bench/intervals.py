"""Medians of blocks with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
Values = Sequence[float] | NDArray[Any]
Interval = tuple[float, float | None, float | None]
"""A value, and the ends of its 95 % interval; None, None where a single value has none."""


def median_ratio(guarded: Values, plain: Values, seed: int = 0) -> Interval:
    """Return the median over blocks of guarded over plain, and its bootstrap interval; pairs are resampled together.

    Raises:
        ValueError: lengths differ, there is nothing, or a plain time is not positive.
    """
    top, bottom = np.asarray(guarded, dtype=float), np.asarray(plain, dtype=float)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        raise ValueError(f"Give as many guarded as plain times, at least one: got {top.shape} and {bottom.shape}.")
    if (bottom <= 0).any():
        raise ValueError("A plain time is zero or negative: the clock did not move.")
    return median_interval(top / bottom, seed)


def interval(values: NDArray[Any], statistic: Callable[[NDArray[Any]], Any], seed: int = 0) -> Interval:
    """Return a statistic of n values and its percentile-bootstrap interval.

    Args:
        values: [n], or [n, parts].
        statistic: of [draws, n] values or [draws, n, parts] at once, [draws]; and of values alone, a number.
        seed: of the draws.
    """
    if len(values) < 2:
        return float(statistic(values)), None, None
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(statistic(values[drawn]), (0.025, 0.975))
    return float(statistic(values)), float(low), float(high)


def median_interval(values: Values, seed: int = 0) -> Interval:
    """Return the median and its percentile-bootstrap interval."""
    return interval(np.asarray(values, dtype=float), lambda held: np.median(held, axis=-1), seed)


def figure(metric: str, interval: Interval) -> dict[str, Any]:
    """Return a metric's part of a row in long form."""
    return {"metric": metric} | dict(zip(("value", "low", "high"), interval, strict=True))
