"""What can go wrong, one class a kind. Every message says what is wrong, why, and what to do.

All are `GuardError`, which is a `ValueError`, so `except ValueError` keeps working in scripts that
already guard a call of `generate()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class GuardError(ValueError):
    """Any call that could not be guarded as asked. No guarded call falls back to plain output."""


class MissingViewError(GuardError):
    """The inputs carry pictures but not the second view that the method compares them with."""


class UnsupportedModelError(GuardError):
    """The model, or the pair of model and processor, is none that can be guarded."""


class UnsupportedCallError(GuardError):
    """This call of `generate()` has arguments under which a method cannot be applied."""


class ImageError(GuardError):
    """A picture cannot be used: corrupt, empty, too large, or not a picture."""


class TextError(GuardError):
    """A prompt or a matching text cannot be used, or the question in it was not found."""


class KnobError(GuardError):
    """A knob of a method or a matcher has a value outside its range."""


class UnknownNameError(GuardError):
    """No method, matcher or family has this name."""


class LogitsError(GuardError):
    """The model gave logits that hold no distribution (NaN, or +inf)."""


class WeightsError(GuardError):
    """Weights or a processor could not be loaded, mostly because this machine is offline."""


class ServerError(GuardError):
    """A server can't be reached, is no such server, or gave no answer."""


class UnprovedError(GuardError):
    """A server's answer does not prove that the guard ran that was asked for, and no other."""


class MissingExtraError(GuardError):
    """An optional dependency is not installed; the message names the command that installs it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " with the known name that is nearest to an unknown one, "" where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""
