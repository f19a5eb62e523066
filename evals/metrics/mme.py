"""MME: two yes/no questions a picture, one of each answer; points for each answer and for each pair.

Source: Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", 2023,
arXiv:2306.13394. Answers are read as `pope.read` does, and as the authors' evaluation does beside it (score_official);
pairs go by the picture's name. Differs from the authors': a ratio 0/0 is 0.0 (theirs stops with an error).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Columns, Items, Score
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.metrics.yes_no import COLUMNS, OURS, YesNo

HALLUCINATION = ("existence", "count", "position", "color")
"""The tasks of the hallucination subset: objects, then attributes; 200 points each."""


COUNTS = Columns([*COLUMNS.names[:OURS], "official", "pairs", "both", "both_official"])


def read_official(answer: str) -> Answer | None:
    """Read an answer as the authors' evaluation does: whether its first four characters hold yes, else no.

    So two leading blanks hide a yes, and three a no.
    """
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def pairs(task: str, pictures: Sequence[str], labels: Sequence[Answer]) -> list[tuple[int, int]]:
    """Return the places of the two questions about each picture; raises `DataError` unless one is yes and one no."""
    places: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(picture, []).append(place)
    for picture, found in places.items():
        if sorted(labels[place] for place in found) != ["no", "yes"]:
            told = ", ".join(labels[place] for place in found)
            raise DataError(
                f"Picture {picture!r} of {task} has questions with the answers {told}: MME asks two a picture, one "
                "'yes' and one 'no', and scores them as a pair. Keep pairs whole when taking a part of the questions."
            )
    return [(found[0], found[1]) for found in places.values()]


class Mme(YesNo):
    """Pairs of questions about one picture, points for each answer and each pair; those of several tasks are summed."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        places: dict[str, list[int]] = {}
        for place, rows in enumerate(items.rows):
            for row in rows:
                places.setdefault(row, []).append(place)
        for row, of in places.items():
            pairs(row, [items.pictures[i] for i in of], ["yes" if self.yes[i] else "no" for i in of])

    def read_scripts(self, text: str, yes: bool) -> list[int]:
        """Return whether the authors' evaluation takes an answer for right."""
        return [read_official(text) == ("yes" if yes else "no")]

    def finish(self, sums: Array) -> Array:
        """Add whether a picture's pair is whole, both answers are right, and both are as the authors read."""
        pair = sums[..., 4] == 2
        both = [pair & (COUNTS.sum(sums, right) == 2) for right in ("tp tn", "official")]
        return np.concatenate([sums, np.stack([pair, *both], axis=-1)], axis=-1)

    def scores(self) -> Mapping[str, Score]:
        """Return points (0 to 200 a task), accuracies, and shares."""
        of, ratio = super().scores(), COUNTS.ratio
        plus, theirs, theirs_plus = ratio("both", "pairs"), ratio("official", "n"), ratio("both_official", "pairs")
        shares = {
            name: replace(of[name], compared=False) for name in ("precision", "recall", "yes_ratio", "unreadable")
        }
        return {
            "score": Score(lambda c: 100 * (of["accuracy"].of(c) + plus(c)), over="sum"),
            "accuracy": of["accuracy"],
            "accuracy_plus": Score(plus),
            **shares,
            "score_official": Score(lambda c: 100 * (theirs(c) + theirs_plus(c)), over="sum", compared=False),
        }
