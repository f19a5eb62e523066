"""A matcher that is no subclass of ours: any callable `(images, texts) -> list[Match]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.match import Match, Matcher


class Foreign(Matcher):
    """Wraps a callable; its `support(image, claims)` is used for `vote` where it has one.

    Args:
        call: `(list of RGB pictures, list of texts) -> list[Match]`, one match each.
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
            KnobError: the callable gave something else than one `Match` with a map [h, w] for each picture.
        """
        matches = list(self.call(list(images), list(texts)))
        sound = all(isinstance(match, Match) and getattr(match.relevance, "ndim", 0) == 2 for match in matches)
        if len(matches) != len(images) or not sound:
            raise KnobError(
                f"The matcher {self.version!r} gave {[type(match).__name__ for match in matches]} for {len(images)} "
                "pictures: it must give a list with one lvlm_guard.matching.Match(relevance [h, w], score) each."
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
