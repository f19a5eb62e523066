"""Which part of a picture an image token stands for, so that a map over the picture says which tokens matter.

The map itself goes through the model's own image processor, as a grey picture: crops, tiles and patches then fall where
the picture's own fall, and a token's relevance is what the map shows in the pixels that the token is made of. How the
cells follow each other is read off the tensors; whether it is so is proven with the model (`lvlm_guard.proving`): a
resampler or a Q-Former, whose tokens mix the parts, is found out there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call


def token_relevance(call: Call, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return how relevant each image token of each picture is, [n] a picture; infinite for tokens that show nothing.

    `maps` are of each picture of the call its relevance map, [h, w] in [0, 1], over the squeezed picture. Raises
    `UnsupportedModelError` where the tokens are no squares of cells, `MissingViewError` where pictures are missing.
    """
    made = call.redrawn([_grey(view.image, found) for view, found in zip(call.pictures.views(), maps, strict=True)])
    model: Any = call.model
    eyes: Any = getattr(model.config, "vision_config", None)
    tensors = (made[key] for key in call.family.image_keys if torch.is_tensor(made[key]))
    pixels = next(tensor for tensor in tensors if tensor.is_floating_point()).float()
    if pixels.ndim == 2 or "image_grid_thw" in made:  # patches, in the order of the tokens that they are merged into
        merged = getattr(call.processor.image_processor, "merge_size", 1) ** 2
        shown = pixels.flatten(1).mean(-1).view(-1, merged).mean(-1)
        if len(shown) != int(call.image_positions.sum()):
            raise UnsupportedModelError(
                f"The {int(call.image_positions.sum())} image tokens of this {type(model).__name__} are not the "
                f"{len(shown)} groups of its patches, so which token shows what is not known."
            )
        grids = made.get("image_grid_thw")  # without one, as Fuyu's, each prompt has one picture
        each = call.image_positions.sum(-1) if grids is None else grids.prod(-1) // merged
        return list(shown.split(each.tolist()))
    used = pixels.flatten(-3).abs().amax(-1) > 0  # a batch pads tiles with zeros
    if hasattr(getattr(model, "model", None), "pack_image_features"):  # tiles, with a token at the end of each line
        side = int(eyes.image_size // eyes.patch_size * Fraction(getattr(model.model, "downsample_rate", None) or 1))
        tiles = [_cells(one[kept], side**2)[..., None] for one, kept in zip(pixels, used, strict=True)]
        strategy = "vision_feature_select_strategy"
        told = {strategy: "full"} if strategy in signature(model.model.pack_image_features).parameters else {}
        found = model.model.pack_image_features(
            tiles, made["image_sizes"], image_newline=torch.tensor([math.inf]), **told
        )
        return [one.flatten() for one in (found[0] if isinstance(found, tuple) else found)]
    return _lines(call, pixels[used], made.get("image_sizes"))


def _lines(call: Call, units: Tensor, sizes: Tensor | None) -> list[Tensor]:
    """Return the cells of each picture, [n], line after line of each picture or of each of its tiles.

    `units` are pictures or tiles of them, request after request, [units, 3, H, W]; `sizes` the height and width of each
    picture before it was padded, [pictures, 2]. Raises `UnsupportedModelError` where the tokens are not so many.
    """
    tokens, views = call.image_positions.sum(-1).tolist(), len(call.pictures.views())
    tiled = len(units) != views
    shapes = [units.shape[-2:]] * len(units) if tiled or sizes is None else sizes.tolist()
    found, done = [], 0
    for row, count in zip(call.requests(), tokens, strict=True):
        number = count * len(units) // sum(tokens) if tiled else len(row)
        mine = range(done, done + number)
        done += number
        if row and ((tiled and len(row) > 1) or not number or count % number):
            raise UnsupportedModelError(
                f"The {len(row)} pictures of a prompt for this {type(call.model).__name__} take {count} image tokens "
                f"in {number} tiles, so which token shows what is not known. Ask about one picture at a time, or use "
                "'agla', which paints the picture itself."
            )
        cells = [_cells(units[i : i + 1, :, : shapes[i][0], : shapes[i][1]], count // number)[0] for i in mine]
        found += [torch.cat(cells)] * bool(row) if tiled else cells
    return found


def _grey(image: Image.Image, relevance: Tensor) -> Image.Image:
    over = Image.fromarray(relevance.float().cpu().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.rint(np.asarray(over).clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def _cells(pixels: Tensor, count: int) -> Tensor:
    """Return the means of so many cells, [n, count], in a grid most like the pictures' shape; pixels [n, 3, H, W]."""
    height, width = pixels.shape[-2:]
    grids = [(lines, count // lines) for lines in range(1, count + 1) if count % lines == 0]
    nearest = min(grids, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), nearest).flatten(1)
