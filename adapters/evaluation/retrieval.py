"""Intervals over pictures and trainings: both are drawn again, so that neither's luck is left out.

Retrieval among hard negatives: a trained retriever beside what it must beat, on pictures that none has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import AT

Picked = NDArray[np.int64]
Figure = Callable[[Picked, Picked], float]
"""(trainings drawn, pictures drawn) -> the figure of these."""


class Interval(NamedTuple):
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interval(figure: Figure, trainings: int, pictures: int, *, draws: int = 1000, seed: int = 0) -> Interval:
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


TASK = "retrieval"
HEADLINES = ("verifier_auroc", "brier", "i2t_r1", "t2i_r1", "swap_auroc", "claims_auroc")
"""What an adapter must win by."""

DRAWS = 300

Found = Mapping[str, Sequence[Searched]]
"""Method -> what each of its trainings makes of the gallery."""

Measure = Callable[[Searched, NDArray[np.int64], NDArray[np.int64]], float]
"""(one training, pictures drawn, their captions) -> a figure."""


def of_claims(novel: NDArray[np.bool_]) -> dict[str, Measure]:
    """Return the figures of claims by name: the verifier's AUROC and Brier score, of objects trained on and of others.

    Args:
        novel: [claims]: about which objects no claim was trained.
    """

    def about(which: NDArray[np.bool_]) -> Measure:
        return lambda found, pictures, _: found.claims_auroc(pictures, which)

    return {
        "verifier_auroc": lambda found, pictures, _: found.verified(pictures)[0],
        "brier": lambda found, pictures, _: found.verified(pictures)[1],
        "claims_auroc_base": about(~novel),
        "claims_auroc_novel": about(novel),
    }


def measures(kinds: Sequence[str]) -> dict[str, Measure]:
    """Return the figures by name.

    `i2t_r1` .. `t2i_r10`: recall; pictures search among all captions and swaps, captions among all pictures.
    `swap_auroc`: captions against their own swaps, pooled and of each kind. `accuracy_KIND`: share of captions that
    score above all their swaps of a kind. `claims_auroc`: "a photo of a dog" of pictures whose captions name one,
    against all others.
    """

    def image_recall(k: int) -> Measure:
        return lambda found, pictures, _: float((found.image_places[pictures] <= k).mean())

    def text_recall(k: int) -> Measure:
        return lambda found, _, rows: float((found.text_places[rows] <= k).mean())

    named: dict[str, Measure] = {f"i2t_r{k}": image_recall(k) for k in AT}
    named |= {f"t2i_r{k}": text_recall(k) for k in AT}
    named["claims_auroc"] = lambda found, pictures, _: found.claims_auroc(pictures)
    if not kinds:
        return named
    named["swap_auroc"] = lambda found, _, rows: found.swap_auroc(rows)
    for kind in kinds:
        named[f"swap_auroc_{kind}"] = lambda found, _, rows, kind=kind: found.swap_auroc(rows, kind)  # type: ignore[misc]
        named[f"accuracy_{kind}"] = lambda found, _, rows, kind=kind: found.above(rows, kind)  # type: ignore[misc]
    return named


def rows_of(
    model: str, ours: str, found: Found, *, more: Mapping[str, Measure] | None = None, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """Return rows in long form: each figure of each method, and `ours` less each other method.

    Args:
        model: name of the CLIP.
        ours: the method that is compared with all others.
        found: of all methods, with as many trainings each; an untrained method's is repeated.
        more: further figures, shown first.
        draws: of the bootstrap over pictures and trainings.
    """
    gallery = found[ours][0].gallery
    captions = _captions(gallery)
    kinds = sorted(set(gallery.kinds.tolist()))
    pictures = len(gallery.images)
    rows: list[dict[str, Any]] = []
    for metric, measure in {**(more or {}), **measures(kinds)}.items():
        figures: dict[str, Figure] = {method: partial(_over, measure, captions, each) for method, each in found.items()}
        trainings = len(found[ours])
        for method, figure in figures.items():
            rows.append(_row(model, method, metric, interval(figure, trainings, pictures, draws=draws), pictures))
        for method, figure in figures.items():
            if method != ours and metric in HEADLINES:
                ends = interval(less(figures[ours], figure), trainings, pictures, draws=draws)
                rows.append(_row(model, f"{ours}-{method}", metric, ends, pictures))
    return rows


def _over(
    measure: Measure,
    captions: Sequence[NDArray[np.int64]],
    each: Sequence[Searched],
    trainings: Picked,
    pictures: Picked,
) -> float:
    """Return the mean over trainings of a figure of pictures and their captions."""
    said = np.concatenate([captions[k] for k in pictures])
    return float(np.mean([measure(each[t], pictures, said) for t in trainings]))


def by_category(found: Sequence[Searched]) -> dict[str, dict[str, float]]:
    """Return category -> recall at 1 of its captions' pictures, its captions, and how many there are."""
    gallery = found[0].gallery
    told: dict[str, dict[str, float]] = {}
    for name in sorted({row.category for row in gallery.rows if row.category}):
        rows = np.array([k for k, row in enumerate(gallery.rows) if row.category == name])
        images = np.unique(gallery.image_of[rows])
        told[name] = {
            "i2t_r1": float(np.mean([(one.image_places[images] <= 1).mean() for one in found])),
            "t2i_r1": float(np.mean([(one.text_places[rows] <= 1).mean() for one in found])),
            "n": float(len(rows)),
        }
    return told


def _captions(gallery: Gallery) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(gallery.image_of == k) for k in range(len(gallery.images))]


def _row(model: str, method: str, metric: str, ends: tuple[float, float, float], n: int) -> dict[str, Any]:
    return row(model, method, TASK, metric, ends, n)


def row(model: str, method: str, task: str, metric: str, ends: tuple[float, float, float], n: int) -> dict[str, Any]:
    """Return one row in long form; a figure that is undefined is null."""
    value, low, high = (None if math.isnan(number) else round(number, 6) for number in ends)
    return {
        "model": model,
        "method": method,
        "task": task,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }
