"""PAI: pay more attention to the picture, and subtract what the text alone says.

Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024, arXiv:2407.21771; LALBJ/PAI at 9bbd8bd. At each position that predicts a token, in layers from `start` on,
scores of image tokens before softmax:

    A + alpha * |A|        then  gamma * (lp - lp_text) + lp_text    within the plausibility constraint on lp

`lp_text` reads the prompt without its picture, unsteered. Differs from the release: the prompt's last position is
steered too where a text branch runs (there a flag leaves it out), rows and beams have their own image columns, and any
attention kernel will do, since the steered rows are computed again from queries, keys and values.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lvlm_guard.engine import (
    Branch,
    Call,
    Constrained,
    Pass,
    Step,
    check_weight,
    contrast,
    cut,
    knob,
    limited,
    plausibility,
    weight,
)
from lvlm_guard.engine.attention import Rows, attending


@dataclass(frozen=True)
class PAI(Constrained):
    """Image tokens' scores raised by alpha * |A|, and gamma * lp - (gamma - 1) * lp_text within the constraint.

    Args:
        alpha: how much the picture's scores rise, >= 0; .2 for LLaVA-1.5.
        gamma: guidance against the text alone, >= 1; at 1 there is no text branch.
        beta: plausibility cut, 0 to 1; .1 in the release, which cuts only where gamma is above 1.
        start: first layer that is steered; 2 in the release.
    """

    paper: ClassVar[str] = "arXiv:2407.21771"
    cost: ClassVar[str] = "rescored rows of attention, a second branch at undecided steps"
    alpha: float = weight(0.2)
    gamma: float = knob(1.1, lambda value, name: check_weight(value - 1, f"{name} - 1"))
    beta: float = plausibility(0.1)
    start: int = limited(2, "the number of a layer, 0 for the first", lambda layer: layer >= 0)

    @property
    def assembles(self) -> bool:
        return self.gamma > 1

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("text", prompt=lambda call: call.without_pictures()),) if self.gamma > 1 else ()

    def check(self, call: Call) -> None:
        """Raise where the picture's tokens are not known, or there is no such layer."""
        _ = call.image_positions
        call.decoder.within([self.start])

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        if self.alpha == 0:
            return nullcontext()
        shown = passed.columns(passed.call.image_positions)

        def raised(rows: Rows) -> Tensor:
            here = shown[:, None, None, rows.first :].to(rows.scores)
            return rows.heads(rows.scores + self.alpha * rows.scores.abs() * here)

        decoder = passed.call.decoder
        return attending(passed, decoder, range(self.start, len(decoder)), raised)

    def decided(self, step: Step) -> Tensor:
        return (self.kept(step).sum(-1) == 1) | (self.gamma == 1)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the guided log-probabilities within the constraint; at gamma 1 the steered logits as they are."""
        if self.gamma == 1:
            return step.logits
        lp = step.logits.log_softmax(-1)
        other = lp if branches is None else branches[0].to(lp.dtype).log_softmax(-1)
        return cut(contrast(lp, other, self.gamma - 1), step.logits, self.kept(step))
