"""A call's image tensors, picture by picture: where each one's pixels are, and noise that is its own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def units(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return the pixels as views of their tensors that depend on no neighbour in the batch.

    A unit is a picture where patches come with a grid [pictures, 3], and else what stands under one index of the
    first axis, without the zeros that pad it to its neighbours' tiles and sizes.
    """
    found = []
    for key, pixels in tensors.items():
        if not torch.is_tensor(pixels) or not pixels.is_floating_point() or "mask" in key:
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


def noise(pixels: Tensor, seed: int) -> Tensor:
    """Return standard normal noise for one unit, float32 on its device, fixed by the seed and the picture alone.

    So batching changes no picture's noise, and the sampler's random stream is left alone. A still picture stands in two
    time slices of its patches [patches, 3 * 2 * side * side]; both get the same.
    """
    digest = hashlib.blake2b(pixels.detach().float().cpu().numpy().tobytes(), digest_size=7)
    digest.update(str(seed).encode())
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))
    side = (pixels.shape[-1] / 6) ** 0.5
    if pixels.ndim == 2 and side == int(side):
        one = torch.randn(len(pixels), 3, 1, int(side) ** 2, generator=generator)
        return one.expand(-1, -1, 2, -1).reshape(pixels.shape).to(pixels.device)
    return torch.randn(pixels.shape, generator=generator).to(pixels.device)
