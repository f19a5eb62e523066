"""Figures of rankings and of retrieval, their intervals, the one table of all adapters, and which weights are kept.

Ties count against the model; a share is 0 to 1. What is kept is chosen by retrieval and verification on validation,
never by the training loss, and must not get worse at what it is for: a candidate that finds fewer pictures, tells fewer
swaps apart or judges fewer claims than the untuned backbone is left out, whatever it gains elsewhere. The untuned
backbone is a candidate too. Averaged over nine domains, published prompt tuning loses text-to-image recall against it
(CoOp 2.4 points, MaPLe 1.5: arXiv:2508.04028) while it gains image-to-text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.errors import KnobError


class RankingFigures(NamedTuple):
    """Figures of one instruction, or their means; NaN where one is undefined.

    Args:
        mae: mean absolute error of the scores, in the units of the values.
        accuracy: share of scores that round to the value (half to even, as Python rounds).
        plcc, srcc: Pearson's correlation of scores and values; Spearman's, ties at their average rank.
        pair_accuracy: share of pairs of unequal values whose scores are in their order.
        absence_auroc: probability that a picture with a value above 0 scores higher than one with 0; ties count half.
    """

    mae: float
    accuracy: float
    plcc: float
    srcc: float
    pair_accuracy: float
    absence_auroc: float


def ranking_figures(scores: ArrayLike, values: ArrayLike) -> RankingFigures:
    """Return the figures of pictures under one instruction, scores [K] in the units of the values [K].

    Raises `KnobError` where there is no picture, or the shapes differ, or a number is not finite.
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
    )


def mean_figures(each: Mapping[str, RankingFigures]) -> RankingFigures:
    """Return the mean of each figure over the instructions for which it is defined."""

    def mean(name: str) -> float:
        known = [value for figures in each.values() if not math.isnan(value := getattr(figures, name))]
        return float(np.mean(known)) if known else math.nan

    return RankingFigures(*map(mean, RankingFigures._fields))


def better(figures: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Return whether a model is chosen over the best so far: by SRCC, ties by the smaller error; NaN is worst."""

    def rank(of: Mapping[str, float]) -> tuple[float, float]:
        return (-math.inf if math.isnan(of["srcc"]) else of["srcc"]), -of["mae"]

    return best is None or rank(figures) > rank(best)


def pair_accuracy(scores: ArrayLike, values: ArrayLike) -> float:
    """Return the share of pairs of unequal values whose scores are in their order; NaN where there is none."""
    s, y = np.asarray(scores, float), np.asarray(values, float)
    i, j = np.triu_indices(len(y), 1)
    right = np.sign(s[i] - s[j]) == np.sign(y[i] - y[j])
    unequal = y[i] != y[j]
    return float(right[unequal].mean()) if unequal.any() else math.nan


def judge(scores: ArrayLike, high: NDArray[np.bool_], owner: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], float]:
    """Return a function of drawn owners -> the AUROC of their scores, NaN where one side is empty; it sorts no more.

    Args:
        scores, high: [n], and which of them should be high.
        owner: [n], the picture or caption that each is of; it counts as often as that is drawn.
    """
    values, place = np.unique(np.asarray(scores, float), return_inverse=True)

    def judged(drawn: NDArray[np.int64]) -> float:
        weights = np.bincount(drawn, minlength=int(owner.max(initial=-1)) + 1)[owner].astype(float)
        above, below = (np.bincount(place, weights * side, len(values)) for side in (high, ~high))
        total = above.sum() * below.sum()
        return float((above * (np.cumsum(below) - below / 2)).sum() / total) if total else math.nan

    return judged


def auroc(above: ArrayLike, below: ArrayLike) -> float:
    """Return the probability that a score of the first is higher than one of the second; NaN where one is empty."""
    scores, n = np.concatenate([np.asarray(above, float), np.asarray(below, float)]), len(np.asarray(above))
    return judge(scores, np.arange(len(scores)) < n, np.zeros(len(scores), np.int64))(np.zeros(1, np.int64))


AT = (1, 5, 10)
"""Places within which recall is counted."""

Figures = Mapping[str, float]
"""Of retrieval: `i2t_r1` .. `t2i_r10`, recall both ways; `auroc`, of the verifier, true captions against swaps;
`claims`, of claims that an object is in a picture, true ones against others. NaN where there is none."""


def ranks(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """Return at which place each query finds its first relevant candidate: 1 + how many others score at least as high.

    Both are [queries, candidates]. Raises `KnobError` where the shapes differ, a query has no relevant candidate, or a
    score is NaN.
    """
    s, hit = np.asarray(scores, float), np.asarray(relevant, bool)
    if s.ndim != 2 or s.shape != hit.shape or not s.size:
        raise KnobError(f"Give scores and relevance of one shape [queries, candidates]; got {s.shape} and {hit.shape}.")
    if np.isnan(s).any():
        raise KnobError(f"{int(np.isnan(s).sum())} scores are NaN, so there is no order: the model is broken.")
    if not hit.any(1).all():
        raise KnobError(
            f"{int((~hit.any(1)).sum())} queries have no relevant candidate, so they are never found: leave them out."
        )
    best = np.where(hit, s, -np.inf).max(1)
    return np.asarray(1 + ((s >= best[:, None]) & ~hit).sum(1), np.int64)


def recall(places: NDArray[np.int64], at: Sequence[int] = AT) -> dict[int, float]:
    """Return K -> share of queries with a relevant candidate among the first K, by the places that `ranks` gives."""
    return {k: float((places <= k).mean()) for k in at}


def both_ways(image_places: NDArray[np.int64], text_places: NDArray[np.int64]) -> dict[str, float]:
    """Return `i2t_r1` .. `t2i_r10`: recall of pictures' captions, and of captions' pictures."""
    ways = {"i2t": recall(image_places), "t2i": recall(text_places)}
    return {f"{way}_r{k}": share for way, shares in ways.items() for k, share in shares.items()}


UNTUNED = -1


@dataclass(frozen=True)
class Candidate:
    """Weights that may be kept, with their figures on validation.

    Args:
        epoch: whose end they are of, from 0; -1, `UNTUNED`, for the backbone as it was.
        averaged: they are the average of all epochs, not those of one.
        claims: they were trained to judge claims, so that counts too.
    """

    epoch: int
    figures: Figures
    averaged: bool = False
    claims: bool = False

    @property
    def score(self) -> float:
        """Mean recall in percent, plus 100 times the AUROCs that count and are known: verifier and claims."""
        recalls = [value for name, value in self.figures.items() if name[:4] in ("i2t_", "t2i_")]
        judged = [self.figures[name] for name in ("auroc", "claims")[: 1 + self.claims]]
        return 100 * sum(part for part in (sum(recalls) / len(recalls), *judged) if not math.isnan(part))


def selected(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the highest score among those that lose nothing against the untuned backbone.

    Of equal scores it is the earliest, the backbone before all. Raises `KnobError` where the backbone is missing, or
    the AUROC is known of some only.
    """
    untuned = next((candidate for candidate in candidates if candidate.epoch == UNTUNED), None)
    if untuned is None:
        raise KnobError(
            "The untuned backbone (epoch -1) is not among the candidates: measure it too, it may be the best."
        )
    if len({math.isnan(candidate.figures["auroc"]) for candidate in candidates}) > 1:
        raise KnobError("Some candidates have a verifier's AUROC and some have not, so their scores don't compare.")

    def loses(candidate: Candidate) -> bool:
        asked = ("t2i_r1", "auroc", "claims")[: 2 + candidate.claims]
        # what is not known is NaN, and loses nothing
        return any(candidate.figures[name] < untuned.figures[name] for name in asked)

    kept = [candidate for candidate in candidates if not loses(candidate)]
    return max(kept, key=lambda candidate: (candidate.score, -candidate.epoch))


Picked = NDArray[np.int64]
Found = TypeVar("Found")


class Interval(NamedTuple):
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def resampled(trainings: int, pictures: int, draws: int) -> Iterator[tuple[Picked, Picked]]:
    """Yield all trainings and pictures, then draws of them: with replacement, so that neither's luck is left out."""
    yield np.arange(trainings), np.arange(pictures)
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield rng.integers(0, trainings, trainings), rng.integers(0, pictures, pictures)


def ends_of(figures: NDArray[np.float64]) -> Interval:
    """Return a figure with its 95 % interval from its value on everything, then on draws; none where it is NaN."""
    if math.isnan(figures[0]):
        return Interval(math.nan, math.nan, math.nan)
    return Interval(float(figures[0]), *map(float, np.nanquantile(figures[1:], (0.025, 0.975))))


def table(
    model: str,
    ours: str,
    task: str,
    found: Mapping[str, Sequence[Found]],
    measure: Callable[[Found, Picked], Mapping[str, float]],
    pictures: int,
    *,
    headlines: Collection[str],
    draws: int,
    baseline: str | None = None,
) -> list[dict[str, Any]]:
    """Return rows in long form: each figure of each method, and what `ours` and the baseline have less others.

    Args:
        model, task: that the rows are of.
        ours: the method that is compared with all others.
        found: of all methods, with as many trainings each; an untrained method's is repeated.
        measure: (what one training makes of all pictures, pictures drawn) -> figures by name, or some of them.
        pictures: how many were measured on.
        headlines: figures that an adapter must win by; of these there are differences.
        draws: of the bootstrap.
        baseline: the method that all others are compared with too; None for none.
    """

    def mean(each: Sequence[Found], trainings: Picked, picked: Picked) -> dict[str, float]:
        chosen = [each[int(t)] for t in trainings]
        made = {key: measure(one, picked) for key, one in {id(one): one for one in chosen}.items()}
        return {name: float(np.mean([made[id(one)][name] for one in chosen])) for name in made[id(chosen[0])]}

    # the same draws for all, so that a difference is that of figures which are there already
    drawn = [*resampled(len(found[ours]), pictures, draws)]
    means = {method: [mean(each, *one) for one in drawn] for method, each in found.items()}
    pairs = [(ours, other) for other in found if other != ours]
    pairs += [(one, baseline) for one in found if baseline and one not in (ours, baseline)]
    rows = []
    for metric in means[ours][0]:
        figures = {
            method: np.array([one[metric] for one in each]) for method, each in means.items() if metric in each[0]
        }
        rows += [row(model, method, task, metric, ends_of(each), pictures) for method, each in figures.items()]
        for one, other in pairs:
            if metric in headlines and {one, other} <= figures.keys():
                ends = ends_of(figures[one] - figures[other])
                rows.append(row(model, f"{one}-{other}", task, metric, ends, pictures, baseline=other))
    return rows


def row(
    model: str, method: str, task: str, metric: str, ends: tuple[float, float, float], n: int, **more: str
) -> dict[str, Any]:
    """Return one row in long form; an undefined figure is null, that of a difference tells of its `baseline` too."""
    value, low, high = (None if math.isnan(number) else round(number, 6) for number in ends)
    told = {"model": model, "method": method, "task": task, "metric": metric}
    return told | {"value": value, "low": low, "high": high, "n": n} | more
