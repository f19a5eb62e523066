"""The tiny random models of `any_families.py` of families that hear, draw, are old, or are no decoders."""

from __future__ import annotations

from typing import Any

import transformers as T
from any_families import CHATML, EXPERTS, EYES, MROPE, QWEN2, QWEN3, SIDES, SQUARE, chat, text, words

HEARD = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
         "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
         "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}  # fmt: skip
EARS = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
        "output_dim": 64, "max_source_positions": 32}  # fmt: skip
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


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


def pp_chart2table() -> Any:
    t = words("<imgpad>", "<img>", "</img>")
    eyes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 16,
            "image_size": 128, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1],
            "mlp_dim": 64}  # fmt: skip
    config = T.PPChart2TableConfig(
        vision_config=eyes, text_config=T.Qwen2Config(**text(t)), image_token_index=4, image_seq_length=16
    )
    template = chat(*CHATML, "<img>" + "<imgpad>" * 16 + "</img>\n")
    images = T.PPChart2TableImageProcessor(size={"height": 128, "width": 128})
    return config, T.PPChart2TableProcessor(images, t, chat_template=template)


def git() -> Any:
    t = words()
    config = T.GitConfig(**text(t, num_hidden_layers=2), vision_config=SQUARE)
    return config, T.GitProcessor(T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES), t)


def blip() -> Any:
    t = words()
    inner = SMALL | {"vocab_size": len(t), "encoder_hidden_size": 32, "pad_token_id": 3, "bos_token_id": 1,
                     "eos_token_id": 2, "sep_token_id": 2, "max_position_embeddings": 256}  # fmt: skip
    config = T.BlipConfig(text_config=inner, vision_config=SQUARE, projection_dim=32, image_text_hidden_size=32)
    return config, T.BlipProcessor(T.BlipImageProcessor(size=SIDES), t)


def kosmos_2() -> Any:
    t = words()
    config = T.Kosmos2Config(
        text_config={"embed_dim": 64, "layers": 2, "ffn_dim": 96, "attention_heads": 4, "pad_token_id": 3,
                     "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(t) + 16},
        vision_config=SQUARE, latent_query_num=8,
    )  # fmt: skip
    images = T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES)
    processor = T.Kosmos2Processor(images, t, 4)
    processor.num_image_tokens = 8
    return config, processor


def instructblipvideo() -> Any:
    t = words("<video>", video_token="<video>")
    config = T.InstructBlipVideoConfig(
        vision_config=SQUARE, qformer_config=SMALL | {"vocab_size": len(t)}, num_query_tokens=6, video_token_index=4,
        text_config=T.LlamaConfig(**text(t)).to_dict(),
    )  # fmt: skip
    return config, T.InstructBlipVideoProcessor(T.InstructBlipVideoVideoProcessor(size=SIDES), t, t, num_query_tokens=6)


def diffusion_gemma() -> Any:
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
             "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    t = words("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|turn>", "<turn|>", **named)
    eyes = EYES | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 3,
                   "position_embedding_size": 256, "model_type": "gemma4_vision"}  # fmt: skip
    config = T.DiffusionGemmaConfig(
        text_config=text(t, global_head_dim=16, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
        vision_config=eyes, image_token_id=4, boi_token_id=7, eoi_token_id=8, canvas_length=8,
    )  # fmt: skip
    images = T.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3)
    turns = ("<|turn>user\n", "<turn|>\n", "<|turn>model\n", "<|image|>", "<s>")
    return config, T.Gemma4Processor(
        T.Gemma4AudioFeatureExtractor(), images, t, T.Gemma4VideoProcessor(), image_seq_length=70,
        chat_template=chat(*turns),
    )  # fmt: skip


def pi0() -> Any:
    t = words("<image>", image_token="<image>")
    images = T.PI0ImageProcessor(size=SIDES)
    images.image_seq_length = 16
    processor = T.PI0Processor(images, t)
    seeing = T.PaliGemmaConfig(
        vision_config=T.SiglipVisionConfig(**SQUARE, vision_use_head=False), text_config=T.GemmaConfig(**text(t)),
        image_token_index=4, projection_dim=64, hidden_size=64,
    )  # fmt: skip
    return T.PI0Config(vlm_config=seeing, dit_config=T.GemmaConfig(**text(t)), chunk_size=4), processor


def evolla() -> Any:
    t = words("<|reserved_special_token_0|>")
    proteins = SMALL | {"vocab_size": len(t), "pad_token_id": 3}
    config = T.EvollaConfig(
        **text(t), protein_encoder_config=proteins, aligner_num_add_layers=1, resampler_depth=1, resampler_heads=2,
        resampler_dim_head=8, resampler_num_latents=4,
    )  # fmt: skip
    return config, T.EvollaProcessor(t, t)


def mistral4() -> Any:
    t = words("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    inner = text(t, kv_lora_rank=16, q_lora_rank=16, v_head_dim=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
                 num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=4,
                 num_experts_per_tok=2)  # fmt: skip
    images = T.PixtralImageProcessor(patch_size={"height": 8, "width": 8}, size={"longest_edge": 64})
    return T.Mistral4Config(**inner), T.PixtralProcessor(images, t, patch_size=8, spatial_merge_size=2)


def pix2struct() -> Any:
    t = words()
    small = {"hidden_size": 32, "d_kv": 8, "d_ff": 32}
    config = T.Pix2StructConfig(
        text_config=small | {"vocab_size": len(t), "num_layers": 1, "num_heads": 2},
        vision_config=small | {"num_hidden_layers": 1, "num_attention_heads": 2, "seq_len": 64},
    )  # fmt: skip
    return config, T.Pix2StructProcessor(T.Pix2StructImageProcessor(), t)


def pp_formulanet() -> Any:
    t = words()
    eyes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "output_channels": 8}
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(t)}  # fmt: skip
    return T.PPFormulaNetConfig(text_config=small, vision_config=eyes), T.PPFormulaNetProcessor(
        T.PPFormulaNetImageProcessor(), t
    )


def t5gemma2() -> Any:
    t = words("<image_soft_token>", "<start_of_image>", "<end_of_image>", image_token="<image_soft_token>",
              boi_token="<start_of_image>", eoi_token="<end_of_image>")  # fmt: skip
    eyes = T.SiglipVisionConfig(**SQUARE, vision_use_head=False).to_dict()
    config = T.T5Gemma2Config(
        encoder={"text_config": text(t), "vision_config": eyes, "mm_tokens_per_image": 4, "image_token_index": 4,
                 "boi_token_index": 5, "eoi_token_index": 6},
        decoder=text(t), image_token_index=4,
    )  # fmt: skip
    return config, T.Gemma3Processor(T.Gemma3ImageProcessor(size=SIDES), t, image_seq_length=4)


def udop() -> Any:
    t = words()
    config = T.UdopConfig(vocab_size=len(t), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, image_size=32)
    return config, T.UdopProcessor(T.LayoutLMv3ImageProcessor(apply_ocr=False, size=SIDES), t)


def vision_encoder_decoder() -> Any:
    t = words()
    encoder, decoder = T.ViTConfig(**SQUARE), T.GPT2Config(vocab_size=len(t), n_embd=32, n_layer=1, n_head=2)
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return config, T.TrOCRProcessor(T.ViTImageProcessor(size=SIDES), t)
