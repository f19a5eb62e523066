"""The tiny random models of `any_families.py` whose families are the newest, or the oldest, of transformers."""

from __future__ import annotations

from typing import Any

import transformers as T
from any_families import (
    CHATML,
    EXPERTS,
    EYES,
    GRID,
    LINEAR,
    MROPE,
    QWEN2,
    QWEN3,
    SIDES,
    SLIDING,
    SQUARE,
    _glm,
    _minicpm,
    _qwen,
    chat,
    text,
    words,
)  # fmt: skip

LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
"""Multi-head latent attention."""
ROUTED = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
INDEXED = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4}


def _grid(config: Any, processor: Any, images: Any, eyes: Any, named: dict[str, str], picture: str, inner: Any,
          *videos: Any, **more: Any) -> Any:  # fmt: skip
    """A family of patches and their `image_grid_thw`; `named` tokens have the ids from 4 on."""
    t = words(**named)
    seen = images(patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 16})
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


def granite_docling() -> Any:
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    t = words("<image>", "<fake_token_around_image>", "<global-img>", *tiles, image_token="<image>")
    eyes = SQUARE | {"out_hidden_size": 64, "scale_factor": 2, "deepstack_visual_indexes": [0], "use_fine_route": False}
    inner = text(t, embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=0.25)
    config = T.GraniteDoclingConfig(text_config=inner, vision_config=eyes, image_token_id=4, pad_token_id=3)
    images = T.GraniteDoclingImageProcessor(size=SIDES, max_patches=4)
    return config, T.GraniteDoclingProcessor(images, t, image_seq_len=4, chat_template=chat(*CHATML, "<image>"))


def granite4_vision() -> Any:
    t = words("<image>", image_token="<image>")
    eyes = T.SiglipVisionConfig(**SQUARE | {"hidden_size": 64, "num_attention_heads": 4}, vision_use_head=False)
    config = T.Granite4VisionConfig(
        vision_config=eyes, text_config=text(t), image_token_index=4, image_grid_pinpoints=GRID,
        vision_feature_select_strategy="full", downsample_rate="1/2", deepstack_layer_map=[[-1, 0], [-2, 1]],
        spatial_target_layers=None, projector_dropout=0.0, vision_feature_layer=-1, image_seq_length=4,
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 64,
                        "cross_attention_frequency": 1, "use_qformer_text_input": False},
    )  # fmt: skip
    images = T.LlavaNextImageProcessor(size=SIDES, crop_size=SIDES, image_grid_pinpoints=GRID)
    return config, T.Granite4VisionProcessor(
        images, t, patch_size=8, vision_feature_select_strategy="full", downsample_rate="1/2",
        chat_template=chat(*CHATML, "<image>"),
    )  # fmt: skip


def qwen4_exp() -> Any:
    kinds = ["linear_attention", "indexed_attention", "linear_attention", "linear_attention"]
    more = LINEAR | EXPERTS | {"layer_types": kinds, "shared_expert_intermediate_size": 32, "hc_count": 2}
    more |= {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    more |= {"indexer_budget": 16, "indexer_compress_ratio": 2}
    return _qwen(T.Qwen4ExpConfig, T.Qwen3VLProcessor, QWEN3, start=CHATML[2] + "<think>\n", **more)


def cosmos3_omni() -> Any:
    eyes = QWEN3 | {"deepstack_visual_indexes": [0, 1], "model_type": "qwen3_vl_vision"}
    return _qwen(T.Cosmos3OmniConfig, T.Qwen3VLProcessor, eyes, model_type="qwen3_vl_text", rope_parameters=MROPE)


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


def mistral_large4() -> Any:
    t = words("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    inner = text(t, **LATENT, **ROUTED, **INDEXED, rope_parameters=ROPE, num_hidden_layers=4)
    inner.pop("head_dim")
    inner["q_lora_rank"] = None
    config = T.MistralLarge4Config(
        vision_config=T.PixtralVisionConfig(**EYES, image_size=64, patch_size=8), text_config=inner,
        image_token_index=4, spatial_merge_size=2,
    )  # fmt: skip
    template = (
        "<s>{% for m in messages %}{{ '[INST]' if m['role'] == 'user' else '' }}{% for c in m['content'] %}"
        "{{ '[IMG]' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{{ '[/INST]' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    )
    images = T.PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 64})
    return config, T.PixtralProcessor(images, t, patch_size=8, spatial_merge_size=2, chat_template=template)


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
    images = T.MiniMaxM3VLImageProcessor(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 16}
    )
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


def qianfan_ocr() -> Any:
    t = words("<IMG_CONTEXT>", "<img>", "</img>", "<image>", start_image_token="<img>", end_image_token="</img>",
              context_image_token="<IMG_CONTEXT>")  # fmt: skip
    eyes = EYES | {"image_size": [32, 32], "patch_size": [8, 8], "drop_path_rate": 0.0}
    config = T.QianfanOCRConfig(
        vision_config=eyes, text_config=T.Qwen3Config(**text(t)), image_token_id=4, image_seq_length=4
    )
    images = T.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, T.QianfanOCRProcessor(images, t, image_seq_length=4, chat_template=chat(*CHATML, "<image>\n"))


def shieldgemma2() -> Any:
    t = words("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>",
              image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")  # fmt: skip
    config = T.ShieldGemma2Config(
        text_config=T.Gemma3TextConfig(**text(t, **SLIDING)), mm_tokens_per_image=4, image_token_index=4,
        vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False), boi_token_index=5, eoi_token_index=6,
    )  # fmt: skip
    turns = ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<start_of_image>", "<s>")
    images = T.Gemma3ImageProcessor(size=SIDES)
    return config, T.ShieldGemma2Processor(images, t, image_seq_length=4, chat_template=chat(*turns))


def glmga() -> Any:
    def config(text_config: Any, vision_config: Any, **more: Any) -> Any:
        return T.GlmgaConfig(text_config=text_config, vision_config=vision_config, **more)

    return _glm(config, T.Glm4vTextConfig, T.Glm4vVisionConfig, T.GlmgaImageProcessor, T.Glm46VProcessor,
                T.Glm46VVideoProcessor)  # fmt: skip


def minicpm_ocr() -> Any:
    def config(vision_config: Any, image_size: int, **more: Any) -> Any:
        return T.MiniCPMOcrConfig(vision_config=vision_config, **more)

    return _minicpm(config, T.MiniCPMOcrProcessor, images=T.MiniCPMOcrImageProcessor, videos=T.MiniCPMOcrVideoProcessor)


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


def gemma4_unified() -> Any:
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    t = words("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|turn>", "<turn|>", **named)
    config = T.Gemma4UnifiedConfig(
        text_config=text(t, **SLIDING, global_head_dim=16),
        vision_config={"patch_size": 4, "pooling_kernel_size": 3, "mm_embed_dim": 64, "mm_posemb_size": 256,
                       "output_proj_dims": 64},
        audio_config=None, image_token_id=4, video_token_id=5, audio_token_id=6, boi_token_id=7, eoi_token_id=8,
    )  # fmt: skip
    images = T.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    turns = ("<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<|image|>", "<s>")
    return config, T.Gemma4UnifiedProcessor(
        T.Gemma4UnifiedAudioFeatureExtractor(), images, t, T.Gemma4UnifiedVideoProcessor(), image_seq_length=70,
        chat_template=chat(*turns),
    )  # fmt: skip


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


def chameleon() -> Any:
    visual = [f"IMGIMG{''.join(chr(65 + int(n)) for n in str(i))}Z" for i in range(16)]
    t = words("<image>", "<racm3:break>", "<eoss>", *visual, image_token="<image>", boi_token="<racm3:break>",
              eoi_token="<eoss>")  # fmt: skip
    eyes = {"num_embeddings": 16, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "resolution": 32,
            "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}  # fmt: skip
    config = T.ChameleonConfig(**text(t), vq_config=eyes, vocabulary_map=t.get_vocab())
    images = T.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES)
    template = chat("USER: ", " ", "ASSISTANT: ", "<image>")
    processor = T.ChameleonProcessor(images, t, image_seq_length=16, image_token="<image>")
    processor.chat_template = template
    return config, processor


def apertus1p5() -> Any:
    visual = [f"<|visual {i}|>" for i in range(16)] + [f"<|sound {i}|>" for i in range(16)]
    named = {"image_token": "<|image|>", "audio_token": "<|audio|>", "boi_token": "<|img_start|>",
             "eoi_token": "<|img_end|>", "image_wrapper_token": "<|img_token|>", "eol_token": "<|img_eol|>",
             "boa_token": "<|audio_start|>", "eoa_token": "<|audio_end|>"}  # fmt: skip
    t = words(*visual, **named)
    eyes = {"codebook_size": 16, "embed_dim": 8, "latent_channels": 8, "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "resolution": 32}  # fmt: skip
    config = T.Apertus1p5Config(
        text_config=text(t, rope_parameters=ROPE), vision_config=eyes, image_token_id=36, audio_token_id=37,
        image_token_offset=4, audio_token_offset=20,
        audio_config={"model_type": "wavtokenizer_encoder", "codebook_size": 16},
    )  # fmt: skip
    images = T.Apertus1p5ImageProcessor(size={"min_pixels": 32 * 32, "max_pixels": 64 * 64}, spatial_factor=8)
    sounds = T.EncodecFeatureExtractor()
    return config, T.Apertus1p5Processor(images, sounds, t, chat_template=chat(*CHATML, "<|image|>"))


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
