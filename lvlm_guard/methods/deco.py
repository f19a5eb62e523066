"""DeCo: add what the most confident earlier layer says of the tokens that are plausible at the end.

Source: Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation", ICLR 2025,
arXiv:2410.11779; zjunlp/Deco at fee8d75. With C the smallest set of most likely tokens that hold `top_p` (at most
`top_k`), q_i = softmax(head(norm(h_i))) for some late layers i:

    (i*, v*) = argmax over i and v in C of q_i(v),  m = q_i*(v*)
    s = l + alpha * m * logits_i*    on C, all else below

Differs from the release: heads are read at the last position alone, each row for itself, at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import Call, Method, Step, cut, limited, weight
from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class DeCo(Method):
    """l + alpha * m * logits of the chosen layer on the candidates; one forward, no second branch.

    Args:
        alpha: weight of the earlier layer, >= 0; .6 in the release.
        top_p, top_k: which tokens are candidates: the most likely ones up to this probability and number.
        layers_from, layers_to: shares of the model's depth, 0 to 1; the release reads the states after layers 20 to 28
            of 32.
    """

    paper: ClassVar[str] = "arXiv:2410.11779"
    cost: ClassVar[str] = "a few more heads at undecided steps"
    alpha: float = weight(0.6)
    top_p: float = limited(0.9, "above 0 to 1", lambda p: 0 < p <= 1)
    top_k: int = limited(20, "1 or more", lambda k: k >= 1)
    layers_from: float = 20 / 32
    layers_to: float = 28 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layers_from <= self.layers_to <= 1:
            raise KnobError(
                f"layers_from is {self.layers_from!r} and layers_to {self.layers_to!r}: give shares of the depth, "
                "0 < layers_from <= layers_to <= 1."
            )

    def layers(self, call: Call) -> Sequence[int]:
        """Return the layers whose outputs are read, the last one never."""
        depth = len(call.decoder)
        first, last = (min(max(round(share * depth), 1), depth - 1) for share in (self.layers_from, self.layers_to))
        return range(first - 1, last)

    def candidates(self, logits: Tensor) -> Tensor:
        """Mark the candidates, [R, V] bool: at least one a row."""
        p, order = logits.softmax(-1).topk(min(self.top_k, logits.shape[-1]), -1)
        kept = p.cumsum(-1) - p < self.top_p
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, kept)

    def decided(self, step: Step) -> Tensor:
        return self.candidates(step.logits).sum(-1) == 1

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        keep = self.candidates(step.logits)
        if self.alpha == 0 or bool((keep.sum(-1) == 1).all()):
            return cut(step.logits, step.logits, keep)
        states = torch.stack([step.hidden(layer) for layer in self.layers(step.call)])
        early = step.call.decoder.lens(states).to(step.logits.dtype)  # [J, R, V]
        best = early.softmax(-1).masked_fill(~keep, 0).amax(-1)  # [J, R]
        sure, chosen = best.max(0)
        rows = torch.arange(len(chosen), device=chosen.device)
        return cut(step.logits + self.alpha * sure[:, None] * early[chosen, rows], step.logits, keep)
