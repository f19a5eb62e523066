"""`ClipRanker`: a CLIP and the ranker that stands on its tokens, as one model that PEFT can wrap."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.utils.generic import ModelOutput

from lvlm_guard.adapters.backbone import load_backbone
from lvlm_guard.adapters.ranker.losses import ranker_loss
from lvlm_guard.adapters.ranker.network import RankerNetwork
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.ranker.trunk import trunk_of
from lvlm_guard.errors import UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class RankerOutput(ModelOutput):
    """What a group of pictures got: loss (where there are labels), scores [K], logits [K, K]."""

    loss: Tensor | None = None
    scores: Tensor | None = None
    logits: Tensor | None = None


class ClipRanker(CLIPPreTrainedModel):
    """Scores and orders pictures under one instruction.

    The CLIP is kept in evaluation mode, also while the ranker trains. With a frozen CLIP the tokens of a picture never
    change, so they can be computed once (`image_tokens`) and given to `forward` ever after.

    Args:
        clip: a `CLIPModel`, or a `VisionTextDualEncoderModel` with a ConvNeXt; it becomes part of this model and its
            weights are frozen.
        settings: of the ranker; None for the defaults.

    Raises:
        UnsupportedModelError: the towers can't be read.
    """

    def __init__(self, clip: PreTrainedModel, settings: RankerSettings | None = None) -> None:
        trunk = trunk_of(clip)
        super().__init__(copy.deepcopy(clip.config))
        self.name_or_path = clip.name_or_path
        self.settings = settings or RankerSettings()
        self.clip: Any = clip.requires_grad_(False).eval()
        self.trunk = trunk
        self.ranker = RankerNetwork(trunk.image_width, trunk.text_width, self.settings).to(clip.dtype)
        for module in self.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]  # both parts have their weights already
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the weights on disk are a CLIP's; a trained ranker is an adapter
        cls, source: str | os.PathLike[str], *, settings: RankerSettings | None = None, revision: str | None = None
    ) -> ClipRanker:
        """Return an untrained ranker on a pretrained CLIP; a trained one is loaded by `Ranker.from_pretrained`.

        Args:
            source: folder or hub id of the CLIP.
            settings: of the ranker.
            revision: of a hub id.

        Raises:
            WeightsError: it can't be had.
            UnsupportedModelError: it is no CLIP that can be read.
        """
        return cls(load_backbone(source, revision=revision), settings)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuse: without the adapter around it a ranker's folder could not be read.

        Raises:
            UnsupportedCallError: always; `adapter.adapted` wraps a ranker, and `adapter.save` writes it.
        """
        raise UnsupportedCallError(
            "A ranker is saved as a PEFT adapter: wrap it before training, model = adapted(ranker), then "
            "adapter.save(model, card, folder)."
        )

    def train(self, mode: bool = True) -> ClipRanker:
        """Set the ranker's mode; the CLIP stays in evaluation mode, though its layers may still be checkpointed."""
        super().train(mode)
        self.clip.eval()
        for module in self.clip.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode  # of the layer alone: it reads it for nothing else
        return self

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether no tower learns, so that tokens computed once stay true while training."""
        towers = (self.clip.vision_model, self.clip.text_model)
        return not any(weight.requires_grad for tower in towers for weight in tower.parameters())

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """Return the trunk's tokens of pictures, [K, P, image_width], from pixels [K, 3, height, width]."""
        return self.trunk.image_tokens(pixel_values.to(self.clip.dtype))

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the trunk's tokens of texts, [N, T, text_width], and where they are, [N, T] bool."""
        return self.trunk.text_tokens(input_ids, attention_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pairs: bool = True,
        kept: list[Tensor] | None = None,
    ) -> RankerOutput:
        """Score K pictures under one instruction, and compare each with each.

        Args:
            input_ids, attention_mask: [1, T] of the instruction; or text_tokens [1, T, text_width] and text_mask
                [1, T] as `text_tokens` gives them. K rows, one for each picture, where no pairs are asked for.
            pixel_values: [K, 3, height, width]; or image_tokens [K, P, image_width] as `image_tokens` gives them.
            labels: [K], values of the pictures in the units of the scores; None for no loss.
            pairs: whether pairs are compared; labels need it.
            kept: the cross-attention of each fusion layer is appended here, [K, heads, P, prompts + T].

        Raises:
            UnsupportedCallError: pictures or text are missing or given twice, or the arguments do not go together.
        """
        if (pixel_values is None) == (image_tokens is None) or (input_ids is None) == (text_tokens is None):
            raise UnsupportedCallError(
                "Give the pictures once (pixel_values or image_tokens) and the text once (input_ids or text_tokens)."
            )
        if labels is not None and not pairs:
            raise UnsupportedCallError("The loss compares pairs: leave pairs=True where labels are given.")
        if image_tokens is None:
            assert pixel_values is not None
            image_tokens = self.image_tokens(pixel_values)
        if text_tokens is None:
            assert input_ids is not None
            text_tokens, text_mask = self.text_tokens(input_ids, attention_mask)
        scores, logits = self.ranker(image_tokens, text_tokens, text_mask, pairs, kept)
        loss = None
        if labels is not None:
            weight = self.settings.regression_weight
            loss = ranker_loss(scores, logits, labels, ties=self.settings.ties, regression_weight=weight).total
        return RankerOutput(loss=loss, scores=scores, logits=logits)

    def similarity(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return CLIP's own cosine of each picture with each text, [K, N]; the ranker takes no part.

        Raises:
            UnsupportedModelError: the CLIP was converted without its image projection, see `open_clip`.
        """
        if not (getattr(self.clip.config, "lvlm_guard", None) or {}).get("pooled", True):
            raise UnsupportedModelError(
                f"{self.name_or_path!r} was converted from an open_clip model whose image projection has no place in "
                'it, so it has tokens but no cosine. Rank with it, or take a ConvNeXt CLIP without "_d" in its name.'
            )
        texts = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        images = self.clip.get_image_features(pixel_values=pixel_values.to(self.clip.dtype)).pooler_output
        return torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
