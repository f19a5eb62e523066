"""Tiny random CLIPs with a real word-level tokenizer, made in memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

WORDS = [
    "a",
    "an",
    "photo",
    "of",
    "the",
    "and",
    "red",
    "blue",
    "green",
    "yellow",
    "orange",
    "purple",
    "small",
    "large",
    "two",
    "three",
    "wooden",
    "metal",
    "dog",
    "dogs",
    "cat",
    "cats",
    "car",
    "cars",
    "bus",
    "apple",
    "elephant",
    "cup",
    "bowl",
    "knife",
    "horse",
    "cow",
    "sheep",
    "on",
    "beside",
    "with",
    "in",
    ",",
]
LENGTH = 24  # tokens a text may have


def tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words; the pad token is the end token, as CLIP's own."""
    vocab = {token: i for i, token in enumerate(["<unk>", *WORDS, "<s>", "</s>"])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        model_max_length=LENGTH,
    )  # fmt: skip


def clip(layers: int = 3, seed: int = 0, scale: float = 6.0, attention: str = "sdpa", **changed: Any) -> CLIPModel:
    """A frozen random CLIP in evaluation mode; weights are scaled up, so that texts and pictures differ clearly.

    Its encoders have different widths (24 and 32), so that a mix-up of sides can't go unseen.
    """
    torch.manual_seed(seed)
    t = tokenizer()
    text = {
        "vocab_size": len(t), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "eos_token_id": t.eos_token_id,
        "bos_token_id": t.bos_token_id, "pad_token_id": t.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(text_config=text | changed, vision_config=vision, projection_dim=16)
    model = CLIPModel._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval().requires_grad_(False)


def image_processor() -> CLIPImageProcessor:
    """Of the size that `clip` takes."""
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
