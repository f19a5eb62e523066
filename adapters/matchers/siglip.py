"""`siglip`: SigLIP, and SigLIP 2 of one resolution, as matcher, through the same class as `clip`.

Source: SigLIP (arXiv:2303.15343), SigLIP 2 (arXiv:2502.14786). A text and a picture match with the probability
sigmoid(a cos + b): by default by the model's own scale and bias, which are those of one text among the thousands of a
batch in training and believe little; `config.lvlm_guard["platt"]` has a and b fitted on validation.

Ours: there is no class token, so the map begins at what the attention pooling reads: each patch's state times the
cosine's gradient there, rectified. From there on through the layers as for CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.matchers.clip import LAYERS, ClipMatcher, gathered
from lvlm_guard.adapters.retrieval.encoding import CaptionInputs
from lvlm_guard.adapters.retrieval.folder import RetrieverCard
from lvlm_guard.adapters.retrieval.model import RetrievalModel
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import TextError, UnsupportedModelError
from lvlm_guard.weights import how_to_fetch, read


class SiglipRetriever(DualPromptRetriever):
    """A `SiglipModel` as a retriever; it can't be trained or saved.

    Args:
        base: the model.
        tokenizer, image_processor: of it; of the latter only the mean and deviation of pixels count, for pictures are
            squashed, not cropped.
    """

    def __init__(self, base: Any, tokenizer: Any, image_processor: Any) -> None:
        vision, text = base.config.vision_config, base.config.text_config
        mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        inputs = Inputs(tokenizer, vision.image_size, mean, std, text.max_position_embeddings)
        platt = (getattr(base.config, "lvlm_guard", None) or {}).get("platt")
        self.fitted = platt is not None
        a, b = platt or (base.logit_scale.exp(), base.logit_bias)
        card = RetrieverCard("", text.hidden_size, vision.hidden_size, adapter=False, calibration=(float(a), float(b)))
        super().__init__(RetrievalModel(base.requires_grad_(False)), card, inputs)

    def text_inputs(self, texts: Sequence[str]) -> CaptionInputs:
        """Return texts as the model takes them; raises `TextError` where one is too long."""
        length = self.inputs.context
        made = [self.inputs.tokenizer(text.lower())["input_ids"] for text in texts]
        for text, ids in zip(texts, made, strict=True):
            if len(ids) > length:
                raise TextError(
                    f"A text has {len(ids)} word pieces, but SigLIP reads {length}. Shorten it: {text[:60]!r}."
                )
        # trained on texts that are filled up to the full length, and attends to what fills them
        padded = self.inputs.tokenizer.pad(
            {"input_ids": made}, padding="max_length", max_length=length, return_tensors="pt"
        )["input_ids"]
        return CaptionInputs(padded, torch.ones_like(padded), torch.ones_like(padded, dtype=torch.bool))


class SiglipMatcher(ClipMatcher):
    """As `ClipMatcher`, on a `SiglipRetriever`."""

    name = "siglip"
    otherwise = "google/siglip-base-patch16-224"
    maps = ()

    def __init__(self, retriever: SiglipRetriever, name: str | None = None, layers: int = LAYERS) -> None:
        super().__init__(retriever, name, layers)
        if not retriever.fitted:
            self._version += ":uncalibrated"

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> SiglipMatcher:
        """See `AdapterMatcher`; raises `UnsupportedModelError` where it is no SigLIP of one resolution."""
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
            return cls(SiglipRetriever(base.to(torch.device(device or "cpu")), *parts))

        with torch.inference_mode(False):  # weights made inside it could never take part in a gradient
            absent = how_to_fetch(place, "matcher=DIR")
            return read(f"The SigLIP {place!r}", place, load, damaged="The folder is incomplete.", absent=absent)

    def _shown(self, pixels: Tensor, said: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.retriever.model.base.vision_model.post_layernorm
        seen, scores, kept, slopes = self._traced(pixels, said, pooled)
        row = (kept.pop().detach() * slopes.pop()).sum(-1).float().clamp(min=0)
        return seen, scores, gathered(kept, slopes, self._cells**2, row)
