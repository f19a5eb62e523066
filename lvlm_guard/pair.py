"""A plain model and a plain processor become guarded ones, in place, and plain again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_guard.engine import guarded
from lvlm_guard.families import processor as processors

if TYPE_CHECKING:
    from lvlm_guard.engine.method import Method
    from lvlm_guard.families.family import Family


def install(model: Any, processor: Any, family: Family, method: Method, execution: Any = "auto", **how: Any) -> None:
    """Make a plain model and a plain processor guarded ones, in place."""
    plain = type(model)
    how = {"resolve": lambda method: method, "checks": None} | how
    setattr(model, guarded.STATE, guarded.Guard(method, family, processor, execution, plain, **how))
    model.__class__ = guarded.guarded_class(family.decoding(plain))
    setattr(processor, processors.STATE, processors.ProcessorGuard(family, type(processor)))
    processor.__class__ = processors.guarded_class(type(processor))


def guard_off(*things: Any) -> None:
    """Make models and processors plain again, in place."""
    for thing in things:
        state = vars(thing).get(guarded.STATE)
        if state is not None:
            thing.__class__ = state.plain
            delattr(thing, guarded.STATE)
