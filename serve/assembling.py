"""Rows of a step, assembled in place: of a request that forbade itself every token, too, which must not stop others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import LogitsError


def assemble(logits: Tensor, rows: list[int], assembled: Callable[[list[int], Any], Tensor]) -> None:
    """Assemble rows in place, but for those with nothing allowed, which stay as they are.

    Clients can forbid everything, by a grammar whose characters the tokenizer lacks, or by allowed ids and bad words.

    Args:
        logits: of the whole step, [R, V].
        rows: the guarded rows that are assembled together, in order.
        assembled: is given some of these rows, and what picks them out of a tensor [R, ...]; returns them assembled,
            or raises.

    Raises:
        LogitsError: a row holds NaN or +inf.
    """
    index = slice(None) if len(rows) == len(logits) else torch.tensor(rows, device=logits.device)
    try:
        logits[index] = assembled(rows, index)
    except LogitsError:
        best = logits[rows].amax(-1).tolist()
        allowed = [row for row, top in zip(rows, best, strict=True) if top != -math.inf]
        if len(allowed) == len(rows):
            raise
        if allowed:
            assemble(logits, allowed, assembled)
