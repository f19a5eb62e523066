"""Captions in numbers: what they name, how varied and how looping they are, and what they were after fewer tokens.

Under greedy decoding, and where every step has its own draw, the first 64 tokens of a long caption are the caption of a
run with 64 tokens: one run gives CHAIR at every limit. Beams and methods that look back do not have that.

Distinct-1 (Li et al., NAACL 2016, arXiv:1510.03055) falls with length by itself: compare it at one limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Columns, Score
from lvlm_guard.evals.metrics.objects import Found
from lvlm_guard.evals.spec.answers import LIMITS

COLUMNS = Columns(
    str.split(
        "captions hallucinated_captions object_words hallucinated_words recalled_objects ground_truth_objects words "
        "repeated_words objects distinct_1 with_words repeat_4 cut empty"
    )
)
"""What `counts` counts of each caption; all but the two statistics of words are whole numbers."""

SCORES: dict[str, Score] = {
    "chair_s": Score(COLUMNS.ratio("hallucinated_captions", "captions"), "lower"),
    "chair_i": Score(COLUMNS.ratio("hallucinated_words", "object_words"), "lower"),
    "object_recall": Score(COLUMNS.ratio("recalled_objects", "ground_truth_objects")),
    "precision": Score(COLUMNS.ratio("recalled_objects", "objects")),
    "f1": Score(COLUMNS.ratio("recalled_objects recalled_objects", "ground_truth_objects objects")),
    "length": Score(COLUMNS.ratio("words", "captions"), ""),
    "repeats": Score(COLUMNS.ratio("repeated_words", "object_words"), ""),
    "objects_named": Score(COLUMNS.ratio("objects", "captions"), ""),
    "distinct_1": Score(COLUMNS.ratio("distinct_1", "with_words"), ""),
    "repeat_4": Score(COLUMNS.ratio("repeat_4", "captions"), "lower"),
    "cut": Score(COLUMNS.ratio("cut", "captions"), ""),
    "empty": Score(COLUMNS.ratio("empty", "captions"), "lower"),
}
"""Metric -> its score from summed `counts`.

`chair_s` is the share of captions with a hallucinated object, `chair_i` that of the object words that are hallucinated
(repeats counted), over all captions together; `object_recall` the share of the pictures' objects that are named, and
`precision` that of the objects named (each once a caption) that are there; `f1` of both, pooled. `length` is in words
between blanks. `repeats` is the share of object words that name an object again: CHAIR_i counts them each time, so a
method that repeats what is there lowers it. `distinct_1`, `repeat_4`: see `captions`; `cut` the share of captions that
a limit of tokens cut; `empty` of those without a word, which are a void run and no clean one.
"""

DIALECTAL = ("chair_s", "chair_i", "object_recall", "precision", "f1", "repeats", "objects_named")
"""The scores that depend on the dialect; the others are of the text alone."""


@dataclass(frozen=True)
class Caption:
    """One caption, as given, the objects it names, and those in its picture."""

    image_id: int | str
    caption: str
    found: Found
    truth: frozenset[str]

    @property
    def hallucinated(self) -> list[tuple[str, str, int]]:
        """Word, object and token index of each object word whose object is not in the picture."""
        named = zip(self.found.words, self.found.nodes, self.found.indices, strict=True)
        return [(word, node, index) for word, node, index in named if node not in self.truth]

    @property
    def recalled(self) -> frozenset[str]:
        """Objects of the picture that the caption names."""
        return self.truth & frozenset(self.found.nodes)


def counts(captions: Iterable[Caption], cut: Iterable[bool] | None = None) -> Array:
    """Return the `COLUMNS` of each caption, [N, 14]; `cut` tells which were cut at a limit of tokens, None: none."""
    found = []
    for c in captions:
        read, named, objects = words(c.caption), len(c.found.words), len(set(c.found.nodes))
        wrong = len(c.hallucinated)
        row = [1, wrong > 0, named, wrong, len(c.recalled), len(c.truth), len(c.caption.split()), named - objects]
        found.append([*row, objects, distinct_1(read), bool(read), repeat_4(read), 0, not c.caption.strip()])
    table = np.array(found, dtype=float).reshape(-1, len(COLUMNS.names))
    if cut is not None:
        table[:, COLUMNS.names.index("cut")] = list(cut)
    return table


_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(caption: str) -> list[str]:
    """Return the lower-cased words, without marks."""
    return _WORD.findall(caption.lower())


def distinct_1(read: Sequence[str]) -> float:
    """Return the share of different words among `words`; 0 where there are none."""
    return len(set(read)) / len(read) if read else 0.0


def repeat_4(read: Sequence[str]) -> float:
    """Return the share of runs of four words that stood before, which finds loops; 0 below four words."""
    fours = list(zip(read, read[1:], read[2:], read[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if fours else 0.0


def prefix(text: str, cut_at: Sequence[int], limit: int) -> str:
    """Return what of a caption stood after its first `limit` tokens.

    `cut_at` are the characters after each of `LIMITS` tokens, as the table of answers has them. Raises `DataError`
    where no length is known at that limit, or the lengths do not fit the text.
    """
    if limit not in LIMITS or len(cut_at) != len(LIMITS):
        raise DataError(f"Captions are cut at {', '.join(map(str, LIMITS))} tokens, not at {limit} by {list(cut_at)}.")
    end = cut_at[LIMITS.index(limit)]
    if not 0 <= end <= len(text):
        raise DataError(f"A caption of {len(text)} characters can't be cut after {end}: its row of answers is damaged.")
    return text[:end]
