"""What can go wrong in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvlm_guard.errors import GuardError


class DataError(GuardError):
    """A question file, an answer file, a row or a ground truth can't be scored as it is."""


class RunError(GuardError):
    """A run could not be finished; what it has is on disk."""


class VoidRunError(GuardError):
    """Answers are empty, failed or cut, so that the scores would mislead."""


@contextmanager
def disk_trouble(folder: Path) -> Iterator[None]:
    """Turn a write that the system refuses (a full disk, mostly) into a `RunError` that says what is kept."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename or folder} can't be written: {error.strerror or error}"
        told = "What was written before is kept: make room, and the same command goes on from there."
        raise RunError(f"{why}. {told}") from error
