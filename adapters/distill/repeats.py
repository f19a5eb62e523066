"""What a teacher names again, left out of what is learnt from it.

A guard that keeps a model from naming what is not there lets it name a thing twice where it goes on listing: the only
noun left that is true. A student that learns to say the same names fewer things, so where the guard's distribution held
enough for words that name nothing again, those alone are the lesson. Ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lvlm_guard.adapters.distill.answers import Answer, Lesson
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.claims import finder_of
from lvlm_guard.verify.naming import mentions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_repeats(
    lines: Iterable[str], tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, least: float
) -> Iterator[str]:
    """Yield the lines of an answer file with `unrepeated` descriptions.

    Args:
        lines: as `Lesson.line` writes them.
        tokenizer: of the model that answered.
        vocabulary: of objects.
        least: see `unrepeated`.
    """
    for line in lines:
        lesson = Lesson.of(line)
        answers = [
            answer if answer.object is not None else unrepeated(answer, tokenizer, vocabulary, least)
            for answer in lesson.answers
        ]
        yield replace(lesson, answers=answers).line()


def unrepeated(answer: Answer, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, least: float) -> Answer:
    """Return an answer whose distributions hold no token that can only name an object that it has named before.

    Args:
        answer: with the guard's distribution at each step where it had a choice.
        tokenizer: of the model that answered.
        vocabulary: of objects.
        least: share, 0 to 1, that the other tokens must hold together at a step; else it stays as it is.
    """
    finder = finder_of(tokenizer, vocabulary)
    kept = []
    for step, (ids, shares) in zip(answer.open, answer.soft, strict=True):
        before = answer.tokens[:step]
        named = {mention.object for mention in mentions(str(tokenizer.decode(before)), vocabulary)}
        reached = finder.reachable(before, ids) if named else {}
        new = [place for place, token in enumerate(ids) if not reached.get(token) or not reached[token] <= named]
        enough = sum(shares[place] for place in new) >= least * sum(shares) > 0
        kept.append(([ids[k] for k in new], [shares[k] for k in new]) if new and enough else (ids, shares))
    return replace(answer, soft=kept)
