"""The tiny random models of `any_families.py` whose families are the newest, and have no kin in the other files."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    AREA,
    CHATML,
    EYES,
    INDEXED,
    LATENT,
    ROPE,
    ROUTED,
    SLIDING,
    chat,
    text,
    words,
)


def kimi_k25() -> Any:
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    t = words(*named.values(), "<|media_begin|>", "<|media_content|>", "<|media_end|>", **named)
    inner = text(t, **LATENT, **ROUTED, rope_parameters=ROPE, n_group=1, topk_group=1, first_k_dense_replace=1,
                 n_shared_experts=1, model_type="deepseek_v3")  # fmt: skip
    inner.pop("head_dim")
    eyes = EYES | {"patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8}
    config = T.Kimi_K25Config(
        text_config=inner, vision_config=eyes, projection_hidden_size=32, image_token_id=4, video_token_id=5,
        vision_start_token_id=6, vision_end_token_id=8,
    )  # fmt: skip
    images = T.Kimi_K25ImageProcessor(
        patch_size=8, merge_size=2, max_patches=64, size={"max_height": 8, "max_width": 8}
    )
    template = chat(*CHATML, "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>")
    return config, T.Kimi_K25Processor(images, t, T.Kimi_K25VideoProcessor(), chat_template=template)


def minimax_m3_vl() -> Any:
    named = {"image_token": "]<]image[>[", "video_token": "]<]video[>[", "start": "]<]start of image[>[",
             "end": "]<]end of image[>["}  # fmt: skip
    t = words(*named.values())
    inner = text(
        t, num_hidden_layers=4, layer_types=["full_attention", "minimax_m3_sparse"] * 2, rotary_dim=8,
        mlp_layer_types=["dense", "sparse"] * 2, dense_intermediate_size=96, shared_intermediate_size=32,
        num_local_experts=4, num_experts_per_tok=2, index_n_heads=2, index_head_dim=16, index_block_size=8,
        index_topk_blocks=2, rope_parameters=ROPE | {"partial_rotary_factor": 0.5},
    )  # fmt: skip
    config = T.MiniMaxM3VLConfig(
        text_config=inner, vision_config=EYES | {"image_size": 64, "patch_size": 8}, image_token_index=4,
        video_token_index=5, projector_hidden_size=64,
    )  # fmt: skip
    images = T.MiniMaxM3VLImageProcessor(patch_size=8, merge_size=2, size=AREA)
    template = chat(*CHATML, named["image_token"])
    return config, T.MiniMaxM3VLProcessor(images, t, T.MiniMaxM3VLVideoProcessor(), chat_template=template)


MUSE = ("<|patch|>", "<|video|>", "<|image_start|>", "<|image_end|>", "<|vid_frame_separator|>", "<|vid_start|>",
        "<|vid_end|>", "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>")  # fmt: skip


def _muse(config: Any, processor: Any, *sounds: Any, more: Any = None, **heard: Any) -> Any:
    t = words(*MUSE)
    eyes = EYES | {"patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64}
    made = config(
        text_config=text(t, **SLIDING, **(more or {})), vision_config=eyes, image_token_id=4, video_token_id=5,
        out_hidden_size=128, projector_hidden_size=64, **heard,
    )  # fmt: skip
    images = T.MuseGlimmerImageProcessor(patch_size=8, merge_size=2, max_image_tokens=16)
    videos = T.MuseGlimmerVideoProcessor()
    return made, processor(images, videos, t, *sounds, chat_template=chat(*CHATML, "<|patch|>"))


def muse_glimmer() -> Any:
    return _muse(T.MuseGlimmerConfig, T.MuseGlimmerProcessor)


def muse_spark() -> Any:
    more = {"moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_hidden_size": 64}
    sounds = {"patch_sizes": [4], "hidden_sizes": [16], "depths": [1], "num_hidden_layers": 1, "out_hidden_size": 64}
    return _muse(T.MuseSparkConfig, T.MuseSparkProcessor, T.MuseSparkFeatureExtractor(), more=more,
                 audio_config=sounds, audio_token_id=11)  # fmt: skip


def step3p7() -> Any:
    t = words("<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>")
    eyes = EYES | {"image_size": 64, "patch_size": 8, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    inner = text(t, **SLIDING, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, share_expert_dim=32)
    config = T.Step3p7Config(text_config=inner, vision_config=eyes, image_token_id=4)
    images = T.Step3p7ImageProcessor(size={"height": 64, "width": 64}, patch_size=32, max_image_size=96)
    images.vision_patch_size = 8
    return config, T.Step3p7Processor(images, t, chat_template=chat(*CHATML, "<im_patch>"))


SAM = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
       "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64, "downsample_channels": [24, 32]}  # fmt: skip


def deepseek_ocr2() -> Any:
    t = words("<image>", image_token="<image>")
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 2, "vocab_size": 8}  # fmt: skip
    inner = text(t, **ROUTED, n_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"])
    config = T.DeepseekOcr2Config(
        text_config=inner, image_token_id=4,
        vision_config={"sam_config": SAM | {"image_size": 192, "patch_size": 16}, "encoder_config": encoder},
    )  # fmt: skip
    images = T.DeepseekOcr2ImageProcessor(size={"height": 192, "width": 192}, tile_size=192, max_patches=2)
    template = chat("User: ", "\n\n", "Assistant:", "<image>\n", "<s>")
    return config, T.DeepseekOcr2Processor(images, t, chat_template=template, patch_size=4)


def unlimited_ocr() -> Any:
    t = words("<image>", image_token="<image>")
    inner = text(t, **ROUTED, n_shared_experts=1, sliding_window=12, num_key_value_heads=4)
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 64, "patch_size": 32}  # fmt: skip
    config = T.UnlimitedOcrConfig(
        text_config=inner, vision_config={"sam_config": SAM | {"image_size": 64}, "encoder_config": encoder},
        image_token_id=4,
    )  # fmt: skip
    images = T.UnlimitedOcrImageProcessor(size={"height": 64, "width": 64}, tile_size=64, max_patches=2)
    template = chat("User: ", "\n\n", "Assistant:", "<image>\n", "<s>")
    return config, T.UnlimitedOcrProcessor(images, t, chat_template=template, patch_size=8)


INKLING = {"num_hidden_layers": 4, "layer_types": ["hybrid_sliding", "hybrid"] * 2, "swa_num_attention_heads": 4,
           "swa_num_key_value_heads": 2, "swa_head_dim": 16, "sliding_window_size": 12, "d_rel": 8, "rel_extent": 16,
           "unpadded_vocab_size": None}  # fmt: skip


def _inkling2(config: Any, inner: Any, **more: Any) -> Any:
    t = words("<image>", image_token="<image>")
    settings = text(t, **INKLING, **ROUTED, **more)
    settings.pop("intermediate_size")
    settings["unpadded_vocab_size"] = len(t)
    eyes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 20,
            "projection_hidden_dim": 64, "text_hidden_size": 64, "posemb_grid_size": 8, "mlp_ratio": 2.0,
            "model_type": "inkling2_vision"}  # fmt: skip
    made = config(text_config=inner(**settings), vision_config=eyes, image_token_id=4)
    return made, T.Inkling2Processor(T.Inkling2ImageProcessor(), t, chat_template=chat(*CHATML, "<image>"))


def inkling2() -> Any:
    return _inkling2(T.Inkling2Config, T.Inkling2TextConfig, n_layers_per_attn_res_block=1)


def inkling2_loop() -> Any:
    more = {"loop_layer_index_start": 1, "loop_layer_index_end": 3, "loop_num_passes": 2, "loop_gate_rank": 8}
    return _inkling2(T.Inkling2LoopConfig, T.Inkling2LoopTextConfig, n_layers_per_attn_res_block=1, **more)


def inkling_mm_model() -> Any:
    t = words("<image>", "<sound>", "<|content_image|>", "<|content_audio_input|>", image_token="<image>",
              audio_token="<sound>")  # fmt: skip
    inner = text(t, **INKLING, **ROUTED, n_shared_experts=1, mlp_layer_types=["dense"] + ["sparse"] * 3,
                 logits_mup_width_multiplier=1.0)  # fmt: skip
    config = T.InklingConfig(
        text_config=inner, image_token_id=4, audio_token_id=5, image_bos_token_id=6, audio_bos_token_id=7,
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 40},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
    )  # fmt: skip
    template = chat(*CHATML, "<|content_image|><image>")
    sounds = T.InklingFeatureExtractor()
    return config, T.InklingProcessor(sounds, T.InklingImageProcessor(), t, chat_template=template)


def dots3_note() -> Any:
    t = words("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>", "<|img|>", "<|endofimg|>")
    inner = text(t, **LATENT, **ROUTED, **INDEXED, num_hidden_layers=4, shared_experts_intermediate_size=32,
                 layer_types=["indexed_attention", "sliding_attention"] * 2, sliding_window=12,
                 swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=16, swa_kv_lora_rank=16,
                 swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=16)  # fmt: skip
    config = T.Dots3NoteConfig(
        text_config=T.Dots3NoteTextConfig(**inner), image_token_id=4, video_token_id=5, audio_token_id=6,
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "patch_size": 8, "mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32,
                       "adapter_out_dim": 64},
        audio_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 64},
    )  # fmt: skip
    images = T.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16 * 4, max_pixels=16 * 16 * 16,
                                     temporal_patch_size=1)  # fmt: skip
    template = chat(*CHATML, "<|img|><|imgpad|><|endofimg|>")
    return config, T.Dots3NoteProcessor(
        images, t, T.Qwen2VLVideoProcessor(), T.Dots3NoteFeatureExtractor(), chat_template=template
    )


def nemotron_h_omni() -> Any:
    t = words("<image>", "<video>", "<so_embedding>", "<img>", "</img>", "<so_start>", "<so_end>",
              image_token="<image>", video_token="<video>", audio_token="<so_embedding>")  # fmt: skip
    inner = text(t, model_type="nemotron_h", num_hidden_layers=4,
                 layers_block_type=["mamba", "attention", "moe", "mamba"],
                 mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=2, n_routed_experts=4,
                 num_experts_per_tok=2, moe_intermediate_size=32, moe_shared_expert_intermediate_size=32)  # fmt: skip
    config = T.NemotronH_Omni_Reasoning_V3_Config(
        text_config=inner, image_token_id=4, video_token_id=5, audio_token_id=6, projector_hidden_size=64,
        vision_hidden_size=32,
        vision_config=EYES | {"model_type": "radio", "image_size": 64, "patch_size": 8, "video_temporal_patch_size": 2},
        audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                      "projection_hidden_size": 32, "projection_bias": False},
    )  # fmt: skip
    images = T.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=8, min_num_patches=16, max_num_patches=64)
    videos = T.NemotronH_Omni_Reasoning_V3VideoProcessor()
    return config, T.NemotronH_Omni_Reasoning_V3Processor(
        images, videos, t, T.ParakeetFeatureExtractor(), chat_template=chat(*CHATML, "<image>")
    )
