"""Rows in which a request has forbidden itself every token; neither guard may stop the others' engine for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lvlm_guard.errors import LogitsError

if TYPE_CHECKING:
    from torch import Tensor


def guard_allowed(logits: Tensor, rows: list[int], assemble: Callable[[list[int]], None]) -> None:
    """Assemble rows in place, but for those with nothing allowed, which stay as they are.

    Clients can forbid everything, by a grammar whose characters the tokenizer lacks, or by allowed ids and bad words.

    Args:
        logits: of the whole step, [R, V].
        rows: the guarded rows that are assembled together.
        assemble: changes some of these rows, all of them or none where it raises.

    Raises:
        LogitsError: a row holds NaN or +inf.
    """
    try:
        assemble(rows)
    except LogitsError:
        best = logits[rows].amax(-1).tolist()
        allowed = [row for row, top in zip(rows, best, strict=True) if top != -math.inf]
        if len(allowed) == len(rows):
            raise
        if allowed:
            assemble(allowed)
