"""What the loop asks of a thing to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

Figures = Mapping[str, float]
"""What a measurement found, by name."""


class Task(Protocol):
    """Batches, a loss, and a measure."""

    keeps_all: bool
    """Whether the weights of every measurement are wanted at the end, or those of the best alone."""

    @property
    def model(self) -> nn.Module:
        """What learns."""

    def batch(self, number: int) -> Any:
        """Return batch `number` of the training, which depends on the number and the seed alone."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and what it is made of.

        Args:
            model: `self.model`, wrapped for distributed training where it is; call it once.
            batch: of `batch`.
        """

    def measure(self) -> Figures:
        """Return figures on validation."""

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether a measurement is chosen over the best so far."""
