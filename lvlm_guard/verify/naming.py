"""Which objects of a vocabulary a finished text names, and where."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_guard.matching.vocabulary import WORD, Vocabulary, named


@dataclass(frozen=True)
class Mention:
    """An object that a text names.

    Args:
        object: its name in the vocabulary.
        text: the words that name it, as written.
        start: of those words in the text, in characters.
        end: one behind their last character.
    """

    object: str
    text: str
    start: int
    end: int


def mentions(text: str, vocabulary: Vocabulary) -> list[Mention]:
    """Return what a text names, in order; of names within one another the longest ("hot dog", no "dog").

    A spelling that stands for several objects gives a mention of each.
    """
    spellings = vocabulary.spellings()
    longest = 1 + max(spelling.count(" ") for spelling in spellings)
    words = list(WORD.finditer(text))
    found: list[Mention] = []
    for first, behind, spelling in named(text, words, spellings.get, longest):
        start, end = words[first].start(), words[behind - 1].end()
        found += [Mention(name, text[start:end], start, end) for name in sorted(spellings[spelling])]
    return found
