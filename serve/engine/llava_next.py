"""LLaVA-NeXT in the twin engine: tiles follow the picture's shape, so that the second view keeps it."""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models import llava, llava_next
from vllm.multimodal import MULTIMODAL_REGISTRY

from lvlm_guard.families.family import Family
from lvlm_guard.serve.engine.branches import TwoBranches
from lvlm_guard.serve.engine.views import TwoViews


class LlavaNextViews(TwoViews, llava_next.LlavaNextMultiModalProcessor):  # type: ignore[misc]
    """LLaVA-NeXT's processor with two views."""

    family: ClassVar[Family] = Family("llava_next")


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextViews, info=llava_next.LlavaNextProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class TwinLlavaNextForConditionalGeneration(
    TwoBranches,
    llava_next.LlavaNextForConditionalGeneration,  # type: ignore[misc]
):
    """LLaVA-NeXT with two branches."""
