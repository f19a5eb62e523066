"""VCD: subtract what the model says of a noised picture.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
Contrastive Decoding", CVPR 2024, arXiv:2311.16922; knobs and schedule as in the authors' release
(DAMO-NLP-SG/VCD at d6568ff).

Differs from the release: each picture's noise comes from a generator of its own, seeded by `seed` and
the picture's content, so a picture's answer does not depend on its neighbours in the batch, and the
sampler's random stream is left alone. `vcd-official` (`evals/decoders/published.py`) is the release
before its cache fix, with which the published numbers were made.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import Branch, Call, Contrast, limited, plausibility, weight
from lvlm_guard.engine.pictures import noise, units
from lvlm_guard.errors import MissingViewError, UnsupportedCallError

SCHEDULE = 1000  # diffusion steps of the noise schedule


def kept_share(step: int) -> float:
    """Return the share of the picture's variance left after `step` diffusion steps (0.7448 at 500)."""
    rate = torch.sigmoid(torch.linspace(-6, 6, SCHEDULE, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    return float(torch.cumprod(1 - rate, dim=0)[step])


@dataclass(frozen=True)
class VCD(Contrast):
    """Two branches, (1 + alpha) * l - alpha * l_noised, then the plausibility cut on l.

    Args:
        alpha: contrast strength, >= 0; 1 in the release.
        beta: plausibility cut, 0 to 1; .1 in the release (its POPE script passes .2).
        noise_step: noise level on the normalised pixels, 0 (almost clean) to 999 (nearly pure noise).
        seed: seed of the noise; together with a picture's pixels it fixes that picture's noise.
    """

    paper: ClassVar[str] = "arXiv:2311.16922"
    cost: ClassVar[str] = "a second branch at undecided steps"
    alpha: float = weight(1.0)
    beta: float = plausibility(0.1)
    noise_step: int = limited(
        500,
        f"a whole number from 0 to {SCHEDULE - 1}",
        lambda step: isinstance(step, int) and step in range(SCHEDULE),
    )
    seed: int = 0

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("noised", pixels=self.view),)

    def view(self, call: Call) -> dict[str, Tensor]:
        """Return the image tensors with each picture noised; raises `UnsupportedCallError` where a picture's pixels
        can't be told from its neighbours'."""
        kept = kept_share(self.noise_step)
        changed = deepcopy(call.tensors)
        found = units(changed)
        try:
            call.trace.masks += len(call.pictures.views())
        except MissingViewError:  # inputs of a plain processor, or a server's
            call.trace.masks += len(found)
        if len(found) < sum(call.has_picture):
            raise UnsupportedCallError(
                f"{type(call.processor).__name__} packs the pictures of a batch into one tensor, so that a picture's "
                "noise would depend on its neighbours. Ask one request at a time, or use a method that redraws "
                "pictures, such as 'agla'."
            )
        for pixels in found:
            pixels.copy_(kept**0.5 * pixels.float() + (1 - kept) ** 0.5 * noise(pixels, self.seed))
        return changed
