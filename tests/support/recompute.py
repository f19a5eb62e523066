"""The reference that the engine is measured against: every branch from scratch at every step.

No cache, no shared rows, no session, no trace: plain model calls over the whole text, one branch after
the other, and the published arithmetic written out. Only `generate()`'s own order is kept: assemble,
forbid, choose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def published(rule: str, l: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:  # noqa: E741
    """AGLA's and VCD's formulas with -inf outside the candidate set, as published."""
    z = l + alpha * other if rule == "agla" else (1 + alpha) * l - alpha * other
    if beta > 0:
        z = z.masked_fill(l < l.max(-1, keepdim=True).values + math.log(beta), -math.inf)
    return z


def logits_of(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Next-token logits of a plain call over whole rows, [rows, V]."""
    if "image_grid_thw" not in inputs:
        mask = inputs["attention_mask"]
        inputs = inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    else:
        model.model.rope_deltas = None  # left over from the call before
    return model(**inputs, use_cache=False).logits[:, -1]


def decode(
    model: Any, inputs: dict[str, Any], other: dict[str, Any], rule: str, alpha: float, beta: float,
    steps: int, sample: bool = False, official: bool = False, pad: int = 3,
) -> Tensor:  # fmt: skip
    """Decode rows; `other` holds the image tensors of the second branch. Returns [rows, prompt + steps]."""
    state = {k: v for k, v in inputs.items() if k != "guard_views"}
    forbidden = list(model.generation_config.suppress_tokens or [])
    finished = torch.zeros(len(state["input_ids"]), dtype=torch.bool)
    for t in range(steps):
        plain = logits_of(model, state)
        second = plain if official and t > 0 else logits_of(model, state | other)
        z = published(rule, plain, second, alpha, beta).float()
        if forbidden:
            z[:, forbidden] = -math.inf
            lost = torch.isinf(z).all(-1)  # the only candidates are forbidden: the plain order takes over
            z[lost] = plain.float()[lost].index_fill(1, torch.tensor(forbidden), -math.inf)
        chosen = torch.multinomial(z.softmax(-1), 1)[:, 0] if sample else z.argmax(-1)
        chosen = torch.where(finished, torch.full_like(chosen, pad), chosen)
        finished |= chosen == 2
        state = dict(state, input_ids=torch.cat([state["input_ids"], chosen[:, None]], 1))
        for key in ("attention_mask", "mm_token_type_ids"):
            if key in state:
                fill = torch.full_like(state[key][:, :1], 1 if key == "attention_mask" else 0)
                state[key] = torch.cat([state[key], fill], 1)
        if finished.all():
            break
    return state["input_ids"]
