"""Engines that are not started, because a guard would be wrong in them or silently absent."""

from __future__ import annotations

from typing import Any

from lvlm_guard.serve.engine.plugin import PROCESSOR
from lvlm_guard.serve.errors import ServeError

CACHES = ("auto", "float16", "bfloat16", "float32")

WHY = {
    "processor": f"No guard would act: pass --logits-processors {PROCESSOR}.",
    "logprobs": "Log-probabilities would be those of the plain model: pass --logprobs-mode processed_logprobs.",
    "speculative": "Speculative decoding gives a request several rows of logits a step: leave it out.",
    "lora": "LoRA is applied to rows of one branch only: serve merged weights, or --guards vote.",
    "pipeline": "Pipeline parallelism passes hidden states of one branch on: use --tensor-parallel-size.",
    "context": "Context parallelism splits the cache of one branch: use --tensor-parallel-size.",
    "overlap": "Dual-batch overlap splits a batch between its branches: leave it out.",
    "prompt embeddings": "Prompt embeddings have no second branch: leave --enable-prompt-embeds out.",
    "image embeddings": "Image embeddings have no second view: leave --enable-mm-embeds out.",
    "pruning": "Pruned image tokens differ between the branches: leave --video-pruning-rate out.",
    "watermark": "A watermark would be drawn over the guard: leave it out.",
    "connector": "A KV connector moves the cache of one branch: leave --kv-transfer-config out.",
    "encoder connector": ("An encoder-cache connector moves embeddings of one view: leave --ec-transfer-config out."),
    "cache dtype": (
        f"A quantised KV cache needs scales that no checkpoint has for a twin: pass --kv-cache-dtype {CACHES[0]}."
    ),
    "compilation": (
        "torch.compile would see more rows than it was compiled for: pass --enforce-eager, or a compilation mode of 0."
    ),
    "encoder graphs": "CUDA graphs of the vision tower leave the second view out: leave cudagraph_mm_encoder out.",
    "pixtral": "Pixtral's vision tower gives pictures another layout: serve it with --guards vote.",
    "video": 'A video has no second view: add "video": 0 to --limit-mm-per-prompt.',
}
"""What can be amiss, with what to do; `lvlm-guard serve` says the same of vLLM's options before it starts anything."""


def refuse(vllm_config: Any) -> None:
    """Raise `ServeError` that names everything amiss in an engine's configuration (`VllmConfig`)."""
    if found := amiss(vllm_config):
        raise ServeError("A twin engine can't be started so: " + " ".join(found))


def amiss(vllm_config: Any) -> list[str]:
    """Return what is amiss, a sentence each that says what to do."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    pictures = model.multimodal_config
    loaded = [p if isinstance(p, str) else f"{p.__module__}:{p.__qualname__}" for p in model.logits_processors or ()]
    found = {
        "processor": PROCESSOR not in loaded,
        "logprobs": model.logprobs_mode != "processed_logprobs",
        "speculative": vllm_config.speculative_config is not None,
        "lora": vllm_config.lora_config is not None,
        "pipeline": parallel.pipeline_parallel_size > 1,
        "context": parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
        "overlap": bool(parallel.use_ubatching),
        "prompt embeddings": bool(model.enable_prompt_embeds),
        "image embeddings": bool(pictures.enable_mm_embeds),
        "pruning": bool(pictures.video_pruning_rate),
        "watermark": getattr(vllm_config, "watermark_config", None) is not None,
        "connector": vllm_config.kv_transfer_config is not None,
        "encoder connector": vllm_config.ec_transfer_config is not None,
        "cache dtype": vllm_config.cache_config.cache_dtype not in CACHES,
        "compilation": int(vllm_config.compilation_config.mode or 0) != 0,
        "encoder graphs": bool(getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False)),
        "pixtral": getattr(model.hf_config.vision_config, "model_type", None) == "pixtral",
        "video": pictures.get_limit_per_prompt("video") != 0,
    }
    return [WHY[what] for what, amiss_so in found.items() if amiss_so]
