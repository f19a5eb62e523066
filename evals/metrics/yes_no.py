"""Yes/no benchmarks: ratios of what was said, by our reading and, beside it, by each benchmark's own script.

- POPE, and RePOPE, its questions about COCO with labels that were checked again: Neuhaus and Hein, arXiv:2504.15707,
  YanNeu/RePOPE at bcf22e5 (no licence: nothing is kept here).
- DASH-B, of pictures that were found because they make models see what is not there: Augustin et al., "DASH",
  arXiv:2503.23573, YanNeu/DASH-B at 1538d01 (no licence: nothing is kept here).
- MME, two questions a picture, one of each answer: Fu et al., 2023, arXiv:2306.13394. Pairs go by the picture's name.

N2P and P2N are the transitions of "Mirage" (arXiv:2504.10020). Differs from the scripts: a ratio 0/0 is 0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Columns, Items, Score, TextMetric, share
from lvlm_guard.evals.metrics.ranking import one_wayness

COLUMNS = Columns("tp fp tn fn n unreadable label_yes label_no")
"""Counts of an answer as we read it; an unreadable one is none of the first four. Behind them stand four more for each
script, which reads it otherwise. The statistics add two: whether it turned to yes against the reference's, or to no."""


def _ratios(hit: str, said: str, label: str, n: str = "n") -> dict[str, Score]:
    return {
        "accuracy": COLUMNS.ratio(f"tp tn / {n}"),
        "precision": COLUMNS.ratio(f"{hit} / {said}"),
        "recall": COLUMNS.ratio(f"{hit} / {label}"),
        "f1": COLUMNS.ratio(f"{hit} {hit} / {said} {label}"),
        "yes_ratio": COLUMNS.ratio(f"tp fp / {n}", ""),
    }


OF_YES = _ratios("tp", "tp fp", "label_yes")
OF_NO = _ratios("tn", "n -tp -fp -unreadable", "label_no")
OF_READ = _ratios("tp", "tp fp", "tp fn", n="tp fp tn fn")
"""Scores of a class; the last are of yes where answers that can't be read are left out."""


def outcome(said: pope.Answer | None, yes: bool) -> list[bool]:
    """Return tp, fp, tn, fn of an answer; none of them where it can't be read."""
    return [said == "yes" and yes, said == "yes" and not yes, said == "no" and not yes, said == "no" and yes]


def counts(said: pope.Answer | None, yes: bool) -> list[bool]:
    """Return the `COLUMNS` of an answer."""
    return [*outcome(said, yes), True, said is None, yes, not yes]


def said_of(counts: Array) -> NDArray[np.int8]:
    """Return what each answer said, of its counts [N, k]: 1 yes, 0 no, -1 unreadable."""
    return np.where(counts[:, 5] > 0, -1, counts[:, 0] + counts[:, 1]).astype(np.int8)


class YesNo(TextMetric):
    """Questions that are answered yes or no, read by `pope.read`. An unreadable answer is wrong, and never yes."""

    joined = True
    ranked = True
    positive: ClassVar[pope.Answer] = "yes"  # the class of precision, recall and F1
    scripts: ClassVar[Mapping[str, tuple[pope.Reading, Mapping[str, Score]]]] = {
        "official": ("official", OF_YES),
        "agla": ("agla", OF_YES),
        "stock": ("stock", {"accuracy": OF_YES["accuracy"]}),
    }
    """What a script's scores end in -> how it reads, and its scores of `COLUMNS` with its own tp, fp, tn and fn."""
    more: ClassVar[dict[str, Score]] = {}  # a benchmark's own scores, by our reading

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        for key, truth in zip(items.keys, items.truths, strict=True):
            if truth not in ("yes", "no"):
                raise DataError(f"Item {key!r} of {self.name} has the truth {truth!r}: it must be 'yes' or 'no'.")
        self.cases = np.array([truth == "yes" for truth in items.truths], np.int64)

    def read(self, text: str, case: int) -> Sequence[float]:
        """Return the `COLUMNS` of an answer whose label is yes (1) or no (0), and the outcome of each script."""
        label: pope.Answer = "yes" if case else "no"
        found = counts(pope.read(text), bool(case))
        for reading, _ in self.scripts.values():
            found += outcome(pope.read(text, reading, label), bool(case))
        return found

    def scores(self) -> dict[str, Score]:
        """Return the scores of answers; those of a ranking (`RANKED`) are no functions of counts."""
        found = (OF_YES if self.positive == "yes" else OF_NO) | {
            # (TPR + TNR) / 2, an unreadable answer against its class
            "balanced_accuracy": Score(lambda c: share(c[..., [0, 2]], c[..., [6, 7]], np.nan).mean(axis=-1)),
            "unreadable": COLUMNS.ratio("unreadable / n", "lower", compared=False),
            "label_yes": COLUMNS.ratio("label_yes / n", "", once=True),
            "n2p": Score(lambda c: c[..., -2], "", only_differences=True),
            "p2n": Score(lambda c: c[..., -1], "", only_differences=True),
            "one_wayness": Score(lambda c: one_wayness(c[..., -2], c[..., -1]), "", only_differences=True),
        }
        ours = len(COLUMNS.names)
        for number, (suffix, (_, scores)) in enumerate(self.scripts.items()):
            columns = [*range(ours + 4 * number, ours + 4 * number + 4), *range(4, ours)]
            found |= {f"{name}_{suffix}": score.at(columns, compared=False) for name, score in scores.items()}
        return found | self.more


def _harmonic_mean(c: Array) -> Array:
    tpr, tnr = OF_YES["recall"].of(c), OF_NO["recall"].of(c)
    return share(2 * tpr * tnr, tpr + tnr)


class DashB(YesNo):
    """Yes/no questions with TNR, TPR (which is `recall`) and their harmonic mean, by both readings."""

    more: ClassVar = {"tnr": OF_NO["recall"], "harmonic_mean": Score(_harmonic_mean)}
    scripts: ClassVar = {"official": ("repope", {"accuracy": OF_YES["accuracy"], "tpr": OF_YES["recall"], **more})}


_PAIRED = Columns(" ".join(COLUMNS.names) + " their_tp their_fp their_tn their_fn pairs both both_theirs")


def check_pairs(task: str, pictures: Iterable[str], labels: Iterable[str]) -> None:
    """Raise `DataError` unless each picture has two questions, with the labels yes and no."""
    of: dict[str, list[str]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        of.setdefault(picture, []).append(label)
    for picture, found in of.items():
        if sorted(found) != ["no", "yes"]:
            told = "MME asks two a picture, one 'yes' and one 'no', scored as a pair. Keep pairs whole."
            raise DataError(f"Picture {picture!r} of {task} has questions with the answers {', '.join(found)}: {told}")


def _points(right: str, both: str, **more: Any) -> Score:
    accuracy, plus = _PAIRED.ratio(f"{right} / n"), _PAIRED.ratio(f"{both} / pairs")
    return Score(lambda c: 100 * (accuracy.of(c) + plus.of(c)), over="sum", **more)


class Mme(YesNo):
    """Pairs of questions about one picture, points for each answer and each pair; those of several tasks are summed."""

    scripts: ClassVar = {"official": ("mme", {})}

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        for row in dict.fromkeys(row for rows in items.rows for row in rows):
            of = [place for place, rows in enumerate(items.rows) if row in rows]
            check_pairs(row, [items.pictures[i] for i in of], [items.truths[i] for i in of])

    def finish(self, sums: Array) -> Array:
        """Add whether a picture's pair is whole, both answers are right, and both are as the authors read."""
        pair = sums[..., 4] == 2
        both = [pair & (_PAIRED.sum(sums, right) == 2) for right in ("tp tn", "their_tp their_tn")]
        return np.concatenate([sums, np.stack([pair, *both], axis=-1)], axis=-1)

    def scores(self) -> dict[str, Score]:
        of = super().scores()
        return {
            "score": _points("tp tn", "both"),
            "accuracy": of["accuracy"],
            "accuracy_plus": _PAIRED.ratio("both / pairs"),
            **{name: replace(of[name], compared=False) for name in ("precision", "recall", "yes_ratio", "unreadable")},
            "score_official": _points("their_tp their_tn", "both_theirs", compared=False),
        }


class RePope(YesNo):
    """POPE's answers under RePOPE's labels; its script leaves unread answers out."""

    scripts: ClassVar = {"official": ("repope", OF_READ)}


BINS = 10
CLAIMS = Columns(" ".join([*COLUMNS.names, "told", "error"]))
"""`COLUMNS`, unread what marks nothing; probabilities, and their squared error. Behind them are `BINS` gaps,
probability less truth."""


class Mentions(YesNo):
    """Claims that an object is in a picture, each judged by verifiers: how probable, and which are marked as doubtful.
    An answer is "yes 0.8123" (supported, its probability) or "no 0.0312" (marked); "p 0.8123" is a probability that
    marks nothing, "0.2871" a score that is none. Brier 1950; expected calibration error: Naeini et al., AAAI 2015."""

    joined = False

    def read(self, text: str, case: int) -> Sequence[float]:
        """Return the counts of an answer, and its gap among those of its bin."""
        word, _, number = text.rpartition(" ")
        p = float(number)
        bin_of = min(int(p * BINS), BINS - 1)  # the last one holds 1 too
        gaps = [p - case if word and bin_of == at else 0.0 for at in range(BINS)]
        said = counts("yes" if word == "yes" else "no" if word == "no" else None, bool(case))
        return [*said, bool(word), (p - case) ** 2 if word else 0, *gaps]

    def scores(self) -> dict[str, Score]:
        """Return the scores of probabilities, and of marks as signs of hallucination: NaN where nothing marks."""
        told, gaps = CLAIMS.names.index("told"), slice(len(CLAIMS.names), len(CLAIMS.names) + BINS)
        calibration = Score(lambda c: share(np.abs(c[..., gaps]).sum(-1), c[..., told], np.nan), "lower", False)
        recall = Score(lambda c: np.where(CLAIMS.sum(c, "n -unreadable") > 0, OF_NO["recall"].of(c), np.nan))
        return {
            "hallucinated": CLAIMS.ratio("label_no / n", "", once=True),
            "brier": CLAIMS.ratio("error / told", "lower", np.nan),
            "calibration_error": calibration,
            "marked": CLAIMS.ratio("tn fn / n -unreadable", "", np.nan, compared=False),
            "mark_precision": CLAIMS.ratio("tn / tn fn", empty=np.nan, compared=False),
            "mark_recall": replace(recall, compared=False),
        }
