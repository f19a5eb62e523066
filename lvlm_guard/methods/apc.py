"""APC: the adaptive plausibility constraint alone, the control beside every method that contains it.

Source: Li et al., "Contrastive Decoding", ACL 2023, arXiv:2210.15097, eq. 2. Greedy, it changes
nothing; sampled, it cuts the tail that a contrast would cut too, so a gain over plain sampling that
APC alone reaches is no merit of a second branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import DEPTH, Plausible, Single, Step, plausibility


@dataclass(frozen=True)
class APC(Single, Plausible):
    """Keep the tokens whose probability is at least `beta` times the best one's; no second branch.

    Args:
        beta: share of the best token's probability, 0 to 1; .5 is what AGLA's paper combines it with.
    """

    paper: ClassVar[str] = "arXiv:2210.15097"
    cost: ClassVar[str] = "nothing"
    beta: float = plausibility(0.5)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        if self.beta == 0:
            return step.logits
        # no survivor lies lower than ln(beta) below the best, so that there is no need to look for the lowest
        return torch.where(step.plausible(self.beta), step.logits, step.logits + (math.log(self.beta) - DEPTH))
