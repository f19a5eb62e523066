"""How well a ranker orders, how well captions and pictures find each other, and which weights are kept by that.

Ties count against the model; a share is 0 to 1. What is kept is chosen by retrieval and verification on validation,
never by the training loss, and must not get worse at what it is for: a candidate that finds fewer pictures, tells fewer
swaps apart or judges fewer claims than the untuned backbone is left out, whatever it gains elsewhere. The untuned
backbone is a candidate too. Averaged over nine domains, published prompt tuning loses text-to-image recall against it
(CoOp 2.4 points, MaPLe 1.5: arXiv:2508.04028) while it gains image-to-text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lvlm_guard.errors import KnobError


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
    """

    mae: float
    accuracy: float
    plcc: float
    srcc: float
    pair_accuracy: float
    absence_auroc: float


def ranking_figures(scores: ArrayLike, values: ArrayLike) -> RankingFigures:
    """Return the figures of pictures under one instruction.

    Args:
        scores: [K], in the units of the values.
        values: [K].

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
    )


def mean_figures(each: Mapping[str, RankingFigures]) -> RankingFigures:
    """Return the mean of each figure over the instructions for which it is defined."""

    def mean(name: str) -> float:
        known = [value for figures in each.values() if not math.isnan(value := getattr(figures, name))]
        return float(np.mean(known)) if known else math.nan

    return RankingFigures(**{field.name: mean(field.name) for field in fields(RankingFigures)})


def better(figures: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Return whether a model is chosen over the best so far: by SRCC, ties by the smaller error; NaN is worst."""

    def rank(of: Mapping[str, float]) -> tuple[float, float]:
        return (-math.inf if math.isnan(of["srcc"]) else of["srcc"]), -of["mae"]

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


class Judged:
    """Scores of which is known whether they should be high: the AUROC of those of what is drawn, without sorting again.

    Args:
        scores: [n].
        high: [n]: which should be high.
        owner: [n]: the picture, or caption, that each is of.
    """

    def __init__(self, scores: ArrayLike, high: NDArray[np.bool_], owner: NDArray[np.int64]) -> None:
        self._values, self._place = np.unique(np.asarray(scores, float), return_inverse=True)
        self._high, self._owner = high, owner

    def auroc(self, times: NDArray[np.int64]) -> float:
        """Return the AUROC where owner k was drawn `times[k]` times; NaN where one side is empty."""
        weights, n = times[self._owner].astype(float), len(self._values)
        above, below = (np.bincount(self._place, weights * side, n) for side in (self._high, ~self._high))
        total = above.sum() * below.sum()
        return float((above * (np.cumsum(below) - below / 2)).sum() / total) if total else math.nan


AT = (1, 5, 10)
"""Places within which recall is counted."""

Figures = Mapping[str, float]
"""Of retrieval: `i2t_r1` .. `t2i_r10`, recall both ways; `auroc`, of the verifier, true captions against swaps;
`claims`, of claims that an object is in a picture, true ones against others. NaN where there is none."""


def ranks(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """Return at which place each query finds its first relevant candidate, 1 for the best.

    Args:
        scores: [queries, candidates], higher is better.
        relevant: [queries, candidates] bool; at least one in each row.

    Returns:
        [queries]: 1 + how many other candidates score at least as high.

    Raises:
        KnobError: the shapes differ, a query has no relevant candidate, or a score is NaN.
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


def recall(scores: ArrayLike, relevant: ArrayLike, at: Sequence[int] = AT) -> dict[int, float]:
    """Return K -> share of queries with a relevant candidate among the first K; arguments as of `ranks`."""
    places = ranks(scores, relevant)
    return {k: float((places <= k).mean()) for k in at}


UNTUNED = -1
"""The epoch of the backbone as it was."""


@dataclass(frozen=True)
class Candidate:
    """Weights that may be kept.

    Args:
        epoch: whose end they are of, from 0; -1 for the untuned backbone.
        figures: on validation.
        averaged: they are the average of all epochs, not those of one.
        claims: they were trained to judge claims, so that counts too.
    """

    epoch: int
    figures: Figures
    averaged: bool = False
    claims: bool = False

    @property
    def score(self) -> float:
        """Mean of recall at 1, 5 and 10 both ways in percent, plus 100 times the verifier's AUROC where it is known.

        And 100 times that of claims, where they were trained.
        """
        found = [value for name, value in self.figures.items() if name[:4] in ("i2t_", "t2i_")]
        verifier, claims = (
            0.0 if math.isnan(self.figures[name]) else self.figures[name] for name in ("auroc", "claims")
        )
        return 100 * (sum(found) / len(found) + verifier + (claims if self.claims else 0.0))


def selected(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the highest score among those that lose nothing against the untuned backbone.

    Args:
        candidates: the untuned backbone (epoch -1) among them.

    Returns:
        One of them; of equal scores the untuned backbone, else the earliest.

    Raises:
        KnobError: the untuned backbone is missing, or the AUROC is known of some only.
    """
    untuned = next((candidate for candidate in candidates if candidate.epoch == UNTUNED), None)
    if untuned is None:
        raise KnobError(
            "The untuned backbone (epoch -1) is not among the candidates: measure it too, it may be the best."
        )
    if len({math.isnan(candidate.figures["auroc"]) for candidate in candidates}) > 1:
        raise KnobError("Some candidates have a verifier's AUROC and some have not, so their scores don't compare.")
    kept = [candidate for candidate in candidates if not _loses(candidate, untuned)]
    return max(kept, key=lambda candidate: (candidate.score, -candidate.epoch))


def _loses(candidate: Candidate, untuned: Candidate) -> bool:
    asked = ("t2i_r1", "auroc", "claims") if candidate.claims else ("t2i_r1", "auroc")
    # what is not known is NaN, and loses nothing
    return any(candidate.figures[name] < untuned.figures[name] for name in asked)
