"""The trainable part of a retriever as one module: what a training loop wraps, moves, and takes gradients of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters.retrieval.word_weights import prepare, weighing
from lvlm_guard.adapters.tuned import is_tuned


class Features(NamedTuple):
    """Normalised features in float32: image [n, d] and text [m, d]; None for a side that was not given."""

    image: Tensor | None
    text: Tensor | None


class RetrievalModel(nn.Module):
    """A CLIP and its prompts if it has any, always in evaluation mode: dropout would make its features another's.

    Args:
        clip: a `CLIPModel`, or the `PeftModel` around one.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        prepare(clip)
        self.clip = clip.eval()

    @property
    def base(self) -> Any:
        """The `CLIPModel` itself, prompts included."""
        return self.clip.get_base_model() if is_tuned(self.clip) else self.clip

    @property
    def tau(self) -> float:
        """The backbone's temperature, 1 / exp(logit_scale): 0.01 for CLIP."""
        return float(torch.exp(-self.base.logit_scale.detach().float()))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        there: torch.device = self.base.logit_scale.device
        return there

    def train(self, mode: bool = True) -> RetrievalModel:
        """Change nothing of the CLIP."""
        super().train(mode)
        self.clip.eval()
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Return normalised image features, [n, d] float32, of pixels [n, 3, side, side]."""
        pixels = pixel_values.to(self.device, self.base.dtype)
        return normalize(self.base.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor:
        """Return normalised text features, [n, d] float32.

        Args:
            input_ids: [n, tokens], with the prompts' placeholders (`CaptionInputs`).
            attention_mask: [n, tokens].
            factors: [n, tokens], of word embeddings; None for none.
        """
        mask = None if attention_mask is None else attention_mask.to(self.device)
        with weighing(factors):
            out = self.base.get_text_features(input_ids=input_ids.to(self.device), attention_mask=mask)
        return normalize(out.pooler_output.float(), dim=-1)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> Features:
        """Return the features of both sides; in distributed training gradients need this one call."""
        return Features(
            None if pixel_values is None else self.encode_image(pixel_values),
            None if input_ids is None else self.encode_text(input_ids, attention_mask, factors),
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Be the untrained CLIP within this block, without gradients; captions come without placeholders then.

        PEFT's own switch makes every tensor of an adapter trainable when it turns it on again; here each is afterwards
        what it was.
        """
        asked = [(parameter, parameter.requires_grad) for parameter in self.clip.parameters()]
        try:
            with torch.no_grad(), self.clip.disable_adapter() if is_tuned(self.clip) else nullcontext():
                yield
        finally:
            for parameter, required in asked:
                parameter.requires_grad_(required)
