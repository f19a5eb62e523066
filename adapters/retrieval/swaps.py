"""Captions with one thing wrong: a category or an attribute exchanged for another that is not in the picture.

Source: DCAR (arXiv:2508.04028) trains against both kinds. Its published negatives equal their caption in 1.8 % of
cases; here a swap that equals the caption, means the same, or is true by what else is known is never made.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lvlm_guard.adapters.data.views import squeezed
from lvlm_guard.adapters.retrieval.bank import ONE, WordBank, agreeing, cased, with_article
from lvlm_guard.adapters.retrieval.claims import Found, Phrase, is_plural, parse
from lvlm_guard.matching.vocabulary import WORD, spelled

CATEGORY = "category"


@dataclass(frozen=True)
class Swap:
    """A caption in which one thing is exchanged.

    Args:
        text: the new caption.
        kind: "category", or the kind of the attribute: "colour", "material", "number", "size", "state".
        old, new: what was exchanged, as listed in the bank.
    """

    text: str
    kind: str
    old: str
    new: str


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


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
    known = _known([caption, *labels, *true_captions], bank, possible)
    made: dict[str, Swap] = {}
    for swap in _made(caption, bank, known):
        if squeezed(swap.text) not in true:
            made.setdefault(squeezed(swap.text), swap)
    return list(made.values())


def hard_negatives(
    caption: str,
    bank: WordBank,
    count: int = 4,
    *,
    labels: Iterable[str] = (),
    true_captions: Iterable[str] = (),
    possible: Iterable[str] = (),
    seed: int = 0,
) -> list[Swap]:
    """Return up to `count` swaps, drawn by kind in turn so that no kind crowds out another; a seed fixes them.

    Args are those of `swaps_of`. Fewer come back where there are not as many; none where nothing is known.
    """
    rng = random.Random(f"{seed}:{caption}")
    by_kind: dict[str, list[Swap]] = {}
    for swap in swaps_of(caption, bank, labels=labels, true_captions=true_captions, possible=possible):
        by_kind.setdefault(swap.kind, []).append(swap)
    queues = list(by_kind.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    chosen: list[Swap] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen


@dataclass(frozen=True)
class _Known:
    """What is true: categories, (type, group) said of a category, and (type, group) said of anything."""

    names: frozenset[str]
    said: frozenset[tuple[str, int, str]]
    anywhere: frozenset[tuple[str, int]]


def _known(texts: Sequence[str], bank: WordBank, possible: Iterable[str] = ()) -> _Known:
    names: set[str] = set(possible)
    said: set[tuple[str, int, str]] = set()
    anywhere: set[tuple[str, int]] = set()
    for text in texts:
        parsed = parse(text, bank)
        names |= parsed.names
        for phrase in parsed.phrases:
            named = phrase.noun.category
            assert named is not None
            values = {(v.value.attribute, v.value.group) for v in phrase.values if v.value}
            said |= {(attribute, group, named.name) for attribute, group in values}
            if "number" in bank.attributes and not any(kind == "number" for kind, _ in values):
                one = next((i for i, g in enumerate(bank.attributes["number"]) if ONE in g), None)
                if one is not None and not is_plural(phrase, bank):
                    said.add(("number", one, named.name))
            anywhere |= values
        anywhere |= {(v.value.attribute, v.value.group) for v in parsed.loose if v.value}
    return _Known(frozenset(names), frozenset(said), frozenset(anywhere))


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
    noun = phrase.noun
    named = noun.category
    assert named is not None
    many = is_plural(phrase, bank)
    old = bank.plural(named.word) if many else named.word
    for name in bank.meta[bank.meta_of[named.name]]:
        if name in known.names or any(bank.related(name, other) for other in {named.name, named.word}):
            continue
        if name in bank.plural_only and not many:
            continue
        new = cased(bank.plural(name) if many else name, noun.text, old)
        yield Swap(_applied(caption, _replacing(caption, noun, new)), CATEGORY, named.name, name)


def _values(caption: str, item: Found, phrase: Phrase | None, bank: WordBank, known: _Known) -> Iterator[Swap]:
    assert item.value is not None
    attribute, own = item.value.attribute, item.value.group
    kind, groups = attribute.split("/")[0], bank.attributes[attribute]
    noun = phrase.noun.category.name if phrase and phrase.noun.category else None
    for group, words in enumerate(groups):
        taken = (attribute, group) in known.anywhere if noun is None else (attribute, group, noun) in known.said
        if group == own or taken:
            continue
        new = cased(words[0], item.text, groups[own][0])
        edits = _replacing(caption, item, new)
        if kind == "number" and phrase is not None and ONE in (words[0], groups[own][0]):
            edits += _renumbering(caption, phrase, bank, words[0] != ONE)
        yield Swap(_applied(caption, edits), kind, groups[own][0], words[0])


def _counted(caption: str, phrase: Phrase, bank: WordBank, known: _Known) -> Iterator[Swap]:
    """Exchange the article of one thing for a number of things."""
    first = phrase.values[0] if phrase.values else phrase.noun
    named = phrase.noun.category
    assert named is not None
    if not bank.counting_articles or first.before.lower() not in ("a", "an") or is_plural(phrase, bank):
        return
    at = caption.rindex(first.before, 0, first.start)
    renumbered = _renumbering(caption, phrase, bank, True)
    for group, words in enumerate(bank.attributes.get("number", ())):
        if words[0] == ONE or ("number", group, named.name) in known.said:
            continue
        new = words[0].capitalize() if first.before[:1].isupper() else words[0]
        edits = [_Edit(at, at + len(first.before), new), *renumbered]
        yield Swap(_applied(caption, edits), "number", ONE, words[0])


def _renumbering(caption: str, phrase: Phrase, bank: WordBank, many: bool) -> list[_Edit]:
    """Return what puts a phrase's noun into the other number, and "is" or "are" right before or after the phrase."""
    noun = phrase.noun
    named = noun.category
    assert named is not None
    word = cased(bank.plural(named.word) if many else named.word, noun.text, named.word)
    edits = [_Edit(noun.start, noun.end, word)]
    start = (phrase.values[0] if phrase.values else noun).start
    beside = [*list(WORD.finditer(caption, 0, start))[-1:], *islice(WORD.finditer(caption, noun.end), 1)]
    for verb in beside:
        gap = caption[min(verb.end(), noun.end) : max(verb.start(), start)]
        if not gap.strip() and (agreed := agreeing(verb.group(), many)) != verb.group():
            edits.append(_Edit(verb.start(), verb.end(), agreed))
    return edits


def _replacing(caption: str, item: Found, new: str) -> list[_Edit]:
    """Return what puts a new text into an item's place, and its article before it."""
    edits = [_Edit(item.start, item.end, new)]
    if item.before and spelled(item.before) in ("a", "an"):
        at = caption.rindex(item.before, 0, item.start)
        edits.append(_Edit(at, at + len(item.before), with_article(item.before, new)))
    return edits


def _applied(caption: str, edits: Sequence[_Edit]) -> str:
    for edit in sorted(edits, key=lambda edit: -edit.start):
        caption = caption[: edit.start] + edit.text + caption[edit.end :]
    return caption
