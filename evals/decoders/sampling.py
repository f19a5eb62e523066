"""Sampling whose answers depend on the document and the seed alone: not on the batch, the order, or what was cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(eq=False)
class DocumentSampler(LogitsProcessor):
    """Draws each row's next token with a random stream of its own; pass it as `logits_processor` with do_sample=False.

    By the Gumbel-max trick (Gumbel 1954; Maddison et al., NeurIPS 2014) the largest of scores + Gumbel noise is
    distributed as softmax(scores). The noise of a token depends on (seed, key, step), not on a batch's other rows.
    """

    seed: int  # of the run
    keys: Sequence[str]  # name of each row's document, [R]
    prompt_length: int  # tokens before the answer, padding included
    temperature: float | None = 1.0  # this and the next two as transformers' arguments; None or 0: not applied
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        self._warpers: list[LogitsProcessor] = []
        if self.temperature not in (None, 1.0):
            self._warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            self._warpers.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p is not None and self.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(float(self.top_p)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [R, V]: 0 for the token drawn, else -inf; raises `ValueError` unless there is a key a row."""
        if len(scores) != len(self.keys):
            raise ValueError(
                f"DocumentSampler has {len(self.keys)} documents for {len(scores)} rows: sample with num_beams=1 and "
                "num_return_sequences=1."
            )
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
