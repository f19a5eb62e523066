"""AdaIAT: pay more attention to the answer so far, head by head, where it gets as little as hallucinated words do.

Source: "AdaIAT" (CVPR 2026), arXiv:2603.04908; XianguiKang/AdaIAT at a0bf78e (no licence file; written from the
formulas). Ar and Ah [L, H] are a head's mean attention to a token of the answer where the model names an object that is
there, or one that is not. At positions that predict a token, in some layers, with A the attention weights:

    M = Ar / Ah      T_l = sum_h Ah + beta (sum_h Ar - sum_h Ah)
    where sum_h mean_{j in answer} A_hj < T_l:  A_hj * (1 + alpha (M_h - 1)) for j in the answer, rows to 1 again

As in the release, whose factor is negative for heads far below M = 1: here at least .001. In the paper it is 1 + alpha
M (`mode="paper"`, read second-hand), which moves heads that tell nothing too. Nothing happens at the first token.

Ours, unvalidated: instead of labels, a matcher judges the objects in the model's own captions of a user's pictures, and
mentions as far into their answers are compared: the mean falls as an answer grows, and hallucinated words come late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from lvlm_guard.engine import Pass, choice, weight
from lvlm_guard.engine.attention import Attending, Rows, attending
from lvlm_guard.measured import Measured, paired

if TYPE_CHECKING:
    from lvlm_guard.calibration import Subject

FEWEST = 10  # pairs of mentions as far into their answers
FLOOR = 1e-3


@dataclass(frozen=True)
class AdaIAT(Measured, Attending):
    """Weights of the answer's own tokens times 1 + alpha * (M - 1), where a layer gives them little; no second branch.

    Args:
        statistics: file of `lvlm-guard calibrate adaiat`.
        alpha: strength, >= 0; 6 in the release for LLaVA-1.5-7B, 9 for Qwen2.5-VL-7B.
        beta: threshold between hallucinated (0) and real mentions (1); .5 and .25.
        layers_from, layers_to: shares of the depth, 0 to 1, between which layers are steered; layers 5 to 17 of 32.
        mode: the factor, see above.
    """

    paper: ClassVar[str] = "arXiv:2603.04908"
    cost: ClassVar[str] = "rescored rows of attention, once its statistics are gathered"
    statistics: Any = None
    alpha: float = weight(6.0)
    beta: float = 0.5
    layers_from: float = 5 / 32
    layers_to: float = 18 / 32
    mode: Literal["official", "paper"] = choice("official", "paper")

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        if self.alpha == 0 or passed.ids.shape[1] <= passed.prompt:
            return nullcontext()
        found, layers = self.measured().tensors, self.span(passed.call)

        def raised(rows: Rows) -> Tensor:
            real, wrong = (found[name][layers[rows.index]].to(rows.scores) for name in ("real", "hallucinated"))
            factor = factors(real, wrong, self.alpha, self.mode == "paper").log()[:, None, None]
            answered = rows.since(passed.prompt)
            little = rows.paid(answered).sum(1) < threshold(real.sum(), wrong.sum(), self.beta)
            return rows.heads(rows.scores + factor * (little[:, None, :, None] & answered))

        return attending(passed, passed.call.decoder, layers, raised)

    @classmethod
    def observe(cls, subject: Subject, picture: Image) -> dict[str, Tensor]:
        """Return each mention's attention [m, L, H], its place in the answer [m] and the matcher's probability [m]."""
        answer = subject.caption(picture)
        at, probability = subject.mentions(picture, answer)
        return {"attention": subject.paid(picture, answer)[at], "at": at, "probability": probability}

    @classmethod
    def conclude(cls, observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return Ar and Ah [L, H], the pairs that they rest on, and which share of both mentions T catches [2, L]."""
        every = {name: torch.cat([each[name] for each in observed]) for name in observed[0]}
        kinds = torch.stack([every["probability"] >= 0.5, every["probability"] < 0.5])
        (real, wrong), pairs = paired(every["attention"], every["at"], kinds, FEWEST)
        caught = every["attention"].sum(-1) < threshold(real.sum(-1), wrong.sum(-1), cls.beta)
        shares = torch.stack([caught[kind].float().mean(0) for kind in kinds])
        return {"real": real, "hallucinated": wrong, "pairs": torch.tensor(pairs), "caught": shares}

    @classmethod
    def summary(cls, found: Mapping[str, Tensor]) -> list[str]:
        """Say how often each layer's threshold catches either kind of mentions."""
        shares = [f"{layer}: {wrong:.0%}, {real:.0%}" for layer, (real, wrong) in enumerate(found["caught"].T.tolist())]
        return [f"{int(found['pairs'])} pairs of mentions; layers act at hallucinated, real ones: " + "; ".join(shares)]


def threshold(real: Tensor, wrong: Tensor, beta: float) -> Tensor:
    """Return T of sums over heads."""
    return wrong + beta * (real - wrong)


def factors(real: Tensor, wrong: Tensor, alpha: float, paper: bool = False) -> Tensor:
    """Return what the weights of heads [H] are multiplied by."""
    return (1 + alpha * (real / wrong.clamp(min=1e-12) - (0 if paper else 1))).clamp(min=FLOOR)
