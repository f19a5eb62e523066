"""The objects that descriptions name, as CHAIR reads them, and which of them are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.evals.metrics import chair, tokens
from lvlm_guard.evals.metrics.objects import ObjectWords, coco_words, vocabulary_words
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.studies.verify.describing import Description, Piece
from lvlm_guard.verify.choosing import sentences


@dataclass(frozen=True)
class Mention:
    """An object that a description names, where it does so first.

    Args:
        object: CHAIR's name of it.
        true: whether it is in the picture.
        word: as the description has it.
        sentence: that holds it.
        probability: that the model gave to the tokens of the word, given all before them.
    """

    object: str
    true: bool
    word: str
    sentence: str
    probability: float


def mentions_of(task: EvalTask, descriptions: Sequence[Description]) -> list[list[Mention]]:
    """Return each description's objects, each object once, in order.

    A verdict is of an object and not of a word, so repeats would count one verdict several times.

    Args:
        task: of captions; its items in the order of the descriptions.
        descriptions: one of each item.

    Raises:
        DataError: the ground truth names no known object.
    """
    items = task.items
    reader = coco_words() if task.vocabulary is None else vocabulary_words(task.vocabulary)
    rows = [{"image_id": place, "caption": one.text} for place, one in enumerate(descriptions)]
    truths = {place: _truth(item) for place, item in enumerate(items)}
    read = chair.compare(rows, truths, vocabulary=task.vocabulary)
    return [_named(caption, one, reader) for caption, one in zip(read, descriptions, strict=True)]


def _truth(item: Item) -> list[str]:
    return [str(name) for name in item.truth]


def _named(caption: chair.Caption, description: Description, reader: ObjectWords) -> list[Mention]:
    text = description.text
    places = spans(text)
    singular = [reader.singular(token) for token in tokens.words(text)]
    found: dict[str, Mention] = {}
    for node, index in zip(caption.found.nodes, caption.found.indices, strict=True):
        if node in found:
            continue
        pair = " ".join(singular[index : index + 2])
        last = index + 1 if pair in reader.double and index + 1 < len(places) else index
        start, end = places[index][0], places[last][1]
        found[node] = Mention(
            node,
            node in caption.truth,
            text[start:end],
            _sentence(text, start),
            math.exp(_log_prob(description.pieces, start, end)),
        )
    return list(found.values())


def spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each token that CHAIR's tokenizer finds, in characters."""
    # letter by letter, for a few grow when they are lowered
    lowered = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    found, at = [], 0
    for token in tokens.words(text):
        start = lowered.find(token, at)
        start = at if start < 0 else start
        at = min(start + len(token), len(text))
        found.append((start, at))
    return found


def _sentence(text: str, place: int) -> str:
    at, holding = 0, text
    for sentence in sentences(text):
        at = text.find(sentence, at)
        if at > place:
            break
        holding = sentence
        at += len(sentence)
    return holding


def _log_prob(pieces: Sequence[Piece], start: int, end: int) -> float:
    return sum(piece.log_prob for piece in pieces if piece.start < end and piece.end > start)
