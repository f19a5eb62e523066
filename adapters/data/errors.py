"""What can go wrong with data, one class."""

from __future__ import annotations

from lvlm_guard.errors import GuardError


class DataError(GuardError):
    """A data set can't be used as it is: a wrong line or column, nothing in it, or too little to learn from."""
