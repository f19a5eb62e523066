"""What verifiers say of objects that descriptions name: how probable each is, and which they mark as doubtful.

An answer is "yes 0.8123" (supported, its probability) or "no 0.0312" (marked as doubtful); "p 0.8123" is a probability
that marks nothing, and "0.2871" a score that is none. The truth is "yes" where the object is in the picture. AUROC is
that of the scores.

Sources: Brier 1950; expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.metrics import pope, yes_no
from lvlm_guard.evals.metrics.metric import Array, Batch, Columns, Items, Metric, Score, each, labels_of, share

BINS = 10
COLUMNS = Columns((*yes_no.COLUMNS.names[: yes_no.OURS], "told", "error"))
"""Counts of an answer: `yes_no`'s, unread what marks nothing; probabilities, squared error; and `BINS` gaps."""


class Mentions(Metric):
    """Claims that an object is in a picture, each judged by verifiers; AUROC is no function of counts."""

    ranked = True

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.yes = labels_of(task, items)

    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, 10 + `BINS`]."""
        return each(batch.texts, batch.places, self._count, len(COLUMNS.names) + BINS)

    def _count(self, text: str, place: int) -> list[float]:
        true = bool(self.yes[place])
        word, p = _read(text)
        said: pope.Answer | None = "yes" if word == "yes" else "no" if word == "no" else None
        counts: list[float] = [
            *(yes_no.outcome(said, true) if said else [0] * 4),
            1,
            said is None,
            true,
            not true,
            0,
            0,
        ]
        gaps = [0.0] * BINS
        if word:
            counts[-2:] = 1, (p - true) ** 2
            gaps[int(bins_of(p))] = p - true
        return counts + gaps

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of probabilities and of marks as signs of hallucination."""

        def of_marks(part: str, whole: str) -> Callable[[Array], Array]:
            ratio = COLUMNS.ratio(part, whole, np.nan)
            return lambda c: np.where(c[..., 4] > c[..., 5], ratio(c), np.nan)

        def error(c: Array) -> Array:
            start = len(COLUMNS.names)
            return share(np.abs(c[..., start : start + BINS]).sum(-1), COLUMNS.sum(c, "told"), np.nan)

        return {
            "hallucinated": Score(COLUMNS.ratio("label_no", "n"), "", once=True),
            "brier": Score(COLUMNS.ratio("error", "told", np.nan), "lower"),
            "calibration_error": Score(error, "lower", compared=False),
            "marked": Score(of_marks("tn fn", "n -unreadable"), "", compared=False),
            "mark_precision": Score(of_marks("tn", "tn fn"), compared=False),
            "mark_recall": Score(of_marks("tn", "label_no"), compared=False),
        }


def _read(text: str) -> tuple[str, float]:
    """Return the word before the number, "" for none, and the number."""
    word, _, number = text.rpartition(" ")
    return word, float(number)


def probabilities(texts: Iterable[str]) -> Array | None:
    """Return the probabilities that answers tell, [N]; None where they are none."""
    read = [_read(text) for text in texts]
    return np.array([p for _, p in read]) if all(word for word, _ in read) else None


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
