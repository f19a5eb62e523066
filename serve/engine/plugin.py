"""What vLLM is told at start: the entry point `vllm.general_plugins`, called in every process of the engine.

A twin engine is asked for by its architecture: `--hf-overrides '{"architectures": ["TwinLlavaFor..."]}'`.
"""

from __future__ import annotations

import logging
from typing import Any

PROCESSOR = "lvlm_guard.serve.engine.guards:Guards"
"""What `--logits-processors` must name."""

CUT = "lvlm_guard.serve.engine.guards:Cut"
"""What it names for APC over a model that is left as it is."""

FAMILIES = {
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "InternVLForConditionalGeneration": "internvl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Gemma3ForConditionalGeneration": "gemma3",
}
"""Architectures that have a twin, and the model type of each."""

BOTH_WAYS = ("Gemma3ForConditionalGeneration",)
"""Those whose decoder reads the tokens of a picture both ways, which not every attention of vLLM can."""


def twin_of(architecture: str) -> str:
    """Return the name of an architecture's twin."""
    return f"Twin{architecture}"


TWINS = tuple(map(twin_of, FAMILIES))


def register() -> None:
    """Make the twin architectures known to vLLM; safe to call twice.

    In another release than the pinned one, whose insides have moved, there are none; `vote` and `apc` need none.
    """
    try:
        from lvlm_guard.serve.engine.insides import MODELS_CONFIG_MAP, ModelRegistry, VerifyAndUpdateConfig
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "This release of vLLM is not the pinned one, so no model has a twin: %s", error
        )
        return
    for architecture in FAMILIES:
        twin = twin_of(architecture)
        if twin not in ModelRegistry.get_supported_archs():
            MODELS_CONFIG_MAP[twin] = _twice_as_wide(MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig))
            ModelRegistry.register_model(twin, f"lvlm_guard.serve.engine.families:{twin}")


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
