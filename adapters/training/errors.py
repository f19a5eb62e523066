"""What can go wrong in training an adapter."""

from __future__ import annotations

from lvlm_guard.errors import GuardError


class TrainingError(GuardError):
    """Training can't begin or go on as asked; the last good state is on disk."""
