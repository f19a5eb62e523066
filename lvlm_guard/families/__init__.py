"""Model families, one file each: what is particular to LLaVA-1.5, LLaVA-NeXT, Qwen2.5-VL, InstructBLIP, ...

A family knows the names and the layout of its image tensors, the marks of its prompt template (to find
the user's question), and whether the number of image tokens depends on the picture's shape. A new
family is one module and one line below, or an entry point `lvlm_guard.families` of another package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.registry import Registry

if TYPE_CHECKING:
    from lvlm_guard.families.family import Family

REGISTRY = Registry(
    "family",
    "lvlm_guard.families",
    {
        "llava": "lvlm_guard.families.llava:Llava",
        "llava_next": "lvlm_guard.families.llava_next:LlavaNext",
        "qwen2_5_vl": "lvlm_guard.families.qwen2_5_vl:Qwen25VL",
        "instructblip": "lvlm_guard.families.instructblip:InstructBlip",
    },
)


def family_of(model: Any) -> Family:
    """Return the family of a model, found by its configuration's model type.

    Raises:
        UnsupportedModelError: no family has this model type, the model has no image tower, or it is a variant
            that its family does not support.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    for name in REGISTRY.names():
        family = REGISTRY.get(name)()
        if kind in family.model_types:
            family.check(model)
            return family  # type: ignore[no-any-return]
    what = f"a {type(model).__name__}" + (f" (model type {kind!r})" if kind else "")
    why = "none of the families that can be guarded"
    if getattr(config, "vision_config", None) is None:
        why = "a model without an image tower, so there is no picture to guard it with"
    elif getattr(config, "is_encoder_decoder", False):
        why = "an encoder-decoder, and no encoder-decoder family is supported yet"
    raise UnsupportedModelError(
        f"This is {what}: {why}. Supported model types: "
        f"{', '.join(t for name in REGISTRY.names() for t in REGISTRY.get(name)().model_types)}. "
        "Another family is one small file: see CONTRIBUTING.md, 'A model family'."
    )


def family_asked_by(processor: Any) -> Family:
    """Return the family of a processor, guarded or not; where none has its class, one that does as most do."""
    from lvlm_guard.engine.subclass import plain_class
    from lvlm_guard.families.family import Family

    kind = plain_class(processor).__name__
    known = (REGISTRY.get(name)() for name in REGISTRY.names())
    return next((family for family in known if kind in family.processors), Family())
