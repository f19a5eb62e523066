"""The plug-in for lmms-eval: the model `lvlm_guard`, so that stock `lmms-eval` runs its tasks on any guarded model.

    lmms-eval --model lvlm_guard --model_args pretrained=ID,method=agla,alpha=2 --tasks pope_adv

lmms-eval finds the model by an entry point (`manifest`, which it loads whenever it lists its models) and is not
patched, so this package imports nothing heavy by itself. `model` reads its `arguments` and `requests`. `tasks/`,
`scoring`: the embedded world as tasks of lmms-eval. `index` finds and loads stock tasks; `localize`
points one at files of one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "lvlm_guard"  # what lmms-eval calls the model (`--model`)

TASKS = Path(__file__).parent / "tasks"
"""The folder for `--include_path` that holds `lvlm_guard_world_pope` and `lvlm_guard_world_chair`."""


def manifest() -> Any:
    """Return lmms-eval's `ModelManifest` of the model: where it is, without importing it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path="lvlm_guard.evals.lmms.model.LvlmGuard")
