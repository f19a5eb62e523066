"""The tiny random models of `any_families.py` that hear, draw, look across, are old, or are no decoders."""

from __future__ import annotations

from typing import Any

import transformers as T
from family_parts import (
    CHATML,
    EYES,
    HEADERS,
    ROPE,
    SIDES,
    SQUARE,
    VICUNA,
    chat,
    text,
    words,
)
from tokenizers import Regex, models, normalizers, pre_tokenizers


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


def fuyu() -> Any:
    t = words("<0x04>")
    marks = ("|SPEAKER|", "|NEWLINE|")  # plain pieces, so that a word's start stands before them, which is taken off
    pieces = t.get_vocab() | {mark: len(t) + place for place, mark in enumerate(marks)}
    raw, split = t.backend_tokenizer, pre_tokenizers.Split(Regex(r"\|[A-Z]+\|"), "isolated")
    raw.model = models.BPE(vocab=pieces, merges=[], unk_token="<unk>", ignore_merges=True)
    raw.normalizer = normalizers.Prepend(" ")
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner = text(t, model_type="persimmon")
    config = T.FuyuConfig(text_config=inner, patch_size=8, image_token_id=pieces["|SPEAKER|"])
    return config, T.FuyuProcessor(T.FuyuImageProcessor(size=SIDES, patch_size={"height": 8, "width": 8}), t)


def git() -> Any:
    t = words()
    config = T.GitConfig(**text(t, num_hidden_layers=2), vision_config=SQUARE)
    return config, T.GitProcessor(T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDES), t)


def blip() -> Any:
    t = words()
    inner = EYES | {"vocab_size": len(t), "encoder_hidden_size": 32, "pad_token_id": 3, "bos_token_id": 1,
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


def evolla() -> Any:
    t = words("<|reserved_special_token_0|>")
    proteins = EYES | {"vocab_size": len(t), "pad_token_id": 3}
    config = T.EvollaConfig(
        **text(t), protein_encoder_config=proteins, aligner_num_add_layers=1, resampler_depth=1, resampler_heads=2,
        resampler_dim_head=8, resampler_num_latents=4,
    )  # fmt: skip
    return config, T.EvollaProcessor(t, t)


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


def udop() -> Any:
    t = words()
    config = T.UdopConfig(vocab_size=len(t), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, image_size=32)
    return config, T.UdopProcessor(T.LayoutLMv3ImageProcessor(apply_ocr=False, size=SIDES), t)


def vision_encoder_decoder() -> Any:
    t = words()
    encoder, decoder = T.ViTConfig(**SQUARE), T.GPT2Config(vocab_size=len(t), n_embd=32, n_layer=1, n_head=2)
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return config, T.TrOCRProcessor(T.ViTImageProcessor(size=SIDES), t)
