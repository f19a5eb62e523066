"""How much each word of a caption is about this picture: by what changes when the picture is a blank one.

Source: DCAR (arXiv:2508.04028): w = |S(word, blank) - S(word, picture)|. How w, which is of the size 0.01 to 0.1,
becomes a factor of the word's embedding is ours, see `scaled`.

A weighted caption has one feature for each picture. Weights made from a caption's own picture and used against
others would give the answer away, so every weight here belongs to a pair and is used for that pair alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import UnsupportedModelError

LEAST, MOST = 0.25, 4.0  # bounds of a factor; ours

_FACTORS: ContextVar[Tensor | None] = ContextVar("_FACTORS", default=None)


def raw(blank: Tensor, image: Tensor) -> Tensor:
    """Return w = |S(word, blank) - S(word, picture)| from the cosines of words, same shapes."""
    return (blank.float() - image.float()).abs()


def scaled(weights: Tensor, strength: float, words: Tensor | None = None) -> Tensor:
    """Return factors of embeddings: 1 + strength * (w / mean(w) - 1), within 0.25 to 4.

    Args:
        weights: [..., tokens], w of each token.
        strength: lambda; 0 gives 1 everywhere.
        words: [..., tokens] bool: which tokens are words; the mean is over them, and others get 1. None: all are.

    Returns:
        [..., tokens] float32; 1 everywhere in a row whose weights are all 0, as for a blank picture.
    """
    weights = weights.float()
    words = torch.ones_like(weights, dtype=torch.bool) if words is None else words
    weights = weights.masked_fill(~words, 0)
    mean = weights.sum(-1, keepdim=True) / words.sum(-1, keepdim=True).clamp(min=1)
    relative = torch.where(mean > 0, weights / mean.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    factors = (1 + strength * (relative - 1)).clamp(LEAST, MOST)
    return torch.where(words, factors, 1.0)


def prepare(clip: nn.Module) -> None:
    """Let a CLIP's word embeddings be weighed by `weighing`; without it they are what they were, bit for bit."""
    embedding = next((m for name, m in clip.named_modules() if name.endswith("text_model.embeddings")), None)
    if embedding is None:
        raise UnsupportedModelError(
            f"A {type(clip).__name__} has no text_model.embeddings: give a CLIPModel of transformers."
        )
    table = embedding.token_embedding
    if _weigh not in table._forward_hooks.values():
        table.register_forward_hook(_weigh)


@contextmanager
def weighing(factors: Tensor | None) -> Iterator[None]:
    """Multiply word embeddings by factors [n, tokens], before positions are added, in this thread; None: by nothing."""
    token = _FACTORS.set(factors)
    try:
        yield
    finally:
        _FACTORS.reset(token)


def _weigh(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    factors = _FACTORS.get()
    return output if factors is None else output * factors[..., None].to(output)
