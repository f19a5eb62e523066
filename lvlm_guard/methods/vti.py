"""VTI: turn what all MLPs give towards what a true caption's states have over a hallucinated one's.

Source: Liu et al., "Reducing Hallucinations in Vision-Language Models via Latent Space Steering", ICLR 2025,
arXiv:2410.15778; shengliu66/VTI at bb5dfee (no licence file; written from the formulas). With f the difference that a
true caption makes to a hallucinated one in all layers' states at its end, of some pictures, and u the first principal
component of the centred f, of length 1, its sign such that the most extreme picture's is positive:

    d = mean(f) + u;    x <- |x| * normalize(x / |x| + alpha / 10 * d_i / |d_i|)

on the output x of each layer's MLP, at every position, as in the release (there the paper's alpha * d is added to x
instead). Statistics are gathered by `lvlm-guard calibrate vti`.

Ours, unvalidated: no labels. The model's own caption of a picture stands for the true one, its caption without having
seen it for the hallucinated one; in the paper a language model altered captions. The image tower is not steered, which
the release too has off by default: its directions belong to token positions of one resolution, and generate() encodes
pictures before the model calls in which a method acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.engine import Call, Pass, edited, weight
from lvlm_guard.measured import Measured

if TYPE_CHECKING:
    from lvlm_guard.calibration import Subject


@dataclass(frozen=True)
class VTI(Measured):
    """All MLP outputs turned along a direction of their layer, their lengths kept; no second branch.

    Args:
        statistics: file of `lvlm-guard calibrate vti`.
        alpha: strength, >= 0, of which a tenth acts; .8 in the release, .9 in its README.
    """

    paper: ClassVar[str] = "arXiv:2410.15778"
    cost: ClassVar[str] = "nothing, once its statistics are gathered"
    wanted: ClassVar[int] = 50
    statistics: Any = None
    alpha: float = weight(0.8)

    def check(self, call: Call) -> None:
        """Raise where there are no statistics of this model, or layers have no MLP of their own."""
        super().check(call)
        call.decoder.parts("mlp")

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        found, decoder = self.measured().tensors["text"], passed.call.decoder
        mlps = decoder.parts("mlp") if self.alpha > 0 else []
        return edited(mlps, lambda layer, x: turned(x, found[layer].to(x.device), self.alpha), passed, everywhere=True)

    @classmethod
    def observe(cls, subject: Subject, picture: Image) -> dict[str, Tensor]:
        """Return f of one picture, [L, D]."""
        true, made_up = subject.caption(picture), subject.caption(picture, seen=False)
        return {"f": subject.states(picture, true) - subject.states(picture, made_up)}

    @classmethod
    def conclude(cls, observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the directions, [L, D]."""
        f = torch.stack([each["f"] for each in observed])
        return {"text": direction(f.flatten(1)).view(f.shape[1:])}


def direction(f: Tensor) -> Tensor:
    """Return the mean of differences [n, D] and their first principal component, added, [D]."""
    mean = f.mean(0)
    u: Tensor = torch.linalg.svd(f - mean, full_matrices=False).Vh[0]
    along = (f - mean) @ u
    return mean + u * along[along.abs().argmax()].sign()


def turned(x: Tensor, d: Tensor, alpha: float) -> Tensor:
    """Return states [..., D] turned towards d [D] by a tenth of alpha, their lengths kept."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length: Tensor = wide.norm(dim=-1, keepdim=True)
    made: Tensor = length * normalize(normalize(wide, dim=-1) + alpha / 10 * normalize(d.to(wide), dim=-1), dim=-1)
    return made
