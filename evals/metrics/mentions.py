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

from lvlm_guard.evals.metrics.metric import Array, Batch, Items, Metric, Score, each, labels_of, share

BINS = 10
_TOLD, _ERROR, _GAPS = 8, 9, 10
WIDTH = _GAPS + BINS
"""Counts of an answer: `yes_no.COLUMNS`, unread what marks nothing; probabilities, squared error, gaps."""


class Mentions(Metric):
    """Claims that an object is in a picture, each judged by verifiers; AUROC is no function of counts."""

    ranked = True

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.yes = labels_of(task, items)

    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, `WIDTH`]."""

        def read(text: str, place: int) -> list[float]:
            true = bool(self.yes[place])
            word, p = _read(text)
            doubtful, marks = word == "no", word in ("yes", "no")
            gaps = [0.0] * BINS
            yes = marks and not doubtful
            said: list[float] = [yes and true, yes and not true, doubtful and not true, doubtful and true]
            said += [1, not marks, true, true and not marks]
            if not word:
                return [*said, 0, 0, *gaps]
            gaps[int(bins_of(p))] = p - true
            return [*said, 1, (p - true) ** 2, *gaps]

        return each(batch.texts, batch.places, read, WIDTH)

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of probabilities and of marks as signs of hallucination."""

        def of_marks(top: Callable[[Array], Array], bottom: Callable[[Array], Array]) -> Callable[[Array], Array]:
            return lambda c: np.where(c[..., 4] > c[..., 5], share(top(c), bottom(c), np.nan), np.nan)

        def error(c: Array) -> Array:
            return share(np.abs(c[..., _GAPS : _GAPS + BINS]).sum(-1), c[..., _TOLD], np.nan)

        def caught(c: Array) -> Array:
            return np.asarray(c[..., 2])

        def marked(c: Array) -> Array:
            return np.asarray(c[..., 2] + c[..., 3])

        return {
            "hallucinated": Score(lambda c: share(c[..., 4] - c[..., 6], c[..., 4]), "", once=True),
            "brier": Score(lambda c: share(c[..., _ERROR], c[..., _TOLD], np.nan), "lower"),
            "calibration_error": Score(error, "lower", compared=False),
            "marked": Score(of_marks(marked, lambda c: c[..., 4] - c[..., 5]), "", compared=False),
            "mark_precision": Score(of_marks(caught, marked), compared=False),
            "mark_recall": Score(of_marks(caught, lambda c: c[..., 4] - c[..., 6]), compared=False),
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
