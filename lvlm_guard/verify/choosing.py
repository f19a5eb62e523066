"""Choose among the answers that one verified `generate()` call gave to one prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvlm_guard.errors import KnobError
from lvlm_guard.verify.ranking import Candidate, rerank

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.trace import GuardTrace
    from lvlm_guard.matching import Matcher

_SENTENCE = re.compile(r"[^.!?\n]*\w[^.!?\n]*[.!?]*")


@dataclass(frozen=True)
class Ranked:
    """One of several answers.

    Args:
        index: its place among the call's output sequences.
        score: by which they were ranked, in standard deviations.
        candidate: what the score was made of.
    """

    index: int
    score: float
    candidate: Candidate


def sentences(text: str) -> list[str]:
    """Return the sentences of an answer that hold a word."""
    return [found.strip() for found in _SENTENCE.findall(text)]


def ranked(
    trace: GuardTrace,
    texts: Sequence[str],
    images: Sequence[Image],
    matcher: Matcher,
    alpha: float = 0.5,
    penalty: float = 1.0,
) -> list[Ranked]:
    """Return the answers to one prompt, the best first; see `lvlm_guard.verify.ranking`.

    Args:
        trace: of `generate(..., num_return_sequences=n, verify=True)`: log-probabilities and verdicts.
        texts: the answers, in the order of the output sequences.
        images: the prompt's pictures; a sentence matches as well as with the one that it fits best.
        matcher: scores sentences; by `similarity` where it compares texts, else by its match scores.
        alpha: weight of the model's own probability, 0 to 1.
        penalty: weight of doubtful mentions.

    Raises:
        KnobError: the trace is of other answers, or a weight is out of range.
    """
    if not (len(trace.steps) == len(trace.verdicts) == len(texts)):
        raise KnobError(
            f"{len(texts)} answers, but the trace holds {len(trace.steps)} with their tokens and {len(trace.verdicts)} "
            "with verdicts: give the texts of all sequences of one generate(..., verify=True) call."
        )
    candidates = []
    for text, steps, checked in zip(texts, trace.steps, trace.verdicts, strict=True):
        logs = [p for step in steps if (p := step.log_prob.get("assembled")) is not None]
        said = sentences(text)
        match = _match(matcher, images, said) if said and images else None
        log_prob = sum(logs) / len(logs) if logs else 0.0
        candidates.append(Candidate(text, log_prob, match, [one.verdict for one in checked]))
    return [Ranked(index, score, candidates[index]) for index, score in rerank(candidates, alpha, penalty)]


def _match(matcher: Matcher, images: Sequence[Image], said: Sequence[str]) -> float:
    if matcher.compares:
        best = matcher.similarity(images, said).amax(0).tolist()
    else:
        scores = [[match.score for match in matcher([image] * len(said), said)] for image in images]
        best = [max(column) for column in zip(*scores, strict=True)]
    return float(sum(best) / len(best))
