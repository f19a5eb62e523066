"""What the guard must know of a model family; the defaults fit most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, ProcessorMixin


class Family:
    """Base of the families.

    Class attributes:
        name: how messages call it.
        model_types: `config.model_type` of its models.
        processors: class names of its processors.
        image_keys: names of its image tensors among the inputs.
        fixed_size: True where every picture takes the same number of image tokens; else a second view
            must have the picture's own shape.
        turns: marks around a user's turn in its prompt templates, (start, end), as regular expressions.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    processors: ClassVar[tuple[str, ...]]
    image_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    fixed_size: ClassVar[bool] = True
    turns: ClassVar[tuple[tuple[str, str], ...]] = ()
    noise: ClassVar[tuple[str, ...]] = ()  # placeholders and their frames, dropped from a question

    def image_token_id(self, config: PretrainedConfig) -> int:
        """Return the id of the picture's placeholder token in the model's vocabulary."""
        for name in ("image_token_id", "image_token_index"):
            if (value := getattr(config, name, None)) is not None:
                return int(value)
        raise AttributeError(f"{type(config).__name__} names no image token")

    def image_token(self, processor: ProcessorMixin) -> str:
        """Return the picture's placeholder in a prompt."""
        token: str = processor.image_token  # type: ignore[attr-defined]
        return token

    def count(self, tensors: dict[str, Tensor]) -> int:
        """Return how many pictures the image tensors hold."""
        return len(tensors["pixel_values"])

    def split(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return the pixels of each picture, [n, ...], as views of `pixel_values` without what pads a batch."""
        return list(tensors["pixel_values"].split(1))

    def normal(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw standard normal noise for one picture's pixels, in float32 on the generator's device."""
        return torch.randn(pixels.shape, generator=generator, device=generator.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))
