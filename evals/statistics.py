"""Intervals and tests of evaluation runs. The picture is the unit: its questions depend on each other.

A run is a table of counts, one row a picture ([P, k]: hits, misses, words ...), and a score is a
function of their sum. So every score, ratios included, is drawn again by weighting pictures, and two
runs are compared on the same drawn pictures.

Sources: percentile bootstrap and its paired form, Efron & Tibshirani 1993; approximate randomization,
Noreen 1989; Wilson 1927; McNemar 1947 with the mid-p of Lancaster 1961 (Fagerland et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.evals.errors import DataError

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""Maps counts summed over pictures, [..., k], to a score, [...]."""

DRAWS = 4000


@dataclass(frozen=True)
class Estimate:
    """A value, its interval (None where there is none), and, for differences, the two-sided p-value."""

    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def wilson(hits: int, n: int, level: float = 0.95) -> Estimate:
    """Return a share and Wilson's interval, right also near 0 and 1.

    Raises:
        DataError: n is 0, or hits lies outside 0 to n.
    """
    if not 0 <= hits <= n or n == 0:
        raise DataError(f"A share needs 0 <= hits <= n and n > 0; got {hits} of {n}.")
    z = float(stats.norm.ppf((1 + level) / 2))
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * float(np.sqrt(share * (1 - share) / n + spread / (4 * n))) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(counts: ArrayLike, score: Score, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Estimate:
    """Return a score and its percentile interval over pictures.

    Args:
        counts: [P, k], one row a picture; fractions where several seeds were averaged.
        score: see `Score`.
        draws: how many samples of P pictures are drawn, with replacement.
        seed: of the draws.
        level: coverage of the interval.

    Raises:
        DataError: there is no picture, or the counts are not [P, k] and finite.
    """
    table = _table(counts)
    drawn = _weights(len(table), draws, seed) @ table
    low, high = np.percentile(score(drawn), [50 * (1 - level), 50 * (1 + level)])
    return Estimate(float(score(table.sum(0))), float(low), float(high))


def paired(
    counts: ArrayLike,
    other: ArrayLike,
    score: Score,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return how much higher `counts` scores than `other` on the same pictures.

    The interval is the paired bootstrap's. The p-value is that of approximate randomization: if both
    runs were equal, swapping them on any picture would change nothing, so it is the share of random
    swaps whose difference is at least as large (the observed one counted).

    Args:
        counts, other: [P, k], the same pictures in the same order.
        score, draws, seed, level: as in `bootstrap`.

    Raises:
        DataError: the tables differ in shape, or one can't be used.
    """
    ours, theirs = _table(counts), _table(other)
    if ours.shape != theirs.shape:
        raise DataError(f"Paired runs need the same pictures: their counts have shapes {ours.shape}, {theirs.shape}.")
    weights = _weights(len(ours), draws, seed)
    drawn = score(weights @ ours) - score(weights @ theirs)
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    value = float(score(ours.sum(0)) - score(theirs.sum(0)))
    moved = _swaps(len(ours), draws, seed) @ (theirs - ours)  # counts that change sides
    null = score(ours.sum(0) + moved) - score(theirs.sum(0) - moved)
    extreme = int((np.abs(null) >= abs(value) - 1e-12).sum())
    return Estimate(value, float(low), float(high), (extreme + 1) / (draws + 1))


def mcnemar(fixed: int, broken: int, *, mid: bool = False) -> float:
    """Return the two-sided p-value that as many answers were fixed as broken.

    Exact binomial; it takes the answers as independent, which several questions about one picture
    are not: `paired` does without that.

    Args:
        fixed, broken: answers that only the one run, only the other run has right.
        mid: count the observed outcome half (mid-p): less conservative, right on average.

    Raises:
        DataError: a count is negative.
    """
    if fixed < 0 or broken < 0:
        raise DataError(f"McNemar's test compares two counts; got {fixed} and {broken}.")
    n, fewer = fixed + broken, min(fixed, broken)
    if n == 0:
        return 1.0
    p = 2 * float(stats.binom.cdf(fewer, n, 0.5))
    if mid:
        p -= float(stats.binom.pmf(fewer, n, 0.5))
    return min(1.0, p)


def holm(p_values: ArrayLike) -> list[float]:
    """Return p-values adjusted for being several (Holm 1979), in the order given."""
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    steps = raw[order] * np.arange(len(raw), 0, -1)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]


def per_picture(pictures: ArrayLike, rows: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Sum rows of counts, [N, k], over the picture each belongs to, [N].

    Returns:
        The pictures, sorted, [P], and their counts, [P, k].
    """
    table = _table(rows)
    names, index = np.unique(np.asarray(pictures), return_inverse=True)
    out = np.zeros((len(names), table.shape[1]))
    np.add.at(out, index, table)
    return names.astype(np.int64), out


def _table(counts: ArrayLike) -> Array:
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not len(table) or not np.isfinite(table).all():
        raise DataError(
            f"Counts are a table, one row a picture, of finite numbers; got shape {table.shape}. Without pictures "
            "there is nothing to compare."
        )
    return table


@lru_cache(maxsize=8)
def _weights(pictures: int, draws: int, seed: int) -> Array:
    """How often each picture is drawn, [draws, pictures]; kept, for every score of a run draws the same."""
    index = np.random.default_rng(seed).integers(pictures, size=(draws, pictures))
    offset = np.arange(draws)[:, None] * pictures
    weights = np.bincount((index + offset).ravel(), minlength=draws * pictures).astype(np.float64)
    weights.flags.writeable = False
    return weights.reshape(draws, pictures)


@lru_cache(maxsize=8)
def _swaps(pictures: int, draws: int, seed: int) -> Array:
    """Which pictures change sides, [draws, pictures] of 0 and 1."""
    swaps = np.random.default_rng([seed, 1]).integers(2, size=(draws, pictures)).astype(np.float64)
    swaps.flags.writeable = False
    return swaps
