"""A dynamic subclass on top of an object's class, as `torch.nn.utils.parametrize` makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def once_per_class(make: Callable[[type[Any]], type[Any]]) -> Callable[[type[Any]], type[Any]]:
    """Return `make`, which subclasses a class, such that a class gets one subclass, named as itself.

    The name stays, because `save_pretrained` and error messages of transformers go by it.
    """
    made: dict[type[Any], type[Any]] = {}

    @functools.wraps(make)
    def subclass(base: type[Any]) -> type[Any]:
        if base not in made:
            new = make(base)
            new.__name__, new.__qualname__, new.__module__ = base.__name__, base.__qualname__, base.__module__
            new.guarded_from = base
            made[base] = new
        return made[base]

    return subclass


def plain_class(thing: Any) -> type[Any]:
    """Return the class of an object without the guard."""
    kind = type(thing)
    plain: type[Any] = kind.__dict__.get("guarded_from", kind)
    return plain
