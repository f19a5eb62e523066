"""Yes/no questions: what no threshold can give (AUROC, accuracy at a matched yes ratio), and what was said.

The score of a question is its log-odds of yes at the first answer token, s = logsumexp(z[yes]) - logsumexp(z[no]), in
nats. A constant added to every s, a tilt, moves accuracy and yes ratio, and leaves AUROC and matched accuracy alone: a
method whose accuracy rises while they do not has moved the threshold. One-wayness and the transitions N2P and P2N are
those of "Mirage" (arXiv:2504.10020). AUROC is a share of pairs, ties half (Hanley and McNeil, Radiology 143, 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Batch, Columns, Direction, Items, Metric, Score, labels_of, share

Border = Literal["labels", "half"]
"""How many are called yes: as many as labels say (all that fits unbalanced ones), or half of all, half to even."""

RANKED: dict[str, Direction] = {"auroc": "higher", "accuracy_matched": "higher", "tilt": ""}
"""Metrics of scores rather than answers."""

CELLS = 2**17  # draws x questions worked on at once: what a core's cache holds


class Ranked(NamedTuple):
    """What a ranking gives, one number a draw, [D]; NaN where a class is missing, or all or none are called yes.

    The tilt is the midpoint d between the scores on either side of the border: its distance from 0 is the model's bias.
    """

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

    def __call__(self, weights: Array, border: Border = "labels") -> Ranked:
        """Return the figures of each draw; `weights` [D, pictures] are how often each picture was drawn."""
        step = max(1, CELLS // max(1, len(self._yes)))
        parts = [self._part(weights[i : i + step], border) for i in range(0, len(weights), step)]
        return Ranked(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def figures(self, weights: Array) -> Array:
        """Return the figures of `RANKED` of each draw, [D, 3]."""
        found = self(weights)
        return np.stack([found.auroc, found.accuracy, found.tilt], axis=-1)

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


COLUMNS = Columns(
    str.split(
        "tp fp tn fn n unreadable label_yes label_no official_tp official_fp official_tn official_fn "
        "agla_tp agla_fp agla_tn agla_fn stock_right"
    )
)
"""Counts of an answer as we read it, as the authors' script and AGLA's do, and as lmms-eval does. The statistics add
two at the end: whether the answer turned to yes against the reference's, or to no."""

OURS = 8
"""How many of them are ours; a benchmark with a script of its own has other ones behind."""


def ratios(reading: str = "", positive: pope.Answer = "yes") -> dict[str, Callable[[Array], Array]]:
    """Return the scores of a reading's counts ("official_"), for a class; unreadable answers are of neither."""
    tp, fp, tn = (reading + name for name in ("tp", "fp", "tn"))
    hit, said, are = (tp, f"{tp} {fp}", "label_yes")
    if positive == "no":
        hit, said, are = tn, f"n -{tp} -{fp} -unreadable", "label_no"
    ratio = COLUMNS.ratio
    return {
        "accuracy": ratio(f"{tp} {tn}", "n"),
        "precision": ratio(hit, said),
        "recall": ratio(hit, are),
        "f1": ratio(f"{hit} {hit}", f"{said} {are}"),
        "yes_ratio": ratio(f"{tp} {fp}", "n"),
    }


def outcome(said: pope.Answer | None, yes: bool) -> list[bool]:
    """Return tp, fp, tn, fn; an unread answer under a label yes is a miss, and under a label no none of the four."""
    return [said == "yes" and yes, said == "yes" and not yes, said == "no" and not yes, said != "yes" and yes]


class YesNo(Metric):
    """Questions that are answered yes or no, read by `pope.read`. An unreadable answer is wrong, and never yes."""

    joined = True
    ranked = True
    positive: ClassVar[pope.Answer] = "yes"
    """The class of precision, recall and F1."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.yes = labels_of(task, items)
        self._known: dict[tuple[str, bool], list[int]] = {}

    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, k]: the first `OURS` of `COLUMNS`, then those of scripts."""
        found = []
        for pair in zip(batch.texts, self.yes[batch.places].tolist(), strict=True):
            if pair not in self._known:
                self._known[pair] = [*self._ours(*pair), *self.read_scripts(*pair)]
            found.append(self._known[pair])
        return np.array(found, dtype=np.float64)

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of answers; those of a ranking (`RANKED`) are no functions of counts."""
        return {
            **{metric: Score(of, _direction(metric)) for metric, of in ratios("", self.positive).items()},
            "balanced_accuracy": Score(balanced_accuracy),
            "unreadable": Score(COLUMNS.ratio("unreadable", "n"), "lower", compared=False),
            "label_yes": Score(COLUMNS.ratio("label_yes", "n"), "", once=True),
            "n2p": Score(lambda c: c[..., -2], "", only_differences=True),
            "p2n": Score(lambda c: c[..., -1], "", only_differences=True),
            "one_wayness": Score(lambda c: one_wayness(c[..., -2], c[..., -1]), "", only_differences=True),
            **{
                name: Score(of, _direction(name.partition("_")[0]), compared=False)
                for name, of in self.script_scores().items()
            },
        }

    def read_scripts(self, text: str, yes: bool) -> list[int]:
        """Return the counts of an answer as scripts read it, which stand behind ours."""
        label: pope.Answer = "yes" if yes else "no"
        official, agla, stock = (pope.read(text, reading, label) for reading in ("official", "agla", "stock"))
        return [*outcome(official, yes), *outcome(agla, yes), stock == label]

    def script_scores(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the scores of those."""
        found = {f"{metric}_{of}": score for of in ("official", "agla") for metric, score in ratios(f"{of}_").items()}
        return found | {"accuracy_stock": COLUMNS.ratio("stock_right", "n")}

    def _ours(self, text: str, yes: bool) -> list[int]:
        said = pope.read(text)
        return [*outcome(said, yes), 1, said is None, yes, not yes]


def _direction(metric: str) -> Direction:
    return "" if metric in ("yes", "yes_ratio") else "higher"


def balanced_accuracy(counts: Array) -> Array:
    """Return (TPR + TNR) / 2 of `YesNo`'s counts, an unreadable answer against its class; NaN where one is missing."""
    found: Array = (
        COLUMNS.ratio("tp", "label_yes", np.nan)(counts) + COLUMNS.ratio("tn", "label_no", np.nan)(counts)
    ) / 2
    return found


def said_of(counts: Array) -> NDArray[np.int8]:
    """Return what each answer said, of its counts [N, k]: 1 yes, 0 no, -1 unreadable."""
    return np.where(counts[:, 5] > 0, -1, counts[:, 0] + counts[:, 1]).astype(np.int8)
