"""AMBER, yes/no questions: the positive class is no, so that precision and recall are of noticing what is not so.

Source: Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation",
arXiv:2311.07397, junyangwang0410/AMBER at 534babf (Apache-2.0). Its script takes an answer for what it says only if it
is exactly "Yes" or "No". Two of three right answers are no, all of existence: "No" to everything has accuracy 66.3 and
F1 79.7, so read balanced accuracy and yes ratio beside them. Captions: `amber_captions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Score
from lvlm_guard.evals.metrics.yes_no import COLUMNS, OURS, YesNo
from lvlm_guard.evals.spec import jsonl

BLOCKS = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
"""Type of question -> the blocks that it counts in, beside all."""

SMALL = 0.001
"""What every denominator of the script starts at."""


METRICS = ("accuracy", "precision", "recall", "f1")


class Amber(YesNo):
    """AMBER's questions; "official" scores are the script's, which rounds to a tenth of a percent."""

    joined = False  # a question of state counts among attributes too, and in "amber" all together
    positive = "no"

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of `YesNo` with no as the positive class, and how many are answered no."""
        return {**super().scores(), "no_ratio": Score(lambda c: 1 - COLUMNS.ratio("tp fp unreadable", "n")(c), "")}

    def read_scripts(self, text: str, yes: bool) -> list[int]:
        """Return `parts`."""
        return parts(text, yes)

    def script_scores(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return what the script prints, as shares."""
        return {f"{metric}_official": _printed(at) for at, metric in enumerate(METRICS)}


def _printed(at: int) -> Callable[[Array], Array]:
    return lambda c: official(c[..., OURS : OURS + 5])[..., at] / 100


def parts(text: str, yes: bool) -> list[int]:
    """Return 1 for right, an answer, right no, said no, gold no: what the script takes for an answer, and its label."""
    right_no = text == "No" and not yes
    return [right_no or (text == "Yes" and yes), 1, right_no, text == "No", not yes]


def official(counts: Array, small: float = SMALL) -> Array:
    """Return accuracy, precision, recall and F1 as the script prints them, percent, [..., 4].

    Args:
        counts: sums of `parts`, [..., 5].
        small: what denominators start at: three times `SMALL` for attributes, which are summed of three types.
    """
    right, n, right_no, said_no, gold_no = np.moveaxis(np.asarray(counts, float), -1, 0)
    accuracy, precision, recall = (
        np.round(100 * top / (bottom + small), 1)
        for top, bottom in ((right, n), (right_no, said_no), (right_no, gold_no))
    )
    # existence has no question that should be answered yes, and another constant
    slack = np.where((gold_no == n) & (n > 0), 0.001, 0.0001)
    f1 = np.round(100 * (2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + slack)), 1)
    return np.stack([accuracy, precision, recall, f1], axis=-1)


def score_official(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what AMBER's script prints of answers to questions, by block ("all", "existence", ...), percent.

    Args:
        rows: each with `type`, `truth` ("yes" or "no") and `response`; as in the script, an answer that is there twice
            counts twice, and a missing one not at all.

    Raises:
        DataError: a field is missing, or a type or truth is none of AMBER's.
    """
    sums = {block: np.zeros(5) for block in ("all", "existence", "attribute", "state", "number", "action", "relation")}
    for number, row in enumerate(rows):
        jsonl.check_fields(row, ("type", "truth", "response"), f"Row {number}", "row of AMBER")
        if row["type"] not in BLOCKS or row["truth"] not in ("yes", "no"):
            raise DataError(
                f"Row {number} has type {row['type']!r} and truth {row['truth']!r}: no question of AMBER's."
            )
        for block in ("all", *BLOCKS[row["type"]]):
            sums[block] += parts(row["response"], row["truth"] == "yes")
    return {
        block: dict(zip(METRICS, official(of, SMALL * (3 if block == "attribute" else 1)).tolist(), strict=True))
        for block, of in sums.items()
    }
