"""The tiny random models of `any_families.py` whose pictures are grids of patches, as Qwen's."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    AREA,
    CHATML,
    EXPERTS,
    EYES,
    INDEXED,
    LATENT,
    LINEAR,
    MROPE,
    QWEN2,
    QWEN3,
    ROUTED,
    SLIDING,
    chat,
    text,
    words,
)


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


def qwen4_exp() -> Any:
    kinds = ["linear_attention", "indexed_attention", "linear_attention", "linear_attention"]
    more = LINEAR | EXPERTS | {"layer_types": kinds, "shared_expert_intermediate_size": 32, "hc_count": 2}
    more |= {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    more |= {"indexer_budget": 16, "indexer_compress_ratio": 2}
    return _qwen(T.Qwen4ExpConfig, T.Qwen3VLProcessor, QWEN3, start=CHATML[2] + "<think>\n", **more)


def exaone4_5() -> Any:
    eyes = QWEN2 | {"num_key_value_heads": 2}
    return _qwen(T.Exaone4_5_Config, T.Exaone4_5_Processor, eyes, 7, model_type="exaone4", **SLIDING)


def paddleocr_vl() -> Any:
    eyes = EYES | {"image_size": 64, "spatial_merge_size": 2}
    images = T.PaddleOCRVLImageProcessor
    return _qwen(T.PaddleOCRVLConfig, T.PaddleOCRVLProcessor, eyes, images=images, rope_parameters=MROPE)


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


def cosmos3_omni() -> Any:
    eyes = QWEN3 | {"deepstack_visual_indexes": [0, 1], "model_type": "qwen3_vl_vision"}
    return _qwen(T.Cosmos3OmniConfig, T.Qwen3VLProcessor, eyes, model_type="qwen3_vl_text", rope_parameters=MROPE)


def _grid(config: Any, processor: Any, images: Any, eyes: Any, named: dict[str, str], picture: str, inner: Any,
          *videos: Any, **more: Any) -> Any:  # fmt: skip
    """A family of patches and their `image_grid_thw`; `named` tokens have the ids from 4 on."""
    t = words(**named)
    seen = images(patch_size=8, merge_size=2, size=AREA)
    made = config(text_config=inner(t), vision_config=eyes | {"patch_size": 8}, image_token_id=4, **more)
    return made, processor(seen, t, *videos, chat_template=chat(*CHATML, picture))


def cohere_compass() -> Any:
    named = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
             "vision_end_token": "<|VISION_END|>"}  # fmt: skip
    eyes = QWEN3 | {"deepstack_visual_indexes": [0, 1]}
    return _grid(
        T.CohereCompassConfig, T.CohereCompassProcessor, T.CohereCompassImageProcessor, eyes, named,
        "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
        lambda t: text(t, layer_types=["full_attention"] * 3, rope_parameters={"full_attention": MROPE},
                       logit_scale=0.25),
        T.CohereCompassVideoProcessor(), video_token_id=5, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip


def hyperclovax_vision_v2() -> Any:
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    eyes = QWEN2 | {"model_type": "qwen2_5_vl_vision", "window_size": 32}
    return _grid(
        T.HyperCLOVAXVisionV2Config, T.HyperCLOVAXVisionV2Processor, T.Qwen2VLImageProcessor, eyes, named,
        "<|image_pad|>", lambda t: text(t, model_type="hyperclovax", attention_multiplier=0.25),
        T.Qwen2VLVideoProcessor(), video_token_id=5,
    )  # fmt: skip


HUNYUAN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<|im_open|>",
           "image_end_token": "<|im_close|>"}  # fmt: skip


def hunyuan_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
    eyes = EYES | {"out_hidden_size": 64, "max_image_size": 64, "min_image_size": 16, "img_max_token_num": 64}
    return _grid(
        T.HunYuanVLConfig, T.HunYuanVLProcessor, T.HunYuanVLImageProcessor, eyes, HUNYUAN,
        "<|im_open|><|image_pad|><|im_close|>", lambda t: text(t, rope_parameters=rope),
        im_start_id=6, im_end_id=7, im_newline_id=4,
    )  # fmt: skip


def hy_v4_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    eyes = EYES | {"out_hidden_size": 64, "max_image_size": 64}
    return _grid(
        T.HYV4VLConfig, T.HYV4VLProcessor, T.HYV4VLImageProcessor, eyes, HUNYUAN,
        "<|im_open|><|image_pad|><|im_close|>",
        lambda t: text(t, rope_parameters=rope, **LATENT, **ROUTED, **INDEXED, hc_mult=2),
        T.HYV4VLVideoProcessor(), video_token_id=5,
    )  # fmt: skip


def cosmos3_edge() -> Any:  # whose model asks for token types, which its processor makes where told to
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
             "vision_end_token": "<|vision_end|>"}  # fmt: skip
    config, processor = _grid(
        T.Cosmos3EdgeConfig, T.Cosmos3EdgeProcessor, T.Cosmos3EdgeImageProcessor, EYES | {"num_patches": 64}, named,
        "<|vision_start|><|image_pad|><|vision_end|>", lambda t: text(t, rope_parameters=MROPE),
        T.Cosmos3EdgeVideoProcessor(), projector_hidden_size=64, video_token_id=5, vision_start_token_id=6,
        vision_end_token_id=7,
    )  # fmt: skip
    processor.return_mm_token_type_ids = True
    return config, processor


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
    images = T.Ernie4_5_VLMoeImageProcessor(patch_size=8, merge_size=2, size=AREA)
    template = chat(*CHATML, "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    return config, T.Ernie4_5_VLMoeProcessor(images, t, T.Ernie4_5_VLMoeVideoProcessor(), chat_template=template)


HEARD = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
         "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
         "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}  # fmt: skip
EARS = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
        "output_dim": 64, "max_source_positions": 32}  # fmt: skip


def _omni(processor: Any, patch: int, videos: Any) -> Any:
    t = words(**HEARD)
    seen = T.Qwen2VLImageProcessor(patch_size=patch, merge_size=2, min_pixels=(2 * patch) ** 2 * 4,
                                   max_pixels=(2 * patch) ** 2 * 16)  # fmt: skip
    template = chat(*CHATML, "<|vision_bos|><|IMAGE|><|vision_eos|>")
    return t, processor(seen, videos, T.WhisperFeatureExtractor(feature_size=16), t, chat_template=template)


def qwen2_5_omni_thinker() -> Any:
    t, processor = _omni(T.Qwen2_5OmniProcessor, 7, T.Qwen2VLVideoProcessor())
    config = T.Qwen2_5OmniThinkerConfig(
        text_config=text(t, rope_parameters=MROPE), vision_config=QWEN2 | {"patch_size": 7}, audio_config=EARS,
        image_token_index=4, audio_token_index=5, video_token_index=6, audio_start_token_id=9, audio_end_token_id=10,
        vision_start_token_id=7,
    )  # fmt: skip
    return config, processor


def qwen3_omni_moe_thinker() -> Any:
    t, processor = _omni(T.Qwen3OmniMoeProcessor, 8, T.Qwen2VLVideoProcessor())
    config = T.Qwen3OmniMoeThinkerConfig(
        text_config=text(t, rope_parameters=MROPE, **EXPERTS), audio_config=EARS | {"downsample_hidden_size": 8},
        vision_config=QWEN3 | {"patch_size": 8, "deepstack_visual_indexes": [0, 1]}, image_token_id=4,
        audio_token_id=5, video_token_id=6, audio_start_token_id=9, vision_start_token_id=7,
    )  # fmt: skip
    return config, processor
