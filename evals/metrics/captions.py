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
from lvlm_guard.evals.metrics.metric import Array, Direction, Score, share
from lvlm_guard.evals.metrics.objects import Found
from lvlm_guard.evals.spec.answers import LIMITS

COLUMNS = str.split(
    "captions hallucinated_captions object_words hallucinated_words recalled_objects ground_truth_objects words "
    "repeated_words objects distinct_1 with_words repeat_4 cut empty"
)
"""What `counts` counts of each caption; all but the two statistics of words are whole numbers."""


def _share(part: str, whole: str, direction: Direction = "") -> Score:
    top, bottom = COLUMNS.index(part), COLUMNS.index(whole)
    return Score(lambda c: share(c[..., top], c[..., bottom]), direction)


SCORES: dict[str, Score] = {
    "chair_s": _share("hallucinated_captions", "captions", "lower"),
    "chair_i": _share("hallucinated_words", "object_words", "lower"),
    "object_recall": _share("recalled_objects", "ground_truth_objects", "higher"),
    "precision": _share("recalled_objects", "objects", "higher"),
    "f1": Score(lambda c: share(2 * c[..., 4], c[..., 5] + c[..., 8])),  # of the pooled two
    "length": _share("words", "captions"),
    "repeats": _share("repeated_words", "object_words"),
    "objects_named": _share("objects", "captions"),
    "distinct_1": _share("distinct_1", "with_words"),
    "repeat_4": _share("repeat_4", "captions", "lower"),
    "cut": _share("cut", "captions"),
    "empty": _share("empty", "captions", "lower"),
}
"""Metric -> its score from summed `counts`.

`chair_s` is the share of captions with a hallucinated object, `chair_i` that of the object words that are hallucinated
(repeats counted), over all captions together; `object_recall` the share of the pictures' objects that are named, and
`precision` that of the objects named (each once a caption) that are there; `f1` of these two. `length` is in words
between blanks. `repeats` is the share of object words that name an object again: CHAIR_i counts them each time, so a
method that repeats what is there lowers it. `distinct_1`, `repeat_4`: see `captions`; `cut` the share of captions that
a limit of tokens cut; `empty` of those without a word, which are a void run and no clean one.
"""

DIALECTAL = ("chair_s", "chair_i", "object_recall", "precision", "f1", "repeats", "objects_named")
"""The scores that depend on the dialect; the others are of the text alone."""


@dataclass(frozen=True)
class Caption:
    """One caption, read and compared with its picture.

    Args:
        image_id: the picture's id.
        caption: as given.
        found: the objects it names.
        truth: the objects in the picture.
    """

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

    @property
    def repeated(self) -> int:
        """Number of object words whose object was named before in the caption."""
        return len(self.found.nodes) - len(set(self.found.nodes))

    @property
    def length(self) -> int:
        """Number of words between blanks."""
        return len(self.caption.split())


def counts(captions: Iterable[Caption], cut: Iterable[bool] | None = None) -> Array:
    """Return the `COLUMNS` of each caption, [N, 14].

    Args:
        captions: as `compare` returns them.
        cut: whether each was cut at a limit of tokens; None: none was.
    """
    found = []
    for c in captions:
        read, named = words(c.caption), len(c.found.words)
        objects = [bool(c.hallucinated), named, len(c.hallucinated), len(c.recalled), len(c.truth)]
        text = [distinct_1(read), bool(read), repeat_4(read), 0, not c.caption.strip()]
        found.append([1, *objects, c.length, c.repeated, named - c.repeated, *text])
    table = np.array(found, dtype=float).reshape(-1, len(COLUMNS))
    if cut is not None:
        table[:, COLUMNS.index("cut")] = list(cut)
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

    Args:
        text: the whole caption.
        cut_at: characters after each of `LIMITS` tokens, as the table of answers has them.
        limit: one of `LIMITS`.

    Raises:
        DataError: no length is known at that limit, or the lengths do not fit the text.
    """
    if limit not in LIMITS or len(cut_at) != len(LIMITS):
        raise DataError(f"Captions are cut at {', '.join(map(str, LIMITS))} tokens, not at {limit} by {list(cut_at)}.")
    end = cut_at[LIMITS.index(limit)]
    if not 0 <= end <= len(text):
        raise DataError(f"A caption of {len(text)} characters can't be cut after {end}: its row of answers is damaged.")
    return text[:end]
