"""Model families: what is particular to one is asked of its own processor, chat template and generate().

One class, `family.Family`, reads them all; `proof.py` proves a model before it is guarded, so that a family is proven
or refused. A family with a module of its own is one whose generate() needs one: a line below, or an entry point
`lvlm_guard.families` of another package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_guard.registry import Registry

if TYPE_CHECKING:
    from lvlm_guard.families.family import Family

REGISTRY = Registry(
    "family",
    "lvlm_guard.families",
    {"any": "lvlm_guard.families.family:Family", "instructblip": "lvlm_guard.families.instructblip:InstructBlip"},
)
"""The generic class, and those of the model types that need one of their own."""


def kind_of(model_type: str) -> type[Family]:
    """Return the class that reads the models of a type."""
    from lvlm_guard.families.family import Family

    own: Any = (REGISTRY.get(name) for name in REGISTRY.names())
    return next((kind for kind in own if model_type in kind.model_types), Family)


def family_of(model: Any, processor: Any) -> Family:
    """Return the family of a model and its processor.

    Raises:
        UnsupportedModelError: they are none that can be guarded, or don't belong together.
    """
    return kind_of(getattr(getattr(model, "config", None), "model_type", "")).of(model, processor)


def family_asked_by(processor: Any) -> Family:
    """Return the family of a processor, guarded or not, as far as it needs no model."""
    from lvlm_guard.engine.subclass import plain_class
    from lvlm_guard.families.family import Family

    own: Any = (REGISTRY.get(name) for name in REGISTRY.names())
    name = plain_class(processor).__name__
    return next((kind() for kind in own if name in getattr(kind, "processors", ())), Family())
