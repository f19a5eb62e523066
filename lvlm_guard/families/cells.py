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

TILES = ("llava_next",)
"""Tiles that the model packs, with a token at the end of each line."""

SQUARE = ("llava", "vipllava", "gemma3")
"""One square of tokens a picture, line after line. Not PaliGemma: its picture reads the question behind it too."""


def check_cells(model: Any) -> None:
    """Raise `UnsupportedModelError` where it is not known which part of the picture each image token shows."""
    known = (*SQUARE, *TILES, *PATCHES)
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
    drawn = iter([_grey(view.image, found) for view, found in zip(call.pictures.views(), maps, strict=True)])
    rows = [[next(drawn) for _ in row] for row in call.requests()]
    made = call.family.redrawn(call.processor, call.pictures, rows)
    check_cells(call.model)
    kind = call.model.config.model_type
    pixels = made["pixel_values"].float()
    if kind in PATCHES:
        merged = call.model.config.vision_config.spatial_merge_size**2
        shown = pixels.mean(-1).view(-1, merged).mean(-1)
        return list(shown.split((made["image_grid_thw"].prod(-1) // merged).tolist()))
    if kind in TILES:
        vision = call.model.config.vision_config
        side = vision.image_size // vision.patch_size
        used = [tiles[tiles.flatten(1).abs().amax(-1) > 0] for tiles in pixels]  # a batch pads the rest with zeros
        found, _ = _packed(call, [_cells(tiles, side)[..., None] for tiles in used], made["image_sizes"])
        return [one.flatten() for one in found]
    tokens = int(call.image_positions.sum()) // max(len(pixels), 1)
    side = math.isqrt(tokens)
    if side * side != tokens or len(pixels) != len(maps):
        raise UnsupportedModelError(
            f"A picture of this {type(call.model).__name__} takes {tokens} image tokens in {len(pixels)} crops of "
            f"{len(maps)} pictures, which is no square of cells each, so which of them shows what is not known. Leave "
            "cropping (do_pan_and_scan) out, or use 'agla', which paints the picture itself."
        )
    return list(_cells(pixels, side))


def _grey(image: Image.Image, relevance: Tensor) -> Image.Image:
    over = Image.fromarray(relevance.float().cpu().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.rint(np.asarray(over).clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def _cells(pixels: Tensor, side: int) -> Tensor:
    """Return the mean of each cell, [n, side * side]; pixels [n, 3, H, W]."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(1), side).flatten(1)


def _packed(call: Call, features: list[Tensor], sizes: Tensor) -> Any:
    """Lay features [tiles, n, 1] of each picture out as the model lays out its tokens; ends of lines are infinite."""
    model: Any = call.model
    strategy = model.config.vision_feature_select_strategy
    return model.pack_image_features(features, sizes, strategy, image_newline=torch.tensor([math.inf]))
