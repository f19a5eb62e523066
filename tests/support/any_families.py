"""Tiny random models of many families with their own processors.

Weights are drawn so that every layer adds about as much as it gets: with the usual initialisation next to nothing
depends on masks, positions or pictures. `prove_families.py` proves them, and writes the table of what was found.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import tiny
import torch
import transformers as T
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

FAST = ("gemma3", "qwen3_vl", "qwen3_5", "internvl", "smolvlm", "mistral3", "llava_onevision", "paligemma")
NEWEST = (
    "cohere_compass", "granite_docling", "granite4_vision", "qwen4_exp", "cosmos3_omni", "hyperclovax_vision_v2",
    "hunyuan_vl", "hy_v4_vl", "mistral_large4", "kimi_k25", "minimax_m3_vl", "muse_glimmer", "muse_spark", "step3p7",
    "qianfan_ocr", "glmga", "minicpm_ocr", "deepseek_ocr2", "unlimited_ocr", "gemma4_unified", "inkling2",
    "inkling2_loop", "inkling_mm_model", "cosmos3_edge", "dots3_note", "apertus1p5", "nemotron_h_omni",
)  # fmt: skip
"""Those that older releases of transformers lack."""
OTHERS = ("chameleon", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "pp_chart2table", "git", "fuyu")
"""Those that hear, draw or are old."""
NAMES = [
    *FAST, "llava", "vipllava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5_moe", "exaone4_5",
    "paddleocr_vl", "gemma4", "idefics2", "idefics3", "glm4v", "glm46v", "cohere2_vision", "aya_vision", "lfm2_vl",
    "lfm3_vl", "molmo2", "mllama", "phi4_multimodal", "ovis2", "ernie4_5_vl_moe", "video_llama_3", "minicpmv4_6",
    "minicpmv4_7", "janus", "glm5_next", "llama4", "blip_2", "instructblip",
    "perception_lm", "gemma3n", "deepseek_vl", "deepseek_vl_hybrid", "video_llava", "llava_next_video", "got_ocr2",
    "glm4v_moe", "glm_ocr", "aria", "lighton_ocr", "emu3", "idefics", "kosmos2_5", "fast_vlm", "florence2",
    *OTHERS, *NEWEST,
]  # fmt: skip
DECODES_INSIDE, NO_DECODER = "something between generate\\(\\) and the model", "the model is an encoder-decoder"
REFUSED = {
    "llama4": "plain generate\\(\\) fails", "florence2": NO_DECODER, "got_ocr2": "Nested images are only supported",
    "idefics": "reads late what it skipped", "shieldgemma2": "makes 3 prompts of its own out of one",
    "blip": DECODES_INSIDE, "kosmos_2": f"{DECODES_INSIDE}|shape mismatch",  # the latter in older releases
    "instructblipvideo": "the processor reads no pictures",
    "diffusion_gemma": "does not answer token by token", "pi0": "does not answer token by token",
    "evolla": "the model has no image tower", "mistral4": "the model has no image tower", "pix2struct": NO_DECODER,
    "pp_formulanet": NO_DECODER, "t5gemma2": NO_DECODER, "udop": NO_DECODER, "vision_encoder_decoder": NO_DECODER,
}  # fmt: skip
SLOW = [name for name in NAMES if name not in {*FAST, *REFUSED, *NEWEST, *OTHERS}]
ROOMS = ("gemma", "glm", "llava", "newest", "other", "qwen", "tiled")
"""Whose modules `..._families.py` hold a function of each name, which returns (config, processor)."""


def _builder(name: str) -> Any:
    rooms = (import_module(f"{room}_families") for room in ROOMS)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


def make(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, gain: float = 1.5) -> tuple[Any, Any]:
    """Return a fresh (model, processor)."""
    if name == "instructblip":
        return tiny.make(name, dtype, attention, scale=5.0)
    torch.manual_seed(0)
    config, processor = _builder(name)()
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type, "Phi4MultimodalForCausalLM")
    kind = getattr(T, named if isinstance(named, str) else named[0])
    try:
        model = kind._from_config(config, attn_implementation=attention)
    except ValueError:  # some have eager attention alone
        model = kind._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for module in model.modules():
            for kind, weight in module.named_parameters(recurse=False):
                if isinstance(module, torch.nn.Embedding):
                    weight.normal_()
                elif weight.ndim >= 2:
                    fan = weight.numel() / len(weight)
                    weight.normal_(std=gain / fan**0.5 if kind == "weight" else 0.5)
                elif "gate" in kind and not bool(weight.any()):
                    weight.normal_(std=0.5)
    settings = getattr(model, "generation_config", T.GenerationConfig())
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = 3, 1, 2
    return model.to(dtype).eval().requires_grad_(False), processor
