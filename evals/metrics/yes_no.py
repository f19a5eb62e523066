"""Yes/no questions: what no threshold can give (AUROC, accuracy at a matched yes ratio), and what was said.

The score of a question is its log-odds of yes at the first answer token, s = logsumexp(z[yes]) - logsumexp(z[no]), in
nats. A constant added to every s, a tilt, moves accuracy and yes ratio, and leaves AUROC and matched accuracy alone: a
method whose accuracy rises while they do not has moved the threshold. One-wayness and the transitions N2P and P2N are
those of "Mirage" (arXiv:2504.10020). AUROC is a share of pairs, ties half (Hanley and McNeil, Radiology 143, 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Batch, Direction, Items, Metric, Score, labels_of, share

Border = Literal["labels", "half"]
"""How many are called yes: as many as the labels say (the only one that fits unbalanced labels), or half of all."""

RANKED: dict[str, Direction] = {"auroc": "higher", "accuracy_matched": "higher", "tilt": ""}
"""Metrics of scores rather than answers."""

CELLS = 2**17  # draws x questions worked on at once: what a core's cache holds


@dataclass(frozen=True)
class Ranked:
    """What a ranking gives, one number a draw, [D].

    Args:
        auroc: P(s+ > s-) + P(s+ = s-) / 2; NaN where a class is missing.
        k: how many questions are called yes.
        tp, tn: expected numbers of right answers when they are: questions tied across the border are shared out.
        accuracy: (tp + tn) / n; NaN where a class is missing, since it would be 1 whatever the ranking.
        tilt: midpoint d between the scores on either side of the border, nats: its distance from 0 is the model's
            bias. NaN where all, or none, are called yes.
    """

    auroc: Array
    k: Array
    tp: Array
    tn: Array
    accuracy: Array
    tilt: Array


class Ranking:
    """Questions by their scores, sorted once for any number of draws.

    Args:
        scores: [N], nats; -inf below all, +inf above all.
        yes: [N] bool, the labels.
        pictures: [N], column of each question's picture in the weights; None: each question has its own.

    Raises:
        DataError: a score is no number.
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

    def __call__(self, weights: Array, border: Border = "labels") -> Ranked:
        """Return the figures of each draw.

        Args:
            weights: [D, pictures], how often each picture was drawn.
            border: see `Border`; "half" rounds half to even.
        """
        step = max(1, CELLS // max(1, len(self._yes)))
        parts = [self._part(weights[i : i + step], border) for i in range(0, len(weights), step)]
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _part(self, weights: Array, border: Border) -> tuple[Array, ...]:
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
        k = n_yes if border == "labels" else np.rint(n / 2)
        found = [self._border(b, p, float(t)) for b, p, t in zip(below, yes_below, n - k, strict=True)]
        missed, tilt = np.array(found).T
        tp, tn = n_yes - missed, n_no - (k - n_yes + missed)
        one_class = (n_yes == 0) | (n_no == 0)
        return auroc, k, tp, tn, np.where(one_class, np.nan, share(tp + tn, n)), tilt

    def _border(self, below: Array, yes_below: Array, called_no: float) -> tuple[float, float]:
        """Return the yes-labelled weight among the lowest `called_no`, and the tilt that calls these no."""
        last = int(np.searchsorted(below, called_no, side="left"))
        first = int(np.searchsorted(below, called_no, side="right"))
        before, yes_before = (below[last - 1], yes_below[last - 1]) if last else (0.0, 0.0)
        width = below[last] - before
        missed = yes_before + ((called_no - before) / width * (yes_below[last] - yes_before) if width else 0.0)
        if called_no == 0 or first == len(below):
            return missed, np.nan
        return missed, (float(self._values[last]) + float(self._values[first])) / 2  # NaN between -inf and +inf


def rank(scores: ArrayLike, yes: ArrayLike, border: Border = "labels") -> Ranked:
    """Return the figures of one set of questions, each [1]; see `Ranking`."""
    return Ranking(scores, yes)(np.ones((1, len(np.asarray(scores)))), border)


def one_wayness(n2p: ArrayLike, p2n: ArrayLike) -> Array:
    """Return |N2P - P2N| / (N2P + P2N): 1 is a pure tilt, 0 pure re-ranking; NaN where no answer changed."""
    to_yes, to_no = np.asarray(n2p, float), np.asarray(p2n, float)
    return share(np.abs(to_yes - to_no), to_yes + to_no, np.nan)


COLUMNS = ("tp", "fp", "tn", "fn", "n", "unreadable", "label_yes", "unreadable_yes")
_OFFICIAL, _AGLA, _STOCK, WIDTH = 8, 12, 16, 17
"""Counts of an answer: `COLUMNS`; tp, fp, tn, fn as the authors' script reads, and as AGLA's does; right as lmms-eval
reads. The statistics add two at the end: whether the answer turned to yes against the reference's, or to no."""


class YesNo(Metric):
    """Questions that are answered yes or no, read by `pope.read`. An unreadable answer is wrong, and never yes."""

    joined = True
    ranked = True
    positive: ClassVar[pope.Answer] = "yes"
    """The class of precision, recall and F1."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.yes = labels_of(task, items)
        self._known: dict[tuple[str, bool], int] = {}
        self._counts: list[list[int]] = []

    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, `WIDTH`]."""
        codes = []
        for pair in zip(batch.texts, self.yes[batch.places].tolist(), strict=True):
            code = self._known.get(pair)
            if code is None:
                code = self._known[pair] = len(self._counts)
                self._counts.append(self._read(*pair))
            codes.append(code)
        return np.array(self._counts, dtype=np.float64).reshape(-1, WIDTH)[codes]

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of answers; those of a ranking (`RANKED`) are no functions of counts."""
        shares = _ratios(0, self.positive)
        return {
            **{metric: Score(of, "" if metric == "yes_ratio" else "higher") for metric, of in shares.items()},
            "balanced_accuracy": Score(balanced_accuracy),
            "unreadable": Score(lambda c: share(c[..., 5], c[..., 4]), "lower", compared=False),
            "label_yes": Score(lambda c: share(c[..., 6], c[..., 4]), "", once=True),
            "n2p": Score(lambda c: c[..., -2], "", only_differences=True),
            "p2n": Score(lambda c: c[..., -1], "", only_differences=True),
            "one_wayness": Score(lambda c: one_wayness(c[..., -2], c[..., -1]), "", only_differences=True),
            **{
                f"{metric}_{name}": Score(of, "" if metric == "yes_ratio" else "higher", compared=False)
                for name, start in (("official", _OFFICIAL), ("agla", _AGLA))
                for metric, of in _ratios(start, "yes").items()
            },
            "accuracy_stock": Score(lambda c: share(c[..., _STOCK], c[..., 4]), compared=False),
        }

    def _read(self, text: str, yes: bool) -> list[int]:
        label: pope.Answer = "yes" if yes else "no"
        said = pope.read(text)
        official, agla, stock = (pope.read(text, reading, label) for reading in ("official", "agla", "stock"))
        unread = said is None
        ours = [*_outcome(said, yes), 1, unread, yes, unread and yes]
        return [*ours, *_outcome(official, yes), *_outcome(agla, yes), stock == label]


def balanced_accuracy(counts: Array) -> Array:
    """Return (TPR + TNR) / 2 of `YesNo`'s counts, an unreadable answer against its class; NaN where one is missing."""
    tpr = share(counts[..., 0], counts[..., 6], np.nan)
    found: Array = (tpr + share(counts[..., 2], counts[..., 4] - counts[..., 6], np.nan)) / 2
    return found


def said_of(counts: Array) -> NDArray[np.int8]:
    """Return what each answer said, of its counts [N, `WIDTH`]: 1 yes, 0 no, -1 unreadable."""
    found: NDArray[np.int8] = np.where(counts[:, 5] > 0, -1, counts[:, 0] + counts[:, 1]).astype(np.int8)
    return found


def _outcome(said: pope.Answer | None, yes: bool) -> list[int]:
    """Return tp, fp, tn, fn; an unread answer under a label yes is a miss, and under a label no none of the four."""
    return [said == "yes" and yes, said == "yes" and not yes, said == "no" and not yes, said != "yes" and yes]


def _ratios(start: int, positive: pope.Answer) -> dict[str, Callable[[Array], Array]]:
    """Return scores of the tp, fp, tn, fn that begin at a column, for a class."""

    def parts(c: Array) -> tuple[Array, Array, Array]:
        """Right ones of the class, those said to be of it, those that are."""
        tp, fp, tn = c[..., start], c[..., start + 1], c[..., start + 2]
        if positive == "yes":
            return tp, tp + fp, c[..., 6]
        return tn, c[..., 4] - tp - fp - (c[..., 5] if start == 0 else 0), c[..., 4] - c[..., 6]

    return {
        "accuracy": lambda c: share(c[..., start] + c[..., start + 2], c[..., 4]),
        "precision": lambda c: share(parts(c)[0], parts(c)[1]),
        "recall": lambda c: share(parts(c)[0], parts(c)[2]),
        "f1": lambda c: share(2 * parts(c)[0], parts(c)[1] + parts(c)[2]),
        "yes_ratio": lambda c: share(c[..., start] + c[..., start + 1], c[..., 4]),
    }
