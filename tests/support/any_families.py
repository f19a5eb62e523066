"""Tiny random models of many families with their own processors, and the table of what was proven of them.

`python tests/support/any_families.py [type ...]` proves them and writes `lvlm_guard/proving/proven.json`, which
`lvlm-guard doctor --families` prints. Weights are drawn so that every layer adds about as much as it gets: with the
usual initialisation next to nothing depends on masks, positions or pictures.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers as T
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

FAST = ("gemma3", "qwen3_vl", "qwen3_5", "internvl", "smolvlm", "mistral3", "llava_onevision", "paligemma")
BASE = ["<unk>", "<s>", "</s>", "<pad>"]
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = EYES | {"image_size": 32, "patch_size": 8}
SIDES = {"height": 32, "width": 32}
GRID = [[32, 64], [64, 32], [64, 64]]
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
HALF_MROPE = {"rope_type": "default", "mrope_section": [1, 2, 1], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LINEAR = {
    "num_hidden_layers": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "rope_parameters": HALF_MROPE,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}  # fmt: skip
SLIDING = {
    "num_hidden_layers": 4, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
HEADERS = (
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n",
)  # fmt: skip
COHERE = (
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)  # fmt: skip


def chat(user: str, end: str, assistant: str, picture: str, start: str = "") -> str:
    """A chat template whose every turn is `user` or `assistant`, its content, `end`."""
    return (
        f"{{{{ {start!r} }}}}{{% for m in messages %}}{{{{ {user!r} if m['role'] == 'user' else {assistant!r} }}}}"
        f"{{% for c in m['content'] %}}{{{{ {picture!r} if c['type'] == 'image' else c['text'] }}}}{{% endfor %}}"
        f"{{{{ {end!r} }}}}{{% endfor %}}{{{{ {assistant!r} if add_generation_prompt else '' }}}}"
    )


def words(*specials: str, **named: str) -> Any:
    """A byte-level tokenizer whose first special token has the id 4; `named` are its attributes."""
    marks = [mark for turn in (CHATML, HEADERS, COHERE) for mark in _marks("".join(turn))]
    found = tiny.tokenizer([*BASE, *dict.fromkeys([*specials, *named.values(), *marks])], **named)
    found.eos_token = "</s>"
    return found


def _marks(text: str) -> list[str]:
    return [part + ">" for part in text.replace("\n", "").split(">") if "<" in part]


def text(vocab: Any, **more: Any) -> dict[str, Any]:
    """The settings of a small language model."""
    return {
        "vocab_size": len(vocab), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


def _llava(config: Any, **more: Any) -> Any:
    t = words(image_token="<image>")
    eyes = T.CLIPVisionConfig(**SQUARE | {"num_hidden_layers": 4})
    how = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = chat("USER: ", " ", "ASSISTANT: ", "<image>\n")
    made = config(vision_config=eyes, text_config=T.LlamaConfig(**text(t)), image_token_index=4, **more)
    crop = {"size": {"shortest_edge": 32}, "crop_size": SIDES}
    if "image_grid_pinpoints" in more:
        images = T.LlavaNextImageProcessor(**crop, image_grid_pinpoints=GRID)
        return made, T.LlavaNextProcessor(images, t, chat_template=template, **how)
    return made, T.LlavaProcessor(T.CLIPImageProcessor(**crop), t, chat_template=template, **how)


def _qwen(config: Any, processor: Any, eyes: dict[str, Any], patch: int = 8, images: Any = None, **more: Any) -> Any:
    t = words("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", image_token="<|image_pad|>",
              video_token="<|video_pad|>")  # fmt: skip
    ids = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    least = (2 * patch) ** 2 * 4
    images = images or T.Qwen2VLImageProcessor
    seen = images(patch_size=patch, merge_size=2, min_pixels=least, max_pixels=4 * least)
    start = more.pop("start", CHATML[2])
    template = chat(CHATML[0], CHATML[1], start, "<|vision_start|><|image_pad|><|vision_end|>")
    videos = [] if processor is T.PaddleOCRVLProcessor else [T.Qwen2VLVideoProcessor()]
    if processor is T.Qwen3VLProcessor:
        videos = [T.Qwen3VLVideoProcessor()]
    more = text(t, **more)
    made = config(text_config=more, vision_config=eyes | {"patch_size": patch}, **ids)
    return made, processor(seen, t, *videos, chat_template=template)


QWEN3 = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
         "num_position_embeddings": 64}  # fmt: skip
QWEN2 = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
         "window_size": 28, "fullatt_block_indexes": [1]}  # fmt: skip


def llava() -> Any:
    return _llava(T.LlavaConfig, image_seq_length=16)


def vipllava() -> Any:
    return _llava(T.VipLlavaConfig, image_seq_length=16, vision_feature_layers=[-2, -3], vision_feature_layer=[-2, -3])


def llava_next() -> Any:
    return _llava(T.LlavaNextConfig, image_grid_pinpoints=GRID)


def llava_onevision() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    eyes = T.SiglipVisionConfig(**SQUARE, vision_use_head=False)
    config = T.LlavaOnevisionConfig(
        vision_config=eyes, text_config=T.Qwen2Config(**text(t)), image_token_index=4, video_token_index=5,
        image_grid_pinpoints=GRID, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    images = T.LlavaOnevisionImageProcessor(size=SIDES, image_grid_pinpoints=GRID)
    return config, T.LlavaOnevisionProcessor(
        images, t, T.LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=chat(*CHATML, "<image>\n"),
    )  # fmt: skip


def qwen2_vl() -> Any:
    eyes = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return _qwen(T.Qwen2VLConfig, T.Qwen2VLProcessor, eyes, 7, rope_parameters=MROPE)


def qwen2_5_vl() -> Any:
    return _qwen(T.Qwen2_5_VLConfig, T.Qwen2_5_VLProcessor, QWEN2, 7, rope_parameters=MROPE)


def qwen3_vl() -> Any:
    eyes = QWEN3 | {"deepstack_visual_indexes": [0, 1]}
    return _qwen(T.Qwen3VLConfig, T.Qwen3VLProcessor, eyes, rope_parameters=MROPE)


def qwen3_vl_moe() -> Any:
    eyes = QWEN3 | {"deepstack_visual_indexes": [0, 1]}
    return _qwen(T.Qwen3VLMoeConfig, T.Qwen3VLProcessor, eyes, rope_parameters=MROPE, **EXPERTS)


def qwen3_5() -> Any:
    return _qwen(T.Qwen3_5Config, T.Qwen3VLProcessor, QWEN3, start=CHATML[2] + "<think>\n", **LINEAR)


def qwen3_5_moe() -> Any:
    more = EXPERTS | {"shared_expert_intermediate_size": 32}
    return _qwen(T.Qwen3_5MoeConfig, T.Qwen3VLProcessor, QWEN3, **LINEAR, **more)


def exaone4_5() -> Any:
    eyes = QWEN2 | {"num_key_value_heads": 2}
    return _qwen(T.Exaone4_5_Config, T.Exaone4_5_Processor, eyes, 7, model_type="exaone4", **SLIDING)


def paddleocr_vl() -> Any:
    eyes = EYES | {"image_size": 64, "spatial_merge_size": 2}
    images = T.PaddleOCRVLImageProcessor
    return _qwen(T.PaddleOCRVLConfig, T.PaddleOCRVLProcessor, eyes, images=images, rope_parameters=MROPE)


def gemma3() -> Any:
    t = words("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>",
              image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")  # fmt: skip
    config = T.Gemma3Config(
        text_config=text(t, **SLIDING), vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False),
        mm_tokens_per_image=4, image_token_index=4, boi_token_index=5, eoi_token_index=6,
    )  # fmt: skip
    turns = ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<start_of_image>", "<s>")
    images = T.Gemma3ImageProcessor(size=SIDES)
    return config, T.Gemma3Processor(images, t, image_seq_length=4, chat_template=chat(*turns))


def gemma4() -> Any:
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    t = words("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|turn>", "<turn|>", **named)
    config = T.Gemma4Config(
        text_config=text(
            t, **SLIDING | {"num_hidden_layers": 6, "layer_types": SLIDING["layer_types"][:2] * 3},
            global_head_dim=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=len(t),
            num_kv_shared_layers=2, use_bidirectional_attention="vision",
        ),
        vision_config=EYES | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 3,
                              "position_embedding_size": 256},
        audio_config=None, image_token_id=4, video_token_id=5, audio_token_id=6, boi_token_id=7, eoi_token_id=8,
    )  # fmt: skip
    images = T.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    turns = ("<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<|image|>", "<s>")
    return config, T.Gemma4Processor(
        T.Gemma4AudioFeatureExtractor(), images, t, T.Gemma4VideoProcessor(), image_seq_length=70,
        chat_template=chat(*turns),
    )  # fmt: skip


def internvl() -> Any:
    t = words("<IMG_CONTEXT>", "<img>", "</img>", "<video>", start_image_token="<img>", end_image_token="</img>",
              context_image_token="<IMG_CONTEXT>", video_token="<video>")  # fmt: skip
    eyes = EYES | {"image_size": [32, 32], "patch_size": [8, 8]}
    config = T.InternVLConfig(
        vision_config=eyes, text_config=T.Qwen2Config(**text(t)), image_token_id=4, image_seq_length=4
    )
    images = T.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=True, min_patches=1, max_patches=4)
    template = chat(*CHATML, "<IMG_CONTEXT>\n")
    return config, T.InternVLProcessor(
        images, t, T.InternVLVideoProcessor(), image_seq_length=4, chat_template=template
    )


def _idefics(config: Any, images: Any, processor: Any, *videos: Any) -> Any:
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    t = words("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles,
              image_token="<image>", fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
              end_of_utterance_token="<end_of_utterance>", video_token="<video>")  # fmt: skip
    made = config(
        vision_config=SQUARE, text_config=T.LlamaConfig(**text(t)), image_token_id=4, scale_factor=2, pad_token_id=3
    )
    template = chat("<|im_start|>User:", "<end_of_utterance>\n", "Assistant:", "<image>")
    seen = images(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return made, processor(seen, t, *videos, image_seq_len=4, chat_template=template)


def smolvlm() -> Any:
    return _idefics(T.SmolVLMConfig, T.SmolVLMImageProcessor, T.SmolVLMProcessor, T.SmolVLMVideoProcessor())


def idefics3() -> Any:
    return _idefics(T.Idefics3Config, T.Idefics3ImageProcessor, T.Idefics3Processor)


def idefics2() -> Any:
    t = words("<image>", "<fake_token_around_image>", "<end_of_utterance>", image_token="<image>",
              image_boundary_token="<fake_token_around_image>")  # fmt: skip
    config = T.Idefics2Config(
        vision_config=SQUARE, text_config=T.MistralConfig(**text(t, sliding_window=None)), image_token_id=4,
        perceiver_config={"hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                          "resampler_head_dim": 16, "num_key_value_heads": 2},
    )  # fmt: skip
    images = T.Idefics2ImageProcessor(size={"shortest_edge": 16, "longest_edge": 32})
    template = chat("User:", "<end_of_utterance>\n", "Assistant:", "<image>", "<s>")
    return config, T.Idefics2Processor(images, t, image_seq_len=4, chat_template=template)


def mistral3() -> Any:
    t = words("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    eyes = T.PixtralVisionConfig(**EYES, image_size=64, patch_size=8)
    config = T.Mistral3Config(
        vision_config=eyes, text_config=T.MistralConfig(**text(t, sliding_window=None)), image_token_index=4,
        spatial_merge_size=2,
    )  # fmt: skip
    template = (
        "<s>{% for m in messages %}{{ '[INST]' if m['role'] == 'user' else '' }}{% for c in m['content'] %}"
        "{{ '[IMG]' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{{ '[/INST]' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    )
    images = T.PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 64})
    return config, T.PixtralProcessor(images, t, patch_size=8, spatial_merge_size=2, chat_template=template)


def _glm(config: Any, inner: Any, eyes: Any, images: Any, processor: Any, videos: Any) -> Any:
    t = words("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
              "<|end_of_video|>", "<|user|>", "<|assistant|>", "[gMASK]", "<sop>", image_token="<|image|>",
              video_token="<|video|>")  # fmt: skip
    names = ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id",
             "video_start_token_id", "video_end_token_id")  # fmt: skip
    small = {"depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": 64, "patch_size": 8, "out_hidden_size": 64,
             "intermediate_size": 64}  # fmt: skip
    made = config(
        text_config=inner(**text(t, rope_parameters=HALF_MROPE)), vision_config=eyes(**small),
        **dict(zip(names, range(4, 10), strict=True)),
    )  # fmt: skip
    seen = images(patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 32})
    picture = "<|begin_of_image|><|image|><|end_of_image|>"
    template = chat("<|user|>\n", "", "<|assistant|>\n<think>\n", picture, "[gMASK]<sop>")
    return made, processor(seen, t, videos(), chat_template=template)


def glm4v() -> Any:
    return _glm(T.Glm4vConfig, T.Glm4vTextConfig, T.Glm4vVisionConfig, T.Glm4vImageProcessor, T.Glm4vProcessor,
                T.Glm4vVideoProcessor)  # fmt: skip


def glm46v() -> Any:
    return _glm(T.Glm46VConfig, T.Glm4vTextConfig, T.Glm4vVisionConfig, T.Glm46VImageProcessor, T.Glm46VProcessor,
                T.Glm46VVideoProcessor)  # fmt: skip


def cohere2_vision() -> Any:
    t = words("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", image_token="<image>",
              boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>",
              img_line_break_token="<|IMG_LINE_BREAK|>")  # fmt: skip
    config = T.Cohere2VisionConfig(
        vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False),
        text_config=T.Cohere2Config(**text(t, **SLIDING)), image_token_id=4, downsample_factor=2,
        alignment_intermediate_size=64,
    )  # fmt: skip
    images = T.Cohere2VisionImageProcessor(size=SIDES, patch_size=2, max_patches=4)
    return config, T.Cohere2VisionProcessor(images, t, chat_template=chat(*COHERE, "<image>", "<s>"))


def aya_vision() -> Any:
    t = words("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE",
              "TILE_GLOBAL", image_token="<image>")  # fmt: skip
    config = T.AyaVisionConfig(
        vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False),
        text_config=T.Cohere2Config(**text(t, **SLIDING)), image_token_index=4, downsample_factor=2,
    )  # fmt: skip
    images = T.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=True, min_patches=1, max_patches=4)
    template = chat(*COHERE, "<image>", "<s>")
    return config, T.AyaVisionProcessor(
        images, t, patch_size=8, img_size=32, downsample_factor=2, chat_template=template
    )


def lfm2_vl() -> Any:
    rows = [f"<|img_row_{r}_col_{c}|>" for r in range(1, 4) for c in range(1, 4)]
    t = words("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *rows, image_token="<image>",
              image_start_token="<|image_start|>", image_end_token="<|image_end|>",
              image_thumbnail="<|img_thumbnail|>")  # fmt: skip
    layers = ["conv", "full_attention"] * 2
    config = T.Lfm2VlConfig(
        vision_config=T.Siglip2VisionConfig(**EYES, patch_size=8, num_patches=64, vision_use_head=False),
        text_config=T.Lfm2Config(**text(t, num_hidden_layers=4, layer_types=layers, block_auto_adjust_ff_dim=False)),
        image_token_id=4, projector_hidden_size=32, downsample_factor=2,
    )  # fmt: skip
    images = T.Lfm2VlImageProcessor(
        tile_size=32, encoder_patch_size=8, min_image_tokens=4, max_image_tokens=8, max_tiles=4, size=SIDES
    )
    return config, T.Lfm2VlProcessor(images, t, chat_template=chat(*CHATML, "<image>", "<s>"))


def lfm3_vl() -> Any:
    layers = ["conv", "sliding_attention", "conv", "full_attention"]
    more = {"num_hidden_layers": 4, "sliding_window": 12, "layer_types": layers}
    eyes = EYES | {"num_key_value_heads": 2}
    return _qwen(
        lambda text_config, vision_config, **ids: T.Lfm3VlConfig(
            text_config=T.Lfm3Config(**text_config), vision_config=vision_config, projector_hidden_size=32, **ids
        ),
        T.Lfm3VlProcessor, eyes, **more,
    )  # fmt: skip


def molmo2() -> Any:
    marks = ["<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
             "<im_low>", "<|image|>", "<|video|>"]  # fmt: skip
    t = words(*marks, image_token="<|image|>", video_token="<|video|>")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
    config = T.Molmo2Config(
        vision_config=heads | {"hidden_size": 32, "num_hidden_layers": 3, "image_size": [32, 32], "patch_size": 8,
                               "num_position_embeddings": 16},
        adapter_config=heads | {"vision_feature_layer": [-1, -2], "hidden_size": 32, "text_hidden_size": 64},
        text_config=text(t, additional_vocab_size=16), image_patch_id=4, image_start_token_id=6,
        low_res_image_start_token_id=7, frame_start_token_id=8, image_end_token_id=9, frame_end_token_id=10,
    )  # fmt: skip
    images = T.Molmo2ImageProcessor(size=SIDES, patch_size=8, max_crops=4, overlap_margins=[1, 1])
    return config, T.Molmo2Processor(images, T.Molmo2VideoProcessor(), t, chat_template=chat(*CHATML, "<|image|>"))


def paligemma() -> Any:
    t = words(image_token="<image>")
    images = T.SiglipImageProcessor(size=SIDES)
    images.image_seq_length = 16
    processor = T.PaliGemmaProcessor(images, t)  # adds 1152 tokens of its own
    config = T.PaliGemmaConfig(
        vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False), text_config=T.GemmaConfig(**text(t)),
        image_token_index=4, projection_dim=64, hidden_size=64,
    )  # fmt: skip
    return config, processor


def mllama() -> Any:
    t = words("<|image|>", "<|python_tag|>")
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = T.MllamaConfig(
        text_config=text(t, num_hidden_layers=4, cross_attention_layers=[1, 3], rope_parameters=rope),
        vision_config={"hidden_size": 32, "num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 2,
                       "intermediate_size": 64, "vision_output_dim": 64, "image_size": 32, "patch_size": 8,
                       "intermediate_layers_indices": [0], "max_num_tiles": 4}, image_token_index=4,
    )  # fmt: skip
    images = T.MllamaImageProcessor(size=SIDES, max_image_tiles=4)
    return config, T.MllamaProcessor(images, t, chat_template=chat(*HEADERS, "<|image|>", "<s>"))


def phi4_multimodal() -> Any:
    t = words("<|image|>", "<|audio|>", "<|user|>", "<|end|>", "<|assistant|>", image_token="<|image|>",
              audio_token="<|audio|>")  # fmt: skip
    config = T.Phi4MultimodalConfig(
        **text(t, original_max_position_embeddings=2048),
        vision_config=EYES | {"num_hidden_layers": 3, "image_token_id": 4},
        audio_config={"hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 2,
                      "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 16,
                      "audio_token_id": 5},
    )  # fmt: skip
    template = chat("<|user|>", "<|end|>", "<|assistant|>", "<|image|>")
    images, sounds = T.Phi4MultimodalImageProcessor(dynamic_hd=2), T.Phi4MultimodalFeatureExtractor()
    return config, T.Phi4MultimodalProcessor(images, sounds, t, chat_template=template)


def ovis2() -> Any:
    t = words("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<image>")
    config = T.Ovis2Config(
        vision_config=SQUARE | {"vocab_size": 64, "hidden_stride": 2}, text_config=T.Qwen2Config(**text(t)),
        image_token_id=4, visual_indicator_token_ids=[5, 6, 7, 8, 9], vocab_size=len(t), hidden_size=64,
    )  # fmt: skip
    images = T.Ovis2ImageProcessor(size=SIDES, crop_to_patches=True, max_patches=4)
    return config, T.Ovis2Processor(images, t, chat_template=chat(*CHATML, "<image>\n"), image_seq_length=4)


def ernie4_5_vl_moe() -> Any:
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO_PLACEHOLDER|>",
             "image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>",
             "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"}  # fmt: skip
    t = words(**named)
    rope = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e4}
    config = T.Ernie4_5_VLMoeConfig(
        text_config=text(t, rope_parameters=rope, moe_intermediate_size=[32, 16], moe_k=2, moe_num_experts=4,
                         moe_num_shared_experts=1),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8},
        image_token_id=4, video_token_id=5, image_start_token_id=6, image_end_token_id=7, video_start_token_id=8,
        video_end_token_id=9,
    )  # fmt: skip
    images = T.Ernie4_5_VLMoeImageProcessor(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 16}
    )
    template = chat(*CHATML, "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    return config, T.Ernie4_5_VLMoeProcessor(images, t, T.Ernie4_5_VLMoeVideoProcessor(), chat_template=template)


def video_llama_3() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = T.VideoLlama3Config(
        vision_config=EYES | {"patch_size": 8}, text_config=T.Qwen2Config(**text(t)), image_token_id=4,
        video_token_id=5,
    )  # fmt: skip
    images = T.VideoLlama3ImageProcessor(patch_size=8, merge_size=1, min_pixels=8 * 8 * 4, max_pixels=8 * 8 * 32)
    videos = T.VideoLlama3VideoProcessor()
    return config, T.VideoLlama3Processor(images, t, videos, chat_template=chat(*CHATML, "<image>"))


def _minicpm(config: Any, processor: Any, images: Any = None, videos: Any = None, **more: Any) -> Any:
    images, videos = images or T.MiniCPMV4_6ImageProcessor, videos or T.MiniCPMV4_6VideoProcessor
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
             "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
             "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}  # fmt: skip
    t = words(**named)
    made = config(
        text_config=T.Qwen3_5TextConfig(**text(t, **LINEAR)), insert_layer_id=1, image_token_id=4, video_token_id=5,
        vision_config=EYES | {"num_hidden_layers": 3, "image_size": 64, "patch_size": 4}, image_size=64, **more,
    )  # fmt: skip
    seen = images(scale_resolution=32, patch_size=4, max_slice_nums=4)
    return made, processor(seen, videos(), t, chat_template=chat(*CHATML, "<|image_pad|>"))


def minicpmv4_6() -> Any:
    return _minicpm(T.MiniCPMV4_6Config, T.MiniCPMV4_6Processor)


def minicpmv4_7() -> Any:
    more = {"image_start_id": 6, "image_end_id": 7, "slice_start_id": 8, "slice_end_id": 9}
    newline = words()("\n", add_special_tokens=False)["input_ids"][0]
    return _minicpm(T.MiniCPMV4_7Config, T.MiniCPMV4_7Processor, newline_id=newline, **more)


def janus() -> Any:
    t = words("<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>",
              image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")  # fmt: skip
    eyes = T.JanusVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                               patch_size=8, projection_dim=64, num_image_tokens=16)  # fmt: skip
    drawer = T.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=16, latent_channels=16, base_channels=32, channel_multiplier=[1, 1], num_patches=4,
        projection_dim=64, image_token_embed_dim=64,
    )  # fmt: skip
    config = T.JanusConfig(text_config=T.LlamaConfig(**text(t)), vision_config=eyes, vq_config=drawer, image_token_id=4)
    template = chat("<|User|>: ", "\n\n", "<|Assistant|>:", "<image_placeholder>\n")
    images = T.JanusImageProcessor(size=SIDES, min_size=8)
    return config, T.JanusProcessor(images, t, chat_template=template, num_image_tokens=16)


def glm5_next() -> Any:
    layers = ["linear_attention", "indexed_attention"] * 2

    def inner(**settings: Any) -> Any:
        for name in ("head_dim", "rope_parameters"):
            settings.pop(name)
        return settings | {
            "num_hidden_layers": 4, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 16, "qk_nope_head_dim": 16,
            "index_topk": 16, "index_head_dim": 16, "index_n_heads": 2, "index_kpool": 2, "linear_head_dim": 16,
            "linear_num_heads": 2, "mlp_layer_types": ["dense", "sparse", "dense", "dense"], "layer_types": layers,
        }  # fmt: skip

    def images(patch_size: int, merge_size: int, size: Any) -> Any:
        return T.Glm5NextImageProcessor(
            patch_size=patch_size, merge_size=merge_size, min_image_tokens=4, max_image_tokens=16
        )

    return _glm(T.Glm5NextConfig, inner, lambda **small: small | {"projection_intermediate_size": 64}, images,
                T.Glm5NextProcessor, T.Glm5NextVideoProcessor)  # fmt: skip


def llama4() -> Any:
    t = words("<|patch|>", "<|image|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>",
              "<|tile_y_separator|>")  # fmt: skip
    config = T.Llama4Config(
        text_config=text(t, num_hidden_layers=4, intermediate_size_mlp=96, num_local_experts=2,
                         attention_chunk_size=16, layer_types=["chunked_attention", "full_attention"] * 2),
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
                       "vision_output_dim": 64, "image_size": 32, "patch_size": 8, "projector_input_dim": 64,
                       "projector_output_dim": 64},
        boi_token_index=6, eoi_token_index=7, image_token_index=4,
    )  # fmt: skip
    images = T.Llama4ImageProcessor(size=SIDES, max_patches=4)
    return config, T.Llama4Processor(images, t, patch_size=8, chat_template=chat(*HEADERS, "<|image|>", "<s>"))


def blip_2() -> Any:
    t = words("<image>")
    config = T.Blip2Config(
        vision_config=SQUARE, qformer_config=EYES | {"vocab_size": len(t)}, num_query_tokens=6, image_token_index=4,
        text_config=T.LlamaConfig(**text(t)).to_dict(),
    )  # fmt: skip
    return config, T.Blip2Processor(T.BlipImageProcessor(size=SIDES), t, num_query_tokens=6)


NEWEST = (
    "cohere_compass", "granite_docling", "granite4_vision", "qwen4_exp", "cosmos3_omni", "hyperclovax_vision_v2",
    "hunyuan_vl", "hy_v4_vl", "mistral_large4", "kimi_k25", "minimax_m3_vl", "muse_glimmer", "muse_spark", "step3p7",
    "qianfan_ocr", "glmga", "minicpm_ocr", "deepseek_ocr2", "unlimited_ocr", "gemma4_unified", "inkling2",
    "inkling2_loop", "inkling_mm_model", "cosmos3_edge", "dots3_note", "apertus1p5", "nemotron_h_omni",
)  # fmt: skip
"""Those of `newest_families.py`, which older releases of transformers lack."""
MORE = (
    "perception_lm", "gemma3n", "deepseek_vl", "deepseek_vl_hybrid", "video_llava", "llava_next_video", "got_ocr2",
    "glm4v_moe", "glm_ocr", "aria", "lighton_ocr", "emu3", "idefics", "kosmos2_5", "fast_vlm", "florence2",
)  # fmt: skip
"""Those of `more_families.py`."""
OTHERS = ("chameleon", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "pp_chart2table", "git")
"""Those of `other_families.py` that are proven."""
NAMES = [
    *FAST, "llava", "vipllava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5_moe", "exaone4_5",
    "paddleocr_vl", "gemma4", "idefics2", "idefics3", "glm4v", "glm46v", "cohere2_vision", "aya_vision", "lfm2_vl",
    "lfm3_vl", "molmo2", "mllama", "phi4_multimodal", "ovis2", "ernie4_5_vl_moe", "video_llama_3", "minicpmv4_6",
    "minicpmv4_7", "janus", "glm5_next", "llama4", "blip_2", "instructblip",
    *MORE, *OTHERS, *NEWEST,
]  # fmt: skip
DECODES_INSIDE, NO_DECODER = "something between generate\\(\\) and the model", "the model is an encoder-decoder"
REFUSED = {
    "llama4": "plain generate\\(\\) fails", "florence2": NO_DECODER, "got_ocr2": "Nested images are only supported",
    "idefics": "reads late what it skipped", "shieldgemma2": "makes 3 prompts of its own out of one",
    "blip": DECODES_INSIDE, "kosmos_2": f"{DECODES_INSIDE}|shape mismatch",  # the latter in older releases
    "instructblipvideo": "the processor reads no pictures",
    "diffusion_gemma": "does not answer token by token", "pi0": "does not answer token by token",
    "evolla": "the model has no image tower", "mistral4": "the model has no image tower", "pix2struct": NO_DECODER,
    "pp_formulanet": NO_DECODER, "t5gemma2": NO_DECODER, "udop": NO_DECODER, "vision_encoder_decoder": NO_DECODER,
}  # fmt: skip
UNTRIED = {
    "fuyu": "not tried: its processor takes off the first token of a picture's, one that only the tokenizer of its "
    "release writes, so no tiny one was made offline",
}
"""Model types of which no tiny model was made, and why."""
SLOW = [name for name in NAMES if name not in {*FAST, *REFUSED, *NEWEST, *OTHERS}]


def _builder(name: str) -> Any:
    rooms = (sys.modules[__name__], *(import_module(f"{room}_families") for room in ("more", "newest", "other")))
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


def make(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, gain: float = 1.5) -> tuple[Any, Any]:
    """Return a fresh (model, processor)."""
    if name == "instructblip":
        return tiny.make(name, dtype, attention, scale=5.0)
    torch.manual_seed(0)
    config, processor = _builder(name)()
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type, "Phi4MultimodalForCausalLM")
    kind = getattr(T, named if isinstance(named, str) else named[0])
    try:
        model = kind._from_config(config, attn_implementation=attention)
    except ValueError:  # some have eager attention alone
        model = kind._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for module in model.modules():
            for kind, weight in module.named_parameters(recurse=False):
                if isinstance(module, torch.nn.Embedding):
                    weight.normal_()
                elif weight.ndim >= 2:
                    fan = weight.numel() / len(weight)
                    weight.normal_(std=gain / fan**0.5 if kind == "weight" else 0.5)
                elif "gate" in kind and not bool(weight.any()):
                    weight.normal_(std=0.5)
    settings = getattr(model, "generation_config", T.GenerationConfig())
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = 3, 1, 2
    return model.to(dtype).eval().requires_grad_(False), processor


MODES = {
    "beams": {"num_beams": 2}, "a static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 2}, "chunked prefill": {"prefill_chunk_size": 16},
}  # fmt: skip


def said(error: Exception) -> str:
    """The first sentence of what was raised."""
    return re.split(r"(?<=\w)[.:] |\n", f"{error}.")[0].rstrip(".")


def holes(name: str) -> dict[str, str]:
    """Return which ways of decoding a tiny model does not have, plain or guarded, and why."""
    from matchers import Brightness

    from lvlm_guard import guard
    from lvlm_guard.errors import GuardError

    found = {}
    pair = make(name)
    model, processor = guard(*pair, "agla", **_loose("agla", Brightness(), pair[0]))
    text = model._lvlm_guard.family.asked(processor, "Is there a dog? Is there a dog?", 1)
    inputs = processor(images=[tiny.picture(1, 96, 48)], text=[text], return_tensors="pt")
    for mode, how in MODES.items():
        run = how | {"max_new_tokens": 5, "do_sample": False}
        try:
            plain = model.generate(**inputs, **run, guard=False)
        except Exception as error:
            if "do not match" not in str(error):  # a random model drafts a placeholder, for which there is no picture
                found[mode] = f"plain generate() can't: {said(error)}"
            continue
        try:
            out = model.generate(**inputs, **run, return_dict_in_generate=True)
            assert out.guard.local_forwards, "its branch never ran"
            nothing = model.generate(
                **inputs, **run, guard=dataclasses.replace(model._lvlm_guard.method, alpha=0, beta=0)
            )
            if not torch.equal(nothing, plain):
                usual = model.generate(**inputs, max_new_tokens=5, do_sample=False, guard=False)
                assert torch.equal(nothing, usual), "at no strength its tokens are not plain ones"
                found[mode] = "plain generate()'s own tokens are others than without; guarded ones are as without"
        except (GuardError, AssertionError) as error:
            found[mode] = said(error)
    return found


def working(name: str) -> tuple[list[str], dict[str, str]]:
    """Return the methods that guard a tiny model's answers, each request's as it is alone where the plain one's is.

    And why others do not.
    """
    from matchers import Brightness

    from lvlm_guard import guard, methods

    other = (96, 48) if name == "perception_lm" else (56, 56)  # its processor can't batch unequal shapes
    pictures = [[tiny.picture(1, 96, 48)], [tiny.picture(2, *other)]]
    found, without = [], {}
    pair = make(name)
    with wide_windows():
        wide = make(name)
    for method in methods.REGISTRY.names():
        chosen = wide if method == "focus" else pair
        model, processor = guard(*chosen, method, **_loose(method, Brightness(), chosen[0]))
        family = model._lvlm_guard.family
        prompts = [family.asked(processor, f"Is there a {thing}?", 1) for thing in ("dog", "red traffic light")]

        def steady(model: Any = model, processor: Any = processor, prompts: Any = prompts, **how: Any) -> bool:
            answers = []
            for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
                inputs = processor(images=pictures[rows], text=prompts[rows], padding=True, return_tensors="pt")
                told = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 5}
                out = model.generate(**inputs, **how, **told, do_sample=False)
                logits = torch.stack(out.logits, 1) if how else None  # those of plain generate()
                answers.append((out.sequences[:, inputs["input_ids"].shape[1] :], logits))
            return all(
                torch.equal(answers[0][0][row][: alone.shape[1]], alone[0])
                and (logits is None or torch.allclose(logits[0, 0], answers[0][1][row, 0], atol=1e-4))
                for row, (alone, logits) in enumerate(answers[1:])
            )

        try:
            if steady() or not family.proof.alone or not steady(guard=False):
                found.append(method)
            else:
                without[method] = "an answer depends on its neighbours in the batch"
        except Exception as error:  # that it is no GuardError is a defect of the method's on this family
            without[method] = said(error)
    return found, without


def two_animals(image: Any) -> list[str]:
    """What a detector might find in any picture."""
    return ["dog", "cat"]


def _loose(method: str, matcher: Any, model: Any) -> dict[str, Any]:
    """Knobs under which every branch is wanted."""
    from drawn_statistics import drawn

    from lvlm_guard import methods
    from lvlm_guard.knobs import defaults_of

    own = {"statistics": drawn(method, model)} if methods.REGISTRY.get(method).needs_statistics else {}
    wanted = {"beta": 0.01, "matcher": matcher, "finds": two_animals}
    return own | {key: value for key, value in wanted.items() if key in defaults_of(method)}


PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def page() -> str:
    """Return docs/families.md: the rows of `lvlm-guard doctor --families`."""
    from lvlm_guard.cli.doctor import family_rows

    rows = family_rows()
    count = Counter(row["proven"] for row in rows)
    lines = [
        "# Model families",
        "",
        "For everyone who chooses a model, or has one.",
        "",
        f"Of {len(rows)} model types of transformers {T.__version__} that answer about pictures, {count[True]} are",
        f"proven, {count[False]} refused and {count[None]} not tried.",
        "",
        "Any decoder-only model that transformers runs on pictures can be guarded, if a second branch is *proven*",
        "right on it, against plain generate() on the second views. For the families below that was done on tiny",
        "random models of their own classes, for eager and sdpa attention on a CPU; any other is proved, or refused",
        "with what was found, when `guard(model, processor)` first meets it (`check=`), and the proof is kept. Prove",
        "your own weights, kernel and device with `lvlm-guard doctor --model ID`; not tried here: GPUs, flash",
        "attention, quantised weights.",
        "",
        "`focus` hides image tokens in the model's own cache. It is offered where that is proven too: what it reads is",
        "what plain generate() reads under a mask with holes, and each token shows the part of the picture that its",
        "place says. Where a model has sliding windows, prompt and answer must fit into one.",
        "",
        "Models that think first (Qwen3.5, GLM-4V) are guarded from their first token on, thoughts and answer alike:",
        "an object that was thought of is soon in the answer.",
        "",
        "No family has, and each call says so: a guard over videos, `inputs_embeds`, encoded pictures",
        "(`mm_encoder_outputs`), pictures that are scaled already (`do_rescale=False`) or continuous batching. What",
        "else one lacks is in its note, with what was found: ways of decoding (beams, static cache, prompt lookup,",
        "chunked prefill) were each tried, plain and guarded.",
        "",
        "Written by `python tests/support/any_families.py`; `lvlm-guard doctor --families` prints it.",
        "",
        "| Family | Model type | Methods | Note |",
        "|---|---|---|---|",
    ]
    cells = [
        (row["family"], row["model_types"][0], ", ".join(row["methods"]), row["note"]) for row in rows if row["proven"]
    ]
    lines += [f"| {family} | `{kind}` | {names} | {note} |" for family, kind, names, note in cells]
    lines += ["", "Refused:", ""]
    lines += [f"- `{row['model_types'][0]}`: {row['note']}" for row in rows if row["proven"] is False]
    lines += ["", "Of no kind yet:", ""]
    lines += [f"- `{row['model_types'][0]}`: {row['note']}" for row in rows if row["proven"] is None]
    return "\n".join([*lines, ""])


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what two proofs have in common."""
    both = {key: min(one[key], other[key]) for key in ("stacks", "alone", "crops", "hides")}
    both |= {key: max(one[key], other[key]) for key in ("error", "seen")}
    return {"way": one["way"] if one["way"] == other["way"] else None} | both | {"why": other["why"] | one["why"]}


@contextmanager
def wide_windows() -> Iterator[None]:
    """Make models whose sliding windows hold whole prompts, as those of published ones mostly do."""
    held = SLIDING["sliding_window"]
    SLIDING["sliding_window"] = 512
    try:
        yield
    finally:
        SLIDING["sliding_window"] = held


def proved(name: str) -> tuple[str, dict[str, Any]]:
    """Return a model type and what was proven of it by both kernels, or why it is refused."""
    from lvlm_guard.families.family import Family
    from lvlm_guard.proving import trial

    told = []
    try:
        for attention in ("eager", "sdpa"):
            model, processor = make(name, attention)
            told.append(asdict(trial.self_check(Family.of(model, processor), model, processor)))
            if "window" in told[-1]["why"].get("hides", ""):  # the proof's other answers are of a window that is left
                with wide_windows():
                    model, processor = make(name, attention)
                wide = trial.self_check(Family.of(model, processor), model, processor)
                told[-1] |= {"hides": wide.hides, "why": told[-1]["why"] | wide.why}
                if wide.hides:
                    told[-1]["why"].pop("hides")
    except ValueError as error:
        return model.config.model_type, {"refused": re.sub(r"\s+", " ", str(error))}
    return model.config.model_type, {"proof": _both(*told)}


def main(names: list[str]) -> None:
    """Prove first, since guard() goes by it, and then ask every method; what is known is written as it is found."""
    from lvlm_guard.cli.doctor import thinks_first
    from lvlm_guard.proving import proofs

    place = Path(proofs.__file__).with_name("proven.json")
    found = json.loads(place.read_text()) | {kind: {"untried": why} for kind, why in UNTRIED.items()}
    kinds = {}
    for name in names or dict.fromkeys([*NAMES, *REFUSED]):
        kinds[name], told = proved(name)
        found[kinds[name]] = {**found.get(kinds[name], {}), **told} if "proof" in told else told
        _write(place, found)
        print(name, told, flush=True)
    for name, kind in kinds.items():
        if "refused" in found[kind]:
            continue
        can, without = working(name)
        if not found[kind]["proof"]["hides"]:
            without["focus"] = found[kind]["proof"]["why"]["hides"]
        more = {"methods": can, "without": without | holes(name), "thinks": thinks_first(make(name)[1])}
        found[kind] = {"proof": found[kind]["proof"], **more}
        _write(place, found)
        print(name, more, flush=True)
    PAGE.write_text(page())


def _write(place: Path, found: dict[str, Any]) -> None:
    place.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1:])
