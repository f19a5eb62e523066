"""RePOPE: stored POPE answers under labels that were checked again; no question is asked again.

Source: Neuhaus and Hein, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", arXiv:2504.15707,
YanNeu/RePOPE at bcf22e5, which states no licence: nothing of it is kept here (`lvlm_guard.evals.tasks.repope`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer

SPLITS = ("random", "popular", "adversarial")


class Asked(NamedTuple):
    """A question of POPE as it was asked: its split ("random"), id in that split, picture's file name and text."""

    split: str
    question_id: int
    image: str
    text: str


class Label(NamedTuple):
    """What RePOPE says of one question."""

    image: str
    text: str
    label: Answer


def labels(asked: Iterable[Asked], repope: Mapping[str, Mapping[int, Label]]) -> list[Answer | None]:
    """Return RePOPE's label of each question, in their order; None where RePOPE dropped it as ambiguous.

    `asked` are the questions whose answers are stored, of the splits in `repope` (split -> question id -> label).

    Raises:
        DataError: a picture or text is not the one that RePOPE labels ("imange" is "image"), a split is unknown, a
            question is there twice, or RePOPE labels a question that was not asked.
    """
    found: dict[tuple[str, int], Answer | None] = {}
    for one in asked:
        what = f"Question {one.question_id} of POPE {one.split}"
        if one.split not in repope:
            raise DataError(f"RePOPE has no split {one.split!r}: it labels COCO's {', '.join(repope)}.")
        if (one.split, one.question_id) in found:
            raise DataError(f"{what} was asked twice: which answer counts?")
        label = repope[one.split].get(one.question_id)
        # a stored prompt may go on after the question
        if label and (one.image != label.image or _repaired(label.text) not in _repaired(one.text)):
            raise DataError(
                f"{what} is {one.text!r} of {one.image} here, and {label.text!r} of {label.image} in RePOPE: these "
                "answers are to other questions than POPE's for COCO, or the questions were numbered anew."
            )
        found[one.split, one.question_id] = label.label if label else None
    left = {(split, number) for split, of_split in repope.items() for number in of_split} - found.keys()
    if left:
        split, number = min(left)
        raise DataError(
            f"{len(left)} questions of RePOPE were not answered, the first of them {number} of {split}: its scores are "
            "of all pictures. Answer every question of POPE's three files for COCO (no --limit)."
        )
    return list(found.values())


def _repaired(text: str) -> str:
    return text.replace("imange", "image").strip()
