"""What the entry point `lmms_eval.models` loads: where the model is, without importing it."""

from __future__ import annotations

from typing import Any

from lvlm_guard.evals.lmms import NAME


def manifest() -> Any:
    """Return lmms-eval's `ModelManifest` of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path="lvlm_guard.evals.lmms.model.LvlmGuard")
