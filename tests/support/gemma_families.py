"""The tiny random models of `any_families.py` that are Gemma's and PaliGemma's relatives."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    EYES,
    SIDES,
    SLIDING,
    chat,
    siglip,
    text,
    words,
)

TURNS = ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n")
SOFT = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
SEEN = {"mm_tokens_per_image": 4, "image_token_index": 4, "boi_token_index": 5, "eoi_token_index": 6}


def _gemma3(config: Any, processor: Any) -> Any:
    t = words(*SOFT.values(), "<start_of_turn>", "<end_of_turn>", **SOFT)
    made = config(text_config=T.Gemma3TextConfig(**text(t, **SLIDING)), vision_config=siglip(), **SEEN)
    template = chat(*TURNS, "<start_of_image>", "<s>")
    return made, processor(T.Gemma3ImageProcessor(size=SIDES), t, image_seq_length=4, chat_template=template)


def gemma3() -> Any:
    return _gemma3(T.Gemma3Config, T.Gemma3Processor)


def shieldgemma2() -> Any:
    return _gemma3(T.ShieldGemma2Config, T.ShieldGemma2Processor)


def t5gemma2() -> Any:
    t = words(*SOFT.values(), **SOFT)
    config = T.T5Gemma2Config(
        encoder={"text_config": text(t), "vision_config": siglip().to_dict(), **SEEN}, decoder=text(t),
        image_token_index=4,
    )  # fmt: skip
    return config, T.Gemma3Processor(T.Gemma3ImageProcessor(size=SIDES), t, image_seq_length=4)


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
    template = chat(*TURNS, "<image_soft_token>", "<s>")
    sounds = T.Gemma3nAudioFeatureExtractor()
    return config, T.Gemma3nProcessor(sounds, images, t, image_seq_length=256, chat_template=template)


HEARD = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
         "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
EARLESS = {"audio_config": None, "video_token_id": 5, "audio_token_id": 6}
GEMMA4_EYES = EYES | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 3,
                      "position_embedding_size": 256}  # fmt: skip


def _gemma4(config: Any, eyes: dict[str, Any], inner: Any, room: str = "Gemma4", **more: Any) -> Any:
    """A relative of Gemma 4; `inner` gives the language model's settings of a tokenizer, `room` begins its classes."""
    t = words("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|turn>", "<turn|>", **HEARD)
    made = config(text_config=inner(t), vision_config=eyes, image_token_id=4, boi_token_id=7, eoi_token_id=8, **more)
    images, sounds, videos, processor = (
        getattr(T, room + part) for part in ("ImageProcessor", "AudioFeatureExtractor", "VideoProcessor", "Processor")
    )
    seen = images(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    template = chat("<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<|image|>", "<s>")
    return made, processor(sounds(), seen, t, videos(), image_seq_length=70, chat_template=template)


def gemma4() -> Any:
    def inner(t: Any) -> Any:
        layers = {"num_hidden_layers": 6, "layer_types": SLIDING["layer_types"][:2] * 3}
        return text(
            t, **SLIDING | layers, global_head_dim=16, hidden_size_per_layer_input=8, num_kv_shared_layers=2,
            vocab_size_per_layer_input=len(t), use_bidirectional_attention="vision",
        )  # fmt: skip

    return _gemma4(T.Gemma4Config, GEMMA4_EYES, inner, **EARLESS)


def gemma4_unified() -> Any:
    eyes = {"patch_size": 4, "pooling_kernel_size": 3}
    eyes |= {"mm_embed_dim": 64, "mm_posemb_size": 256, "output_proj_dims": 64}
    return _gemma4(
        T.Gemma4UnifiedConfig, eyes, lambda t: text(t, **SLIDING, global_head_dim=16), "Gemma4Unified", **EARLESS
    )


def diffusion_gemma() -> Any:
    more = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    eyes = GEMMA4_EYES | {"model_type": "gemma4_vision"}
    return _gemma4(T.DiffusionGemmaConfig, eyes, lambda t: text(t, global_head_dim=16, **more), canvas_length=8)


def _paligemma(images: Any, processor: Any) -> Any:
    t = words(image_token="<image>")
    seen = images(size=SIDES)
    seen.image_seq_length = 16
    made = processor(seen, t)  # adds 1152 tokens of its own
    return T.PaliGemmaConfig(
        vision_config=siglip(), text_config=T.GemmaConfig(**text(t)), image_token_index=4, projection_dim=64,
        hidden_size=64,
    ), made  # fmt: skip


def paligemma() -> Any:
    return _paligemma(T.SiglipImageProcessor, T.PaliGemmaProcessor)


def pi0() -> Any:
    seeing, processor = _paligemma(T.PI0ImageProcessor, T.PI0Processor)
    inner = T.GemmaConfig(**text(processor.tokenizer))
    return T.PI0Config(vlm_config=seeing, dit_config=inner, chunk_size=4), processor
