"""Intervals and tests of evaluation runs. The picture is the unit: its questions depend on each other.

A run is a table of counts, one row a picture ([P, k]: hits, misses, words ...), and a score is a
function of their sum. So every score, ratios included, is drawn again by weighting pictures, and two
runs are compared on the same drawn pictures.

Sources: percentile bootstrap and its paired form, Efron & Tibshirani 1993; approximate randomization,
Noreen 1989; Wilson 1927; McNemar 1947 with the mid-p of Lancaster 1961 (Fagerland et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.evals.errors import DataError

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""Maps counts summed over pictures, [..., k], to a score, [...]."""

DRAWS = 4000
CELLS = 2**22  # draws x pictures held at once: 32 MB


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


class Draws:
    """Runs of several methods over the same pictures, all drawn again together.

    Every method is scored on the same drawn pictures, so any two can be compared as a pair, in any score; the
    pictures are drawn once for all of them. Where a method was trained several times, trainings are drawn too, so that
    an interval holds the luck of both; methods with as many trainings are taken to share them, draw by draw.

    Args:
        counts: method -> [P, k], one row a picture, the same pictures in the same order; fractions where several
            seeds were averaged. [T, P, k] for T trainings, whose mean is scored.
        draws: how many samples of P pictures are drawn, with replacement.
        seed: of the draws.

    Raises:
        DataError: there is no picture, the counts are not [P, k] or [T, P, k] and finite, or they differ in P or k.
    """

    def __init__(self, counts: Mapping[str, ArrayLike], *, draws: int = DRAWS, seed: int = 0) -> None:
        trained = {name: _trainings(table) for name, table in counts.items()}
        tables = {name: np.mean(each, axis=0) for name, each in trained.items()}
        shapes = {table.shape for table in tables.values()}
        if len(shapes) != 1:
            raise DataError(
                f"Paired runs need the same pictures: their counts have shapes {', '.join(map(str, sorted(shapes)))}."
                if shapes
                else "There are no counts: nothing was measured."
            )
        ((pictures, columns),) = shapes
        drawn = _sums(
            _weights(pictures, draws, seed), np.hstack([table for each in trained.values() for table in each])
        )
        swapped = _sums(_swaps(pictures, draws, seed), np.hstack(list(tables.values())))
        self._draws = draws
        self._sum = {name: table.sum(0) for name, table in tables.items()}
        self._drawn, start = {}, 0
        for name, each in trained.items():
            end = start + len(each) * columns
            self._drawn[name] = _over_trainings(drawn[:, start:end].reshape(draws, len(each), columns), seed)
            start = end
        at = {name: slice(place * columns, (place + 1) * columns) for place, name in enumerate(tables)}
        self._swapped = {name: swapped[:, columns_of] for name, columns_of in at.items()}

    def estimate(self, name: str, score: Score, level: float = 0.95) -> Estimate:
        """Return a method's score and its percentile interval over pictures, and trainings where it has several."""
        return Estimate(float(score(self._sum[name])), *_interval(score(self._drawn[name]), level))

    def difference(self, ours: str, theirs: str, score: Score, level: float = 0.95) -> Estimate:
        """Return how much higher `ours` scores than `theirs`, with interval and p-value, see `paired`.

        The p-value is of the trainings at hand: their mean counts are swapped on pictures.
        """
        a, b = self._sum[ours], self._sum[theirs]
        value = float(score(a) - score(b))
        moved = self._swapped[theirs] - self._swapped[ours]  # counts that change sides
        null = score(a + moved) - score(b - moved)
        extreme = int((np.abs(null) >= abs(value) - 1e-12).sum())
        drawn = score(self._drawn[ours]) - score(self._drawn[theirs])
        return Estimate(value, *_interval(drawn, level), (extreme + 1) / (self._draws + 1))


def bootstrap(counts: ArrayLike, score: Score, *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Estimate:
    """Return a score and its percentile interval over pictures.

    Args:
        counts: [P, k], one row a picture; fractions where several seeds were averaged.
        score: see `Score`.
        draws, seed: as in `Draws`.
        level: coverage of the interval.

    Raises:
        DataError: there is no picture, or the counts are not [P, k] and finite.
    """
    table = _table(counts)
    drawn = _sums(_weights(len(table), draws, seed), table)
    return Estimate(float(score(table.sum(0))), *_interval(score(drawn), level))


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
    return Draws({"ours": counts, "theirs": other}, draws=draws, seed=seed).difference("ours", "theirs", score, level)


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


def _trainings(counts: ArrayLike) -> list[Array]:
    """Return the tables of each training; a single one where nothing was trained."""
    whole = np.asarray(counts, dtype=np.float64)
    return [_table(each) for each in whole] if whole.ndim == 3 and len(whole) else [_table(whole)]


def _over_trainings(drawn: Array, seed: int) -> Array:
    """Return the mean counts of trainings drawn with replacement, [draws, k], of sums [draws, T, k]."""
    draws, trainings, _ = drawn.shape
    if trainings == 1:
        return drawn[:, 0]
    chosen = np.random.default_rng([seed, 2]).integers(trainings, size=(draws, trainings))
    found: Array = np.take_along_axis(drawn, chosen[..., None], axis=1).mean(axis=1)
    return found


def _interval(drawn: Array, level: float) -> tuple[float, float]:
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _sums(chosen: Iterator[Array], table: Array) -> Array:
    """Sum a table over the pictures of each draw, [draws, k]."""
    return np.vstack([rows @ table for rows in chosen])


def _weights(pictures: int, draws: int, seed: int) -> Iterator[Array]:
    """How often each picture is drawn: parts of [draws, pictures], so that many pictures fit into memory."""
    rng = np.random.default_rng(seed)
    for rows in _parts(pictures, draws):
        index = rng.integers(pictures, size=(rows, pictures)) + np.arange(rows)[:, None] * pictures
        weights = np.bincount(index.ravel(), minlength=rows * pictures).astype(np.float64)
        yield weights.reshape(rows, pictures)


def _swaps(pictures: int, draws: int, seed: int) -> Iterator[Array]:
    """Which pictures change sides: parts of [draws, pictures], 0 and 1."""
    rng = np.random.default_rng([seed, 1])
    for rows in _parts(pictures, draws):
        yield rng.integers(2, size=(rows, pictures)).astype(np.float64)


def _parts(pictures: int, draws: int) -> Iterator[int]:
    step = max(1, CELLS // pictures)
    for start in range(0, draws, step):
        yield min(step, draws - start)
