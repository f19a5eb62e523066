"""What can go wrong in an evaluation."""

from lvlm_guard.errors import GuardError


class DataError(GuardError):
    """A question file, an answer file, a row or a ground truth can't be scored as it is."""


class RunError(GuardError):
    """A run could not be finished; what it has is on disk."""
