"""Attention of one set of tokens to another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.losses.precision import full


class Attention(nn.Module):
    """Multi-head attention; keys have no bias, which would shift all of a query's logits alike and never learn.

    Args:
        width: of all tokens.
        heads: divides the width.
        dropout: of the attention weights, while training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, queries: Tensor, context: Tensor, mask: Tensor | None = None, kept: list[Tensor] | None = None
    ) -> Tensor:
        """Return what each query gathers from the context, [K, P, width].

        Args:
            queries: [K, P, width].
            context: [K or 1, T, width]; one for all where there is one.
            mask: [K or 1, T] bool, False where nothing may look.
            kept: the attention weights, [K, heads, P, T], are appended here, part of the graph; slower.
        """
        q = self._split(self.q_proj(queries))
        rows = len(queries)
        k, v = (self._split(p(context)).expand(rows, -1, -1, -1) for p in (self.k_proj, self.v_proj))
        seen = None if mask is None else mask[:, None, None, :]
        if kept is None:
            dropout = self.dropout if self.training else 0.0
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        else:
            logits = full(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            if seen is not None:
                logits = logits.masked_fill(~seen, float("-inf"))
            weights = torch.softmax(logits, -1)
            kept.append(weights)
            out = weights.to(v.dtype) @ v
        joined: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return joined

    def _split(self, tokens: Tensor) -> Tensor:
        split: Tensor = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [K, heads, T, e]
        return split
