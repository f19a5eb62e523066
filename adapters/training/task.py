"""What the trainer asks of a thing to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

Figures = Mapping[str, float]
"""What a measurement found, by name."""


class Batches(Protocol):
    """Batches by number; picklable, so that worker processes can make them, however they are started."""

    shares: bool
    """Whether processes make each batch together, each its share; else each makes batches of its own."""

    def batch(self, number: int, share: int = 0, of: int = 1) -> Any:
        """Return batch `number`, which depends on the number and the seed alone.

        Args:
            number: of the batch.
            share: which pictures of it this process reads, every `of`-th from this one, where they are shared.
            of: processes.
        """


class Task(Protocol):
    """Batches, a loss, and a measure."""

    @property
    def batches(self) -> Batches:
        """What makes its batches."""

    keeps_all: bool
    """Whether the weights of every measurement are wanted at the end, or those of the best alone."""

    @property
    def model(self) -> nn.Module:
        """What learns."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and what it is made of.

        Args:
            model: `self.model`, wrapped for distributed training where it is; call it once.
            batch: of `batches`.
        """

    def measure(self) -> Figures:
        """Return figures on validation."""

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether a measurement is chosen over the best so far."""
