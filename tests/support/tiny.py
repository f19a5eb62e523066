"""Tiny random models of the supported families, with real processors, made in memory.

Weights are scaled up so that next-token distributions are peaked: with the usual initialisation every
token would be plausible at every step, and nothing would ever be decided.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
QWEN_SPECIALS = [
    "<unk>", "<s>", "<|im_end|>", "<pad>", "<|image_pad|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>",
    "<|video_pad|>",
]  # fmt: skip
QFORMER_SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "[CLS]", "[SEP]"]  # other ids than the language model's
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "instructblip")
TEMPLATED = ("llava", "llava_next", "qwen2_5_vl")  # whose processors have a chat template


def tokenizer(specials: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 pieces and the specials."""
    vocab = {token: i for i, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", pad_token="<pad>", padding_side="left",
        eos_token=specials[2], extra_special_tokens=named,
    )  # fmt: skip


def _text(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )


def _finish(model: Any, scale: float, dtype: torch.dtype) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    # InstructBLIP decodes with its language model, by that one's settings
    config = getattr(model, "language_model", model).generation_config
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 3, 1, 2
    config.suppress_tokens = [0, 1, 3, *range(4, 9 if "Qwen" in type(model).__name__ else 5)]
    return model.to(dtype).eval().requires_grad_(False)


def make(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa", scale: float = 3.0, seed: int = 0):
    """Return a fresh (model, processor) of a family; float64 by default, where equal means equal."""
    torch.manual_seed(seed)
    if family == "qwen2_5_vl":
        t = tokenizer(QWEN_SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
        config = Qwen2_5_VLConfig(
            text_config=_text(len(t)) | {"rope_parameters": rope},
            vision_config={
                "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
                "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 28,
                "fullatt_block_indexes": [1], "tokens_per_second": 2,
            },
            image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
        )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
        images = Qwen2VLImageProcessor(patch_size=7, merge_size=2, min_pixels=14 * 14 * 4, max_pixels=14 * 14 * 16)
        from transformers import Qwen2VLVideoProcessor

        processor = Qwen2_5_VLProcessor(images, t, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
        return _finish(model, scale, dtype), processor
    if family == "instructblip":
        return _instructblip(dtype, attention, scale)
    t = tokenizer(SPECIALS, image_token="<image>")
    shared = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava":
        config = LlavaConfig(
            vision_config=_clip(), text_config=LlamaConfig(**_text(len(t))), image_token_index=4, image_seq_length=16
        )
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return _finish(model, scale, dtype), LlavaProcessor(images, t, chat_template=LLAVA_TEMPLATE, **shared)
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=_clip(), text_config=LlamaConfig(**_text(len(t))), image_token_index=4, image_grid_pinpoints=grid
    )
    model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attention)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    return _finish(model, scale, dtype), LlavaNextProcessor(images, t, chat_template=LLAVA_TEMPLATE, **shared)


def _instructblip(dtype: torch.dtype, attention: str, scale: float) -> tuple[Any, Any]:
    t, q = tokenizer(SPECIALS), tokenizer(QFORMER_SPECIALS)
    q.padding_side = "right"  # as BERT's
    del t.init_kwargs["padding_side"]  # the processor would pad the Q-Former's text by it, and so shift its positions
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InstructBlipConfig(
        vision_config=small | {"image_size": 32, "patch_size": 8, "initializer_range": 0.02},  # not 1e-10, as if blind
        qformer_config=small | {"vocab_size": len(q), "max_position_embeddings": 256},
        text_config=LlamaConfig(**_text(len(t))).to_dict(),
        num_query_tokens=6,
        image_token_index=4,
    )
    model = InstructBlipForConditionalGeneration._from_config(config, attn_implementation=attention)
    model.query_tokens.data.normal_()  # zeros as made, so that all queries would say the same
    processor = InstructBlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), t, q, num_query_tokens=6)
    return _finish(model, scale, dtype), processor


@functools.lru_cache(maxsize=32)
def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """A picture of random blocks."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def prompt(processor: Any, question: str, pictures: int = 1) -> str:
    """A finished prompt with placeholders (InstructBLIP's processor writes them itself)."""
    if processor.chat_template is None:
        return question
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
