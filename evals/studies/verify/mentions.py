"""The objects that descriptions name, as CHAIR reads them, and which of them are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.evals.metrics import chair, tokens
from lvlm_guard.evals.metrics.objects import ObjectWords, coco_words, vocabulary_words
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.studies.verify.describing import Piece
from lvlm_guard.verify.choosing import sentences

Described = tuple[str, Sequence[Piece]]
"""A description and its pieces."""


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


def mentions_of(task: EvalTask, described: Sequence[Described]) -> list[list[Mention]]:
    """Return each description's objects, each object once, in order.

    A verdict is of an object and not of a word, so repeats would count one verdict several times.

    Args:
        task: of captions; its items in the order of the descriptions.
        described: one of each item.

    Raises:
        DataError: the ground truth names no known object.
    """
    reader = coco_words() if task.vocabulary is None else vocabulary_words(task.vocabulary)
    rows = [{"image_id": place, "caption": text} for place, (text, _) in enumerate(described)]
    truths = {place: [str(name) for name in item.truth] for place, item in enumerate(task.items)}
    read = chair.compare(rows, truths, vocabulary=task.vocabulary)
    return [_named(caption, *one, reader) for caption, one in zip(read, described, strict=True)]


def mention_task(task: EvalTask, mentions: Sequence[Sequence[Mention]]) -> EvalTask:
    """Return the mentions as items: the question is the object, the tags say where it stands."""
    items = [
        Item(
            key=f"{item.key} {one.object}",
            picture=item.picture,
            prompt=one.sentence,
            images=item.images,
            question=one.object,
            truth="yes" if one.true else "no",
            rows=(task.name,),
            tags={"word": one.word},
        )
        for item, named in zip(task.items, mentions, strict=True)
        for one in named
    ]
    return EvalTask("mentions", "mentions", items, task.max_new_tokens, split=task.split, about=task.about)


def _named(caption: chair.Caption, text: str, pieces: Sequence[Piece], reader: ObjectWords) -> list[Mention]:
    places = spans(text)
    singular = [reader.singular(token) for token in tokens.words(text)]
    found: dict[str, Mention] = {}
    for node, index in zip(caption.found.nodes, caption.found.indices, strict=True):
        if node in found:
            continue
        pair = " ".join(singular[index : index + 2])
        last = index + 1 if pair in reader.double and index + 1 < len(places) else index
        start, end = places[index][0], places[last][1]
        log_prob = sum(p for begin, stop, p in pieces if begin < end and stop > start)
        sentence = _sentence(text, start)
        found[node] = Mention(node, node in caption.truth, text[start:end], sentence, math.exp(log_prob))
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
