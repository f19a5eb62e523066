"""The best of several answers to one prompt, by the model's own probability and by a matcher.

Source: the idea of CLIP-guided decoding (Deng et al., arXiv:2402.15300), sentence by sentence; the mixing form is
ours (adapters.md 4.5). Both kinds of scores are standardised over the candidates first:

    score = alpha * z(mean log-probability of a token) + (1 - alpha) * z(mean over sentences of S(sentence, picture))
            - penalty * (mean over mentions of 1 - p(mention holds))
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvlm_guard.errors import KnobError
from lvlm_guard.verify.verdict import Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.trace import GuardTrace
    from lvlm_guard.matching import Matcher

_SENTENCE = re.compile(r"[^.!?\n]*\w[^.!?\n]*[.!?]*")


@dataclass(frozen=True)
class Candidate:
    """One answer, scored.

    Args:
        text: the answer.
        log_prob: mean log-probability of its tokens (nats) under the model.
        match: mean of the matcher's score over its sentences; None where it has none.
        verdicts: on the objects that it names.
    """

    text: str
    log_prob: float
    match: float | None
    verdicts: Sequence[Verdict] = ()

    @property
    def doubt(self) -> float:
        """Mean probability that a named object is not there, 0 where none is named."""
        return sum(1 - one.p_supported for one in self.verdicts) / len(self.verdicts) if self.verdicts else 0.0


def rerank(candidates: Sequence[Candidate], alpha: float = 0.5, penalty: float = 1.0) -> list[tuple[int, float]]:
    """Return (index, score) of each candidate, the best first; of equal ones the earlier first.

    Args:
        candidates: answers to one prompt, one at least.
        alpha: weight of the model's own probability, 0 (the matcher alone) to 1 (the model alone).
        penalty: weight of doubtful mentions, in standard deviations, >= 0; 0 leaves them out.

    Raises `KnobError` where a weight is out of range.
    """
    if not candidates:
        raise KnobError("There is no answer to choose from: give at least one.")
    if not 0 <= alpha <= 1 or not 0 <= penalty < math.inf:
        raise KnobError(f"alpha is {alpha} and penalty {penalty}: give 0 to 1, and 0 or more.")
    told = [one.match for one in candidates if one.match is not None]
    usual = sum(told) / len(told) if told else 0.0  # an answer without a sentence to match is neither good nor bad
    own = _standardised([one.log_prob for one in candidates])
    match = _standardised([usual if one.match is None else one.match for one in candidates])
    scores = [
        alpha * mine + (1 - alpha) * theirs - penalty * one.doubt
        for one, mine, theirs in zip(candidates, own, match, strict=True)
    ]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def _standardised(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread if spread > 0 else 0.0 for value in values]


@dataclass(frozen=True)
class Ranked:
    """One of several answers: its place among the call's output sequences, its score in standard deviations, and what
    that was made of."""

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
    """Return the answers that one verified `generate()` call gave to one prompt, the best first.

    Args:
        trace: of `generate(..., num_return_sequences=n, verify=True)`: log-probabilities and verdicts.
        texts: the answers, in the order of the output sequences.
        images: the prompt's pictures; a sentence matches as well as with the one that it fits best.
        matcher: scores sentences; by `similarity` where it compares texts, else by its match scores.
        alpha, penalty: see `rerank`; raises `KnobError` as that does, and where the trace is of other answers.
    """
    verdicts = trace.extra.get("verdicts", [])
    if not (len(trace.steps) == len(verdicts) == len(texts)):
        raise KnobError(
            f"{len(texts)} answers, but the trace holds {len(trace.steps)} with their tokens and {len(verdicts)} "
            "with verdicts: give the texts of all sequences of one generate(..., verify=True) call."
        )
    candidates = []
    for text, steps, checked in zip(texts, trace.steps, verdicts, strict=True):
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
