"""IAT: pay more attention to the answer so far.

Source: the simple form in "AdaIAT" (CVPR 2026), arXiv:2603.04908; XianguiKang/AdaIAT at a0bf78e (no licence file;
written from the formula). Words of an answer that rest on the picture are attended to more than hallucinated ones, so
that their scores before softmax are raised at each position that predicts a token, in some layers:

    s + alpha * |s|    on the answer's columns

Nothing happens at the first token. The adaptive form needs statistics of each head and is not here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lvlm_guard.engine import Pass, weight
from lvlm_guard.engine.attention import Attending, Rows, attending


@dataclass(frozen=True)
class IAT(Attending):
    """Scores of the answer's own tokens raised by alpha * |s|; no second branch.

    Args:
        alpha: how much they rise, >= 0; .8 in the release.
        layers_from, layers_to: shares of the model's depth, 0 to 1, between which layers are steered; the release has
            layers 5 to 17 of 32.
    """

    paper: ClassVar[str] = "arXiv:2603.04908"
    cost: ClassVar[str] = "rescored rows of attention"
    alpha: float = weight(0.8)
    layers_from: float = 5 / 32
    layers_to: float = 18 / 32

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        if self.alpha == 0 or passed.ids.shape[1] <= passed.prompt:
            return nullcontext()

        def raised(rows: Rows) -> Tensor:
            return rows.heads(rows.scores + self.alpha * rows.scores.abs() * rows.since(passed.prompt))

        return attending(passed, passed.call.decoder, self.span(passed.call), raised)
