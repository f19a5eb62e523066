"""PromptCore: one PEFT tuner that puts learnable prompts into CLIP's encoders, and its named configurations.

Importing this registers the tuner with PEFT under `DUAL_PROMPT`, so that `get_peft_model` and
`PeftModel.from_pretrained` know it. CoOp, VPT, MaPLe and DCAR's dual prompts are settings of it, not classes.
"""

from importlib.util import find_spec

from lvlm_guard.adapters.loading import require_peft

if find_spec("peft") is None:
    require_peft()

from lvlm_guard.adapters.prompts.config import (
    CONFIGURATIONS,
    SHALLOW,
    DualPromptConfig,
    configuration,
    coop,
    dual_prompt,
    maple,
    placeholders,
    vpt,
)
from lvlm_guard.adapters.prompts.layer import PromptLayer
from lvlm_guard.adapters.prompts.tuner import add_prompts, layers_of, register

register()

__all__ = [
    "CONFIGURATIONS", "SHALLOW", "DualPromptConfig", "PromptLayer", "add_prompts", "configuration", "coop",
    "dual_prompt", "layers_of", "maple", "placeholders", "vpt",
]  # fmt: skip
