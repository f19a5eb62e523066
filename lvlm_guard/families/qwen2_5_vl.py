"""Qwen2.5-VL: pictures as flattened patches of any resolution, positions in three dimensions."""

from typing import ClassVar

import torch
from torch import Tensor

from lvlm_guard.families.family import Family


class Qwen25VL(Family):
    """`Qwen2_5_VLForConditionalGeneration`; `pixel_values` [patches of all pictures, C * T * P * P]."""

    name: ClassVar[str] = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    processors: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLProcessor",)
    image_keys: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_thw")
    fixed_size: ClassVar[bool] = False
    turns: ClassVar[tuple[tuple[str, str], ...]] = ((r"<\|im_start\|>user\n?", r"<\|im_end\|>"),)
    noise: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")

    def count(self, tensors: dict[str, Tensor]) -> int:
        """Return how many pictures there are: one grid each."""
        return len(tensors["image_grid_thw"])

    def select(self, tensors: dict[str, Tensor], pictures: list[int]) -> dict[str, Tensor]:
        """Return the patches and grids of some pictures."""
        patches = self.split(tensors)
        return {
            "pixel_values": torch.cat([patches[picture] for picture in pictures]),
            "image_grid_thw": tensors["image_grid_thw"][pictures],
        }

    def split(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return each picture's patches, [patches, C * T * P * P]."""
        return list(tensors["pixel_values"].split(tensors["image_grid_thw"].prod(-1).tolist()))

    def normal(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw noise for one picture; a still picture stands in two time slices, and both get the same."""
        patches, width = pixels.shape
        side = int((width // 6) ** 0.5)  # 3 colours, 2 time slices
        one = torch.randn(patches, 3, 1, side * side, generator=generator, device=generator.device)
        return one.expand(-1, -1, 2, -1).reshape(patches, width)
