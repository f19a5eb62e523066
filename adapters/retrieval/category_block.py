"""The category-aware block: a caption's feature attends to the features of the categories' names.

Source: DCAR (arXiv:2508.04028), where it stands after the text encoder; its form is ours, for its code was not
published: t' = normalise(t + gamma * softmax(t W_q C^T / sqrt(d)) C W_v), and gamma is 0 at first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.errors import KnobError


class CategoryBlock(nn.Module):
    """Moves text features towards the categories they are about; the identity until it is trained.

    Args:
        categories: [n, d], normalised features of the categories' names by the frozen backbone.

    Raises:
        KnobError: there are fewer than two categories, between which nothing could be told apart.
    """

    categories: Tensor

    def __init__(self, categories: Tensor) -> None:
        super().__init__()
        if categories.dim() != 2 or len(categories) < 2:
            raise KnobError(
                f"The category block needs features of at least two categories, [n, d]; got {list(categories.shape)}. "
                "Name more categories, or leave the block out."
            )
        width = categories.shape[1]
        self.register_buffer("categories", categories.detach().clone().float())
        # attention by likeness to begin with: identity, not noise
        self.query = nn.Parameter(torch.eye(width))
        self.value = nn.Parameter(torch.eye(width))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, text: Tensor) -> Tensor:
        """Return features of the same shape as `text`, [n, d] normalised."""
        precise = text.float()
        attention = (precise @ self.query @ self.categories.T / self.query.shape[0] ** 0.5).softmax(-1)
        moved = precise + self.gamma * (attention @ self.categories @ self.value)
        return normalize(moved, dim=-1).to(text.dtype)
