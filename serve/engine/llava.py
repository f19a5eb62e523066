"""LLaVA-1.5 in the twin engine: one square crop a picture, so that the second view is squeezed as in AGLA's release."""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from lvlm_guard.families.family import Family
from lvlm_guard.serve.engine.branches import TwoBranches
from lvlm_guard.serve.engine.views import TwoViews


class LlavaViews(TwoViews, llava.LlavaMultiModalProcessor):  # type: ignore[misc]
    """LLaVA-1.5's processor with two views."""

    family: ClassVar[Family] = Family("llava")


@MULTIMODAL_REGISTRY.register_processor(
    LlavaViews, info=llava.LlavaProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class TwinLlavaForConditionalGeneration(TwoBranches, llava.LlavaForConditionalGeneration):  # type: ignore[misc]
    """LLaVA-1.5 with two branches."""
