"""The tiny random models of `any_families.py` that are GLM's and MiniCPM's relatives."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    CHATML,
    EYES,
    HALF_MROPE,
    LINEAR,
    chat,
    text,
    words,
)


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


def glm4v_moe() -> Any:
    def inner(**settings: Any) -> Any:
        return T.Glm4vMoeTextConfig(
            **settings, moe_intermediate_size=32, num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1
        )

    return _glm(T.Glm4vMoeConfig, inner, T.Glm4vMoeVisionConfig, T.Glm4vImageProcessor, T.Glm4vProcessor,
                T.Glm4vVideoProcessor)  # fmt: skip


def glm_ocr() -> Any:
    return _glm(T.GlmOcrConfig, T.GlmOcrTextConfig, T.GlmOcrVisionConfig, T.Glm46VImageProcessor, T.Glm46VProcessor,
                T.Glm46VVideoProcessor)  # fmt: skip


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


def glmga() -> Any:
    def config(text_config: Any, vision_config: Any, **more: Any) -> Any:
        return T.GlmgaConfig(text_config=text_config, vision_config=vision_config, **more)

    return _glm(config, T.Glm4vTextConfig, T.Glm4vVisionConfig, T.GlmgaImageProcessor, T.Glm46VProcessor,
                T.Glm46VVideoProcessor)  # fmt: skip


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


def minicpm_ocr() -> Any:
    def config(vision_config: Any, image_size: int, **more: Any) -> Any:
        return T.MiniCPMOcrConfig(vision_config=vision_config, **more)

    return _minicpm(config, T.MiniCPMOcrProcessor, images=T.MiniCPMOcrImageProcessor, videos=T.MiniCPMOcrVideoProcessor)
