"""Tokenizers, processors and untrained models of the embedded world: tiny, but the real transformers classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.text import CAPTION_PROMPT, caption, question
from lvlm_guard.embedded.world import SIZE

PATCH = 16
PATCHES = (SIZE // PATCH) ** 2
WIDTH = 128  # of both models, in heads of 32: the smallest that vLLM's attention takes
HEADS = 4
PROJECTION = 64  # of the matcher's ITC space

LLAVA_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
BLIP_SPECIAL = ("<pad>", "[CLS]", "[SEP]", "[ENC]", "<unk>")

# LLaVA-1.5's, so that what works here works there: pictures first, then the text; any number of turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}"
    "{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def vocabulary(special: tuple[str, ...]) -> dict[str, int]:
    """Return word -> id: the special tokens, then every word of the world's texts."""
    words = ["user", "assistant", ":", ",", ".", "?", "yes", "no", "and", "a", "an", "photo", "of", "nothing"]
    for text in (CAPTION_PROMPT, question("dog"), caption([]), caption(["dog"])):
        words += text.split()
    return {word: i for i, word in enumerate(dict.fromkeys([*special, *words, *CLASSES]))}


def _word_level(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def llava_tokenizer() -> PreTrainedTokenizerFast:
    """Return the LVLM's word-level tokenizer; it pads on the left and begins with <s>."""
    vocab = vocabulary(LLAVA_SPECIAL)
    tokenizer = _word_level(vocab)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=256,
    )


def blip_tokenizer() -> PreTrainedTokenizerFast:
    """Return the matcher's tokenizer: `[CLS] ... [SEP]`; an ITM pass puts [ENC] in the place of [CLS]."""
    vocab = vocabulary(BLIP_SPECIAL)
    tokenizer = _word_level(vocab)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["[ENC]"],
        padding_side="right",
        model_max_length=64,
    )


def llava_processor() -> LlavaProcessor:
    """Return the LVLM's processor, with LLaVA-1.5's chat template."""
    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        llava_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def blip_processor() -> BlipProcessor:
    """Return the matcher's processor."""
    images = BlipImageProcessor(
        do_resize=True, size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return BlipProcessor(images, blip_tokenizer())


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """Return what both processors make of scenes: uint8 (..., 96, 96, 3) to float (..., 3, 96, 96) in [-1, 1]."""
    return (torch.as_tensor(images).float() / 127.5 - 1).movedim(-1, -3)


def build_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """Return the untrained LVLM: CLIP tower, two-layer projector, Llama decoder; 3 layers each."""
    torch.manual_seed(seed)
    vocab = vocabulary(LLAVA_SPECIAL)
    special: dict[str, Any] = {
        "bos_token_id": vocab["<s>"],
        "eos_token_id": vocab["</s>"],
        "pad_token_id": vocab["<pad>"],
    }
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocab["<image>"],
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config.lvlm_guard = {"matcher": "../blip"}  # beside it; see lvlm_guard.matching.loading
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            linear.weight.normal_(0, WIDTH**-0.5)
        # q.k starts as a similarity kernel, so a word looks at patches that point its way; without this and
        # stage 1 the answers stayed at their prior for 650 steps (sketch).
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    return model


def build_blip(seed: int = 1) -> BlipForImageTextRetrieval:
    """Return the untrained matcher: vision tower of 3 layers, text encoder of 2 with cross attention."""
    torch.manual_seed(seed)
    vocab = vocabulary(BLIP_SPECIAL)
    config = BlipConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 64,
            "bos_token_id": vocab["[CLS]"],
            "eos_token_id": vocab["[SEP]"],
            "sep_token_id": vocab["[SEP]"],
            "pad_token_id": vocab["<pad>"],
            "is_decoder": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "projection_dim": PROJECTION,
            "initializer_range": 0.06,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": HEADS,
            "image_size": SIZE,
            "patch_size": PATCH,
            "initializer_range": 0.05,  # BLIP's default is 1e-10, at which a tower from scratch hardly learns
            "projection_dim": PROJECTION,
        },
        image_text_hidden_size=PROJECTION,
        projection_dim=PROJECTION,
    )
    model = BlipForImageTextRetrieval(config)
    embeddings = model.vision_model.embeddings
    with torch.no_grad():  # BLIP's tower has no norm before its first layer: start at unit scale
        embeddings.patch_embedding.weight.normal_(0, 0.06)
        embeddings.position_embedding.normal_(0, 0.4)
        embeddings.class_embedding.normal_(0, 0.4)
    return model
