"""LLaVA-NeXT (1.6): the picture in tiles, so the number of image tokens follows its shape."""

from typing import ClassVar

from torch import Tensor

from lvlm_guard.families.family import Family
from lvlm_guard.families.llava import TURNS


class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`; `pixel_values` [pictures, tiles, 3, H, W], padded with empty tiles."""

    name: ClassVar[str] = "llava_next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    processors: ClassVar[tuple[str, ...]] = ("LlavaNextProcessor",)
    image_keys: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    fixed_size: ClassVar[bool] = False
    turns: ClassVar[tuple[tuple[str, str], ...]] = TURNS

    def split(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return each picture's own tiles, [1, tiles, 3, H, W]; a batch pads the rest with tiles of zeros."""
        used = tensors["pixel_values"].flatten(2).abs().amax(-1) > 0
        return [
            picture[:, : int(tiles.nonzero().max()) + 1 if tiles.any() else 1]
            for picture, tiles in zip(tensors["pixel_values"].split(1), used, strict=True)
        ]
