"""Which of two pictures shows more: the release's attention over a pair, without ever building the pair's tokens.

For each ordered pair (i, j) the release attends from every relation token to the 2P tokens of both pictures in one
softmax, and takes what it gathers from i minus what it gathers from j. With each picture's own log-sum-exp `evidence`
and own softmax average `content`, that one softmax gives picture i the share sigmoid(evidence_i - evidence_j), so

    A_ij = sum_t sigmoid(evidence_it - evidence_jt) * content_it        exactly, for P tokens once a picture

The release's logits depend on the order of the arguments (a bias, and a readout that is no odd function). Here the
difference A_ij - A_ji goes through an odd function, and the lower half of the table is the negated upper half.

The ranker's loss: which of two pictures shows more, and how much each shows. In float32 or wider.

Source: arXiv:2412.06760 and its release, whose target for pairs is repaired here (`ties`): with antisymmetric logits, a
loss that wants "not more" from both sides of a tie, and from each picture against itself, never reaches its minimum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from lvlm_guard.adapters.ranker.card import RankerSettings, Ties
from lvlm_guard.adapters.terms import full, unchanged

AT_ONCE = 2**24
"""Numbers in one tensor of pairs, 64 MB; tables that need more are computed by rows, in training twice."""


def summarise(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each relation token finds in each picture by itself.

    Args:
        queries: [H, Q, e] of the relation tokens, scaled.
        keys: [K, P, H, e] of the pictures' tokens; they are the values too.

    Returns:
        evidence: [K, H, Q], the log of the sum of exponentials over the P tokens.
        content: [K, H, Q, e], their average by softmax.
    """
    keys = keys.transpose(1, 2).contiguous()  # [K, H, P, e]: one copy serves both products
    logits = queries @ keys.transpose(-1, -2)
    return torch.logsumexp(logits, -1), torch.softmax(logits, -1) @ keys


def compare(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Return A_ij - A_ji for each picture i of the first and j of the second, [I, J, H * e].

    Args:
        first, second: evidence [I, H, Q] and content [I, H, Q, e], as `summarise` gives them.
    """
    (evidence, content), (other_evidence, other_content) = first, second
    share = torch.sigmoid(evidence[:, None] - other_evidence[None])  # [I, J, H, Q]
    gathered = torch.einsum("ijht,ihte->ijhe", share, content)
    return (gathered - torch.einsum("ijht,jhte->ijhe", 1 - share, other_content)).flatten(2)


class Readout(nn.Module):
    """Layers of Linear, LayerNorm and ReLU, then one number, which is computed in full precision.

    Args:
        width: of the vectors.
        layers: before the number.
        bias: of the number.
    """

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


class PairHead(nn.Module):
    """Logits that picture i shows more than picture j.

    Args:
        settings: of the ranker.
        at_once: numbers in one tensor of pairs.
    """

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
        """Return the table of logits, [K, K]: antisymmetric bit for bit, above 0 where the row's picture shows more.

        Memory: tensors over P grow with K and are not kept for the backward pass; those over pairs are bounded by
        `at_once`, beside the table itself.

        Args:
            tokens: [K, P, width] of one instruction's pictures.
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
        found: tuple[Tensor, Tensor] = checkpoint(
            self._summaries, tokens, use_reentrant=False, preserve_rng_state=False
        )
        return found

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
