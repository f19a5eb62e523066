"""What scores of yes rank, which no threshold can give: AUROC, and accuracy at a matched share of yes.

The score of a question is its log-odds of yes at the first answer token, s = logsumexp(z[yes]) - logsumexp(z[no]), in
nats. A constant added to every s, a tilt, moves accuracy and yes ratio, and leaves AUROC and matched accuracy alone: a
method whose accuracy rises while they do not has moved the threshold. AUROC is a share of pairs, ties half (Hanley and
McNeil, Radiology 143, 1982). One-wayness is that of "Mirage" (arXiv:2504.10020).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Direction, share

RANKED: dict[str, Direction] = {"auroc": "higher", "accuracy_matched": "higher", "tilt": ""}
"""Metrics of scores rather than answers."""

CELLS = 2**17  # draws x questions worked on at once: what a core's cache holds


class Ranked(NamedTuple):
    """What a ranking gives, one number a draw, [D]; NaN where a class is missing, or all or none are called yes. The
    tilt is the midpoint d between the scores on either side of the border: its distance from 0 is the model's bias."""

    auroc: Array  # P(s+ > s-) + P(s+ = s-) / 2
    k: Array  # how many questions are called yes
    tp: Array  # expected right answers when they are: questions tied across the border are shared out
    tn: Array
    accuracy: Array  # (tp + tn) / n; of one class it would be 1 whatever the ranking
    tilt: Array  # nats


class Ranking:
    """Questions by their scores, sorted once for any number of draws.

    Args:
        scores, yes: [N], nats (-inf below all, +inf above all; `DataError` of NaN), and the labels.
        pictures: [N], column of each question's picture in the weights; None: each question has its own.
    """

    def __init__(self, scores: ArrayLike, yes: ArrayLike, pictures: ArrayLike | None = None) -> None:
        values = np.asarray(scores, np.float64)
        if np.isnan(values).any():
            raise DataError(f"{int(np.isnan(values).sum())} of {len(values)} scores are no numbers: none can be left.")
        order = np.argsort(values, kind="stable")
        self._yes = np.asarray(yes, bool)[order].astype(np.float64)
        self._at = order if pictures is None else np.asarray(pictures)[order]
        starts = np.flatnonzero(np.concatenate([[True], values[order][1:] != values[order][:-1]]))
        self._starts = starts if len(starts) < len(order) else None  # of groups of ties
        self._values = values[order][starts]

    def __call__(self, weights: Array, half: bool = False) -> Ranked:
        """Return the figures of each draw; `weights` [D, pictures] are how often each picture was drawn. As many
        questions are called yes as labels say (all that fits unbalanced ones), or `half`, half to even."""
        step = max(1, CELLS // max(1, len(self._yes)))
        parts = [self._part(weights[i : i + step], half) for i in range(0, len(weights), step)]
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def figures(self, weights: Array) -> Array:
        """Return the figures of `RANKED` of each draw, [D, 3]."""
        found = self(weights)
        return np.stack([found.auroc, found.accuracy, found.tilt], axis=-1)

    def _part(self, weights: Array, half: bool) -> tuple[Array, ...]:
        w = weights[:, self._at]
        y = w * self._yes
        if self._starts is not None:
            w, y = np.add.reduceat(w, self._starts, axis=1), np.add.reduceat(y, self._starts, axis=1)
        below, yes_below = np.cumsum(w, axis=1), np.cumsum(y, axis=1)  # up to and with each group, lowest first
        n, n_yes = below[:, -1], yes_below[:, -1]
        n_no = n - n_yes
        w -= y
        lost = np.einsum("ij,ij->i", w, yes_below)
        if self._starts is not None:
            lost -= np.einsum("ij,ij->i", w, y) / 2
        auroc = 1 - share(lost, n_yes * n_no, np.nan)
        k = np.rint(n / 2) if half else n_yes
        found = [self._border(b, p, float(t)) for b, p, t in zip(below, yes_below, n - k, strict=True)]
        missed, tilt = np.array(found).T
        tp, tn = n_yes - missed, n_no - (k - n_yes + missed)
        one_class = (n_yes == 0) | (n_no == 0)
        return auroc, k, tp, tn, np.where(one_class, np.nan, share(tp + tn, n)), tilt

    def _border(self, below: Array, yes_below: Array, called_no: float) -> tuple[float, float]:
        """Return the yes-labelled weight among the lowest `called_no`, and the tilt that calls these no."""
        last, first = (int(np.searchsorted(below, called_no, side)) for side in ("left", "right"))
        before, yes_before = (below[last - 1], yes_below[last - 1]) if last else (0.0, 0.0)
        width = below[last] - before
        missed = yes_before + ((called_no - before) / width * (yes_below[last] - yes_before) if width else 0.0)
        if called_no == 0 or first == len(below):
            return missed, np.nan
        return missed, (float(self._values[last]) + float(self._values[first])) / 2  # NaN between -inf and +inf


def one_wayness(n2p: ArrayLike, p2n: ArrayLike) -> Array:
    """Return |N2P - P2N| / (N2P + P2N): 1 is a pure tilt, 0 pure re-ranking; NaN where no answer changed."""
    to_yes, to_no = np.asarray(n2p, float), np.asarray(p2n, float)
    return share(np.abs(to_yes - to_no), to_yes + to_no, np.nan)
