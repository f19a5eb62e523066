"""More of the tiny random models of `any_families.py`, as small as their families allow."""

from __future__ import annotations

from typing import Any

import transformers as T
from any_families import (
    CHATML,
    EYES,
    GRID,
    HEADERS,
    SIDES,
    SLIDING,
    SQUARE,
    _glm,
    chat,
    text,
    words,
)  # fmt: skip

VICUNA = ("USER: ", " ", "ASSISTANT: ")
TIMM = {
    "architecture": "vit_pe_core_large_patch14_336", "do_pooling": True, "num_classes": 0,
    "model_args": {"embed_dim": 32, "img_size": [32, 32], "depth": 2, "num_heads": 2, "patch_size": 8,
                   "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4]},
}  # fmt: skip


def gemma3n() -> Any:
    named = {"image_token": "<image_soft_token>", "audio_token": "<audio_soft_token>", "boi_token": "<start_of_image>",
             "eoi_token": "<end_of_image>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}  # fmt: skip
    t = words(*named.values(), "<start_of_turn>", "<end_of_turn>", **named)
    config = T.Gemma3nConfig(
        text_config=text(
            t, **SLIDING, num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=len(t),
            laurel_rank=8, activation_sparsity_pattern=[0.0] * 4,
        ),
        vision_config={"architecture": "mobilenetv5_300m_enc", "hidden_size": 2048, "vocab_size": 8,
                       "vocab_offset": len(t)},
        audio_config={"vocab_size": 8, "vocab_offset": len(t) + 8, "hidden_size": 32, "conf_num_attention_heads": 2,
                      "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (16, 8)},
        vision_soft_tokens_per_image=256, image_token_id=4, audio_token_id=5, boi_token_id=6, eoi_token_id=7,
        boa_token_id=8, eoa_token_id=9,
    )  # fmt: skip
    images = T.SiglipImageProcessor(size={"height": 64, "width": 64})
    turns = ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<image_soft_token>", "<s>")
    sounds = T.Gemma3nAudioFeatureExtractor()
    return config, T.Gemma3nProcessor(sounds, images, t, image_seq_length=256, chat_template=chat(*turns))


def perception_lm() -> Any:
    t = words("<|image|>", "<|video|>", image_token="<|image|>", video_token="<|video|>")
    config = T.PerceptionLMConfig(
        vision_config=T.TimmWrapperConfig(**TIMM), text_config=T.LlamaConfig(**text(t)), image_token_id=4,
        video_token_id=5, projector_pooling_ratio=2, vision_use_cls_token=True,
    )  # fmt: skip
    images = T.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4, size=SIDES)
    template = chat(*HEADERS, "<|image|>", "<s>")
    videos = T.PerceptionLMVideoProcessor()
    return config, T.PerceptionLMProcessor(videos, images, t, patch_size=8, pooling_ratio=2, chat_template=template)


def deepseek_vl() -> Any:
    t = words("<image_placeholder>", image_token="<image_placeholder>")
    eyes = T.SiglipVisionConfig(**SQUARE, vision_use_head=False)
    config = T.DeepseekVLConfig(text_config=T.LlamaConfig(**text(t)), vision_config=eyes, image_token_id=4)
    template = chat("User: ", "\n\n", "Assistant:", "<image_placeholder>", "<s>")
    images = T.DeepseekVLImageProcessor(size=SIDES, min_size=8)
    return config, T.DeepseekVLProcessor(images, t, chat_template=template, num_image_tokens=16)


def deepseek_vl_hybrid() -> Any:
    t = words("<image_placeholder>", image_token="<image_placeholder>")
    eyes = T.SiglipVisionConfig(**SQUARE, vision_use_head=False)
    sharp = T.SamVisionConfig(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], mlp_dim=64,
    )  # fmt: skip
    config = T.DeepseekVLHybridConfig(
        text_config=T.LlamaConfig(**text(t)), vision_config=eyes, high_res_vision_config=sharp, image_token_id=4
    )
    template = chat("User: ", "\n\n", "Assistant:", "<image_placeholder>", "<s>")
    images = T.DeepseekVLHybridImageProcessor(size=SIDES, min_size=8, high_res_size={"height": 64, "width": 64})
    return config, T.DeepseekVLHybridProcessor(images, t, chat_template=template, num_image_tokens=16)


def video_llava() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = T.VideoLlavaConfig(
        vision_config=T.CLIPVisionConfig(**SQUARE | {"num_hidden_layers": 4}), text_config=T.LlamaConfig(**text(t)),
        image_token_index=4, video_token_index=5, image_seq_length=16,
    )  # fmt: skip
    images = T.VideoLlavaImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES)
    return config, T.VideoLlavaProcessor(
        images, T.VideoLlavaVideoProcessor(), t, patch_size=8, chat_template=chat(*VICUNA, "<image>\n")
    )


def llava_next_video() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = T.LlavaNextVideoConfig(
        vision_config=T.CLIPVisionConfig(**SQUARE | {"num_hidden_layers": 4}), text_config=T.LlamaConfig(**text(t)),
        image_token_index=4, video_token_index=5, image_grid_pinpoints=GRID,
    )  # fmt: skip
    images = T.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES, image_grid_pinpoints=GRID)
    return config, T.LlavaNextVideoProcessor(
        T.LlavaNextVideoVideoProcessor(), images, t, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chat(*VICUNA, "<image>\n"),
    )  # fmt: skip


def fast_vlm() -> Any:
    t = words("<image>", image_token="<image>")
    eyes = T.TimmWrapperConfig(
        architecture="fastvit_mci3", do_pooling=True, global_pool="avg", hidden_size=128,
        model_args={"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [8, 16, 32, 64, 64]},
    )  # fmt: skip
    config = T.FastVlmConfig(
        vision_config=eyes, text_config=T.Qwen2Config(**text(t)), image_token_index=4, image_seq_length=1
    )
    images = T.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    how = {"patch_size": 64, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    return config, T.LlavaProcessor(images, t, chat_template=chat(*CHATML, "<image>\n"), **how)


def got_ocr2() -> Any:
    t = words("<imgpad>", "<img>", "</img>", image_token="<imgpad>")
    eyes = EYES | {"output_channels": 16, "image_size": 128, "patch_size": 8, "window_size": 4,
                   "global_attn_indexes": [1], "mlp_dim": 64}  # fmt: skip
    eyes.pop("intermediate_size")
    config = T.GotOcr2Config(
        vision_config=eyes, text_config=T.Qwen2Config(**text(t)), image_token_index=4, image_seq_length=16
    )
    images = T.GotOcr2ImageProcessor(size={"height": 128, "width": 128})
    processor = T.GotOcr2Processor(images, t, chat_template=chat(*CHATML, "<img><imgpad></img>\n"))
    processor.num_image_tokens = 16
    return config, processor


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


def aria() -> Any:
    t = words("<|img|>", image_token="<|img|>")
    config = T.AriaConfig(
        vision_config=T.Idefics3VisionConfig(**EYES, image_size=980, patch_size=70),
        text_config=T.AriaTextConfig(**text(t), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        image_token_index=4, projector_patch_to_query_dict={196: 6},
    )  # fmt: skip
    images = T.AriaImageProcessor(max_image_size=980, min_image_size=336)
    return config, T.AriaProcessor(images, t, chat_template=chat(*CHATML, "<|img|>"), size_conversion={490: 6, 980: 6})


def lighton_ocr() -> Any:
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    t = words(**named)
    config = T.LightOnOcrConfig(
        vision_config=T.PixtralVisionConfig(**EYES, image_size=64, patch_size=8), image_token_id=4,
        text_config=T.Qwen3Config(**text(t)), spatial_merge_size=2,
    )  # fmt: skip
    images = T.PixtralImageProcessor(patch_size={"height": 16, "width": 16}, size={"longest_edge": 64})
    return config, T.LightOnOcrProcessor(
        images, t, patch_size=8, spatial_merge_size=2, chat_template=chat(*CHATML, "<|image_pad|>")
    )


def emu3() -> Any:
    visual = [f"<|visual token {i:06d}|>" for i in range(16)]
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
             "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
             "eol_token": "<|extra_200|>"}  # fmt: skip
    t = words(*visual, **named)
    eyes = {"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "hidden_size": 32,
            "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [3]}  # fmt: skip
    config = T.Emu3Config(vq_config=eyes, text_config=text(t), vocabulary_map=t.get_vocab())
    images = T.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64)
    return config, T.Emu3Processor(images, t, chat_template=chat(*VICUNA, "<image>"))


def idefics() -> Any:
    t = words("<fake_token_around_image>", "<image>", "<end_of_utterance>", image_token="<image>")
    config = T.IdeficsConfig(
        vision_config=SQUARE | {"embed_dim": 32}, perceiver_config={}, cross_layer_interval=1, alpha_initializer="ones",
        additional_vocab_size=0, **text(t),
    )  # fmt: skip
    return config, T.IdeficsProcessor(T.IdeficsImageProcessor(image_size=32), t, image_size=32)


def kosmos2_5() -> Any:
    t = words("<image>", "</image>", image_token="<s>", boi_token="<image>", eoi_token="</image>")
    config = T.Kosmos2_5Config(
        text_config={"vocab_size": len(t), "embed_dim": 64, "layers": 2, "ffn_dim": 96, "attention_heads": 4,
                     "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"hidden_size": 32, "patch_embed_hidden_size": 768, "intermediate_size": 64, "head_dim": 16,
                       "num_hidden_layers": 2, "num_attention_heads": 2, "max_num_patches": 64}, latent_query_num=8,
    )  # fmt: skip
    images = T.Kosmos2_5ImageProcessor(max_patches=16)
    processor = T.Kosmos2_5Processor(images, t, num_image_tokens=8)
    processor.images_kwargs = {"max_patches": 16}  # else 4096
    return config, processor


def florence2() -> Any:
    t = words("<image>", image_token="<image>")
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(t)}  # fmt: skip
    eyes = {"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 8, 16], "num_heads": [1, 1, 1, 1], "num_groups": [1, 1, 1, 1],
            "projection_dim": 32, "window_size": 4}  # fmt: skip
    config = T.Florence2Config(text_config=T.BartConfig(**small), vision_config=eyes, image_token_id=4)
    return config, T.Florence2Processor(T.CLIPImageProcessor(size=SIDES, crop_size=SIDES), t)
