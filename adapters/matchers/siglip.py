"""`siglip`: SigLIP, and SigLIP 2 of one resolution, as matcher, through the same class as `clip`.

Source: SigLIP (arXiv:2303.15343), SigLIP 2 (arXiv:2502.14786). A text and a picture match with the probability
sigmoid(a cos + b): by default by the model's own scale and bias, which are those of one text among the thousands of a
batch in training and believe little; `config.lvlm_guard["platt"]` has a and b fitted on validation.

Ours: there is no class token, so the map begins at what the attention pooling reads: each patch's state times the
cosine's gradient there, rectified. From there on through the layers as for CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.matchers.clip import LAYERS, ClipMatcher
from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError
from lvlm_guard.weights import how_to_fetch, read


@dataclass(frozen=True)
class Card:
    """Scale and bias of the probability, and whether they were fitted."""

    calibration: tuple[float, float]
    fitted: bool
    temperature: float | None = None


class SiglipEncoders:
    """Turns pictures and texts into SigLIP's features; what `ClipMatcher` asks of a retriever.

    Args:
        base: the model.
        tokenizer, image_processor: of it; of the latter only the mean and deviation of pixels count, for pictures are
            squashed, not cropped.
    """

    def __init__(self, base: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model, self.base = self, base.eval().requires_grad_(False)
        vision, length = base.config.vision_config, base.config.text_config.max_position_embeddings
        mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        self._inputs = Inputs(tokenizer, vision.image_size, mean, std, length)
        platt = (getattr(base.config, "lvlm_guard", None) or {}).get("platt")
        own = float(base.logit_scale.exp()), float(base.logit_bias)
        self.card = Card(own if platt is None else (float(platt[0]), float(platt[1])), platt is not None)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        there: torch.device = self.base.logit_scale.device
        return there

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's weights."""
        return dict(self.base.state_dict())

    @property
    def tau(self) -> float:
        """The model's temperature."""
        return float(torch.exp(-self.base.logit_scale.float()))

    def image_inputs(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels [n, 3, side, side]; raises `ImageError`, and `KnobError` for none."""
        if not images:
            raise KnobError("Give at least one picture.")
        return self._inputs.pixels(images)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return normalised features of pixels, [n, d] float32."""
        seen = self.base.get_image_features(pixel_values=pixels.to(self.device, self.base.dtype))
        return normalize(seen.pooler_output.float(), dim=-1)

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalised features of pictures, [n, d]."""
        return self.encode_image(self.image_inputs(images)).cpu()

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return normalised features of texts, [m, d]; raises `TextError` where one is too long."""
        length = self._inputs.context
        made = [self._inputs.tokenizer(text.lower())["input_ids"] for text in texts]
        for text, ids in zip(texts, made, strict=True):
            if len(ids) > length:
                raise TextError(
                    f"A text has {len(ids)} word pieces, but SigLIP reads {length}. Shorten it: {text[:60]!r}."
                )
        # trained on texts that are filled up to the full length, and attends to what fills them
        padded = self._inputs.tokenizer.pad(
            {"input_ids": made}, padding="max_length", max_length=length, return_tensors="pt"
        )
        said = self.base.get_text_features(input_ids=padded["input_ids"].to(self.device))
        return normalize(said.pooler_output.float(), dim=-1).cpu()

    def probability(self, scores: Tensor) -> Tensor:
        """Return the probability of a match by its cosine."""
        a, b = self.card.calibration
        return torch.sigmoid(a * scores + b)


class SiglipMatcher(ClipMatcher):
    """As `ClipMatcher`, on a `SiglipModel`.

    Args:
        encoders: of the model, which is set to eager attention, whose weights the map is made of.
        name: what `version` calls it.
        layers: of the image tower, the last ones, that the map is made of.
    """

    name = "siglip"
    otherwise = "google/siglip-base-patch16-224"

    def __init__(self, encoders: SiglipEncoders, name: str | None = None, layers: int = LAYERS) -> None:
        super().__init__(encoders, name, layers)  # type: ignore[arg-type]  # has what is asked of a retriever
        if not encoders.card.fitted:
            self._version += ":uncalibrated"

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> SiglipMatcher:
        """Load a matcher from a folder or hub id.

        Raises:
            WeightsError: it can't be had.
            UnsupportedModelError: it is no SigLIP of one resolution.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, SiglipModel

        place = str(source)

        def load() -> SiglipMatcher:
            kind = AutoConfig.from_pretrained(place).model_type
            if kind != "siglip":
                raise UnsupportedModelError(
                    f"{place!r} holds a model of the type {kind!r}, but this matcher reads 'siglip': SigLIP, or SigLIP "
                    "2 of one resolution, such as google/siglip2-base-patch16-224 (none of its NaFlex models)."
                )
            base: Any = SiglipModel.from_pretrained(place, dtype=torch.float32)
            parts = AutoTokenizer.from_pretrained(place), AutoImageProcessor.from_pretrained(place)
            return cls(SiglipEncoders(base.to(torch.device(device or "cpu")), *parts))

        with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
            absent = how_to_fetch(place, "matcher=DIR")
            return read(f"The SigLIP {place!r}", place, load, damaged="The folder is incomplete.", absent=absent)

    def _shown(self, pixels: Tensor, said: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        tower: Any = self.retriever.model.base.vision_model
        kept: list[Tensor] = []
        pooled: list[Tensor] = []
        hooks = [
            self._layers[0].register_forward_pre_hook(lambda _, given: (given[0].detach().requires_grad_(), *given[1:]))
        ]
        hooks += [
            layer.self_attn.register_forward_hook(lambda _m, _a, out: kept.append(out[1])) for layer in self._layers
        ]
        hooks.append(tower.post_layernorm.register_forward_hook(lambda _m, _a, out: pooled.append(out)))
        try:
            with torch.enable_grad():
                seen = self.retriever.model.encode_image(pixels)
                scores = (seen * said).sum(-1)
                *slopes, slope = torch.autograd.grad(scores.sum(), [*kept, *pooled])
        finally:
            for hook in hooks:
                hook.remove()
        row = (pooled[0].detach() * slope).sum(-1).float().clamp(min=0)
        for weights, gradient in zip(reversed(kept), reversed(slopes), strict=True):
            row = row + (row[:, None] @ (weights.detach().float() * gradient.float()).clamp(min=0).mean(1))[:, 0]
        return seen, scores, row
