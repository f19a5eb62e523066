"""The tiny random models of `any_families.py` that put what an image tower sees among the words, as LLaVA does."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    CHATML,
    EYES,
    GRID,
    HEADERS,
    SIDES,
    SQUARE,
    VICUNA,
    chat,
    siglip,
    text,
    words,
)


def _llava(config: Any, **more: Any) -> Any:
    t = words(image_token="<image>")
    eyes = T.CLIPVisionConfig(**SQUARE | {"num_hidden_layers": 4})
    how = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = chat(*VICUNA, "<image>\n")
    made = config(vision_config=eyes, text_config=T.LlamaConfig(**text(t)), image_token_index=4, **more)
    crop = {"size": {"shortest_edge": 32}, "crop_size": SIDES}
    if "image_grid_pinpoints" in more:
        images = T.LlavaNextImageProcessor(**crop, image_grid_pinpoints=GRID)
        return made, T.LlavaNextProcessor(images, t, chat_template=template, **how)
    return made, T.LlavaProcessor(T.CLIPImageProcessor(**crop), t, chat_template=template, **how)


def llava() -> Any:
    return _llava(T.LlavaConfig, image_seq_length=16)


def vipllava() -> Any:
    return _llava(T.VipLlavaConfig, image_seq_length=16, vision_feature_layers=[-2, -3], vision_feature_layer=[-2, -3])


def llava_next() -> Any:
    return _llava(T.LlavaNextConfig, image_grid_pinpoints=GRID)


def llava_onevision() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = T.LlavaOnevisionConfig(
        vision_config=siglip(), text_config=T.Qwen2Config(**text(t)), image_token_index=4, video_token_index=5,
        image_grid_pinpoints=GRID, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    images = T.LlavaOnevisionImageProcessor(size=SIDES, image_grid_pinpoints=GRID)
    return config, T.LlavaOnevisionProcessor(
        images, t, T.LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=chat(*CHATML, "<image>\n"),
    )  # fmt: skip


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


def granite4_vision() -> Any:
    t = words("<image>", image_token="<image>")
    eyes = siglip(hidden_size=64, num_attention_heads=4)
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


TIMM = {
    "architecture": "vit_pe_core_large_patch14_336", "do_pooling": True, "num_classes": 0,
    "model_args": {"embed_dim": 32, "img_size": [32, 32], "depth": 2, "num_heads": 2, "patch_size": 8,
                   "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1, "ref_feat_shape": [4, 4]},
}  # fmt: skip


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


def _deepseek_vl(config: Any, processor: Any, images: Any, **more: Any) -> Any:
    t = words("<image_placeholder>", image_token="<image_placeholder>")
    made = config(text_config=T.LlamaConfig(**text(t)), vision_config=siglip(), image_token_id=4, **more)
    template = chat("User: ", "\n\n", "Assistant:", "<image_placeholder>", "<s>")
    return made, processor(images, t, chat_template=template, num_image_tokens=16)


def deepseek_vl() -> Any:
    images = T.DeepseekVLImageProcessor(size=SIDES, min_size=8)
    return _deepseek_vl(T.DeepseekVLConfig, T.DeepseekVLProcessor, images)


def deepseek_vl_hybrid() -> Any:
    sharp = T.SamVisionConfig(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[1], mlp_dim=64,
    )  # fmt: skip
    images = T.DeepseekVLHybridImageProcessor(size=SIDES, min_size=8, high_res_size={"height": 64, "width": 64})
    return _deepseek_vl(T.DeepseekVLHybridConfig, T.DeepseekVLHybridProcessor, images, high_res_vision_config=sharp)


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


def video_llama_3() -> Any:
    t = words("<image>", "<video>", image_token="<image>", video_token="<video>")
    config = T.VideoLlama3Config(
        vision_config=EYES | {"patch_size": 8}, text_config=T.Qwen2Config(**text(t)), image_token_id=4,
        video_token_id=5,
    )  # fmt: skip
    images = T.VideoLlama3ImageProcessor(patch_size=8, merge_size=1, min_pixels=8 * 8 * 4, max_pixels=8 * 8 * 32)
    videos = T.VideoLlama3VideoProcessor()
    return config, T.VideoLlama3Processor(images, t, videos, chat_template=chat(*CHATML, "<image>"))


def blip_2() -> Any:
    t = words("<image>")
    config = T.Blip2Config(
        vision_config=SQUARE, qformer_config=EYES | {"vocab_size": len(t)}, num_query_tokens=6, image_token_index=4,
        text_config=T.LlamaConfig(**text(t)).to_dict(),
    )  # fmt: skip
    return config, T.Blip2Processor(T.BlipImageProcessor(size=SIDES), t, num_query_tokens=6)


def instructblipvideo() -> Any:
    t = words("<video>", video_token="<video>")
    config = T.InstructBlipVideoConfig(
        vision_config=SQUARE, qformer_config=EYES | {"vocab_size": len(t)}, num_query_tokens=6, video_token_index=4,
        text_config=T.LlamaConfig(**text(t)).to_dict(),
    )  # fmt: skip
    return config, T.InstructBlipVideoProcessor(T.InstructBlipVideoVideoProcessor(size=SIDES), t, t, num_query_tokens=6)
