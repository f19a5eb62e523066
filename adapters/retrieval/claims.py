"""Claims that an object is in a picture, as the guard asks them of a matcher, and of which pictures they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def named(caption: str, bank: WordBank, category: str | None = None) -> frozenset[str]:
    """Return the categories that a caption names, and its own."""
    found = {phrase.noun.category.name for phrase in parse(caption, bank).phrases if phrase.noun.category}
    return frozenset(found | ({category} if category else set()))


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


def united(each: Iterable[tuple[int, AbstractSet[str]]], pictures: int) -> list[set[str]]:
    """Return what all captions of each picture name, from (picture, what one of its captions names)."""
    found: list[set[str]] = [set() for _ in range(pictures)]
    for picture, mine in each:
        found[picture] |= mine
    return found
