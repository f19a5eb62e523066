"""A matcher of a user's own, small enough to follow by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.matching import Match, Matcher


class Brightness(Matcher):
    """Finds bright pixels relevant, and believes claims by their length and the picture's brightness."""

    def __init__(self, side: int = 32, score: float = 0.8) -> None:
        self.side, self.score, self.calls = side, score, 0

    @property
    def version(self) -> str:
        return f"brightness-{self.side}"

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        self.calls += 1
        return [Match(self._map(image), self.score) for image in images]

    def _map(self, image: Image.Image) -> Tensor:
        grey = np.asarray(image.convert("L").resize((self.side, self.side)), dtype=np.float32)
        return torch.from_numpy((grey - grey.min()) / max(float(np.ptp(grey)), 1.0))

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        bright = float(np.asarray(image.convert("L")).mean()) / 255
        return torch.tensor([(0.1 + bright * (len(claim) % 7) / 7) % 1 for claim in claims]).clamp(0.01, 0.99)
