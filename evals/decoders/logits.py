"""What stands at a model's logits: scores of yes/no questions, and draws that hang on document and seed alone.

A score is the log-odds of yes where the answer begins, over every way to spell yes and no. A draw depends neither on
the batch nor on the order, or on what was cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lvlm_guard.engine.assembly import upcast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Words = Mapping[str, Sequence[int]]  # ids of the ways to spell "yes" and "no"
Scored = tuple[float | None, float | None]  # score (nats) and mass; None where there is none
WORD_STARTS = "\u2581\u0120"  # what SentencePiece and byte-level BPE put for the blank before a word


@lru_cache(maxsize=8)
def spellings(tokenizer: PreTrainedTokenizerBase) -> Words:
    """Return the ids whose text is yes or no, blanks and capitals aside; "not", "yes," and first pieces are neither."""
    found: dict[str, list[int]] = {"yes": [], "no": []}
    for piece, token in tokenizer.get_vocab().items():
        # the ASCII letters of a piece stand for themselves in all kinds of vocabularies; decoding each is slow
        if any(word in piece.lower() for word in found):
            text = str(tokenizer.decode([token], skip_special_tokens=False))
            found.get(text.strip().strip(WORD_STARTS).strip().lower(), []).append(token)
    return {word: tuple(sorted(ids)) for word, ids in found.items()}


@dataclass(eq=False)
class FirstToken(LogitsProcessor):
    """Records the score of each row at the first answer token and changes nothing; pass it as `logits_processor`. It
    has to come before whatever cuts or draws, so that the logits are those that a method samples from."""

    words: Words
    scored: list[Scored] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, [R, V], as they are."""
        if self.scored is None:
            self.scored = first_token_scores(scores, self.words)
        return scores


def first_token_scores(logits: Tensor, words: Words) -> list[Scored]:
    """Return s = logsumexp(z[yes]) - logsumexp(z[no]) and the probability of both words together, a row each. `logits`
    are z, [R, V], before any cut. A vocabulary without one of the words gives no scores."""
    z = upcast(logits)  # half precision makes ties
    yes, no = ([token for token in words[word] if token < z.shape[-1]] for word in ("yes", "no"))
    if not yes or not no:
        return [(None, None)] * len(z)
    for_yes, for_no = z[:, yes].logsumexp(-1), z[:, no].logsumexp(-1)
    mass = (torch.logaddexp(for_yes, for_no) - z.logsumexp(-1)).exp()
    told = zip((for_yes - for_no).tolist(), mass.tolist(), strict=True)
    return [(s, m) if math.isfinite(s) else (None, m) for s, m in told]


def odds_of(p: float) -> float:
    """Return a matcher's probability as a score, nats; finite where float32 has rounded it to 0 or 1."""
    p = min(max(p, torch.finfo(torch.float32).tiny), 1 - torch.finfo(torch.float32).eps / 2)
    return math.log(p) - math.log1p(-p)


@dataclass(eq=False)
class DocumentSampler(LogitsProcessor):
    """Draws each row's next token with a random stream of its own; pass it as `logits_processor` with do_sample=False.
    By the Gumbel-max trick (Gumbel 1954; Maddison et al., NeurIPS 2014) the largest of scores + Gumbel noise is
    distributed as softmax(scores). The noise of a token depends on (seed, key, step), not on a batch's other rows."""

    seed: int  # of the run
    keys: Sequence[str]  # name of each row's document, [R]
    prompt_length: int  # tokens before the answer, padding included
    temperature: float | None = 1.0  # this and the next two as transformers' arguments; None or 0: not applied
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        warm = [TemperatureLogitsWarper(self.temperature)] if self.temperature not in (None, 1.0) else []
        most = [TopKLogitsWarper(self.top_k)] if self.top_k else []
        likely = [TopPLogitsWarper(self.top_p)] if self.top_p is not None and self.top_p < 1.0 else []
        self._warpers: list[LogitsProcessor] = [*warm, *most, *likely]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [R, V]: 0 for the token drawn, else -inf; raises `ValueError` unless there is a key a row."""
        if len(scores) != len(self.keys):
            rows = f"{len(self.keys)} documents for {len(scores)} rows"
            raise ValueError(f"DocumentSampler has {rows}: sample with num_beams=1 and num_return_sequences=1.")
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        step = input_ids.shape[1] - self.prompt_length
        noise = torch.stack([self._noise(key, step, scores.shape[-1]) for key in self.keys])
        drawn = (scores.double() + noise.to(scores.device)).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)

    def _noise(self, key: str, step: int, size: int) -> Tensor:
        name = blake2b(f"{self.seed} {step} {key}".encode(), digest_size=8).digest()
        # on the CPU, so that every device draws alike
        generator = torch.Generator().manual_seed(int.from_bytes(name, "big") >> 1)
        return -torch.empty(size, dtype=torch.float64).exponential_(generator=generator).log()
