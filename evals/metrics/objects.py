"""Which objects a caption names: CHAIR's word tables in three dialects, or a vocabulary of your own.

The synonyms are the core's own file, `matching/data/coco_synonyms.txt`, byte for byte CHAIR's published list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple, get_args

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import tokens

Dialect = Literal["ours", "pattern", "wordnet"]
"""How captions are read: see `chair`. "wordnet" needs NLTK's data."""
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
Vocabulary = Iterable[str] | Mapping[str, str]
"""Nouns of one or two words in the singular, or a mapping of nouns to objects."""

DOUBLE_WORDS: dict[str, str] = json.loads(files("lvlm_guard.evals").joinpath("data/double_words.json").read_bytes())
"""Two words read as one. "home plate" and "train track" are no objects: they swallow plate and train; "wine glas" is
what Pattern makes of one wine glass."""


class Found(NamedTuple):
    """What a caption names."""

    words: tuple[str, ...]  # for objects, in the singular, in order, repeats included
    nodes: tuple[str, ...]  # the object that each stands for
    indices: tuple[int, ...]  # of each one's first token
    widths: tuple[int, ...]  # tokens of each one, 1 or 2
    tokens: tuple[str, ...]  # the caption as it was read: singular words, double words as one


class ObjectWords(NamedTuple):
    """How captions are read."""

    nodes: Mapping[str, str]  # object word (singular) -> the object it stands for
    double: Mapping[str, str]  # two singular words -> what they are read as
    singular: Callable[[str], str]  # a lower-cased token to its singular
    split: Callable[[str], list[str]] = tokens.words  # in the dialect "wordnet" into dictionary forms already
    official: bool = False  # keep the published slip of indices after a removed "seat"

    def find(self, caption: str) -> Found:
        """Return the objects that a caption names."""
        single = [self.singular(token) for token in self.split(caption)]
        read: list[tuple[str, int, int]] = []  # with the place of the first token, and how many
        at = 0
        while at < len(single):
            pair = " ".join(single[at : at + 2])
            read.append((self.double.get(pair, single[at]), at, 1 + (pair in self.double)))
            at += read[-1][2]
        emitted, kept = tuple(word for word, _, _ in read), read
        if "toilet" in emitted:  # the seat of the toilet is no chair
            kept = [one for one in read if one[0] != "seat"]
            if self.official:
                kept = [(word, at, width) for (word, _, _), (_, at, width) in zip(kept, read, strict=False)]
        named = [(word, self.nodes[word], at, width) for word, at, width in kept if word in self.nodes]
        words, nodes, indices, widths = zip(*named, strict=True) if named else ((), (), (), ())
        return Found(words, nodes, indices, widths, emitted)


@cache
def coco_words(dialect: str = "ours") -> ObjectWords:
    """Return the 80 COCO objects, with synonyms; raises `DataError` of a dialect that is unknown or lacks its data.
    "pattern" keeps the published slips: bus, ties, canoes, doggies and collies are not found, nor iPhone, "motor bike"
    and cheesecake. "wordnet" finds buses and ties, but no men, and reads verbs as objects."""
    if dialect not in DIALECTS:
        near = "".join(f"; did you mean {name!r}?" for name in get_close_matches(dialect, DIALECTS, n=1)) or "."
        raise DataError(f"CHAIR has no dialect {dialect!r}{near} Known: {', '.join(DIALECTS)}.")
    ours, table = dialect == "ours", dict[str, str]()
    for line in synonym_lines():
        entries = line.strip().split(", ")
        # two entries of the published list have a leading blank, one a capital: they can't match
        clean = [entry.strip().lower() for entry in entries] if ours else entries
        table.update(dict.fromkeys(clean, clean[0]))
    if dialect == "wordnet":
        tokens.check("CHAIR's dialect 'wordnet'")
        return ObjectWords(table, DOUBLE_WORDS, str, tokens.lemmas, official=True)
    return ObjectWords(table, DOUBLE_WORDS, tokens.repaired if ours else tokens.singular, official=not ours)


def synonym_lines() -> list[str]:
    """Return the 80 lines of the published list, the object's own name first in each."""
    # by the top package: importing lvlm_guard.matching may load torch
    text = files("lvlm_guard").joinpath("matching/data/coco_synonyms.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]


def vocabulary_words(vocabulary: Vocabulary) -> ObjectWords:
    """Return a vocabulary of your own; raises `DataError` where there is no noun, or one is empty or has more words. A
    token that is a noun of it is taken as it is, so nouns that end in s ("wineglass") are not cut."""
    pairs = vocabulary if isinstance(vocabulary, Mapping) else {word: word for word in vocabulary}
    table = {" ".join(word.lower().split()): node for word, node in pairs.items()}
    if not table:
        raise DataError("The vocabulary holds no noun: captions would name nothing.")
    if (wrong := next((noun for noun in table if len(noun.split()) not in (1, 2)), None)) is not None:
        raise DataError(f"The vocabulary has the entry {wrong!r}: give nouns of one or two words.")
    known = {part: part for noun in table for part in noun.split()}
    double = {noun: noun for noun in table if " " in noun}
    return ObjectWords(table, double, lambda token: known.get(token) or tokens.repaired(token))
