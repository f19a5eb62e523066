"""Where a caption names categories and says attributes, by whole words of a bank; no grammar is parsed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lvlm_guard.adapters.retrieval.bank import ONE, Named, Valued, WordBank
from lvlm_guard.adapters.retrieval.inflection import SINGULAR, VERBS
from lvlm_guard.matching.vocabulary import JOIN, WORD, named, spelled

_LINK = re.compile(r"[\s,]*(?:and[\s,]+)?")
NEGATIONS = {"no", "not", "without", "never", "neither", "nor"}
NEEDS_NOUN = {"number", "material"}  # "one of them", "made of glass": else no attribute of a thing


@dataclass(frozen=True)
class Found:
    """A category or a value at a place of a caption.

    Args:
        start, end: in characters.
        text: what stands there.
        before, after: the words next to it, "" at the ends.
        category: what is named, or None.
        value: what is said, or None.
    """

    start: int
    end: int
    text: str
    before: str
    after: str
    category: Named | None = None
    value: Valued | None = None


@dataclass(frozen=True)
class Phrase:
    """A category with the values said of it: "two red dogs"."""

    noun: Found
    values: tuple[Found, ...]


@dataclass(frozen=True)
class Parsed:
    """What was found: nouns with their values, and values said of words that the bank does not know.

    `names` are all categories that a word stands for, also one that only says of which kind the next noun is.
    """

    phrases: tuple[Phrase, ...]
    loose: tuple[Found, ...]
    names: frozenset[str]


def parse(text: str, bank: WordBank) -> Parsed:
    """Return what a caption names and says; what stands after a negation is left out."""
    found = list(_found(text, bank))
    phrases: list[Phrase] = []
    loose: list[Found] = []
    pending: list[Found] = []
    names: set[str] = set()
    for i, item in enumerate(found):
        linked = i + 1 < len(found) and _LINK.fullmatch(text, item.end, found[i + 1].start)
        if item.value is not None and (item.category is None or _is_said_of_noun(text, found, i)):
            pending.append(item)
            if not linked:
                loose += pending
                pending = []
            continue
        if item.category is not None:
            names.add(item.category.name)
            if _begins_compound(text, found, i):
                continue
            phrases.append(Phrase(item, tuple(pending)))
        pending = []
    loose += pending
    kept = [phrase for phrase in phrases if _first(phrase).before.lower() not in NEGATIONS]
    free = [item for item in loose if item.value and _kind(item) not in NEEDS_NOUN and item.category is None]
    return Parsed(tuple(kept), tuple(item for item in free if item.before.lower() not in NEGATIONS), frozenset(names))


def is_plural(phrase: Phrase, bank: WordBank) -> bool:
    """Whether a noun stands for several; for words like "sheep" its neighbours tell."""
    named = phrase.noun.category
    assert named is not None
    if spelled(bank.plural(named.word)) != spelled(named.word):
        return named.is_plural
    first = _first(phrase)
    numbers = [v.text.lower() for v in phrase.values if v.value and v.value.attribute == "number"]
    if numbers:
        return numbers[0] != ONE
    if named.name in bank.plural_only or phrase.noun.after.lower() in VERBS.values():
        return True
    return first.before.lower() not in SINGULAR


def _first(phrase: Phrase) -> Found:
    return phrase.values[0] if phrase.values else phrase.noun


def _kind(item: Found) -> str:
    assert item.value is not None
    return item.value.attribute.split("/")[0]


def _is_said_of_noun(text: str, found: list[Found], i: int) -> bool:
    """Whether a word that is both, like "orange", stands right before a noun, or before values of one."""
    while i + 1 < len(found) and JOIN.fullmatch(text, found[i].end, found[i + 1].start):
        i += 1
        if found[i].category is not None:
            return True
    return False


def _begins_compound(text: str, found: list[Found], i: int) -> bool:
    """Whether a noun stands right before another, as in "tv remote", and so only says what kind that one is of."""
    following = found[i + 1] if i + 1 < len(found) else None
    return (
        following is not None
        and following.category is not None
        and following.value is None
        and JOIN.fullmatch(text, found[i].end, following.start) is not None
    )


def _found(text: str, bank: WordBank) -> Iterator[Found]:
    words = list(WORD.finditer(text))

    def known(spelling: str) -> bool:
        return spelling in bank.categories or spelling in bank.values

    for first, behind, spelling in named(text, words, known, bank.longest):
        start, end = words[first].start(), words[behind - 1].end()
        yield Found(
            start,
            end,
            text[start:end],
            words[first - 1].group() if first else "",
            words[behind].group() if behind < len(words) else "",
            bank.categories.get(spelling),
            bank.values.get(spelling),
        )
