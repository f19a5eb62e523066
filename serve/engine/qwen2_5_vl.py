"""Qwen2.5-VL in the twin engine: patches of any resolution, so that the second view keeps the picture's shape."""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models import qwen2_5_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from lvlm_guard.families.family import Family
from lvlm_guard.serve.engine.branches import TwoBranches
from lvlm_guard.serve.engine.views import TwoViews


class Qwen25VLViews(TwoViews, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's processor with two views of a picture."""

    family: ClassVar[Family] = Family("qwen2_5_vl")


@MULTIMODAL_REGISTRY.register_processor(
    Qwen25VLViews, info=qwen2_5_vl.Qwen2_5_VLProcessingInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class TwinQwen2_5_VLForConditionalGeneration(
    TwoBranches,
    qwen2_5_vl.Qwen2_5_VLForConditionalGeneration,  # type: ignore[misc]
):
    """Qwen2.5-VL with two branches."""
