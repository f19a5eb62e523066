"""How well pictures are scored and ordered under one instruction, and over several.

The release's pair accuracy is not here: it counts ties and each picture against itself, and gives a ranking that is
wrong everywhere .385 where this one gives 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.errors import KnobError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RankingFigures:
    """Figures of one instruction, or their means; NaN where one is undefined.

    Args:
        mae: mean absolute error of the scores, in the units of the values.
        accuracy: share of scores that round to the value (half to even, as Python rounds).
        plcc: Pearson's correlation of scores and values.
        srcc: Spearman's, ties at their average rank.
        pair_accuracy: share of pairs of unequal values whose scores are in their order.
        absence_auroc: probability that a picture with a value above 0 scores higher than one with 0; ties count half.
        cyclic_triples: share of triples of pictures that the pair logits order in a circle.
    """

    mae: float
    accuracy: float
    plcc: float
    srcc: float
    pair_accuracy: float
    absence_auroc: float
    cyclic_triples: float = math.nan


def ranking_figures(scores: ArrayLike, values: ArrayLike, logits: ArrayLike | None = None) -> RankingFigures:
    """Return the figures of pictures under one instruction.

    Args:
        scores: [K], in the units of the values.
        values: [K].
        logits: [K, K], antisymmetric; None leaves the triples out.

    Raises:
        KnobError: there is no picture, or the shapes differ, or a number is not finite.
    """
    s, y = np.asarray(scores, float), np.asarray(values, float)
    if s.ndim != 1 or s.shape != y.shape or not len(s) or not (np.isfinite(s).all() and np.isfinite(y).all()):
        raise KnobError(f"Give a finite score and value for each picture; got shapes {s.shape} and {y.shape}.")
    varied = len(s) > 1 and bool(np.ptp(s)) and bool(np.ptp(y))
    return RankingFigures(
        mae=float(np.abs(s - y).mean()),
        accuracy=float((np.rint(s) == y).mean()),
        plcc=float(stats.pearsonr(s, y).statistic) if varied else math.nan,
        srcc=float(stats.spearmanr(s, y).statistic) if varied else math.nan,
        pair_accuracy=pair_accuracy(s, y),
        absence_auroc=auroc(s[y > 0], s[y == 0]),
        cyclic_triples=math.nan if logits is None else cyclic_triples(logits),
    )


def mean_figures(each: Mapping[str, RankingFigures]) -> RankingFigures:
    """Return the mean of each figure over the instructions for which it is defined."""

    def mean(name: str) -> float:
        known = [value for figures in each.values() if not math.isnan(value := getattr(figures, name))]
        return float(np.mean(known)) if known else math.nan

    return RankingFigures(**{field.name: mean(field.name) for field in fields(RankingFigures)})


def better(figures: RankingFigures, best: RankingFigures | None) -> bool:
    """Return whether a model is chosen over the best so far: by SRCC, ties by the smaller error; NaN is worst."""

    def rank(of: RankingFigures) -> tuple[float, float]:
        return (-math.inf if math.isnan(of.srcc) else of.srcc), -of.mae

    return best is None or rank(figures) > rank(best)


def pair_accuracy(scores: ArrayLike, values: ArrayLike) -> float:
    """Return the share of pairs of unequal values whose scores are in their order; NaN where there is none."""
    s, y = np.asarray(scores, float), np.asarray(values, float)
    i, j = np.triu_indices(len(y), 1)
    unequal = y[i] != y[j]
    if not unequal.any():
        return math.nan
    return float((np.sign(s[i] - s[j]) == np.sign(y[i] - y[j]))[unequal].mean())


def auroc(above: ArrayLike, below: ArrayLike) -> float:
    """Return the probability that a score of the first is higher than one of the second; NaN where one is empty."""
    high, low = np.asarray(above, float), np.asarray(below, float)
    if not len(high) or not len(low):
        return math.nan
    ranks = stats.rankdata(np.concatenate([high, low]))
    return float((ranks[: len(high)].sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


def cyclic_triples(logits: ArrayLike) -> float:
    """Return the share of triples that are ordered in a circle (a over b over c over a); NaN below three pictures."""
    over: NDArray[Any] = (np.asarray(logits, float) > 0).astype(np.float64)
    n = len(over)
    if n < 3:
        return math.nan
    return float(np.einsum("ij,ji->", over @ over, over) / 3 / math.comb(n, 3))
