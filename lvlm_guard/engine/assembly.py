"""The algebra of assembled decoding, on logits alone: no model, no cache, no loop.

Notation: `l` the logits of the branch the user asked for (global), `other` those of a second
branch, both [..., V] in nats up to a constant. Everything works row by row over the last axis.

Sources: APC is the plausibility constraint of contrastive decoding (Li et al., ACL 2023,
arXiv:2210.15097, eq. 2); `complement` is AGLA (arXiv:2406.12718, eq. 8), `contrast` is VCD
(arXiv:2311.16922, eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_guard.errors import LogitsError

DEPTH = 1e4
"""How far below the survivors a rejected token ends, in nats.

exp(-DEPTH / T) is exactly 0 in float32 at any temperature T up to 96, and float32 still tells
rejected tokens apart whose logits differ by .001.
"""


def upcast(logits: Tensor) -> Tensor:
    """Return half-precision logits in float32, wider ones as they are (paper mode's arithmetic)."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def plausible(logits: Tensor, beta: float | Sequence[float]) -> Tensor:
    """Mark the tokens that the global branch finds plausible next to its best one (APC).

    Keeps v where l(v) >= max l + ln(beta). A token exactly at the cutoff stays.

    Args:
        logits: global logits, [..., V].
        beta: share of the best token's probability, 0 to 1; 0 keeps every token. Or one > 0 for each row of [R, V].

    Returns:
        [..., V] bool, at least one True a row. Raises `LogitsError` where a row holds NaN or +inf, or nothing but -inf.
    """
    best = logits.amax(-1, keepdim=True)
    if not all(map(math.isfinite, best.flatten().tolist())):
        raise LogitsError(
            "The model's logits hold NaN or infinity, so no next token can be chosen. Mostly the weights overflow in "
            "float16: load the model with dtype=torch.bfloat16 or torch.float32, and check the inputs' pixel values."
        )
    if beta == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    if isinstance(beta, Sequence):
        return logits >= best + best.new_tensor([[math.log(b)] for b in beta])
    return logits >= best + math.log(beta)


def cut(assembled: Tensor, logits: Tensor, keep: Tensor) -> Tensor:
    """Push the rejected tokens below every survivor, in the order of the global logits.

    -inf would be simpler, but a user's processor may forbid the only survivor (a grammar, a minimum
    length); then all would be -inf and sampling would crash. This way the global order takes over.

    Args:
        assembled: scores of the survivors, [..., V]; what it holds elsewhere is ignored.
        logits: global logits, [..., V].
        keep: the survivors, [..., V] bool, at least one a row.

    Returns:
        [..., V]: `assembled` where kept; elsewhere at least `DEPTH` nats lower than the lowest survivor.
    """
    floor = torch.where(keep, assembled, math.inf).amin(-1, keepdim=True)
    floor -= logits.amax(-1, keepdim=True)
    floor -= DEPTH
    return torch.where(keep, assembled, logits + floor)


def complement(logits: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Add a second view: l + alpha * other. Equal branches sharpen like temperature 1 / (1 + alpha)."""
    return torch.add(logits, other, alpha=alpha)


def contrast(logits: Tensor, other: Tensor, alpha: float) -> Tensor:
    """Subtract a disturbed view: (1 + alpha) * l - alpha * other. Equal branches change nothing."""
    return (1 + alpha) * logits - alpha * other


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the two next-token distributions, [...] in nats, 0 to ln 2."""
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    # a token of probability 0 in both adds nothing, and -inf - -inf is NaN
    halves = p.exp() * (p - middle) + q.exp() * (q - middle)
    return halves.nan_to_num(nan=0.0).sum(-1).clamp(min=0) / 2
