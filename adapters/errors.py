"""What can go wrong with adapters' data and training."""

from __future__ import annotations

from lvlm_guard.errors import GuardError


class DataError(GuardError):
    """A data set can't be used as it is: a wrong line or column, nothing in it, or too little to learn from."""


class TrainingError(GuardError):
    """Training can't begin or go on as asked; the last good state is on disk."""
