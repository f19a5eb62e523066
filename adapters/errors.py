"""What can go wrong with adapters' data and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lvlm_guard.errors import GuardError, KnobError, did_you_mean


class DataError(GuardError):
    """A data set can't be used as it is: a wrong line or column, nothing in it, or too little to learn from."""


class TrainingError(GuardError):
    """Training can't begin or go on as asked; the last good state is on disk."""


def check(
    settings: object,
    least: Mapping[str, float] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    error: type[GuardError] = KnobError,
) -> None:
    """Raise an error where a field of some settings is out of its range.

    Args:
        least: field -> the least that it may be; a whole number where the bound is one.
        choices: field -> what it may be.
    """
    for name, bound in (least or {}).items():
        value = getattr(settings, name)
        whole = isinstance(bound, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= bound:
            raise error(f"{name} is {value!r}: give {'a whole number of ' if whole else ''}{bound:g} or more.")
    for name, known in (choices or {}).items():
        value = getattr(settings, name)
        if value not in known:
            told = f"{name} is {value!r}: give one of {', '.join(known)}."
            raise error(f"{told} {did_you_mean(str(value), known)}".rstrip())
