"""lvlm-guard: vision-language models that say less of what is not in the picture, at decoding time.

    from lvlm_guard import guard
    model, processor = guard(model, processor)

`generate()` then works as before, guarded by AGLA; `methods` holds the others. Importing this package
imports neither torch nor transformers; what needs them is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lvlm_guard import methods
from lvlm_guard.errors import GuardError, MissingViewError

if TYPE_CHECKING:
    from lvlm_guard.api import guard, unguard
    from lvlm_guard.engine.trace import GuardTrace

__version__ = "0.1.0"
__all__ = ["GuardError", "GuardTrace", "MissingViewError", "__version__", "guard", "methods", "unguard"]

_LATE = {
    "guard": "lvlm_guard.api",
    "unguard": "lvlm_guard.api",
    "GuardTrace": "lvlm_guard.engine.trace",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
