"""What vLLM is told at start: the entry point `vllm.general_plugins`, called in every process of the engine.

A twin engine is asked for by its architecture: `--hf-overrides '{"architectures": ["TwinLlavaFor..."]}'`.
"""

from __future__ import annotations

from typing import Any

PROCESSOR = "lvlm_guard.serve.engine.guards:Guards"
"""What `--logits-processors` must name."""

MODULES = {
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
}
"""Architectures that have a twin, and the module of this folder that holds it."""


def twin_of(architecture: str) -> str:
    """Return the name of an architecture's twin."""
    return f"Twin{architecture}"


TWINS = tuple(map(twin_of, MODULES))


def register() -> None:
    """Make the twin architectures known to vLLM; safe to call twice."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for architecture, module in MODULES.items():
        twin = twin_of(architecture)
        if twin not in ModelRegistry.get_supported_archs():
            MODELS_CONFIG_MAP[twin] = _twice_as_wide(MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig))
            ModelRegistry.register_model(twin, f"lvlm_guard.serve.engine.{module}:{twin}")


def _twice_as_wide(base: Any) -> Any:
    class TwinConfig(base):  # type: ignore[misc]  # the base is only known at run time
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            """Let the runner's embedding buffer hold both branches side by side.

            Both runners size it by `get_inputs_embeds_size()`, which reads `projection_dim` where a
            text configuration has one; nothing else reads it there.
            """
            base.verify_and_update_config(vllm_config)
            model = vllm_config.model_config
            model.hf_text_config.projection_dim = 2 * model.get_hidden_size()

    return TwinConfig
