"""lvlm-guard: vision-language models that say less of what is not in the picture, at decoding time.

    from lvlm_guard import guard
    model, processor = guard(model, processor)

`generate()` then works as before, guarded by AGLA; `methods` holds the others. Importing this package
imports neither torch nor transformers; what needs them is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_guard import methods
from lvlm_guard.errors import GuardError, MissingViewError
from lvlm_guard.registry import late

if TYPE_CHECKING:
    from lvlm_guard.api import guard as guard
    from lvlm_guard.api import unguard as unguard
    from lvlm_guard.engine.trace import GuardTrace as GuardTrace

__version__ = "0.1.0"
__all__ = ["GuardError", "GuardTrace", "MissingViewError", "__version__", "guard", "methods", "unguard"]

__getattr__, __dir__ = late(__name__, present=__all__)
