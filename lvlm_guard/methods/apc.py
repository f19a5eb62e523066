"""APC: the adaptive plausibility constraint alone, the control beside every method that contains it.

Source: Li et al., "Contrastive Decoding", ACL 2023, arXiv:2210.15097, eq. 2. Greedy, it changes
nothing; sampled, it cuts the tail that a contrast would cut too, so a gain over plain sampling that
APC alone reaches is no merit of a second branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine.assembly import DEPTH, check_beta
from lvlm_guard.engine.method import Single, Step


@dataclass(frozen=True)
class APC(Single):
    """Keep the tokens whose probability is at least `beta` times the best one's; no second branch.

    Args:
        beta: share of the best token's probability, 0 to 1; .5 is what AGLA's paper combines it with.

    Raises:
        KnobError: beta is outside 0 to 1.
    """

    name: ClassVar[str] = "apc"
    paper: ClassVar[str] = "arXiv:2210.15097"
    cost: ClassVar[str] = "nothing"
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def uncut(self) -> APC:
        """Return the method with beta 0, which is plain decoding."""
        return replace(self, beta=0.0)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the global logits with the implausible tokens pushed down."""
        if self.beta == 0:
            return step.logits
        # no survivor lies lower than ln(beta) below the best, so that there is no need to look for the lowest
        return torch.where(step.plausible(self.beta), step.logits, step.logits + (math.log(self.beta) - DEPTH))
