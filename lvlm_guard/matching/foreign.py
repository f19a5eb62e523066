"""A matcher that is no subclass of ours: any callable `(images, texts) -> list[Match]`, or of masks alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.match import Match, Matcher


class Foreign(Matcher):
    """Wraps a callable; its `support(image, claims)` is used for `vote` where it has one.

    Args:
        call: `(list of RGB pictures, list of texts) -> list`, a match each, or a map [h, w] as a tensor or an array:
            of bools, a segmenter's mask, which stays as it is, or of numbers, more where it matters more.
    """

    def __init__(self, call: Callable[[list[Image.Image], list[str]], Sequence[Match]]) -> None:
        self.call = call
        self._support = getattr(call, "support", None)

    @property
    def version(self) -> str:
        """The callable's own `version`, else its name."""
        kind = type(self.call)
        name = getattr(self.call, "__qualname__", kind.__qualname__)
        return str(getattr(self.call, "version", name))

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i.

        Raises:
            KnobError: the callable gave something else than one `Match` with a map [h, w], or a map, for each picture.
        """
        matches = [_match(found) for found in self.call(list(images), list(texts))]
        sound = all(isinstance(match, Match) and getattr(match.relevance, "ndim", 0) == 2 for match in matches)
        if len(matches) != len(images) or not sound:
            raise KnobError(
                f"The matcher {self.version!r} gave {[type(match).__name__ for match in matches]} for {len(images)} "
                "pictures: it must give a list with one lvlm_guard.matching.Match(relevance [h, w], score) each, or "
                "one map [h, w] of finite numbers or bools."
            )
        return matches

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return what the callable's own `support` gives, [n] float32; raises where it has none."""
        self.require_support()
        found: Any = self._support(image, list(claims))  # type: ignore[misc]  # require_support() checked
        return torch.as_tensor(found, dtype=torch.float32)

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where the callable gives maps only."""
        if not callable(self._support):
            raise self._gives_maps_only()


def _match(found: Any) -> Any:
    """Return a map as a match that tells nothing of how well the text fits; all else as it is."""
    if not isinstance(found, np.ndarray | Tensor) or found.ndim != 2 or 0 in found.shape:
        return found
    told = torch.as_tensor(found).detach().cpu()
    numbers = told.float()
    if not bool(numbers.isfinite().all()):
        return found
    low, span = numbers.min(), numbers.max() - numbers.min()
    relevance = (numbers - low) / span if span > 0 else torch.ones_like(numbers)  # a constant one hides nothing
    return Match(relevance, 0.5, share=float(numbers.mean()) or None if told.dtype == torch.bool else None)
