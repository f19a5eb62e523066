"""Four methods with what their authors' code does otherwise than their papers say, for parity with published numbers.

Releases, of which the modules of `lvlm_guard/methods` tell the formulas: AGLA (arXiv:2406.12718; Lackel/AGLA at
efa1263), VCD (arXiv:2311.16922; DAMO-NLP-SG/VCD before c637c85), DoLa (arXiv:2309.03883; voidism/DoLa at 805230e) and
ReVisiT (arXiv:2506.09522; bscho333/ReVisiT at b382967). They are asked for by name, `method="agla-official"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import Constrained, Method, Step, cut, plausible
from lvlm_guard.engine.steering import Decoder
from lvlm_guard.methods.agla import AGLA
from lvlm_guard.methods.dola import DoLa
from lvlm_guard.methods.revisit import ReVisiT
from lvlm_guard.methods.vcd import VCD


class Published(Method):
    """A release as it is."""

    parity: ClassVar[bool] = True
    mode: ClassVar[str] = "official"

    def knobs(self) -> dict[str, Any]:
        """Return the knobs, and the mode, which is none: traces and reports say it."""
        return super().knobs() | {"mode": self.mode}


class FirstTokenOnly(Published, Constrained):
    """The branch acts on the first token alone.

    The release copies the global branch's KV cache into the other one at every step, so that from the second token on
    both read the same picture. The second forward pass that this wastes is left out.
    """

    @property
    def executions(self) -> tuple[str, ...]:
        """Lazy alone: stacked, the branch would run at every step for nothing."""
        return ("lazy",)

    def decided(self, step: Step) -> Tensor:
        """All but the first token too."""
        return super().decided(step) | (step.t > 1)

    def other(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the branch's logits, [R, V] in the model's own dtype; l stands in where it does not act."""
        return step.raw if branches is None else torch.where((step.t > 1)[:, None], step.raw, branches[0])

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        return super().assemble(step, (self.other(step, branches),))


@dataclass(frozen=True)
class VCDOfficial(FirstTokenOnly, VCD):
    """VCD whose noise acts on the first token alone, with which the published numbers were made."""

    name: ClassVar[str] = "vcd-official"


@dataclass(frozen=True)
class AGLAOfficial(FirstTokenOnly, AGLA):
    """AGLA whose masked picture acts on the first token alone (then l + alpha * l), in the model's own precision."""

    name: ClassVar[str] = "agla-official"

    def kept(self, step: Step) -> Tensor:
        """Return the plausible tokens, the cutoff rounded to the model's dtype."""
        return plausible(step.raw, self.beta)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return l + alpha * l_local within the constraint, added in the model's dtype."""
        assembled = self.rule(step.raw, self.other(step, branches), self.alpha)
        return cut(assembled.to(step.logits.dtype), step.logits, self.kept(step))


def swapped_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return what the releases of DoLa and ReVisiT call the Jensen-Shannon divergence, [...] in nats.

    KL from the middle to each of the two, and its mean over the tokens instead of their sum.
    """
    p, q = logits.softmax(-1), other.softmax(-1)
    middle = (p + q) / 2
    return ((middle * (middle / p).log()).mean(-1) + (middle * (middle / q).log()).mean(-1)) / 2


@dataclass(frozen=True)
class DoLaOfficial(Published, DoLa):
    """DoLa that chooses its layer by KL with swapped arguments."""

    name: ClassVar[str] = "dola-official"
    apart = staticmethod(swapped_divergence)


@dataclass(frozen=True)
class ReVisiTOfficial(Published, ReVisiT):
    """ReVisiT that chooses its image token by KL with swapped arguments, and norms the last layer's states alone."""

    name: ClassVar[str] = "revisit-official"
    apart = staticmethod(swapped_divergence)

    @staticmethod
    def normed(states: Tensor, layer: int, decoder: Decoder) -> Tensor:
        """Return the states after a layer as the head reads them."""
        return states if layer < len(decoder) - 1 else ReVisiT.normed(states, layer, decoder)
