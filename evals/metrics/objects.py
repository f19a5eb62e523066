"""Which objects a caption names: CHAIR's word tables in three dialects, or a vocabulary of your own.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv:1809.02156, in
the stand-alone script of Maxlinn/CHAIR-metric-standalone at 640c507. The synonyms are the core's own
file, `matching/data/coco_synonyms.txt`, byte for byte the published list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import lemmas, singular, tokens

Dialect = Literal["ours", "pattern", "wordnet"]
"""How captions are read: "ours"; "pattern", the published stand-alone script, slips included; "wordnet", the script of
OPERA, PAI, DeCo and lmms-eval, whose tables compare with this dialect alone. It tags words, so that verbs can be
objects ("seated" -> chair), and needs NLTK's data."""

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

_DOUBLE = str.split(
    "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop sign,"
    "parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot dog,cell phone,"
    "mobile phone,teddy bear,hair drier,potted plant,bow tie,laptop computer,stove top oven,home plate,train track",
    ",",
)
_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]

DOUBLE_WORDS: dict[str, str] = {
    **{double: double for double in _DOUBLE},
    **{f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")},
    "bow tie": "tie",
    "passenger jet": "jet",
    "passenger train": "train",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # what Pattern makes of one wine glass
}
"""Two words read as one. "home plate" and "train track" are no objects: they swallow plate and train."""


@dataclass(frozen=True)
class Found:
    """What a caption names: object words (singular, in order, repeats included), the object that each stands for, the
    position of each one's first token, and the caption as it was read: singular words, double words as one.
    """

    words: tuple[str, ...]
    nodes: tuple[str, ...]
    indices: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class ObjectWords:
    """How captions are read."""

    nodes: Mapping[str, str]  # object word (singular) -> the object it stands for
    double: Mapping[str, str]  # two singular words -> what they are read as
    singular: Callable[[str], str]  # a lower-cased token to its singular
    split: Callable[[str], list[str]] = tokens.words  # in the dialect "wordnet" into dictionary forms already
    official: bool = False  # keep the published slip of indices after a removed "seat"

    def find(self, caption: str) -> Found:
        """Return the objects that a caption names."""
        single = [self.singular(token) for token in self.split(caption)]
        emitted: list[str] = []
        starts: list[int] = []
        at = 0
        while at < len(single):
            starts.append(at)
            pair = f"{single[at]} {single[at + 1]}" if at + 1 < len(single) else ""
            emitted.append(self.double.get(pair, single[at]))
            at += 2 if pair in self.double else 1
        kept, places = emitted, starts
        if "toilet" in emitted and "seat" in emitted:  # the seat of the toilet is no chair
            kept = [word for word in emitted if word != "seat"]
            if not self.official:
                places = [i for i, word in zip(starts, emitted, strict=True) if word != "seat"]
        named = [(word, places[i]) for i, word in enumerate(kept) if word in self.nodes]
        words, indices = (tuple(part) for part in zip(*named, strict=True)) if named else ((), ())
        return Found(words, tuple(self.nodes[word] for word in words), indices, tuple(emitted))


@cache
def coco_words(dialect: str = "ours") -> ObjectWords:
    """Return the 80 COCO objects with their synonyms.

    Args:
        dialect: "pattern" keeps the published slips: bus, ties, canoes, doggies and collies are not found, nor
            iPhone, "motor bike" and cheesecake. "wordnet" finds buses and ties, but no men, and reads verbs as objects.

    Raises:
        DataError: the dialect is unknown, or its data are not on this machine.
    """
    if dialect not in DIALECTS:
        near = get_close_matches(dialect, DIALECTS, n=1)
        raise DataError(
            f"CHAIR has no dialect {dialect!r}{f'; did you mean {near[0]!r}?' if near else '.'} Known: "
            f"{', '.join(DIALECTS)}."
        )
    table: dict[str, str] = {}
    for line in synonym_lines():
        entries = line.strip().split(", ")
        # two entries of the published list have a leading blank, one a capital: they can't match
        clean = [entry.strip().lower() for entry in entries] if dialect == "ours" else entries
        table.update(dict.fromkeys(clean, clean[0]))
    if dialect == "wordnet":
        lemmas.check("CHAIR's dialect 'wordnet'")
        return ObjectWords(table, DOUBLE_WORDS, str, lemmas.lemmas, official=True)
    ours = dialect == "ours"
    return ObjectWords(table, DOUBLE_WORDS, singular.repaired if ours else singular.official, official=not ours)


def synonym_lines() -> list[str]:
    """Return the 80 lines of the published list, the object's own name first in each."""
    # by the top package: importing lvlm_guard.matching may load torch
    text = files("lvlm_guard").joinpath("matching/data/coco_synonyms.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]


def vocabulary_words(vocabulary: Iterable[str] | Mapping[str, str]) -> ObjectWords:
    """Return a vocabulary of your own: nouns of one or two words in the singular, or a mapping of nouns to objects.

    A token that is a noun of it is taken as it is, so nouns that end in s ("wineglass") are not cut. Raises `DataError`
    where there is no noun, or one is empty or has more words.
    """
    pairs = dict(vocabulary) if isinstance(vocabulary, Mapping) else {word: word for word in vocabulary}
    table = {" ".join(word.lower().split()): node for word, node in pairs.items()}
    if not table:
        raise DataError("The vocabulary holds no noun: captions would name nothing.")
    for noun in table:
        if not 1 <= len(noun.split()) <= 2:
            raise DataError(f"The vocabulary has the entry {noun!r}: give nouns of one or two words.")
    double = {noun: noun for noun in table if " " in noun}
    known = {part for noun in table for part in noun.split()}

    def singular_of(token: str) -> str:
        return token if token in known else singular.repaired(token)

    return ObjectWords(table, double, singular_of)
