"""LossStack: what an adapted CLIP is trained by, as small functions, and how they are added up.

`terms` holds the functions: pure, in float32, each with its source. `stack` combines them by a
configuration; `@term` adds one.
"""

from lvlm_guard.adapters.losses.stack import LossError, LossInputs, LossStack, LossValue, term
from lvlm_guard.adapters.losses.terms import agreement, anchoring, claims, consistency, contrastive, hard_negative

__all__ = [
    "LossError",
    "LossInputs",
    "LossStack",
    "LossValue",
    "agreement",
    "anchoring",
    "claims",
    "consistency",
    "contrastive",
    "hard_negative",
    "term",
]
