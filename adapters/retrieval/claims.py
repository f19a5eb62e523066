"""Claims that an object is in a picture, as the guard asks them of a matcher, and of which pictures they hold.

An object is there where facts or a caption say so, and absent where facts say so; all else is unknown, and is neither
trained on nor measured. Where a caption names what facts call absent, one of them errs, and it is unknown too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.parsing import parse
from lvlm_guard.matching.vocabulary import article

TEMPLATE = "a photo of {article} {object}"
"""The sentence about an object that CLIP knows best (arXiv:2103.00020)."""

MOST = 256
"""Objects that a gallery is asked for; those that captions name most."""


def claim(name: str) -> str:
    """Return the claim that an object is in the picture: "a photo of a dog"."""
    return TEMPLATE.format(article=article(name), object=name)


Known = tuple[AbstractSet[str], AbstractSet[str]]
"""(objects that are there, objects that are absent)"""


def known_of(data: CaptionData, bank: WordBank) -> Callable[[str], Known]:
    """Return a function from a picture's key to what is known of its objects, each read when first asked."""
    said: dict[str, list[CaptionRow]] = {}
    for row in data.rows:
        said.setdefault(row.image, []).append(row)

    @cache
    def known(image: str) -> Known:
        there, absent = data.objects(image)
        named = frozenset().union(*(_named(row, bank) for row in said[image]))
        return there | (named - absent), absent - named

    return known


def _named(row: CaptionRow, bank: WordBank) -> set[str]:
    found = {phrase.noun.category.name for phrase in parse(row.caption, bank).phrases if phrase.noun.category}
    return found | ({row.category} if row.category else set())


@dataclass(frozen=True)
class Claims:
    """Which objects are in which pictures.

    Args:
        names: of objects.
        true, false: [pictures, names]; what is neither is unknown.
    """

    names: tuple[str, ...]
    true: NDArray[np.bool_]
    false: NDArray[np.bool_]

    @classmethod
    def of(cls, pictures: Sequence[Known], most: int = MOST, without: Collection[str] = ()) -> Claims:
        """Return the claims about objects that some of these pictures show, but for those that are kept back."""
        counts = Counter(name for there, _ in pictures for name in sorted(there) if name not in without)
        names = tuple(sorted(name for name, _ in counts.most_common(most)))

        def table(which: int) -> NDArray[np.bool_]:
            made = np.array([[name in known[which] for name in names] for known in pictures], dtype=np.bool_)
            return made.reshape(len(pictures), len(names))

        return cls(names, table(0), table(1))

    @property
    def texts(self) -> list[str]:
        """The claims as sentences."""
        return [claim(name) for name in self.names]

    @property
    def telling(self) -> bool:
        """Whether some are true and some are false."""
        return bool(self.true.any() and self.false.any())

    def judged(self, scores: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the scores [pictures, names] of what is known, flat, and which of them are true."""
        known = self.true | self.false
        return scores[known].astype(np.float64), self.true[known]
