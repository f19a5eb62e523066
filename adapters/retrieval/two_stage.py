"""Ranks all candidates cheaply, then the best of them again by a costly score, without mixing the two scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def again(first: Tensor, pair: Callable[[Tensor, Tensor], Tensor], top: int) -> Tensor:
    """Return scores whose order is: the best `top` of each query by the second score, then the rest by the first.

    Args:
        first: [queries, candidates].
        pair: second score of (queries, candidates), [p] each -> [p].
        top: how many of each query are scored again.

    Returns:
        [queries, candidates]: the second score where it was computed; the rest keep their order, moved below them.
    """
    count = min(top, first.shape[1])
    best = first.topk(count, dim=1).indices
    queries = torch.arange(len(first))[:, None].expand_as(best)
    second = pair(queries.flatten(), best.flatten()).reshape(best.shape).to(first)
    chosen = torch.zeros_like(first, dtype=torch.bool).scatter(1, best, True)
    rest = first.masked_fill(chosen, -torch.inf).max(1, keepdim=True).values
    # one unit of the scores apart, so that no rounding lets one of the rest tie with the last of the best
    below = torch.where(rest.isfinite(), first - rest + second.min(1, keepdim=True).values - 1, first)
    return below.scatter(1, best, second)
