"""From a vector to a number."""

from __future__ import annotations

from torch import Tensor, nn

from lvlm_guard.adapters.losses.precision import full, unchanged


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
