"""Intervals and tests of evaluation runs: one bootstrap, whose unit is the picture.

Questions about one picture depend on each other, so pictures are drawn, with replacement, and everything is measured on
the same draws: counts, ranked scores, figures of verifiers. A figure is an array [1 + draws]: of all pictures first,
then of each draw. The difference of two figures is paired by that alone.

Trainings (several seeds of an adapter or a matcher) are few, and drawing 2 or 3 of them again undercovers badly: 78 %
at 2, and 75 % is the limit at 3. Here the squared distance to each limit is that of the pictures' percentile interval
plus that of a t interval over trainings, the method of variance estimates recovery (Graybill and Wang, JASA 75, 1980;
Zou and Donner, Statistics in Medicine 27, 2008). It covers at 2 trainings too, where Satterthwaite's degrees of freedom
give 87 % (our simulation, training sd .03 over 2,000 shared pictures).

Sources: percentile bootstrap and its paired form, Efron and Tibshirani 1993; approximate randomization, Noreen 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from lvlm_guard.evals.errors import DataError

Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

DRAWS = 2000
LEVEL = 0.95  # coverage of intervals
CELLS = 2**20  # draws x pictures held at once: 8 MB
BOLD = 5  # trainings from which on a difference may be called one: below, an interval that covers says little else


@dataclass(frozen=True)
class Estimate:
    """A score or difference and its interval, None where not defined; a difference's two-sided p-value. `trainings` are
    the fewest of a side that has several; 1 where nothing was trained."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    trainings: int = 1

    @property
    def bold(self) -> bool:
        """Whether a difference's interval leaves out zero, and trainings are enough to say so."""
        apart = self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)
        return apart and not 1 < self.trainings < BOLD


class Draws:
    """Pictures drawn again: `draws` samples of as many, with replacement, the same for all that is measured on them.
    Raises `DataError` (there is no picture)."""

    def __init__(self, pictures: int, *, draws: int = DRAWS, seed: int = 0) -> None:
        if pictures < 1:
            raise DataError("There is no picture: nothing was measured, so there is nothing to compare.")
        self.pictures, self.draws, self.seed = pictures, draws, seed

    def figures(self, of: Mapping[K, Callable[[Array], Array]]) -> dict[K, Array]:
        """Return figures of all draws, [1 + draws] or [1 + draws, k].

        Args:
            of: name -> function of weights, [D, pictures] (how often each picture was drawn), to [D] or [D, k].
        """
        parts: dict[K, list[Array]] = {name: [] for name in of}
        for weights in self._weights():
            for name, figure in of.items():
                parts[name].append(figure(weights))
        return {name: np.concatenate(part) for name, part in parts.items()}

    def sums(self, counts: Mapping[K, ArrayLike]) -> dict[K, Array]:
        """Return counts summed over the pictures of each draw: [pictures, k] -> [1 + draws, k]."""
        return self._over(counts, self._weights())

    def swapped(self, counts: Mapping[K, ArrayLike]) -> dict[K, Array]:
        """Return counts summed over the pictures that change sides: [pictures, k] -> [draws, k]; see `swap_null`."""
        return self._over(counts, self._swaps())

    def _over(self, counts: Mapping[K, ArrayLike], chosen: Iterator[Array]) -> dict[K, Array]:
        tables = {name: np.asarray(table, np.float64) for name, table in counts.items()}
        for table in tables.values():
            if table.ndim != 2 or len(table) != self.pictures or not np.isfinite(table).all():
                told = f"of {self.pictures} pictures, one row each, finite; got shape {table.shape}"
                raise DataError(f"Counts are {told}.")
        if not tables:
            return {}
        whole = np.hstack(list(tables.values()))
        found = np.concatenate([weights @ whole for weights in chosen])
        ends = np.cumsum([table.shape[1] for table in tables.values()])
        return dict(zip(tables, np.split(found, ends[:-1], axis=1), strict=True))

    def _weights(self) -> Iterator[Array]:
        """Ones for all pictures, then how often each was drawn: parts of [D, pictures] that fit into memory."""
        yield np.ones((1, self.pictures))
        rng = np.random.default_rng(self.seed)
        for rows in self._parts():
            index = rng.integers(self.pictures, size=(rows, self.pictures))
            index += np.arange(rows)[:, None] * self.pictures
            weights = np.bincount(index.ravel(), minlength=rows * self.pictures).astype(np.float64)
            yield weights.reshape(rows, self.pictures)

    def _swaps(self) -> Iterator[Array]:
        rng = np.random.default_rng([self.seed, 1])
        for rows in self._parts():
            yield rng.integers(2, size=(rows, self.pictures)).astype(np.float64)

    def _parts(self) -> Iterator[int]:
        step = max(1, CELLS // self.pictures)
        for start in range(0, self.draws, step):
            yield min(step, self.draws - start)


@np.errstate(invalid="ignore")  # a tilt may be infinite, and two of them have no difference: NaN
def estimate(figure: ArrayLike) -> Estimate:
    """Return the value of a figure and its 95 % interval. `figure` is [1 + draws]; or [T, 1 + draws] of T trainings,
    whose mean is the value."""
    table = np.atleast_2d(np.asarray(figure, np.float64))
    return _estimate(table.mean(0), [table] if len(table) > 1 else [])


@np.errstate(invalid="ignore")
def difference(ours: ArrayLike, theirs: ArrayLike, null: ArrayLike | None = None) -> Estimate:
    """Return how much higher `ours` is than `theirs`, measured on the same draws, with interval and p-value.

    Args:
        ours, theirs: figures, [1 + draws] or [T, 1 + draws]. As many trainings of both are taken to be shared, one by
            one (a matcher's, in two methods); which is as right where they are not.
        null: [draws], differences if both were equal (`swap_null`). Without it, and with trainings, the p-value is the
            level at which the interval touches zero.
    """
    a, b = (np.atleast_2d(np.asarray(figure, np.float64)) for figure in (ours, theirs))
    sources = [a - b] if len(a) == len(b) > 1 else [table for table in (a, b) if len(table) > 1]
    found = _estimate(a.mean(0) - b.mean(0), sources)
    if found.value is None or found.low is None:
        return found
    p = _touching_zero(a.mean(0) - b.mean(0), sources)
    if null is not None and not sources:
        extreme = np.abs(np.asarray(null)) >= abs(found.value) - 1e-12
        p = float(extreme.sum() + 1) / (len(extreme) + 1)
    return replace(found, p=p)


def swap_null(score: Callable[[Array], Array], ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> Array:
    """Return differences of a score of counts if both runs were equal: pictures change sides at random, [draws].

    Approximate randomization holds for any score of counts. Ranked scores of two decoders have scales of their own, a
    picture's can't change sides, so their p-value is the bootstrap's. `ours` and `theirs` are the counts of all
    pictures, [k], and of those that change sides, [draws, k].
    """
    moved = theirs[1] - ours[1]
    return score(ours[0] + moved) - score(theirs[0] - moved)


def holm(p_values: ArrayLike) -> list[float]:
    """Return p-values adjusted for being several (Holm 1979), in the order given."""
    adjusted = np.array(p_values, dtype=float)
    order = np.argsort(adjusted, kind="stable")
    steps = adjusted[order] * np.arange(len(adjusted), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]


def _estimate(figure: Array, sources: list[Array]) -> Estimate:
    """Return the estimate of a mean figure, [1 + draws], of sources of trainings, each [T, 1 + draws]."""
    value = float(figure[0])
    trainings = min((len(table) for table in sources), default=1)
    drawn = figure[1:][~np.isnan(figure[1:])]
    if np.isnan(value) or not len(drawn):
        return Estimate(None if np.isnan(value) else value, trainings=trainings)
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    if sources:
        trained = _trained(sources, 1 - LEVEL)
        low, high = value - np.hypot(value - low, trained), value + np.hypot(high - value, trained)
    return Estimate(value, float(low), float(high), None, trainings)


def _trained(sources: list[Array], p: float) -> float:
    """Return half the t interval over trainings, at level 1 - p, all sources together."""
    halves = [stats.t.isf(p / 2, len(table) - 1) * table[:, 0].std(ddof=1) / np.sqrt(len(table)) for table in sources]
    return float(np.sqrt(np.sum(np.square(halves))))


def _touching_zero(figure: Array, sources: list[Array]) -> float:
    """Return the p-value at which the interval of a difference, [1 + draws], just touches zero."""
    value, drawn = float(figure[0]), figure[1:][~np.isnan(figure[1:])]
    if not sources:
        fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        return min(1.0, 2 * (fewer + 1) / (len(drawn) + 1))
    spread = float(drawn.std())

    def beyond(p: float) -> float:
        return float(np.hypot(_trained(sources, p), stats.norm.isf(p / 2) * spread)) - abs(value)

    least = 1e-9
    return 1.0 if value == 0 else least if beyond(least) <= 0 else float(optimize.brentq(beyond, least, 1.0))
