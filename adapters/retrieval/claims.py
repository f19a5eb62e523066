"""Claims that an object is in a picture, as the guard asks them of a matcher, and of which pictures they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.adapters.data import CaptionRow
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


def names_of(rows: Iterable[CaptionRow], bank: WordBank) -> Callable[[str], frozenset[str]]:
    """Return a function from a picture's key to the categories that its captions name, each read when first asked."""
    said: dict[str, list[CaptionRow]] = {}
    for row in rows:
        said.setdefault(row.image, []).append(row)

    @cache
    def names(image: str) -> frozenset[str]:
        return frozenset().union(*(_named(row, bank) for row in said[image]))

    return names


def _named(row: CaptionRow, bank: WordBank) -> set[str]:
    found = {phrase.noun.category.name for phrase in parse(row.caption, bank).phrases if phrase.noun.category}
    return found | ({row.category} if row.category else set())


@dataclass(frozen=True)
class Claims:
    """Which objects are in which pictures, as far as captions name them.

    Args:
        names: of objects.
        true: [pictures, names].
    """

    names: tuple[str, ...]
    true: NDArray[np.bool_]

    @classmethod
    def of(cls, pictures: Sequence[AbstractSet[str]], most: int = MOST) -> Claims:
        """Return the claims about pictures whose captions name these categories."""
        counts = Counter(name for mine in pictures for name in sorted(mine))
        names = tuple(sorted(name for name, _ in counts.most_common(most)))
        true = np.array([[name in mine for name in names] for mine in pictures], dtype=np.bool_)
        return cls(names, true.reshape(len(pictures), len(names)))

    @property
    def texts(self) -> list[str]:
        """The claims as sentences."""
        return [claim(name) for name in self.names]

    @property
    def telling(self) -> bool:
        """Whether some are true and some are not."""
        return bool(self.true.any() and not self.true.all())
