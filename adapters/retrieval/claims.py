"""Claims: found in captions, asked of a matcher as it knows them best, and what they stand against.

An object is there where facts or a caption say so, and absent where facts say so; all else is unknown, and is neither
trained on nor measured. Where a caption names what facts call absent, one of them errs, and it is unknown too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.retrieval.bank import ONE, Named, Valued, WordBank
from lvlm_guard.matching.vocabulary import JOIN, WORD, claim_about, named, spelled, stands_for_several

_LINK = re.compile(r"[\s,]*(?:and[\s,]+)?")
NEGATIONS = {"no", "not", "without", "never", "neither", "nor"}
NEEDS_NOUN = {"number", "material"}  # "one of them", "made of glass": else no attribute of a thing


class Found(NamedTuple):
    """A category or a value at a place of a caption, with the words next to it; a word like "orange" is both."""

    start: int
    end: int
    text: str
    before: str
    after: str
    category: Named
    value: Valued


class Phrase(NamedTuple):
    """A category with the values said of it: "two red dogs"."""

    noun: Found
    values: tuple[Found, ...]

    @property
    def first(self) -> Found:
        """What it begins with."""
        return self.values[0] if self.values else self.noun


class Parsed(NamedTuple):
    """What was found: nouns with their values, and values said of words that the bank does not know."""

    phrases: list[Phrase]
    loose: list[Found]
    names: set[str]  # of all categories that a word stands for, also one that says of which kind the next noun is


def parse(text: str, bank: WordBank) -> Parsed:
    """Return what a caption names and says; what stands after a negation is left out."""
    found = list(_found(text, bank))
    phrases, names = list[Phrase](), set[str]()
    loose, pending = list[Found](), list[Found]()
    for i, item in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else None
        if item.value.attribute and (not item.category.name or _is_said_of_noun(text, found[i:])):
            pending.append(item)
            if following is None or not _LINK.fullmatch(text, item.end, following.start):
                loose += pending
                pending = []
            continue
        names.add(item.category.name)
        # a noun right before another, as in "tv remote", only says what kind that one is of
        compound = following is not None and following.category.name and not following.value.attribute
        if not (compound and following and JOIN.fullmatch(text, item.end, following.start)):
            phrases.append(Phrase(item, tuple(pending)))
            pending = []
    free = [item for item in loose + pending if not item.category.name and item.value.kind not in NEEDS_NOUN]
    phrases = [phrase for phrase in phrases if phrase.first.before.lower() not in NEGATIONS]
    return Parsed(phrases, [item for item in free if item.before.lower() not in NEGATIONS], names)


def tells(text: str, bank: WordBank) -> bool:
    """Whether a text names a category or says a value, so that a picture may show it."""
    return next(_found(text, bank), None) is not None


def is_plural(phrase: Phrase, bank: WordBank) -> bool:
    """Whether a noun stands for several; for words like "sheep" its neighbours tell."""
    noun = phrase.noun
    if spelled(bank.plural(noun.category.word)) != spelled(noun.category.word):
        return noun.category.is_plural
    numbers = [value.text.lower() for value in phrase.values if value.value.attribute == "number"]
    if numbers:
        return numbers[0] != ONE
    return noun.category.name in bank.plural_only or stands_for_several(phrase.first.before, noun.after)


def _is_said_of_noun(text: str, found: Sequence[Found]) -> bool:
    """Whether the first word, both like "orange", stands right before a noun, or before values of one."""
    joined = takewhile(lambda pair: JOIN.fullmatch(text, pair[0].end, pair[1].start), pairwise(found))
    return any(following.category.name for _, following in joined)


def _found(text: str, bank: WordBank) -> Iterator[Found]:
    beside = ["", *WORD.findall(text), ""]
    for first, behind, start, end, spelling in named(text, bank.spellings, bank.longest):
        category, value = bank.categories.get(spelling, Named()), bank.values.get(spelling, Valued())
        yield Found(start, end, text[start:end], beside[first], beside[behind + 1], category, value)


TEMPLATE = "a photo of {article} {object}"
"""The sentence about an object that CLIP knows best (arXiv:2103.00020)."""

CLAIM = re.compile(r"a photo of an? (\w[\w -]*)")
MOST = 256
"""Objects that a gallery is asked for; those that captions name most."""

Known = tuple[AbstractSet[str], AbstractSet[str]]
"""(objects that are there, objects that are absent)"""


def claim(name: str) -> str:
    """Return the claim that an object is in the picture: "a photo of a dog"."""
    return claim_about(name, TEMPLATE)


def claimed(text: str) -> str | None:
    """Return the object that a claim is about; None for another text."""
    found = CLAIM.fullmatch(text.strip())
    return None if found is None else found[1]


def known_of(data: CaptionData, bank: WordBank) -> Callable[[str], Known]:
    """Return a function from a picture's key to what is known of its objects, each read when first asked."""
    said: dict[str, list[CaptionRow]] = {}
    for row in data.rows:
        said.setdefault(row.image, []).append(row)

    @cache
    def known(image: str) -> Known:
        there, absent = data.objects(image)
        phrases = [phrase for row in said[image] for phrase in parse(row.caption, bank).phrases]
        named = {phrase.noun.category.name for phrase in phrases}
        named |= {row.category for row in said[image] if row.category}
        return there | (named - absent), absent - named

    return known


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
