"""A tiny random BLIP image-text retrieval model with a real tokenizer, made in memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BlipConfig, BlipForImageTextRetrieval, PreTrainedTokenizerFast

from lvlm_guard.matching import BlipITM

WORDS = [
    "is",
    "there",
    "a",
    "an",
    "dog",
    "cat",
    "car",
    "carrot",
    "in",
    "the",
    "image",
    "?",
    ",",
    "/",
    "please",
    "describe",
    "this",
    "detail",
    "yes",
    "no",
]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def blip_tokenizer(enc: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's specials; without [ENC] the model's last row stands for it."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(["[ENC]"] if enc else [])]
    vocab = {token: i for i, token in enumerate([*specials, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


def blip_model(
    layers: int = 4, side: int = 32, patch: int = 8, seed: int = 0, **changed: Any
) -> BlipForImageTextRetrieval:
    """Weights are scaled up, so that attention is peaked and gradients are far from zero."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 40, "hidden_size": 32, "encoder_hidden_size": 24, "intermediate_size": 48,
        "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3,
        "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, **changed,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": side, "patch_size": patch, "initializer_range": 0.3,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embedding" in name or name.startswith("itm_head"):
                weight.normal_(0, 0.5)
    return model.eval()


def blip_matcher(enc: bool = True, layer: int | None = None, **changed: Any) -> BlipITM:
    """A matcher on `blip_model`."""
    return BlipITM(blip_model(**changed), blip_tokenizer(enc), mean=MEAN, std=STD, layer=layer, name="tiny")
