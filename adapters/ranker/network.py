"""The ranker itself: from the tokens of pictures and of one instruction to scores and pair logits.

The release's fusion has three faults that are not repeated here: its learnable prompts are one number each, spread over
the width, which a LayerNorm makes zero; its projection starts as memory finds it; padding takes part in the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lvlm_guard.adapters.ranker.card import RankerSettings
from lvlm_guard.adapters.ranker.pair_head import PairHead, Readout
from lvlm_guard.adapters.terms import full
from lvlm_guard.errors import UnsupportedCallError


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


class FusionLayer(GradientCheckpointingLayer):
    """Self-attention over the picture, then cross-attention to the text, each with an MLP; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, heads)
        self.self_mlp = _mlp(width)
        self.cross_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attention, self.cross_mlp = Attention(width, heads), _mlp(width)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        """Return the picture's tokens, [K, P, width]; see `Fusion`."""
        seen = self.self_norm(image)
        image = image + self.self_attention(seen, seen)
        image = image + self.self_mlp(image)
        image = image + self.cross_attention(self.cross_norm(image), self.text_norm(text), mask, kept)
        fused: Tensor = image + self.cross_mlp(image)
        return fused


class PostLayer(GradientCheckpointingLayer):
    """A post-norm encoder layer with ReLU, whose MLP is no wider than the tokens."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, [K, P, width]."""
        image = self.attention_norm(image + self.dropout(self.attention(image, image)))
        encoded: Tensor = self.mlp_norm(image + self.dropout(self.mlp(image)))
        return encoded


class Fusion(nn.Module):
    """From a trunk's tokens to a picture's tokens as the text sees them.

    Args:
        image_width, text_width: of the trunk's tokens.
        settings: of the ranker.
    """

    def __init__(self, image_width: int, text_width: int, settings: RankerSettings) -> None:
        super().__init__()
        width = settings.width
        self.mask_text = settings.mask_text
        self.in_image = _entry(image_width, width)
        self.in_text = _entry(text_width, width)
        self.prompts = nn.Parameter(torch.randn(settings.prompts, width) * width**-0.5) if settings.prompts else None
        self.layers = nn.ModuleList(FusionLayer(width, settings.heads) for _ in range(settings.fusion_layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.post = nn.ModuleList(
            PostLayer(width, settings.heads, settings.dropout) for _ in range(settings.post_layers)
        )

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
        """Return the picture's tokens, [K, P, width].

        Args:
            image: [K, P, image_width].
            text: [K or 1, T, text_width].
            mask: [K or 1, T] bool, False on padding; None where there is none.
            kept: each layer's weights of the cross-attention, [K, heads, P, prompts + T], are appended here.
        """
        dtype = self.projection.dtype
        image, text = self.in_image(image.to(dtype)), self.in_text(text.to(dtype))
        if not self.mask_text:
            mask = None
        if self.prompts is not None:
            text = torch.cat([self.prompts.expand(len(text), -1, -1).to(text.dtype), text], 1)
            if mask is not None:
                mask = nn.functional.pad(mask, (len(self.prompts), 0), value=True)
        for layer in self.layers:
            image = layer(image, text, mask, kept)
        image = self.norm(image) @ self.projection
        for layer in self.post:
            image = layer(image)
        return image


def _entry(given: int, width: int) -> nn.Module:
    return nn.Identity() if given == width else nn.Linear(given, width)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class RankerNetwork(nn.Module):
    """Fusion, score head and pair head: everything that is learnt beside a trunk.

    Args:
        image_width, text_width: of the trunk's tokens.
        settings: sizes and choices.
    """

    def __init__(self, image_width: int, text_width: int, settings: RankerSettings) -> None:
        super().__init__()
        self.pool = settings.pool
        self.fusion = Fusion(image_width, text_width, settings)
        self.score_norm = nn.LayerNorm(settings.width)
        self.score = Readout(settings.width, layers=2, bias=True)
        self.pair = PairHead(settings)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        mask: Tensor | None = None,
        pairs: bool = True,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score pictures under an instruction, or each under its own where no pairs are asked for; see `Fusion`.

        Returns:
            Scores [K] and logits [K, K], float32 or wider; None for the logits where no pairs are asked for.

        Raises:
            UnsupportedCallError: pictures of several instructions can't be compared.
        """
        if pairs and len(text) != 1:
            raise UnsupportedCallError(
                f"{len(image)} pictures come with {len(text)} instructions, but pictures are compared under one: give "
                "a group the one instruction, or ask for scores alone (pairs=False)."
            )
        tokens = self.fusion(image, text, mask, kept)
        each = self.score_norm(tokens)
        scores = self.score(each.mean(1) if self.pool == "mean" else each.sum(1))
        return scores, self.pair(tokens) if pairs else None
