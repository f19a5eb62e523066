"""What the ranker needs of a CLIP: tokens of pictures and of texts, as the CLIP was pretrained with them.

Two kinds of image tower: a ViT, in `CLIPModel` or `VisionTextDualEncoderModel`, and a ConvNeXt, in the latter, whose
last map gives the tokens. (The release read its ConvNeXt through a head that exists in no pretrained file.) The text
tower is CLIP's. Image tokens are taken before the last norm and projection, text tokens before the projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import UnsupportedModelError

OLD_EOS = 2  # CLIP configs older than transformers 4.31 name this one; the true one has the highest id


class Trunk(ABC):
    """Reads tokens from a CLIP; holds no weights of its own.

    Args:
        clip: a `CLIPModel` or a `VisionTextDualEncoderModel`.
    """

    image_width: int
    side: int

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self.text_width: int = clip.config.text_config.hidden_size
        self.context: int = clip.config.text_config.max_position_embeddings

    @abstractmethod
    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """Return a picture's tokens, [K, P, image_width], from pixels [K, 3, height, width]."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of a picture's tokens, P = rows * columns, for its size in pixels."""

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of texts, [N, T, text_width], after the final norm, and where they are, [N, T] bool.

        A text ends with its end token, also where padding repeats that token.
        """
        states = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        end = self.clip.config.text_config.eos_token_id
        at = input_ids.argmax(-1) if end == OLD_EOS else (input_ids == end).int().argmax(-1)
        kept = torch.arange(input_ids.shape[-1], device=input_ids.device) <= at[:, None]
        return states, kept if attention_mask is None else kept & attention_mask.bool()


class ViTTrunk(Trunk):
    """A ViT's patch tokens: the class token is dropped, and so are prompts that a tuner put after the patches."""

    def __init__(self, clip: Any) -> None:
        super().__init__(clip)
        vision = clip.config.vision_config
        self.image_width, self.side, self._patch = vision.hidden_size, vision.image_size, vision.patch_size

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """See `Trunk`."""
        rows, columns = self.grid(*pixel_values.shape[-2:])
        states: Tensor = self.clip.vision_model(pixel_values=pixel_values).last_hidden_state
        return states[:, 1 : 1 + rows * columns]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Trunk`."""
        return height // self._patch, width // self._patch


class ConvNeXtTrunk(Trunk):
    """The last feature map of a ConvNeXt, before it is averaged."""

    def __init__(self, clip: Any) -> None:
        super().__init__(clip)
        vision = clip.config.vision_config
        self.image_width, self.side = vision.hidden_sizes[-1], vision.image_size
        self._patch, self._halvings = vision.patch_size, len(vision.hidden_sizes) - 1

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """See `Trunk`."""
        states: Tensor = self.clip.vision_model(pixel_values=pixel_values).last_hidden_state
        return states.flatten(2).transpose(1, 2)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Trunk`."""
        step = self._patch * 2**self._halvings
        return height // step, width // step


TRUNKS: dict[str, type[Trunk]] = {
    "clip_vision_model": ViTTrunk,
    "convnext": ConvNeXtTrunk,
    "convnextv2": ConvNeXtTrunk,
}
"""Image towers by their `model_type`."""


def trunk_of(clip: Any) -> Trunk:
    """Return the trunk of a CLIP.

    Raises:
        UnsupportedModelError: it is no CLIP, or has towers that can't be read.
    """
    config = getattr(clip, "config", None)
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    if vision not in TRUNKS or text != "clip_text_model" or not hasattr(clip, "text_model"):
        raise UnsupportedModelError(
            f"A ranker stands on a CLIP, but {type(clip).__name__} has the image tower {vision!r} and the text tower "
            f"{text!r}. Give a CLIPModel, or a VisionTextDualEncoderModel with CLIP's text tower and one of "
            f"{', '.join(TRUNKS)}."
        )
    return TRUNKS[vision](clip)
