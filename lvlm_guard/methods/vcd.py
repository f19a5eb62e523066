"""VCD: subtract what the model says of a noised picture.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
Contrastive Decoding", CVPR 2024, arXiv:2311.16922; knobs and schedule as in the authors' release
(DAMO-NLP-SG/VCD at d6568ff).

Differs from the release: each picture's noise comes from a generator of its own, seeded by `seed` and
the picture's content, so a picture's answer does not depend on its neighbours in the batch, and the
sampler's random stream is left alone. `mode="official"` reproduces the release before its cache fix
(c637c85), with which the published numbers were made: the noise acts on the first token only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lvlm_guard.engine.assembly import check_alpha, check_beta
from lvlm_guard.engine.method import Branch, Contrast
from lvlm_guard.errors import KnobError, MissingViewError, UnsupportedCallError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call

SCHEDULE = 1000  # diffusion steps of the noise schedule


def kept_share(step: int) -> float:
    """Return the share of the picture's variance left after `step` diffusion steps (0.7448 at 500)."""
    rate = torch.sigmoid(torch.linspace(-6, 6, SCHEDULE, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    return float(torch.cumprod(1 - rate, dim=0)[step])


def _generator(seed: int, pixels: Tensor) -> torch.Generator:
    """Return a generator that the seed and the picture fix, so that batching changes no picture's noise."""
    digest = hashlib.blake2b(pixels.detach().float().cpu().numpy().tobytes(), digest_size=7)
    digest.update(str(seed).encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))


def units(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return the pixels as views of their tensors that depend on no neighbour in the batch.

    A unit is a picture where patches come with a grid [pictures, 3], and else what stands under one index of the
    first axis, without the zeros that pad it to its neighbours' tiles and sizes.
    """
    found = []
    for key, pixels in tensors.items():
        if not pixels.is_floating_point() or "mask" in key:
            continue
        grids = [grid.prod(-1) for name, grid in tensors.items() if name.endswith("grid_thw")]
        if grids and int(grids[0].sum()) == len(pixels):
            found += list(pixels.split(grids[0].tolist()))
            continue
        padded = pixels.ndim > 4 or len(tensors) > 1
        for unit in pixels.split(1):
            for axis in range(1, unit.ndim) if padded else ():
                used = unit.transpose(0, axis).flatten(1).abs().amax(-1).nonzero()
                unit = unit.narrow(axis, 0, int(used.max()) + 1 if len(used) else 1)
            found.append(unit)
    return found


def _normal(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise for one unit, in float32 on the generator's device.

    A still picture stands in two time slices of its patches [patches, 3 * 2 * side * side]; both get the same.
    """
    side = (pixels.shape[-1] / 6) ** 0.5
    if pixels.ndim == 2 and side == int(side):
        one = torch.randn(len(pixels), 3, 1, int(side) ** 2, generator=generator, device=generator.device)
        return one.expand(-1, -1, 2, -1).reshape(pixels.shape)
    return torch.randn(pixels.shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class VCD(Contrast):
    """Two branches, (1 + alpha) * l - alpha * l_noised, then the plausibility cut on l.

    Args:
        alpha: contrast strength, >= 0; 1 in the release.
        beta: plausibility cut, 0 to 1; .1 in the release (its POPE script passes .2).
        noise_step: noise level on the normalised pixels, 0 (almost clean) to 999 (nearly pure noise).
        seed: seed of the noise; together with a picture's pixels it fixes that picture's noise.
        mode: "paper", or "official" for the noise on the first token only.

    Raises:
        KnobError: a knob is out of range.
    """

    name: ClassVar[str] = "vcd"
    paper: ClassVar[str] = "arXiv:2311.16922"
    cost: ClassVar[str] = "a second branch at undecided steps"
    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    seed: int = 0
    mode: Literal["paper", "official"] = "paper"

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_beta(self.beta)
        if not (isinstance(self.noise_step, int) and 0 <= self.noise_step < SCHEDULE):
            raise KnobError(f"noise_step is {self.noise_step!r}: give a whole number from 0 to {SCHEDULE - 1}.")
        if self.mode not in ("paper", "official"):
            raise KnobError(f"mode is {self.mode!r}: give 'paper' or 'official'.")

    @property
    def first_token_only(self) -> bool:
        """True in official mode."""
        return self.mode == "official"

    def branches(self) -> tuple[Branch, ...]:
        """Return the noised branch: the same prompt over the noised pixels."""
        return (Branch("noised", pixels=self.view),)

    def view(self, call: Call) -> dict[str, Tensor]:
        """Return the image tensors with each picture noised.

        Raises:
            UnsupportedCallError: a picture's pixels can't be told from its neighbours'.
        """
        kept = kept_share(self.noise_step)
        changed = {key: tensor.clone() for key, tensor in call.tensors.items()}
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
            noise = _normal(pixels, _generator(self.seed, pixels)).to(pixels.device)
            pixels.copy_(kept**0.5 * pixels.float() + (1 - kept) ** 0.5 * noise)
        return changed
