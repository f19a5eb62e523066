"""One table for all adapters: figures with intervals over pictures and trainings, and what one gains on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Picked = NDArray[np.int64]
Figure = Callable[[Picked, Picked], float]
"""(trainings drawn, pictures drawn) -> the figure of these."""

Found = TypeVar("Found")
Measure = Callable[[Found, Picked], float]
"""(what one training makes of all pictures, pictures drawn) -> a figure."""


class Interval(NamedTuple):
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interval(figure: Figure, trainings: int, pictures: int, *, draws: int = 1000, seed: int = 0) -> Interval:
    """Return a figure with its interval; trainings and pictures are drawn with replacement, independently.

    Both are drawn, so that neither's luck is left out. A figure that is NaN on all of them has no interval.

    Args:
        figure: a mean over trainings.
        trainings, pictures: how many there are.
        draws: of the bootstrap.
        seed: of the draws.
    """
    return ends_of(np.array([figure(*drawn) for drawn in _drawn(trainings, pictures, draws, seed)]))


def _drawn(trainings: int, pictures: int, draws: int, seed: int = 0) -> Iterator[tuple[Picked, Picked]]:
    """Yield all trainings and pictures, then draws of them."""
    yield np.arange(trainings), np.arange(pictures)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(0, trainings, trainings), rng.integers(0, pictures, pictures)


def ends_of(figures: NDArray[np.float64]) -> Interval:
    """Return a figure with its 95 % interval from its value on everything, then on draws."""
    whole = float(figures[0])
    if math.isnan(whole):
        return Interval(whole, whole, whole)
    low, high = np.nanquantile(figures[1:], (0.025, 0.975))
    return Interval(whole, float(low), float(high))


def rows_of(
    model: str,
    ours: str,
    task: str,
    found: Mapping[str, Sequence[Found]],
    measures: Mapping[str, Measure[Found]],
    pictures: int,
    *,
    headlines: Collection[str],
    draws: int,
    baseline: str | None = None,
    silent: Mapping[str, Collection[str]] | None = None,
) -> list[dict[str, Any]]:
    """Return rows in long form: each figure of each method, and what `ours` and the baseline have less others.

    Args:
        model: name of the CLIP.
        ours: the method that is compared with all others.
        task: that the rows are of.
        found: of all methods, with as many trainings each; an untrained method's is repeated.
        measures: figures by name.
        pictures: how many were measured on.
        headlines: figures that an adapter must win by; of these there are differences.
        draws: of the bootstrap.
        baseline: the method that all others are compared with too; None for none.
        silent: method -> figures that it has nothing to say of.
    """
    rows = []
    # the same draws for all, so that a difference is that of figures which are there already
    drawn = [*_drawn(len(found[ours]), pictures, draws)]
    pairs = [(ours, other) for other in found if other != ours]
    pairs += [(one, baseline) for one in found if baseline and one not in (ours, baseline)]
    for metric, measure in measures.items():
        figures = {
            method: np.array(
                [np.mean([measure(each[int(t)], picked) for t in trainings]) for trainings, picked in drawn]
            )
            for method, each in found.items()
            if metric not in (silent or {}).get(method, ())
        }
        for method, values in figures.items():
            rows.append(row(model, method, task, metric, ends_of(values), pictures))
        for one, other in pairs:
            if metric in headlines and {one, other} <= figures.keys():
                ends = ends_of(figures[one] - figures[other])
                rows.append(row(model, f"{one}-{other}", task, metric, ends, pictures, baseline=other))
    return rows


def _mean(measure: Measure[Found], each: Sequence[Found], trainings: Picked, pictures: Picked) -> float:
    return float(np.mean([measure(each[int(t)], pictures) for t in trainings]))


def row(
    model: str,
    method: str,
    task: str,
    metric: str,
    ends: tuple[float, float, float],
    n: int,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Return one row in long form; a figure that is undefined is null, one of a difference names what it is less."""
    value, low, high = (None if math.isnan(number) else round(number, 6) for number in ends)
    told = {"model": model, "method": method, "task": task, "metric": metric}
    return told | {"value": value, "low": low, "high": high, "n": n} | ({"baseline": baseline} if baseline else {})
