"""Figures of verifiers over pictures drawn again, and trainings where there are several.

Pictures are drawn with replacement, with all their mentions (a cluster bootstrap), since those of one picture depend on
each other. A figure is an array [1 + draws]: of all pictures first, then of each draw; all verifiers are measured on
the same draws, so a difference of two figures is paired.

Sources: AUROC as a share of pairs, ties half (Hanley and McNeil 1982); Brier 1950; expected calibration error over ten
bins of equal width (Naeini et al., AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.bootstrap import Array, Estimate

DRAWS, BINS = 2000, 10
CELLS = 2**22  # draws x mentions held at once: 32 MB


class Drawn:
    """Mentions, and how often each draw has them.

    Args:
        pictures: [n], the picture of each mention, by any number.
        true: [n] bool, whether the object is there.
        draws: samples of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: there is no mention, or all are true, or none is.
    """

    def __init__(self, pictures: ArrayLike, true: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> None:
        self.true = np.asarray(true, bool)
        self._pictures = np.unique(np.asarray(pictures), return_inverse=True)[1]
        if not len(self.true):
            raise DataError(
                "No description names an object, so there is nothing to verify. Take more pictures (--limit), or look "
                "at the descriptions: does the model answer at all, and with objects of the task?"
            )
        if self.true.all() or not self.true.any():
            what = "true" if self.true.all() else "hallucinated"
            raise DataError(
                f"All {len(self.true)} mentions are {what}, so there is nothing to tell apart and no AUROC. Take more "
                "pictures (--limit)."
            )
        number = int(self._pictures.max()) + 1
        self._seed, self.draws = seed, draws
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=draws)
        self._weights = np.vstack([np.ones((1, number)), drawn])

    def each(self, figure: Callable[[Array], Array]) -> Array:
        """Return a figure of the weights of mentions, [draws, n] -> [draws], for all draws."""
        step = max(1, CELLS // len(self.true))
        parts = [self._weights[k : k + step, self._pictures] for k in range(0, len(self._weights), step)]
        return np.concatenate([figure(weights) for weights in parts])

    def pooled(self, trainings: Sequence[Array]) -> Array:
        """Return the mean of a figure over trainings, which are drawn too; the same ones for equal numbers of them."""
        table = np.stack(trainings)  # [T, 1 + draws]
        chosen = np.random.default_rng([self._seed, 2]).integers(len(table), size=(len(table), self.draws))
        drawn = np.take_along_axis(table[:, 1:], chosen, axis=0)
        return np.concatenate([table[:, :1].mean(0), drawn.mean(0)])

    def auroc(self, scores: ArrayLike) -> Array:
        """Return the probability that a true mention scores above a hallucinated one; NaN where a draw lacks either."""
        s = np.asarray(scores, float)
        if not np.isfinite(s).all():
            raise DataError(
                f"{int((~np.isfinite(s)).sum())} scores of a verifier are no numbers: its weights are amiss."
            )
        order = np.argsort(s, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], np.diff(s[order]) > 0]))
        true = self.true[order]

        def of(weights: Array) -> Array:
            w = weights[:, order]
            above = np.add.reduceat(w * true, starts, axis=1)
            below = np.add.reduceat(w * ~true, starts, axis=1)
            wins = (above * (np.cumsum(below, 1) - below / 2)).sum(1)
            return _share(wins, above.sum(1) * below.sum(1))

        return self.each(of)

    def brier(self, p: ArrayLike) -> Array:
        """Return the mean squared error of probabilities."""
        off = (np.asarray(p, float) - self.true) ** 2
        return self.each(lambda w: _share(w @ off, w.sum(1)))

    def calibration_error(self, p: ArrayLike) -> Array:
        """Return the mean gap between probability and share of true mentions, over bins, each by its mentions."""
        gap = np.asarray(p, float) - self.true
        inside = np.eye(BINS)[bins_of(p)]  # [n, bins]
        return self.each(lambda w: _share(np.abs(w @ (inside * gap[:, None])).sum(1), w.sum(1)))

    def marked(self, marks: ArrayLike) -> dict[str, Array]:
        """Return the share of mentions that are marked, and precision and recall of marks as signs of hallucination."""
        m = np.asarray(marks, float)
        caught = m * ~self.true
        return {
            "marked": self.each(lambda w: _share(w @ m, w.sum(1))),
            "mark_precision": self.each(lambda w: _share(w @ caught, w @ m)),
            "mark_recall": self.each(lambda w: _share(w @ caught, w @ (~self.true).astype(float))),
        }

    def hallucinated(self) -> Array:
        """Return the share of mentions that are hallucinated: the precision of marks set blindly."""
        return self.each(lambda w: _share(w @ (~self.true).astype(float), w.sum(1)))


def estimate(figure: Array) -> Estimate | None:
    """Return a figure's value and 95 % percentile interval over its draws; None where it is undefined."""
    if np.isnan(figure[0]):
        return None
    drawn = figure[1:][~np.isnan(figure[1:])]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(float(figure[0]), float(low), float(high))


def bins_of(p: ArrayLike) -> NDArray[np.int64]:
    """Return the bin of each probability, 0 to 9; the last one holds 1 too."""
    return np.minimum((np.asarray(p, float) * BINS).astype(np.int64), BINS - 1)


def reliability(p: ArrayLike, true: ArrayLike) -> list[dict[str, float]]:
    """Return each bin that is not empty: its mean probability, the share that is true, and how many there are."""
    value, hit, bins = np.asarray(p, float), np.asarray(true, bool), bins_of(p)
    return [
        {"p": float(value[bins == k].mean()), "true": float(hit[bins == k].mean()), "n": int((bins == k).sum())}
        for k in range(BINS)
        if (bins == k).any()
    ]


def _share(part: Array, whole: Array) -> Array:
    found: Array = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole != 0)
    return found
