"""M3ID: favour what the picture adds to the text, the more the longer the answer is.

Source: Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding", CVPR 2024, arXiv:2403.14003
(no official code; the constants are those of re-implementations that cite its Algorithm 1). On log-probabilities:

    s = lp + [max lp < ln gate] * expm1(lam * t) * (lp - lp_text)    t = 1 for the answer's first token

`lp_text` reads the prompt without its picture. The paper has no plausibility constraint, and its weight is 54 at token
200: give `beta` for long answers. What other papers print as "M3ID" is `gate=None, beta=0.1`, and counts t from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lvlm_guard.engine import Branch, Call, Plausible, Step, cut, limited, plausibility, weight


@dataclass(frozen=True)
class M3ID(Plausible):
    """Two branches, lp + w_t * (lp - lp_text) where the model is undecided, then the plausibility cut on l.

    Args:
        lam: how fast the text-only reading loses its say, >= 0.
        gate: a token whose best probability is at least this is left alone, above 0 to 1; None: none is.
        beta: plausibility cut, 0 to 1; 0 (none) in the paper.
        first: what t is at the first token, 1 or 0.
    """

    paper: ClassVar[str] = "arXiv:2403.14003"
    cost: ClassVar[str] = "a second branch where no token is likely"
    lam: float = weight(0.02)
    gate: float | None = limited(
        0.3, "a probability above 0 to 1, or None for no gate", lambda p: p is None or 0 < p <= 1
    )
    beta: float = plausibility(0.0)
    first: Literal[0, 1] = limited(1, "1, or 0 as re-implementations count", lambda t: t in (0, 1))

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("text", prompt=lambda call: call.without_pictures()),)

    def check(self, call: Call) -> None:
        """Raise `UnsupportedCallError` where the picture's tokens can't be taken out of the prompt."""
        _ = call.image_positions

    def decided(self, step: Step) -> Tensor:
        """Where the gate is closed, one token is plausible, or the text-only branch weighs nothing."""
        closed = super().decided(step) if self.beta > 0 else torch.zeros_like(step.t, dtype=torch.bool)
        return closed | ~self._open(step) | (self._weight(step) == 0)

    def _open(self, step: Step) -> Tensor:
        if self.gate is None:
            return torch.ones_like(step.t, dtype=torch.bool)
        return step.logits.log_softmax(-1).amax(-1) < math.log(self.gate)

    def _weight(self, step: Step) -> Tensor:
        return torch.expm1(self.lam * (step.t + self.first - 1).to(step.logits.dtype))

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the assembled log-probabilities; where the text-only branch did not run, lp."""
        lp = step.logits.log_softmax(-1)
        if branches is not None:
            weight = torch.where(self._open(step), self._weight(step), 0.0)
            lp = lp + weight[:, None] * (lp - branches[0].to(lp.dtype).log_softmax(-1))
        return cut(lp, step.logits, step.plausible(self.beta))
