"""REVIS: where one layer's state strays from what seeing a picture adds, move it back along that.

Source: "REVIS" (ICML 2026), arXiv:2602.11824; antgroup/Revis at 75f4d29, Apache-2.0 (written from the formulas). With
a layer's outputs h at the end of question and answer, a true one, a hallucinated one or a refusal, in one layer:

    raw = mean[h(picture, true) - h(true)]      prior = mean[h(hallucinated) - h(refusal)]
    u = raw - (raw . prior / |prior|^2) prior    R = -cos(h, u)    h + alpha * u where R > tau

As in the paper: means (the release takes principal components, whose sign may be turned, and of the last layer states
behind the final norm, so its vectors and alpha don't carry over); the deepest layer in which hallucinated answers have
the higher mean risk; tau is a percentile of the risk of true ones. Not so: only positions that predict a token of the
answer are moved. Ours, unvalidated: no labels. The model's caption of a picture stands for the true answer, its caption
without having seen it for the other. At the last layer a gate shifts the logits, on yes/no questions perhaps to yes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lvlm_guard.engine import Pass, limited, weight
from lvlm_guard.measured import Measured

if TYPE_CHECKING:
    from lvlm_guard.calibration import Subject

REFUSALS = (
    "I cannot see any image.", "There is no image to describe.", "No image was provided.", "I can't view the image.",
    "I cannot describe an image that I have not seen.",
)  # fmt: skip


@dataclass(frozen=True)
class REVIS(Measured):
    """h + alpha * u in one layer, where the risk -cos(h, u) is over tau; no second branch.

    Args:
        statistics: file of `lvlm-guard calibrate revis`.
        alpha: strength, >= 0; 1.6 in the paper for Qwen2.5-VL, 1.1 for LLaVA-1.5.
        k: share of true answers below the gate, 0 to 1; .8 in the paper.
        tau: the gate, -1 to 1; None: by `k`. At 1 nothing is moved.
        layer: which layer, negative ones from the end; None: the one that the statistics choose.
    """

    paper: ClassVar[str] = "arXiv:2602.11824"
    cost: ClassVar[str] = "nothing, once its statistics are gathered"
    statistics: Any = None
    alpha: float = weight(1.6)
    k: float = limited(0.8, "a share, 0 to 1", lambda k: 0 <= k <= 1)
    tau: float | None = limited(None, "a cosine, -1 to 1", lambda tau: -1 <= tau <= 1)
    layer: int | None = None

    def around(self, passed: Pass) -> AbstractContextManager[None]:
        """Move one layer's states; raises `KnobError` where there is no such layer."""
        found, decoder = self.measured().tensors, passed.call.decoder
        (layer,) = decoder.within([int(found["layer"]) if self.layer is None else self.layer])
        tau = float(found["risk"][:, layer].quantile(self.k)) if self.tau is None else self.tau
        there = [layer] if self.alpha > 0 else []
        return decoder.edited(there, lambda _, h: moved(h, found["u"][layer].to(h.device), self.alpha, tau), passed)

    @classmethod
    def observe(cls, subject: Subject, picture: Image) -> dict[str, Tensor]:
        """Return differences of all layers' states, and the states whose risk is asked for, [L, D] each."""
        true, made_up = subject.caption(picture), subject.caption(picture, seen=False)
        seen, unseen = subject.states(picture, true), subject.states(picture, true, seen=False)
        refused = torch.stack([subject.states(picture, subject.tokens(text), seen=False) for text in REFUSALS]).mean(0)
        prior = subject.states(picture, made_up, seen=False) - refused
        return {"raw": seen - unseen, "prior": prior, "true": seen, "made_up": subject.states(picture, made_up)}

    @classmethod
    def conclude(cls, observed: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return u [L, D], the risks of true and hallucinated answers [n, L], and the layer."""
        every = {name: torch.stack([each[name] for each in observed]) for name in observed[0]}
        u = orthogonal(every["raw"].mean(0), every["prior"].mean(0))
        true, made_up = (-cosine_similarity(every[name], u, dim=-1) for name in ("true", "made_up"))
        above = made_up.mean(0) - true.mean(0)
        deepest = (above > 0 if bool((above > 0).any()) else above == above.max()).nonzero()[-1, 0]
        return {"u": u, "risk": true, "risk_made_up": made_up, "layer": deepest}

    @classmethod
    def summary(cls, found: Mapping[str, Tensor]) -> list[str]:
        """Say which layer was chosen, and how well it tells the two kinds of answers apart."""
        layer = int(found["layer"])
        true, made_up = (float(found[name][:, layer].mean()) for name in ("risk", "risk_made_up"))
        told = f"layer {layer} of {len(found['u'])}: mean risk {true:.3f} of captions, {made_up:.3f} of made-up ones"
        return [told + ("" if made_up > true else ": no layer tells them apart, so expect nothing of it")]


def orthogonal(raw: Tensor, prior: Tensor) -> Tensor:
    """Return what of raw is orthogonal to prior, [..., D]."""
    share = (raw * prior).sum(-1, keepdim=True) / (prior * prior).sum(-1, keepdim=True).clamp(min=1e-12)
    return raw - share * prior


def moved(h: Tensor, u: Tensor, alpha: float, tau: float) -> Tensor:
    """Return states [..., D], moved by alpha * u where their risk is over tau."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    return wide + alpha * u * (-cosine_similarity(wide, u.to(wide), dim=-1) > tau)[..., None]
