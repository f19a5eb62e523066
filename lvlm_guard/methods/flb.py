"""FLB, First Logit Boosting: add what the model said before its first word, more and more.

Source: arXiv:2604.00455; code jiwooha20/FLB at d32c678 (Apache-2.0; the file's header reserves all rights in the
authors' edits, so nothing of it is copied). With f the logits of the answer's first token, t = 1 for that token,

    assembled = l + gamma * (1 - exp(-lambda * (t - 1))) * f    within the plausibility constraint on l

f was computed with the whole picture in sight and no word of the answer yet. Differs from the release: it samples only
and for one request; here f is each request's own, in every mode of generate(). Beside it belong APC alone, and plain
sampling as sharp: where l still equals f, FLB is a lower temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import Plausible, Single, Step, cut, plausibility, weight
from lvlm_guard.errors import UnsupportedCallError


@dataclass(frozen=True)
class FLB(Single, Plausible):
    """l + w * f, w growing from 0 to gamma along the answer, then the plausibility cut on l; no second branch.

    Args:
        gamma: what the weight grows to, >= 0; .3 in the paper. 0 is the cut alone.
        lam: lambda, how fast, a token, >= 0; .05 in the paper.
        beta: plausibility cut, a share of the best token's probability, 0 to 1; .1 in the paper.
    """

    paper: ClassVar[str] = "arXiv:2604.00455"
    cost: ClassVar[str] = "nothing"
    gamma: float = weight(0.3)
    lam: float = weight(0.05)
    beta: float = plausibility(0.1)

    def matched_temperature(self) -> float | None:
        """Return 1 / (1 + gamma), which it comes to where l stays f."""
        return 1 / (1 + self.gamma)

    def weight(self, t: int) -> float:
        """Return the weight of the first logits at token t, 1 for the first one."""
        return self.gamma * (1 - math.exp(-self.lam * (t - 1)))

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the boosted logits within the constraint; keeps each request's first ones for the call; raises
        `UnsupportedCallError` where an answer's first token was never seen."""
        first: dict[int, Tensor] = step.call.memory.setdefault(self.name, {})
        places = [len(step.prefix(row)) + 1 for row in range(len(step.request))]
        for row, (request, t) in enumerate(zip(step.request, places, strict=True)):
            if t == 1:
                first[request] = step.logits[row].clone()
        if not first.keys() >= set(step.request):
            raise UnsupportedCallError("FLB adds an answer's first logits, and this call did not begin with them.")
        assembled, weights = step.logits, [self.weight(t) for t in places]
        if any(weights):
            boost = torch.stack([first[request] for request in step.request])
            weight = boost.new_tensor(weights)[:, None]
            assembled = assembled + torch.where(weight > 0, weight * boost, 0.0)  # a forbidden token's -inf times 0
        return cut(assembled, step.logits, step.plausible(self.beta))
