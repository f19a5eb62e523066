"""Tiny random CLIPs of the real classes, with a real tokenizer and image processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    ConvNextConfig,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.ranker.model import ClipRanker
from lvlm_guard.adapters.ranker.settings import RankerSettings

WORDS = ["<pad>", "<s>", "<unk>", "</s>", "rank", "the", "numbers", "of", "dog", "cat", "car", "carrot", "."]
TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3,
}  # fmt: skip
VISION = {
    "hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
SMALL = RankerSettings(width=32, heads=4, prompts=4, relations=6)


def clip(kind: str = "vit", **vision: Any) -> Any:
    """A random CLIP: "vit" or "convnext"; 16 image tokens of width 40, text tokens of width 24."""
    torch.manual_seed(7)
    if kind == "vit":
        model: Any = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION | vision, projection_dim=16))
    else:
        seeing = ConvNextConfig(hidden_sizes=[8, 40], depths=[1, 2], num_stages=2, patch_size=4, image_size=32)
        both = VisionTextDualEncoderConfig(
            text_config=CLIPTextConfig(**TEXT).to_dict(),
            vision_config=seeing.to_dict() | {"hidden_size": 40},
            projection_dim=16,
        )
        model = VisionTextDualEncoderModel(both)
        for layer in model.vision_model.encoder.stages.modules():
            scale = getattr(layer, "layer_scale_parameter", None)
            if scale is not None:
                scale.data.fill_(0.5)  # 1e-6 as made: its blocks would do nothing
    model.config.name_or_path = f"tiny-{kind}"
    model.name_or_path = f"tiny-{kind}"
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )


@pytest.fixture(params=["vit", "convnext"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_clip() -> Callable[..., Any]:
    return clip


@pytest.fixture
def small() -> RankerSettings:
    return SMALL


@pytest.fixture
def make_ranker() -> Callable[..., ClipRanker]:
    def make(kind: str = "vit", seed: int = 0, settings: RankerSettings = SMALL) -> ClipRanker:
        backbone = clip(kind)
        torch.manual_seed(seed)
        return ClipRanker(backbone, settings)

    return make


@pytest.fixture
def inputs() -> Inputs:
    return Inputs(tokenizer(), 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 16)


@pytest.fixture
def saved_clip(tmp_path: Path) -> Callable[[str], Path]:
    """Write a CLIP with its tokenizer and image processor to disk, as a hub holds one."""

    def save(kind: str = "vit", **vision: Any) -> Path:
        folder = tmp_path / f"clip-{kind}"
        clip(kind, **vision).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        CLIPImageProcessor(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_mean=[0.5] * 3,
            image_std=[0.25] * 3,
        ).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def group() -> Callable[..., dict[str, torch.Tensor]]:
    """Inputs of a group of random pictures under one instruction, with padding after it."""

    def make(pictures: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        return {
            "pixel_values": torch.randn(pictures, 3, 32, 32, generator=rng),
            "input_ids": torch.tensor([[1, 4, 5, 6, 7, 8, 12, 3, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]),
            "labels": torch.arange(pictures).float(),
        }

    return make
