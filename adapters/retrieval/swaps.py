"""Captions with one thing wrong: a category or an attribute exchanged for another that is not in the picture.

Source: DCAR (arXiv:2508.04028) trains against both kinds. Its published negatives equal their caption in 1.8 % of
cases; here a swap that equals the caption, means the same, or is true by what else is known is never made.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

from lvlm_guard.adapters.data.dataset import squeezed
from lvlm_guard.adapters.retrieval.bank import ONE, Valued, WordBank
from lvlm_guard.adapters.retrieval.claims import Found, Phrase, is_plural, parse
from lvlm_guard.matching.vocabulary import WORD, agreeing, article, begun, cased

ARTICLES = ("a", "an")

Edit = tuple[int, int, str]
"""From, to, and what is to stand there."""


class Swap(NamedTuple):
    """A caption in which one thing is exchanged, old for new as listed in the bank.

    The kind is "category", or that of the attribute: "colour", "material", "number", "size", "state".
    """

    text: str
    kind: str
    old: str
    new: str


def swaps_of(
    caption: str,
    bank: WordBank,
    *,
    labels: Iterable[str] = (),
    true_captions: Iterable[str] = (),
    possible: Iterable[str] = (),
) -> list[Swap]:
    """Return every swap of a caption, each text once, in the order of the caption and the bank.

    Whole words are matched, in any case; the new word takes the old one's case and number, and "a" or "an" before it
    follows. Nothing is exchanged for a synonym, for a broader or narrower word, or for what the caption or a label
    also says.

    Args:
        caption: a true one.
        bank: which words stand for which.
        labels: what else is known to be in the picture: names ("dog") or phrases ("two red dogs").
        true_captions: other true captions; no swap equals one.
        possible: categories that may be in the picture, for all that is known: no swap names one.
    """
    true = {squeezed(caption), *map(squeezed, true_captions)}
    known = _Known.of([caption, *labels, *true_captions], bank, possible)
    made: dict[str, Swap] = {}
    for swap in _made(caption, bank, known):
        if squeezed(swap.text) not in true:
            made.setdefault(squeezed(swap.text), swap)
    return list(made.values())


def hard_negatives(
    caption: str, bank: WordBank, count: int = 4, *, seed: int = 0, **known: Iterable[str]
) -> list[Swap]:
    """Return up to `count` swaps, drawn by kind in turn so that no kind crowds out another; a seed fixes them.

    What is `known` are options of `swaps_of`. Fewer come back where there are not as many; none where nothing is known.
    """
    rng = random.Random(f"{seed}:{caption}")
    by_kind: dict[str, list[Swap]] = {}
    for swap in swaps_of(caption, bank, **known):
        by_kind.setdefault(swap.kind, []).append(swap)
    queues = list(by_kind.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    turns = zip_longest(*map(reversed, queues))
    return [swap for turn in turns for swap in turn if swap is not None][:count]


class _Known(NamedTuple):
    """What is true: categories, values said of one of them, and values said of anything."""

    names: frozenset[str]
    said: frozenset[tuple[Valued, str]]
    anywhere: frozenset[Valued]

    @classmethod
    def of(cls, texts: Sequence[str], bank: WordBank, possible: Iterable[str] = ()) -> _Known:
        parsed = [parse(text, bank) for text in texts]
        phrases = [phrase for each in parsed for phrase in each.phrases]
        said = {(found.value, phrase.noun.category.name) for phrase in phrases for found in phrase.values}
        anywhere = {value for value, _ in said} | {found.value for each in parsed for found in each.loose}
        if (one := bank.values.get(ONE)) is not None:
            for phrase in phrases:
                counted = any(found.value.kind == "number" for found in phrase.values)
                if not counted and not is_plural(phrase, bank):
                    said.add((one, phrase.noun.category.name))
        names = {*possible, *(name for each in parsed for name in each.names)}
        return cls(frozenset(names), frozenset(said), frozenset(anywhere))


def _made(caption: str, bank: WordBank, known: _Known) -> Iterator[Swap]:
    parsed = parse(caption, bank)
    for phrase in parsed.phrases:
        yield from _categories(caption, phrase, bank, known)
        for value in phrase.values:
            yield from _values(caption, value, phrase, bank, known)
        yield from _counted(caption, phrase, bank, known)
    for value in parsed.loose:
        yield from _values(caption, value, None, bank, known)


def _categories(caption: str, phrase: Phrase, bank: WordBank, known: _Known) -> Iterator[Swap]:
    noun, (own, word, _) = phrase.noun, phrase.noun.category
    many = is_plural(phrase, bank)
    old = bank.plural(word) if many else word
    for name in bank.meta[bank.meta_of[own]]:
        alike = name in known.names or bank.related(name, own) or bank.related(name, word)
        if not alike and (many or name not in bank.plural_only):
            new = cased(bank.plural(name) if many else name, noun.text, old)
            yield Swap(_applied(caption, _replacing(caption, noun, new)), "category", own, name)


def _values(caption: str, item: Found, phrase: Phrase | None, bank: WordBank, known: _Known) -> Iterator[Swap]:
    attribute, own = item.value
    kind, groups = item.value.kind, bank.attributes[attribute]
    old = groups[own][0]
    for group, (word, *_) in enumerate(groups):
        value = Valued(attribute, group)
        taken = value in known.anywhere if phrase is None else (value, phrase.noun.category.name) in known.said
        if group != own and not taken:
            edits = _replacing(caption, item, cased(word, item.text, old))
            if kind == "number" and phrase is not None and ONE in (word, old):
                edits += _renumbering(caption, phrase, bank, word != ONE)
            yield Swap(_applied(caption, edits), kind, old, word)


def _counted(caption: str, phrase: Phrase, bank: WordBank, known: _Known) -> Iterator[Swap]:
    """Exchange the article of one thing for a number of things."""
    first = phrase.first
    if not bank.counting_articles or first.before.lower() not in ARTICLES or is_plural(phrase, bank):
        return
    for group, (word, *_) in enumerate(bank.attributes.get("number", ())):
        if word != ONE and (Valued("number", group), phrase.noun.category.name) not in known.said:
            edits = [_before(caption, first, begun(word, first.before)), *_renumbering(caption, phrase, bank, True)]
            yield Swap(_applied(caption, edits), "number", ONE, word)


def _renumbering(caption: str, phrase: Phrase, bank: WordBank, many: bool) -> list[Edit]:
    """Return what puts a phrase's noun into the other number, and "is" or "are" right before or after the phrase."""
    noun, word, start = phrase.noun, phrase.noun.category.word, phrase.first.start
    edits = [(noun.start, noun.end, cased(bank.plural(word) if many else word, noun.text, word))]
    for verb in (*list(WORD.finditer(caption, 0, start))[-1:], *islice(WORD.finditer(caption, noun.end), 1)):
        gap = caption[min(verb.end(), noun.end) : max(verb.start(), start)]
        if not gap.strip() and (agreed := agreeing(verb.group(), many)) != verb.group():
            edits.append((verb.start(), verb.end(), agreed))
    return edits


def _replacing(caption: str, item: Found, new: str) -> list[Edit]:
    """Return what puts a new text into an item's place, and its article before it."""
    edits = [(item.start, item.end, new)]
    if item.before.lower() in ARTICLES:
        edits.append(_before(caption, item, begun(article(new), item.before)))
    return edits


def _before(caption: str, item: Found, new: str) -> Edit:
    """Return what puts a new word into the place of the one before an item."""
    at = caption.rindex(item.before, 0, item.start)
    return at, at + len(item.before), new


def _applied(caption: str, edits: Sequence[Edit]) -> str:
    for start, end, text in sorted(edits, key=lambda edit: -edit[0]):
        caption = caption[:start] + text + caption[end:]
    return caption
