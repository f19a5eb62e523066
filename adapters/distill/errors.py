"""What can go wrong in distilling."""

from __future__ import annotations

from lvlm_guard.errors import GuardError


class DistillError(GuardError):
    """Distilling can't begin or go on as asked; whatever was answered or trained before is on disk."""
