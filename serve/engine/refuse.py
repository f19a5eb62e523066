"""Engines that are not started, because a guard would be wrong in them or silently absent."""

from __future__ import annotations

from typing import Any

from lvlm_guard.serve.engine.plugin import PROCESSOR
from lvlm_guard.serve.errors import ServeError

CACHES = ("auto", "float16", "bfloat16", "float32")


def refuse(vllm_config: Any) -> None:
    """Raise `ServeError` that names everything amiss in an engine's configuration (`VllmConfig`)."""
    if found := amiss(vllm_config):
        raise ServeError("A twin engine can't be started so: " + " ".join(found))


def amiss(vllm_config: Any) -> list[str]:
    """Return what is amiss, a sentence each that says what to do."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    pictures = model.multimodal_config
    loaded = [p if isinstance(p, str) else f"{p.__module__}:{p.__qualname__}" for p in model.logits_processors or ()]
    sentences = {
        f"No guard would act: pass --logits-processors {PROCESSOR}.": PROCESSOR not in loaded,
        "Log-probabilities would be those of the plain model: pass --logprobs-mode processed_logprobs.": (
            model.logprobs_mode != "processed_logprobs"
        ),
        "Speculative decoding gives a request several rows of logits a step: leave it out.": (
            vllm_config.speculative_config is not None
        ),
        "LoRA is applied to rows of one branch only: serve merged weights, or --guards vote.": (
            vllm_config.lora_config is not None
        ),
        "Pipeline parallelism passes hidden states of one branch on: use --tensor-parallel-size.": (
            parallel.pipeline_parallel_size > 1
        ),
        "Context parallelism splits the cache of one branch: use --tensor-parallel-size.": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "Dual-batch overlap splits a batch between its branches: leave it out.": bool(parallel.use_ubatching),
        "Prompt embeddings have no second branch: leave --enable-prompt-embeds out.": bool(model.enable_prompt_embeds),
        "Image embeddings have no second view: leave --enable-mm-embeds out.": bool(pictures.enable_mm_embeds),
        "Pruned image tokens differ between the branches: leave --video-pruning-rate out.": bool(
            pictures.video_pruning_rate
        ),
        "A watermark would be drawn over the guard: leave it out.": (
            getattr(vllm_config, "watermark_config", None) is not None
        ),
        "A KV connector moves the cache of one branch: leave --kv-transfer-config out.": (
            vllm_config.kv_transfer_config is not None
        ),
        "An encoder-cache connector moves embeddings of one view: leave --ec-transfer-config out.": (
            vllm_config.ec_transfer_config is not None
        ),
        f"A quantised KV cache needs scales that no checkpoint has for a twin: pass --kv-cache-dtype {CACHES[0]}.": (
            vllm_config.cache_config.cache_dtype not in CACHES
        ),
        "torch.compile would see more rows than it was compiled for: pass --enforce-eager, or a compilation mode of "
        "0.": int(vllm_config.compilation_config.mode or 0) != 0,
        "Pixtral's vision tower gives pictures another layout: serve it with --guards vote.": (
            getattr(model.hf_config.vision_config, "model_type", None) == "pixtral"
        ),
        'A video has no second view: add "video": 0 to --limit-mm-per-prompt.': (
            model.hf_config.model_type == "qwen2_5_vl" and pictures.get_limit_per_prompt("video") != 0
        ),
    }
    return [sentence for sentence, found in sentences.items() if found]
