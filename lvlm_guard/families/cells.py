"""Which part of a picture an image token stands for, so that a map over the picture says which tokens matter.

The map itself goes through the model's own image processor, as a grey picture: crops, tiles and patches then fall where
the picture's own fall, and a token's relevance is what the map shows in the pixels that the token is made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call

PATCHES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Flattened patches in the order of the tokens that they are merged into."""

PACKED = ("llava_next", "llava_onevision")
"""Tiles that the model packs, with a token at the end of each line."""

SQUARE = ("llava", "vipllava", "gemma3", "internvl", "idefics3", "smolvlm")
"""A square of tokens for each picture or tile of it, line after line. Not PaliGemma: its picture reads the question."""


def check_cells(model: Any) -> None:
    """Raise `UnsupportedModelError` where it is not known which part of the picture each image token shows."""
    known = (*SQUARE, *PACKED, *PATCHES)
    if model.config.model_type not in known:
        raise UnsupportedModelError(
            f"Which part of the picture each image token of a {type(model).__name__} shows is not known (resamplers "
            f"and Q-Formers mix the parts), so none can be hidden. `focus` works on {', '.join(known)}. Use 'agla', "
            "which paints the picture itself."
        )


def token_relevance(call: Call, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return how relevant each image token of each picture is, [n] a picture; infinite for tokens that show nothing.

    Args:
        call: whose pictures they are.
        maps: for each picture of the call its relevance map, [h, w] in [0, 1], over the squeezed picture.

    Raises:
        UnsupportedModelError: see `check_cells`; or the tokens are no square of cells.
        MissingViewError: the inputs came without their pictures.
    """
    check_cells(call.model)
    drawn = iter([_grey(view.image, found) for view, found in zip(call.pictures.views(), maps, strict=True)])
    rows = [[next(drawn) for _ in row] for row in call.requests()]
    made = call.family.redrawn(call.processor, call.pictures, rows)
    model: Any = call.model
    kind, pixels = model.config.model_type, made["pixel_values"].float()
    if kind in PATCHES:
        merged = model.config.vision_config.spatial_merge_size**2
        shown = pixels.mean(-1).view(-1, merged).mean(-1)
        return list(shown.split((made["image_grid_thw"].prod(-1) // merged).tolist()))
    used = pixels.flatten(-3).abs().amax(-1) > 0  # a batch pads tiles with zeros
    if kind in PACKED:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        tiles = [_cells(one[kept], side)[..., None] for one, kept in zip(pixels, used, strict=True)]
        told = {"vision_feature_select_strategy": "full"} if kind == "llava_next" else {}
        ends = torch.tensor([math.inf])
        found, _ = model.model.pack_image_features(tiles, made["image_sizes"], image_newline=ends, **told)
        return [one.flatten() for one in found]
    return _squares(call, pixels[used])


def _squares(call: Call, units: Tensor) -> list[Tensor]:
    """Return the cells of each picture, [n]; units [pictures or tiles of them, 3, H, W], request after request."""
    tokens = call.image_positions.sum(-1).tolist()
    side = math.isqrt(sum(tokens) // len(units))
    cells, found = _cells(units, side), []
    for row, count in zip(call.requests(), tokens, strict=True):
        mine, cells = cells[: count // side**2], cells[count // side**2 :]
        if len(mine) * side**2 != count or (len(mine) != len(row) and len(row) > 1):
            raise UnsupportedModelError(
                f"The {len(row)} pictures of a prompt for this {type(call.model).__name__} take {count} image tokens "
                f"in {len(mine)} tiles of {side} x {side}, so which token shows what is not known. Ask about one "
                "picture at a time, or use 'agla', which paints the picture itself."
            )
        found += list(mine) if len(mine) == len(row) else [mine.flatten()] if row else []
    return found


def _grey(image: Image.Image, relevance: Tensor) -> Image.Image:
    over = Image.fromarray(relevance.float().cpu().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.rint(np.asarray(over).clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def _cells(pixels: Tensor, side: int) -> Tensor:
    """Return the mean of each cell, [n, side * side]; pixels [n, 3, H, W]."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), side).flatten(1)
