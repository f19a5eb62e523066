"""Knobs of methods as texts: on command lines, and in the arguments of other tools."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from lvlm_guard.errors import KnobError, did_you_mean

_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
_BOOLS = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0"), False)


def defaults_of(method: str) -> dict[str, Any]:
    """Return the knobs of a registered method with their defaults; raises `UnknownNameError`."""
    from lvlm_guard.methods import REGISTRY

    return {field.name: field.default for field in dataclasses.fields(REGISTRY.get(method)) if field.init}


def no_knob(method: str, knob: str, value: Any, known: Iterable[str]) -> KnobError:
    """Return the error of a knob that a method lacks, which says what else takes the value; `known` are its knobs."""
    from lvlm_guard.methods import REGISTRY

    other = f"{method}-{value}"
    instead = f"The method {other!r} is that. " if other in REGISTRY.names() else did_you_mean(knob, known)
    return KnobError(f"{method} has no knob {knob!r}. {instead}It has: {', '.join(known) or 'none'}.")


def read_knob(knob: str, text: str, default: Any) -> Any:
    """Return a knob's text as a value of the type of its default.

    One without a default takes a JSON list or text in quotes, none, a number, or text; raises `KnobError`.
    """
    try:
        if isinstance(default, bool):
            return _BOOLS[text.lower()]
        if isinstance(default, int | float):
            return type(default)(text)
    except (ValueError, KeyError):
        raise KnobError(f"{knob} is {text!r}: give {_KINDS[type(default)]}, such as {default}.") from None
    if text[:1] in ("[", "{", '"'):
        import yaml

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise KnobError(f'{knob} is {text!r}, which is no JSON ({error}): write ["dog", "cat"].') from error
        return tuple(found) if isinstance(found, list) else found
    if text.lower() == "none":
        return None
    if default is None and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return text
