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
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lvlm_guard.engine.assembly import check_alpha
from lvlm_guard.engine.attention import Rows, attending
from lvlm_guard.engine.method import Steering
from lvlm_guard.engine.steering import Pass, check_span, span

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call


@dataclass(frozen=True)
class IAT(Steering):
    """Scores of the answer's own tokens raised by alpha * |s|; no second branch.

    Args:
        alpha: how much they rise, >= 0; .8 in the release.
        layers_from, layers_to: shares of the model's depth, 0 to 1, between which layers are steered; the release has
            layers 5 to 17 of 32.

    Raises:
        KnobError: a knob is out of range.
    """

    name: ClassVar[str] = "iat"
    paper: ClassVar[str] = "arXiv:2603.04908"
    cost: ClassVar[str] = "rescored rows of attention"
    alpha: float = 0.8
    layers_from: float = 5 / 32
    layers_to: float = 18 / 32

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_span(self.layers_from, self.layers_to)

    def check(self, call: Call) -> None:
        """Raise `UnsupportedModelError` where the model's layers can't be found."""
        for layer in span(self.layers_from, self.layers_to, len(call.decoder)):
            call.decoder.attention(layer)

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        """Raise the scores of the answer's tokens."""
        if self.alpha == 0 or passed.ids.shape[1] <= passed.prompt:
            return nullcontext()

        def raised(rows: Rows) -> Tensor:
            return rows.heads(rows.scores + self.alpha * rows.scores.abs() * rows.since(passed.prompt))

        decoder = passed.call.decoder
        return attending(passed, decoder, span(self.layers_from, self.layers_to, len(decoder)), raised)
