"""Which objects of a vocabulary a finished text names, and where."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lvlm_guard.matching.vocabulary import JOIN, WORD, Vocabulary


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
    at = 0
    while at < len(words):
        for length in range(min(longest, len(words) - at), 0, -1):
            run = words[at : at + length]
            gaps = [text[one.end() : other.start()] for one, other in pairwise(run)]
            names = spellings.get(" ".join(word.group().lower() for word in run))
            if names and all(map(JOIN.fullmatch, gaps)):
                start, end = run[0].start(), run[-1].end()
                found += [Mention(name, text[start:end], start, end) for name in sorted(names)]
                at += length
                break
        else:
            at += 1
    return found
