"""Controls: what a method's gain must be compared with before it is called the method's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.matching import Match, Matcher
from lvlm_guard.matching.memory import digest
from lvlm_guard.matching.relevance import heat_map

CELL = 16  # pixels of the map a random cell covers: the patch of every BLIP, so that both maps are equally smooth


class RandomMap(Matcher):
    """A matcher whose relevance map is noise; its scores, and so the share of pixels kept, are the real ones.

    What AGLA gains with it is the gain of any second, partly blacked view; the rest is the map's merit.
    Each (picture, text, seed) has one map, whatever the batch.

    Args:
        matcher: the real one.
        seed: of the noise.
    """

    def __init__(self, matcher: Matcher, seed: int = 0) -> None:
        self.matcher = matcher
        self.seed = seed

    @property
    def version(self) -> str:
        """Name of the control, its seed, and the matcher whose scores it takes."""
        return f"random-map-{self.seed} of {self.matcher.version}"

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i, and put smooth noise in the place of the map."""
        found = self.matcher(images, texts)
        return [
            replace(match, relevance=self._noise(image, text, match.relevance), note=None, share_on_class=None)
            for match, image, text in zip(found, images, texts, strict=True)
        ]

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return what the real matcher says."""
        return self.matcher.support(image, claims)

    def forget(self) -> None:
        """Let the real matcher forget."""
        self.matcher.forget()

    def _noise(self, image: Image.Image, text: str, like: Tensor) -> Tensor:
        key = blake2b(f"{self.seed} {text}".encode(), key=digest(image), digest_size=8).digest()
        cells = max(2, like.shape[-1] // CELL)
        noise = np.random.default_rng(int.from_bytes(key, "big")).random((cells, cells), dtype=np.float32)
        return heat_map(torch.from_numpy(noise)[None], like.shape[-1])[0]
