"""RUDDER: steer one layer's attention output towards what it wrote for the prompt, the more it strays.

Source: "RUDDER: Residual-Update Directed Decoding Regulation" (ICML 2026), arXiv:2511.10292;
Akko000/RUDDER-Residual-Update-Directed-DEcoding-Regulation- at 2eab1e9 (no licence file; written from the formulas).
With A_i the output of `self_attn` at the prompt's positions, h that at a position which predicts a token:

    v = normalize(sum |A_i| A_i / sum |A_i|)
    g = clip(softplus(k s + c) / (softplus(k s + c) + softplus(-k s + c)), g_min, 1),  s = cos(h, v)
    h + alpha * g * v

Differs from the release: v is taken in the same forward, from A_i itself (there A_i minus the layer's normalised
input), and the prompt is not steered but for its last position. alpha is an absolute length: the paper's 20 is for
LLaVA-1.5-7B's layer 30, and costs it recall (69 of 73 objects; 10 costs 1). `relative` states it by the layer's own
length instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from lvlm_guard.engine import Call, Pass, Steering, edited, limited, weight


@dataclass(frozen=True)
class RUDDER(Steering):
    """h + alpha * g * v in one layer's attention output; no second branch.

    Args:
        alpha: strength, >= 0, in the units of the layer's states; 20 in the paper for LLaVA-1.5.
        layer: which layer, negative ones from the end; 30 of 32 in the paper for LLaVA-1.5.
        k, c: slope and offset of the gate.
        floor: the gate's least value, 0 to 1; .05 in the paper.
        relative: whether alpha is a share of the mean length of the layer's outputs over the prompt.
    """

    paper: ClassVar[str] = "arXiv:2511.10292"
    cost: ClassVar[str] = "nothing"
    alpha: float = weight(20.0)
    layer: int = -2
    k: float = 5.0
    c: float = 1.0
    floor: float = limited(0.05, "the gate's least value, 0 to 1", lambda g: 0 <= g <= 1)
    relative: bool = False

    def check(self, call: Call) -> None:
        """Raise `KnobError` where there is no such layer, `UnsupportedModelError` where it has no attention."""
        call.decoder.attention(*call.decoder.within([self.layer]))

    @contextmanager
    def around(self, passed: Pass) -> Iterator[None]:
        memory, decoder = passed.call.memory, passed.call.decoder
        module = decoder.attention(*decoder.within([self.layer]))
        reads = self.alpha > 0 and passed.from_the_start()

        def learn(_: int, given: Tensor) -> None:
            if reads:
                memory["rudder"] = self._direction(passed.prompts(given).float(), passed)

        def steer(_: int, given: Tensor) -> Tensor | None:
            if self.alpha == 0:
                return None
            learnt: tuple[Tensor, Tensor] = memory["rudder"]
            v, strength = (each[passed.rows.to(each.device)] for each in learnt)
            return given + strength[:, None, None] * self.gate(given.float(), v[:, None]) * v[:, None]

        with edited([module], learn), edited([module], steer, passed):
            yield

    def _direction(self, given: Tensor, passed: Pass) -> tuple[Tensor, Tensor]:
        """Return each request's direction [B, D] and strength [B]; rows of a request (beams) are alike."""
        weight = given.norm(dim=-1)
        if passed.mask is not None:
            weight = weight * passed.mask[:, : given.shape[1]].to(weight)
        seen = (weight > 0).sum(-1).clamp(min=1)
        first = torch.tensor([passed.request.index(one) for one in sorted(set(passed.request))], device=weight.device)
        length = weight.sum(-1) / seen if self.relative else torch.ones_like(weight[:, 0])
        return direction(given, weight)[first], (self.alpha * length)[first]

    def gate(self, h: Tensor, v: Tensor) -> Tensor:
        """Return g, [..., 1], of states and directions that broadcast, [..., D]."""
        s = cosine_similarity(h, v, dim=-1)[..., None]
        towards, away = softplus(self.k * s + self.c), softplus(-self.k * s + self.c)
        return (towards / (towards + away)).clamp(self.floor, 1)


def direction(given: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of states [R, n, D] by weight [R, n], of length 1, [R, D]."""
    return normalize((given * weight[..., None]).sum(1), dim=-1)
