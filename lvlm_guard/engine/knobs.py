"""Knobs of methods: a field of the dataclass says which values are right, and its error what to give instead."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

from lvlm_guard.errors import KnobError

T = TypeVar("T")


def knob(default: T, check: Callable[[Any, str], object]) -> T:
    """Return a field whose values are checked.

    Args:
        default: of the field.
        check: gets a value and the field's name; raises `KnobError` where the value is wrong. A default None is right.
    """
    field: T = dataclasses.field(default=default, metadata={"check": check})
    return field


def limited(default: T, give: str, right: Callable[[Any], bool]) -> T:
    """Return a field of which some values are right; the error of the others ends in what to give."""

    def check(value: Any, name: str) -> None:
        if not right(value):
            raise KnobError(f"{name} is {value!r}: give {give}.")

    return knob(default, check)


def choice(*values: Any, tuples: str = "", give: str = "") -> Any:
    """Return a field that takes these values, the first one by default.

    Args:
        values: that are right.
        tuples: what else may be given, as a tuple; "": nothing else.
        give: what an error says to give, in words of its own.
    """
    *some, last = [*map(repr, values), *([tuples] if tuples else [])]
    give = give or f"{', '.join(some)} or {last}"
    return limited(values[0], give, lambda value: value in values or (tuples != "" and isinstance(value, tuple)))


def weight(default: float) -> float:
    """Return a field that weighs a branch: a finite number >= 0."""
    return knob(default, check_weight)


def plausibility(default: float) -> float:
    """Return the field `beta` of the plausibility constraint, a share of the best token's probability, 0 to 1."""
    return knob(default, _check_beta)


def check(method: Any) -> None:
    """Raise `KnobError` where one of a method's knobs is wrong; a list becomes a tuple, so that methods have a hash.

    A field that a subclass declares again, with another default, is checked as its base's.
    """
    bases = [vars(base).get("__dataclass_fields__", {}) for base in type(method).__mro__]
    for name in (field.name for field in dataclasses.fields(method)):
        declared = [fields[name] for fields in bases if name in fields]
        right = next((field.metadata["check"] for field in declared if "check" in field.metadata), None)
        if right is None:
            continue
        value = getattr(method, name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(method, name, value)
        if value is not None or all(field.default is not None for field in declared):
            right(value, name)


def check_weight(value: float, name: str) -> None:
    """Raise `KnobError` unless the weight is a finite number >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise KnobError(
            f"{'lam (lambda)' if name == 'lam' else name} is {value!r}, but it weighs a branch against the plain "
            "logits: give a finite number >= 0 (0 switches the branch off; AGLA's paper has 2, VCD's 1)."
        )


def _check_beta(value: float, _: str) -> None:
    if not 0 <= value <= 1:
        raise KnobError(
            f"beta is {value!r}, but it is a share of the best token's probability: give 0 (keep every token) to 1 "
            "(keep the best alone). The paper's value for AGLA is 0.5."
        )
