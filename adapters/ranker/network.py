"""The ranker itself: from the tokens of pictures and of one instruction to scores and pair logits.

The release's fusion has three faults that are not repeated here: its learnable prompts are one number each, spread over
the width, which a LayerNorm makes zero; its projection starts as memory finds it; padding takes part in the text.

Which of two pictures shows more is the release's attention over a pair, without ever building the pair's tokens. For
each ordered pair (i, j) the release attends from every relation token to the 2P tokens of both pictures in one
softmax, and takes what it gathers from i minus what it gathers from j. With each picture's own log-sum-exp `evidence`
and own softmax average `content`, that one softmax gives picture i the share sigmoid(evidence_i - evidence_j), so

    A_ij = sum_t sigmoid(evidence_it - evidence_jt) * content_it        exactly, for P tokens once a picture

The release's logits depend on the order of the arguments (a bias, and a readout that is no odd function). Here the
difference A_ij - A_ji goes through an odd function, and the lower half of the table is the negated upper half.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.terms import full, unchanged
from lvlm_guard.errors import UnsupportedCallError

AT_ONCE = 2**24
"""Numbers in one tensor of pairs, 64 MB; tables that need more are computed by rows, in training twice."""

Kept = list[Tensor] | None
"""Where attention weights are appended."""


class Attention(nn.Module):
    """Multi-head attention; keys have no bias, which would shift all of a query's logits alike and never learn.

    `heads` divide the `width` of all tokens; `dropout` is of the attention weights, while training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None, kept: Kept = None) -> Tensor:
        """Return what each query [K, P, width] gathers from the context [K or 1, T, width], [K, P, width].

        Args:
            mask: [K or 1, T] bool, False where nothing may look.
            kept: gets the attention weights, [K, heads, P, T], part of the graph; slower.
        """
        q, k, v = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2).expand(len(queries), -1, -1, -1)  # [K, heads, T, e]
            for made in (self.q_proj(queries), self.k_proj(context), self.v_proj(context))
        )
        seen = None if mask is None else mask[:, None, None, :]
        if kept is None:
            dropout = self.dropout if self.training else 0.0
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        else:
            logits = full(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
            if seen is not None:
                logits = logits.masked_fill(~seen, float("-inf"))
            kept.append(torch.softmax(logits, -1))
            out = kept[-1].to(v.dtype) @ v
        joined: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return joined


class FusionLayer(GradientCheckpointingLayer):
    """Self-attention over the picture, then cross-attention to the text, each with an MLP; pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, heads)
        self.self_mlp = _mlp(width)
        self.cross_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross_attention, self.cross_mlp = Attention(width, heads), _mlp(width)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None, kept: Kept = None) -> Tensor:
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
    """From a trunk's tokens, of the widths given, to a picture's tokens as the text sees them."""

    def __init__(self, image_width: int, text_width: int, settings: RankerSettings) -> None:
        super().__init__()
        width, heads = settings.width, settings.heads
        self.mask_text = settings.mask_text
        self.in_image, self.in_text = (
            nn.Identity() if given == width else nn.Linear(given, width) for given in (image_width, text_width)
        )
        self.prompts = nn.Parameter(torch.randn(settings.prompts, width) * width**-0.5) if settings.prompts else None
        self.layers = nn.ModuleList(FusionLayer(width, heads) for _ in range(settings.fusion_layers))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.post = nn.ModuleList(PostLayer(width, heads, settings.dropout) for _ in range(settings.post_layers))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None, kept: Kept = None) -> Tensor:
        """Return the tokens, [K, P, width], of an image [K, P, image_width] and a text [K or 1, T, text_width].

        Args:
            mask: [K or 1, T] bool, False on padding; None where there is none.
            kept: gets each layer's weights of the cross-attention, [K, heads, P, prompts + T].
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


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Readout(nn.Module):
    """Layers of Linear, LayerNorm and ReLU, then one number, with a bias or not, computed in full precision."""

    def __init__(self, width: int, layers: int, bias: bool) -> None:
        super().__init__()
        each = [(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()) for _ in range(layers)]
        self.layers = nn.Sequential(*(part for parts in each for part in parts))
        self.number = nn.Linear(width, 1, bias=bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return a number for each vector: [..., width] to [...], float32 or wider."""
        hidden = self.layers(vectors)
        with unchanged(hidden):
            bias = None if self.number.bias is None else full(self.number.bias)
            return nn.functional.linear(full(hidden), full(self.number.weight), bias).squeeze(-1)


def summarise(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each relation token, of scaled queries [H, Q, e], finds in each picture by itself.

    Evidence [K, H, Q] is the log of the sum of exponentials over the P tokens, content [K, H, Q, e] their average by
    softmax; the pictures' keys [K, P, H, e] are the values too.
    """
    keys = keys.transpose(1, 2).contiguous()  # [K, H, P, e]: one copy serves both products
    logits = queries @ keys.transpose(-1, -2)
    return torch.logsumexp(logits, -1), torch.softmax(logits, -1) @ keys


def compare(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return A_ij - A_ji of what `summarise` gives for each picture i of the first, j of the second, [I, J, H * e]."""
    (evidence, content), (other_evidence, other_content) = first, second
    share = torch.sigmoid(evidence[:, None] - other_evidence[None])  # [I, J, H, Q]
    gathered = torch.einsum("ijht,ihte->ijhe", share, content)
    return (gathered - torch.einsum("ijht,jhte->ijhe", 1 - share, other_content)).flatten(2)


class PairHead(nn.Module):
    """Logits that picture i shows more than picture j, `at_once` numbers in one tensor of pairs."""

    def __init__(self, settings: RankerSettings, at_once: int = AT_ONCE) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.at_once = settings.heads, at_once
        self.relations = nn.Parameter(torch.randn(settings.relations, width) * width**-0.5)
        self.query, self.query_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.key, self.key_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width) if settings.pair_norm else None
        # a bias of the number would cancel, and never learn
        self.readout = Readout(width, layers=3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the table of logits of one instruction's pictures [K, P, width], [K, K]: antisymmetric bit for bit,
        above 0 where the row's picture shows more.

        Memory: tensors over P grow with K and are not kept for the backward pass; those over pairs are bounded by
        `at_once`, beside the table itself.
        """
        evidence, content = self.attended(tokens)
        pictures = len(tokens)
        rows = max(1, self.at_once // max(1, pictures * tokens.shape[-1]))
        again = rows < pictures and torch.is_grad_enabled() and content.requires_grad
        blocks = []
        for start in range(0, pictures, rows):
            parts = (evidence[start : start + rows], content[start : start + rows], evidence[start:], content[start:])
            block = checkpoint(self._block, *parts, use_reentrant=False) if again else self._block(*parts)
            blocks.append(nn.functional.pad(block, (start, 0)))
        upper = torch.cat(blocks) if blocks else evidence.new_zeros(0, 0)
        return upper - upper.T

    def attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the relation tokens find in each picture; see `summarise`."""
        # made again for the backward pass: cheap beside the fusion, and nothing over P is kept
        evidence, content = checkpoint(self._summaries, tokens, use_reentrant=False, preserve_rng_state=False)
        return evidence, content

    def _summaries(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.query_norm(self.query(self.relations)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        keys = self.key_norm(self.key(tokens)).unflatten(-1, (self.heads, -1))
        with unchanged(tokens):
            return summarise(full(queries) * queries.shape[-1] ** -0.5, full(keys))

    def _block(self, evidence: Tensor, content: Tensor, other_evidence: Tensor, other_content: Tensor) -> Tensor:
        """Return the rows of the first pictures against the others, which begin with the same: 0 up to the diagonal."""
        with unchanged(content):
            difference = compare((evidence, content), (other_evidence, other_content))
        rows, columns = difference.shape[:2]
        pairs = tuple(torch.triu_indices(rows, columns, offset=1, device=difference.device))
        moved = self.out(difference[pairs].to(self.out.weight.dtype))
        logits = (self._read(moved) - self._read(-moved)) / 2
        return logits.new_zeros(rows, columns).index_put(pairs, logits)

    def _read(self, moved: Tensor) -> Tensor:
        number: Tensor = self.readout(moved if self.norm is None else self.norm(moved))
        return number


class RankerNetwork(nn.Module):
    """Fusion, score head and pair head: what is learnt beside a trunk, whose tokens have the widths given."""

    def __init__(self, image_width: int, text_width: int, settings: RankerSettings) -> None:
        super().__init__()
        self.pool = settings.pool
        self.fusion = Fusion(image_width, text_width, settings)
        self.score_norm = nn.LayerNorm(settings.width)
        self.score = Readout(settings.width, layers=2, bias=True)
        self.pair = PairHead(settings)

    def forward(
        self, image: Tensor, text: Tensor, mask: Tensor | None = None, pairs: bool = True, kept: Kept = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores [K] and logits [K, K] under an instruction, float32 or wider; see `Fusion`.

        Where no pairs are asked for, there are no logits, and each picture may have an instruction of its own; else
        raises `UnsupportedCallError`.
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
