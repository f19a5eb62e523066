"""What verifiers say of objects that descriptions name: how probable each is, and which they mark as doubtful.

An answer is "yes 0.8123" (supported, its probability) or "no 0.0312" (marked as doubtful); "p 0.8123" is a probability
that marks nothing, and "0.2871" a score that is none. The truth is "yes" where the object is in the picture.
Sources: Brier 1950; expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.metrics import yes_no
from lvlm_guard.evals.metrics.metric import Array, Columns, Score, share

BINS = 10
COLUMNS = Columns(" ".join([*yes_no.COLUMNS.names, "told", "error"]))
"""`yes_no`'s counts, unread what marks nothing; probabilities, and their squared error. Behind them are `BINS` gaps,
probability less truth."""


class Mentions(yes_no.YesNo):
    """Claims that an object is in a picture, each judged by verifiers; AUROC is no function of counts."""

    joined = False

    def read(self, text: str, case: int) -> Sequence[float]:
        """Return the counts of an answer, and its gap among those of its bin."""
        word, p = _read(text)
        gaps = np.where((np.arange(BINS) == _bins(p)) & bool(word), p - case, 0.0)
        said = yes_no.counts("yes" if word == "yes" else "no" if word == "no" else None, bool(case))
        return [*said, bool(word), (p - case) ** 2 if word else 0, *gaps]

    def scores(self) -> dict[str, Score]:
        """Return the scores of probabilities, and of marks as signs of hallucination: NaN where nothing marks."""
        return {
            "hallucinated": COLUMNS.ratio("label_no / n", "", once=True),
            "brier": COLUMNS.ratio("error / told", "lower", np.nan),
            "calibration_error": Score(_calibration_error, "lower", compared=False),
            "marked": COLUMNS.ratio("tn fn / n -unreadable", "", np.nan, compared=False),
            "mark_precision": COLUMNS.ratio("tn / tn fn", empty=np.nan, compared=False),
            "mark_recall": Score(_mark_recall, compared=False),
        }


def _mark_recall(c: Array) -> Array:
    return np.where(COLUMNS.sum(c, "n -unreadable") > 0, yes_no.OF_NO["recall"].of(c), np.nan)


def _calibration_error(c: Array) -> Array:
    gaps = c[..., len(COLUMNS.names) : len(COLUMNS.names) + BINS]
    return share(np.abs(gaps).sum(-1), COLUMNS.sum(c, "told"), np.nan)


def _read(text: str) -> tuple[str, float]:
    """Return the word before the number, "" for none, and the number."""
    word, _, number = text.rpartition(" ")
    return word, float(number)


def probabilities(texts: Iterable[str]) -> Array | None:
    """Return the probabilities that answers tell, [N]; None where they are none."""
    read = [_read(text) for text in texts]
    return np.array([p for _, p in read]) if all(word for word, _ in read) else None


def _bins(p: ArrayLike) -> NDArray[np.int64]:
    return np.minimum((np.asarray(p, float) * BINS).astype(np.int64), BINS - 1)  # the last one holds 1 too


def reliability(p: ArrayLike, true: ArrayLike) -> list[dict[str, float]]:
    """Return each bin that is not empty: its mean probability, the share that is true, and how many there are."""
    value, hit, bins = np.asarray(p, float), np.asarray(true, bool), _bins(p)
    return [
        {"p": float(value[bins == k].mean()), "true": float(hit[bins == k].mean()), "n": int((bins == k).sum())}
        for k in np.unique(bins)
    ]
