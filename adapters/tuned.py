"""Models that PEFT wraps, told apart without peft: a CLIP as it is needs none."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeGuard

from lvlm_guard.errors import MissingExtraError

if TYPE_CHECKING:
    from peft import PeftModel


def is_tuned(model: Any) -> TypeGuard[PeftModel]:
    """Tell whether PEFT wraps a model."""
    peft = sys.modules.get("peft")  # who has such a model has imported it
    return peft is not None and isinstance(model, peft.PeftModel)


def require_peft() -> None:
    """Raise `MissingExtraError` where peft can't be imported."""
    try:
        import_module("peft")
    except ImportError as error:
        raise MissingExtraError(
            f"This adapter needs peft, which can't be imported ({error}). Install it: pip install 'lvlm-guard[train]'."
        ) from error
