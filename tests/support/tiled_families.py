"""The tiny random models of `any_families.py` that cut pictures into tiles or rows, as InternVL and Pixtral do."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    CHATML,
    COHERE,
    EYES,
    INDEXED,
    LATENT,
    ROPE,
    ROUTED,
    SIDES,
    SLIDING,
    SQUARE,
    chat,
    siglip,
    text,
    words,
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


def granite_docling() -> Any:
    tiles = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    t = words("<image>", "<fake_token_around_image>", "<global-img>", *tiles, image_token="<image>")
    eyes = SQUARE | {"out_hidden_size": 64, "scale_factor": 2, "deepstack_visual_indexes": [0], "use_fine_route": False}
    inner = text(t, embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=0.25)
    config = T.GraniteDoclingConfig(text_config=inner, vision_config=eyes, image_token_id=4, pad_token_id=3)
    images = T.GraniteDoclingImageProcessor(size=SIDES, max_patches=4)
    return config, T.GraniteDoclingProcessor(images, t, image_seq_len=4, chat_template=chat(*CHATML, "<image>"))


def idefics() -> Any:
    t = words("<fake_token_around_image>", "<image>", "<end_of_utterance>", image_token="<image>")
    config = T.IdeficsConfig(
        vision_config=SQUARE | {"embed_dim": 32}, perceiver_config={}, cross_layer_interval=1, alpha_initializer="ones",
        additional_vocab_size=0, **text(t),
    )  # fmt: skip
    return config, T.IdeficsProcessor(T.IdeficsImageProcessor(image_size=32), t, image_size=32)


def _internvl(config: Any, processor: Any, inner: Any, picture: str, last: str, *videos: Any, **eyes: Any) -> Any:
    """A relative of InternVL; its template writes `picture`, and `last` is the token behind those of pictures."""
    t = words("<IMG_CONTEXT>", "<img>", "</img>", last, start_image_token="<img>", end_image_token="</img>",
              context_image_token="<IMG_CONTEXT>", **({"video_token": last} if videos else {}))  # fmt: skip
    seen = EYES | {"image_size": [32, 32], "patch_size": [8, 8]} | eyes
    made = config(vision_config=seen, text_config=inner(**text(t)), image_token_id=4, image_seq_length=4)
    images = T.GotOcr2ImageProcessor(size=SIDES, crop_to_patches=True, min_patches=1, max_patches=4)
    template = chat(*CHATML, picture)
    return made, processor(images, t, *videos, image_seq_length=4, chat_template=template)


def internvl() -> Any:
    return _internvl(
        T.InternVLConfig, T.InternVLProcessor, T.Qwen2Config, "<IMG_CONTEXT>\n", "<video>", T.InternVLVideoProcessor()
    )


def qianfan_ocr() -> Any:
    return _internvl(
        T.QianfanOCRConfig, T.QianfanOCRProcessor, T.Qwen3Config, "<image>\n", "<image>", drop_path_rate=0.0
    )


INST = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")


def _pixtral(t: Any, template: str | None = None) -> Any:
    images = T.PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 64})
    return T.PixtralProcessor(images, t, patch_size=8, spatial_merge_size=2, chat_template=template)


def _mistral(config: Any, inner: Any) -> Any:
    t = words(*INST)
    made = config(
        vision_config=T.PixtralVisionConfig(**EYES, image_size=64, patch_size=8), text_config=inner(t),
        image_token_index=4, spatial_merge_size=2,
    )  # fmt: skip
    return made, _pixtral(
        t,
        "<s>{% for m in messages %}{{ '[INST]' if m['role'] == 'user' else '' }}{% for c in m['content'] %}"
        "{{ '[IMG]' if c['type'] == 'image' else c['text'] }}{% endfor %}"
        "{{ '[/INST]' if m['role'] == 'user' else '</s>' }}{% endfor %}",
    )


def mistral3() -> Any:
    return _mistral(T.Mistral3Config, lambda t: T.MistralConfig(**text(t, sliding_window=None)))


def mistral_large4() -> Any:
    def inner(t: Any) -> Any:
        made = text(t, **LATENT, **ROUTED, **INDEXED, rope_parameters=ROPE, num_hidden_layers=4)
        made.pop("head_dim")
        return made | {"q_lora_rank": None}

    return _mistral(T.MistralLarge4Config, inner)


def mistral4() -> Any:  # the language model alone
    t = words(*INST)
    return T.Mistral4Config(**text(t, **LATENT, **ROUTED)), _pixtral(t)


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


def aria() -> Any:
    t = words("<|img|>", image_token="<|img|>")
    config = T.AriaConfig(
        vision_config=T.Idefics3VisionConfig(**EYES, image_size=980, patch_size=70),
        text_config=T.AriaTextConfig(**text(t), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        image_token_index=4, projector_patch_to_query_dict={196: 6},
    )  # fmt: skip
    images = T.AriaImageProcessor(max_image_size=980, min_image_size=336)
    return config, T.AriaProcessor(images, t, chat_template=chat(*CHATML, "<|img|>"), size_conversion={490: 6, 980: 6})


def cohere2_vision() -> Any:
    t = words("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", image_token="<image>",
              boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>",
              img_line_break_token="<|IMG_LINE_BREAK|>")  # fmt: skip
    config = T.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=T.Cohere2Config(**text(t, **SLIDING)), image_token_id=4, downsample_factor=2,
        alignment_intermediate_size=64,
    )  # fmt: skip
    images = T.Cohere2VisionImageProcessor(size=SIDES, patch_size=2, max_patches=4)
    return config, T.Cohere2VisionProcessor(images, t, chat_template=chat(*COHERE, "<image>", "<s>"))


def aya_vision() -> Any:
    t = words("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE",
              "TILE_GLOBAL", image_token="<image>")  # fmt: skip
    config = T.AyaVisionConfig(
        vision_config=siglip(),
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


def ovis2() -> Any:
    t = words("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<image>")
    config = T.Ovis2Config(
        vision_config=SQUARE | {"vocab_size": 64, "hidden_stride": 2}, text_config=T.Qwen2Config(**text(t)),
        image_token_id=4, visual_indicator_token_ids=[5, 6, 7, 8, 9], vocab_size=len(t), hidden_size=64,
    )  # fmt: skip
    images = T.Ovis2ImageProcessor(size=SIDES, crop_to_patches=True, max_patches=4)
    return config, T.Ovis2Processor(images, t, chat_template=chat(*CHATML, "<image>\n"), image_seq_length=4)


SAM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 16, "image_size": 128,
       "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64}  # fmt: skip


def _got_ocr(config: Any, processor: Any, images: Any, picture: str, **named: str) -> Any:
    t = words("<imgpad>", "<img>", "</img>", **named)
    made = config(vision_config=SAM, text_config=T.Qwen2Config(**text(t)), image_token_index=4, image_seq_length=16)
    seen = images(size={"height": 128, "width": 128})
    return made, processor(seen, t, chat_template=chat(*CHATML, f"<img>{picture}</img>\n"))


def got_ocr2() -> Any:
    config, processor = _got_ocr(
        T.GotOcr2Config, T.GotOcr2Processor, T.GotOcr2ImageProcessor, "<imgpad>", image_token="<imgpad>"
    )
    processor.num_image_tokens = 16
    return config, processor


def pp_chart2table() -> Any:
    images = T.PPChart2TableImageProcessor
    return _got_ocr(T.PPChart2TableConfig, T.PPChart2TableProcessor, images, "<imgpad>" * 16)
