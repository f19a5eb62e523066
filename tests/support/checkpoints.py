"""Tiny random checkpoints on disk that vLLM can serve on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)


def tiny_llava(where: Path) -> tuple[Any, Any]:
    """Write a LLaVA-1.5 with heads of 32, as vLLM's attention wants them, and return (model, processor).

    Weights are so wide that the picture moves the answer.
    """
    tokenizer = tiny.tokenizer(tiny.SPECIALS, image_token="<image>")
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(7)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=16)
    model = LlavaForConditionalGeneration(config).float().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            width = parameter[0].numel() ** 0.5
            spread = 2.5 / width if "lm_head" in name else 1.0 if "embed_tokens" in name else 1.6 / width
            parameter.normal_(0, spread)
    size = {"height": 56, "width": 56}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size), tokenizer, chat_template=tiny.LLAVA_TEMPLATE,
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 3, 2
    model.save_pretrained(where)
    processor.save_pretrained(where)
    # released LLaVA files, and so vLLM's CLIP, name a module that newer transformers leave out
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model.") if ".vision_model." not in name else name: tensor
        for name, tensor in load_file(where / "model.safetensors").items()
    }
    weights = {
        name if "vision_tower" in name else name.replace(".vision_model.", "."): t for name, t in weights.items()
    }
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    return model, processor
