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


def cyclic_triples(logits: ArrayLike) -> float:
    """Return the share of triples that are ordered in a circle (a over b over c over a); NaN below three pictures."""
    over: NDArray[Any] = (np.asarray(logits, float) > 0).astype(np.float64)
    n = len(over)
    if n < 3:
        return math.nan
    return float(np.einsum("ij,ji->", over @ over, over) / 3 / math.comb(n, 3))


AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalFigures:
    """Recall at 1, 5 and 10, both ways, and how well true captions stand above their swaps.

    Args:
        image_to_text: K -> share of images one of whose captions is among the first K.
        text_to_image: K -> share of captions whose image is among the first K.
        auroc: of the verifier, true captions against swaps; NaN where it was not measured.
        auroc_by_kind: the same for each kind of swap.
        claims: AUROC of claims that an object is in a picture, true ones against others; NaN where there are none.
    """

    image_to_text: Mapping[int, float]
    text_to_image: Mapping[int, float]
    auroc: float = float("nan")
    auroc_by_kind: Mapping[str, float] | None = None
    claims: float = float("nan")


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


def retrieval_figures(
    image_to_text: ArrayLike, text_to_image: ArrayLike | None, image_of: Sequence[int], at: Sequence[int] = AT
) -> RetrievalFigures:
    """Return recall both ways.

    Args:
        image_to_text: [images, captions], scores by which each image ranks the captions.
        text_to_image: [captions, images], scores by which each caption ranks the images; None for the transpose.
        image_of: [captions], the row of each caption's image; -1 for a swap, which is in the gallery of captions but
            asks for no image.
        at: the Ks.

    Raises:
        KnobError: an image has no caption, or as in `ranks`.
    """
    rows = np.asarray(image_to_text, float)
    columns = rows.T if text_to_image is None else np.asarray(text_to_image, float)
    of = np.asarray(image_of)
    if of.shape != (rows.shape[1],) or (of.size and (of.max() >= len(rows) or of.min() < -1)):
        raise KnobError(
            f"image_of must say for each of the {rows.shape[1]} captions which of the {len(rows)} images it is of, or "
            "-1 for none."
        )
    relevant = of[None] == np.arange(len(rows))[:, None]
    true = of >= 0
    return RetrievalFigures(recall(rows, relevant, at), recall(columns[true], relevant.T[true], at))


def swap_auroc(
    true: ArrayLike, swaps: Sequence[Sequence[float]], kinds: Sequence[Sequence[str]] | None = None
) -> tuple[float, dict[str, float]]:
    """Return (AUROC of true captions against all swaps, the same for each kind of swap); NaN where there is none.

    Args:
        true: [n], score of image i with its caption.
        swaps: for each image the scores of its caption's swaps.
        kinds: what was exchanged in each of them.
    """
    pooled = [score for each in swaps for score in each]
    by_kind: dict[str, list[float]] = {}
    for scores, names in zip(swaps, kinds or [], strict=kinds is not None):
        for score, name in zip(scores, names, strict=True):
            by_kind.setdefault(name, []).append(score)
    return auroc(true, pooled), {name: auroc(true, found) for name, found in sorted(by_kind.items())}


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
    figures: RetrievalFigures
    averaged: bool = False
    claims: bool = False

    @property
    def score(self) -> float:
        """Mean of recall at 1, 5 and 10 both ways in percent, plus 100 times the verifier's AUROC where it is known.

        And 100 times that of claims, where they were trained.
        """
        both = [way[k] for way in (self.figures.image_to_text, self.figures.text_to_image) for k in AT]
        verifier = 0.0 if math.isnan(self.figures.auroc) else self.figures.auroc
        claims = self.figures.claims if self.claims and not math.isnan(self.figures.claims) else 0.0
        return 100 * (sum(both) / len(both) + verifier + claims)


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
    if len({math.isnan(candidate.figures.auroc) for candidate in candidates}) > 1:
        raise KnobError("Some candidates have a verifier's AUROC and some have not, so their scores don't compare.")
    kept = [candidate for candidate in candidates if not _loses(candidate, untuned)]
    return max(kept, key=lambda candidate: (candidate.score, -candidate.epoch))


def _loses(candidate: Candidate, untuned: Candidate) -> bool:
    one, plain = candidate.figures, untuned.figures
    pairs = [(one.text_to_image[1], plain.text_to_image[1]), (one.auroc, plain.auroc)]
    if candidate.claims:
        pairs.append((one.claims, plain.claims))
    return any(ours < theirs for ours, theirs in pairs)  # what is not known is NaN, and loses nothing
