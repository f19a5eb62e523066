"""What can be wrong with the data of an evaluation."""

from lvlm_guard.errors import GuardError


class DataError(GuardError):
    """A question file, an answer file, a row or a ground truth can't be scored as it is."""
