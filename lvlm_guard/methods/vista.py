"""VISTA: steer all layers towards what the picture adds, and average the head over late layers.

Source: Li et al., "The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via Visual
Information Steering", ICML 2025, arXiv:2502.03628; LzVv123456/VISTA at dc62252. With v_i the difference that the
picture makes to the prompt's last state after layer i, at every layer and position, on the output x of its MLP:

    x <- |x| * normalize(x / |x| + lam * (1 + max(0, cos(x, -v_i))) * v_i / |v_i|)
    s = (1 - alpha) * l + alpha * mean over some late layers of head(h_i)

Differs from the release: v_i is the difference itself (there a principal component of one pair adds 1 to one coordinate
of it), rows have their own, any precision will do, and a layer whose last state no picture reaches (behind a sliding
window) is not steered: its v_i is rounding, another in each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lvlm_guard.engine import Call, Pass, Steering, Step, check_span, edited, weight
from lvlm_guard.errors import KnobError

ROUNDING = 2 / 3  # power of a type's epsilon; relative differences are 2e-7 to 5e-6 unseen, 7e-3 and more seen


@dataclass(frozen=True)
class VISTA(Steering):
    """All MLP outputs steered along what the picture adds, and the head averaged with late layers.

    Args:
        lam: strength of the steering, >= 0; .17 for captions and .01 for questions in the release.
        alpha: share of the late layers in the logits, 0 to 1; .3 in the release.
        late_from, late_to: shares of the depth where the head is read; in the release layers 25 to 30 of 32.
    """

    paper: ClassVar[str] = "arXiv:2502.03628"
    cost: ClassVar[str] = "two more readings of the prompt"
    asks_about_pictures: ClassVar[bool] = True
    lam: float = weight(0.17)
    alpha: float = 0.3
    late_from: float = 25 / 32
    late_to: float = 31 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise KnobError(f"alpha is {self.alpha!r}, but it is the late layers' share of the logits: give 0 to 1.")
        check_span(self.late_from, self.late_to, "late_from, late_to")

    @property
    def assembles(self) -> bool:
        return self.alpha > 0

    def check(self, call: Call) -> None:
        """Raise where the picture's tokens are not known, or layers have no MLP of their own."""
        _ = call.image_positions
        call.decoder.parts("mlp")

    def layers(self, call: Call) -> Sequence[int]:
        """Return the late layers, at least one and never the last."""
        depth = len(call.decoder)
        first = min(round(self.late_from * depth), depth - 2)
        return range(first, max(min(round(self.late_to * depth), depth - 1), first + 1)) if self.alpha > 0 else ()

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        call = passed.call
        if self.lam == 0:
            return nullcontext()
        if self.name not in call.memory:
            passed.from_the_start()
            call.memory[self.name] = _directions(call)

        def change(layer: int, x: Tensor) -> Tensor:
            v: Tensor = call.memory[self.name][layer]
            return steered(x.float(), v[passed.rows.to(v.device), None].to(x.device), self.lam)

        return edited(call.decoder.parts("mlp"), change, passed, everywhere=True)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        if self.alpha == 0:
            return step.logits
        states = torch.stack([step.hidden(layer) for layer in self.layers(step.call)])
        late = step.call.decoder.lens(states, norm=False).to(step.logits.dtype)
        return (1 - self.alpha) * step.logits + self.alpha * late.mean(0)


def _directions(call: Call) -> list[Tensor]:
    """Return what the picture adds to each layer's last state, [B, D] each; 0 where that is rounding."""
    layers, least = range(len(call.decoder)), torch.finfo(call.dtype).eps ** ROUNDING
    seen, text = call.run(call.opening, layers)[1], call.run(call.without_pictures(), layers)[1]
    pairs = [(a[:, -1:].float(), (a[:, -1:] - b[:, -1:]).float()) for a, b in zip(seen, text, strict=True)]
    return [(v * (v.norm(dim=-1, keepdim=True) > least * a.norm(dim=-1, keepdim=True)))[:, 0] for a, v in pairs]


def steered(x: Tensor, v: Tensor, lam: float) -> Tensor:
    """Return states [..., D] turned towards v by lam, their lengths kept."""
    more = 1 + cosine_similarity(x, -v, dim=-1).clamp(min=0)[..., None]
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return length * normalize(normalize(x, dim=-1) + lam * more * normalize(v, dim=-1), dim=-1)
