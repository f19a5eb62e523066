"""The ranker's loss: which of two pictures shows more, and how much each shows. In float32 or wider.

Source: arXiv:2412.06760 and its release, whose target for pairs is repaired here (`ties`): with antisymmetric logits, a
loss that wants "not more" from both sides of a tie, and from each picture against itself, never reaches its minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from lvlm_guard.adapters.losses.precision import full, unchanged
from lvlm_guard.adapters.ranker.settings import Ties


class RankerLoss(NamedTuple):
    """The whole loss and its two terms, scalars; total = pair + weight * log(1 + regression)."""

    total: Tensor
    pair: Tensor
    regression: Tensor


def pair_loss(logits: Tensor, values: Tensor, ties: Ties = "half") -> Tensor:
    """Return the mean binary cross-entropy over ordered pairs of two pictures.

    Args:
        logits: [K, K], above 0 where the row's picture shows more.
        values: [K], of the pictures.
        ties: what equal values are told; see `RankerSettings`.

    Returns:
        A scalar; 0 where there is no pair.
    """
    logits, values = full(logits), full(values)
    difference = values[:, None] - values[None]
    used = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    target = (difference > 0).to(logits.dtype)
    if ties == "published":
        used = torch.ones_like(used)
    elif ties == "drop":
        used = used & (difference != 0)
    else:
        target = target.masked_fill(difference == 0, 0.5)
    with unchanged(logits):
        each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * used).sum() / used.sum().clamp(min=1)


def ranker_loss(
    scores: Tensor, logits: Tensor, values: Tensor, *, ties: Ties = "half", regression_weight: float = 0.2
) -> RankerLoss:
    """Return the loss of one group under one instruction.

    Args:
        scores: [K].
        logits: [K, K].
        values: [K], in the units of the scores.
        ties: see `RankerSettings`.
        regression_weight: of the scores' term.
    """
    pair = pair_loss(logits, values, ties)
    scores, values = full(scores), full(values)
    with unchanged(scores):
        regression = smooth_l1_loss(scores, values.to(scores.dtype), beta=1.0)
    return RankerLoss(pair + regression_weight * torch.log1p(regression), pair, regression)
