"""`ClipRanker`: a CLIP and the ranker that stands on its tokens, as one model that PEFT can wrap, and its loss."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, smooth_l1_loss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.clip.modeling_clip import CLIPPreTrainedModel
from transformers.utils.generic import ModelOutput

from lvlm_guard.adapters.backbone import load_backbone, trunk_of
from lvlm_guard.adapters.loading import require_peft, with_adapter, write_adapter
from lvlm_guard.adapters.ranker.card import RankerCard
from lvlm_guard.adapters.ranker.network import RankerNetwork
from lvlm_guard.adapters.ranker.settings import RankerSettings, Ties, Tuning
from lvlm_guard.adapters.terms import full, unchanged
from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def pair_loss(logits: Tensor, values: Tensor, ties: Ties = "half") -> Tensor:
    """Return the mean binary cross-entropy over ordered pairs of two pictures, a scalar; 0 where there is no pair.

    The release's target is repaired here: with antisymmetric logits, a loss that wants "not more" from both sides of a
    tie, and from each picture against itself, never reaches its minimum.

    Args:
        logits: [K, K], above 0 where the row's picture shows more.
        values: [K], of the pictures.
        ties: what equal values are told; see `RankerSettings`.
    """
    logits, values = full(logits), full(values)
    difference = values[:, None] - values[None]
    used = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    target = (difference > 0).to(logits.dtype)
    if ties == "published":
        used = torch.ones_like(used)
    elif ties == "drop":
        used = used & (difference != 0)
    else:
        target = target.masked_fill(difference == 0, 0.5)
    with unchanged(logits):
        each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * used).sum() / used.sum().clamp(min=1)


def ranker_loss(
    scores: Tensor, logits: Tensor, values: Tensor, *, ties: Ties = "half", regression_weight: float = 0.2
) -> Tensor:
    """Return the loss of one group under one instruction, a scalar in float32 or wider.

    It is the pairs' loss + weight * log(1 + the values'), of scores [K], logits [K, K], and values [K] in the units of
    the scores; options as of `RankerSettings`.
    """
    pair = pair_loss(logits, values, ties)
    scores, values = full(scores), full(values)
    with unchanged(scores):
        regression = smooth_l1_loss(scores, values.to(scores.dtype), beta=1.0)
    return pair + regression_weight * torch.log1p(regression)


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
            weights are frozen. Raises `UnsupportedModelError` where its towers can't be read.
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
        cls, source: str | os.PathLike[str], *, settings: RankerSettings | None = None
    ) -> ClipRanker:
        """Return an untrained ranker on a CLIP's folder or hub id, errors as of `load_backbone`."""
        return cls(load_backbone(source), settings)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Raise `UnsupportedCallError`: without the adapter around it a ranker's folder could not be read."""
        raise UnsupportedCallError(
            "A ranker is saved as a PEFT adapter: wrap it before training, model = adapted(ranker), then "
            "save(model, card, folder)."
        )

    def train(self, mode: bool = True) -> ClipRanker:
        """Set the ranker's mode; the CLIP stays in evaluation mode, though its layers may still be checkpointed."""
        super().train(mode)
        self.clip.eval()
        for module in self.clip.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode  # of the layer alone: it reads it for nothing else
        return self

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        return self.trunk.image_tokens(pixel_values.to(self.clip.dtype))

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        if pixel_values is not None:
            image_tokens = self.image_tokens(pixel_values)
        if input_ids is not None:
            text_tokens, text_mask = self.text_tokens(input_ids, attention_mask)
        scores, logits = self.ranker(image_tokens, text_tokens, text_mask, pairs, kept)
        loss = None
        if labels is not None:
            ties, weight = self.settings.ties, self.settings.regression_weight
            loss = ranker_loss(scores, logits, labels, ties=ties, regression_weight=weight)
        return RankerOutput(loss=loss, scores=scores, logits=logits)

    def similarity(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return CLIP's own cosine of each picture with each text, [K, N]; the ranker takes no part."""
        texts = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        images = self.clip.get_image_features(pixel_values=pixel_values.to(self.clip.dtype)).pooler_output
        return normalize(images, dim=-1) @ normalize(texts, dim=-1).T


UNUSED = r"clip\.visual_projection"
"""A layer that the ranker never asks: PEFT needs one to adapt also where nothing of the CLIP shall learn."""

TOWERS = (
    r"clip\.(vision|text)_model\..*\.(q_proj|v_proj|pwconv1|pwconv2)"
    r"|clip\.model\.(visual|transformer|text)\..*\.(fc1|fc2|c_fc|c_proj)"
)
"""Queries and values of attention; in a ConvNeXt, and of open_clip, its blocks' two matrices."""


def adapted(model: ClipRanker, trunk: Tuning = "frozen", rank: int = 8) -> PeftModel:
    """Return a ranker as a PEFT model that is ready to train: what has no gradient asks for none; raises `KnobError`.

    Args:
        trunk: "frozen": the CLIP stays as it is, and tokens of pictures may be computed once. "tuned": a LoRA of the
            `rank` learns in both towers.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    if trunk not in get_args(Tuning) or rank < 1:
        raise KnobError(f"trunk is {trunk!r} and rank {rank}: give 'frozen' or 'tuned', and a rank of 1 or more.")
    target, r = (UNUSED, 1) if trunk == "frozen" else (TOWERS, rank)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=target, modules_to_save=["ranker"])
    return _still(get_peft_model(model, config))


def card_of(model: Any, **known: Any) -> RankerCard:
    """Return the card of a ranker, wrapped by PEFT or not; `known` are further fields of it."""
    trunk = model.trunk
    about = {"backbone": str(model.name_or_path), "image_width": trunk.image_width, "text_width": trunk.text_width}
    return RankerCard(**{**about, "settings": model.settings, **known})


def save(model: PeftModel, card: RankerCard, folder: str | os.PathLike[str]) -> Path:
    """Write PEFT's files and `guard_ranker.json`; the card last, so that a folder with it is whole."""
    write_adapter(model, card.backbone, folder)
    return card.write(folder)


def load(
    folder: str | os.PathLike[str], backbone: Any = None, *, trainable: bool = False
) -> tuple[PeftModel, RankerCard]:
    """Return a ranker of a folder, in evaluation mode (in training mode where trainable), and its card.

    Args:
        backbone: the CLIP, or its folder or hub id where it lies elsewhere now; None for the one the card names.

    Raises:
        WeightsError: the folder or the CLIP can't be had.
        UnsupportedModelError: the CLIP's tokens have other widths, or its towers can't be read.
    """
    card = RankerCard.read(folder)
    clip = card.backbone if backbone is None else backbone
    if isinstance(clip, str | os.PathLike):
        clip = load_backbone(clip)
    elif isinstance(clip, ClipRanker):
        raise UnsupportedModelError("The backbone is a ranker already: give the CLIP below it.")
    trunk, name = trunk_of(clip), str(getattr(clip, "name_or_path", "") or type(clip).__name__)
    card.require(trunk.image_width, trunk.text_width, name)
    wrapped = _still(with_adapter(ClipRanker(clip, card.settings), folder, "ranker", trainable))
    return wrapped.train(trainable), card


def _still(model: PeftModel) -> PeftModel:
    """Ask no gradient for the placeholder: distributed training waits for every gradient that is asked for."""
    for name, weight in model.named_parameters():
        if ".visual_projection.lora_" in name:
            weight.requires_grad_(False)
    return model
