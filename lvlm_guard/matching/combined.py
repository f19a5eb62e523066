"""Matchers made of others: several as one (`Combined`), and any callable of the caller's own (`Foreign`).

Several are one by the mean of the log-odds of those that have an opinion. "detector+blip-itm" asks a detector and
BLIP-ITM. On a claim that none of them knows it abstains, as they do. The map is that of the first matcher that knows
what the text asks; the last one's where none does. Each should be calibrated: a mean of log-odds on different scales is
one matcher's opinion and another's noise.

"2*blip-itm+1*clip@saliency" weighs them: log-odds and maps are weighted means, and a part that gives maps only has no
say in the odds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching.match import ABSTAIN, Match, Matcher


class Combined(Matcher):
    """A matcher of several; raises `KnobError` where they are fewer than two, or the weights are none.

    Args:
        parts: two or more, the one whose maps come first at the front.
        weights: of each, above 0, for weighted means of odds and of maps; None for equal odds and the first's map.
    """

    def __init__(self, parts: Sequence[Matcher], weights: Sequence[float] | None = None) -> None:
        if len(parts) < 2:
            raise KnobError("Matchers are combined of two or more: write 'detector+blip-itm'.")
        if weights is not None and (len(weights) != len(parts) or not all(0 < w < math.inf for w in weights)):
            raise KnobError(f"The weights of {len(parts)} matchers are {list(weights)}: give each a number above 0.")
        self.parts, self.weights = tuple(parts), None if weights is None else tuple(weights)

    @property
    def version(self) -> str:
        """The parts' versions, with their weights."""
        weights = [f"{weight:g}*" for weight in self.weights] if self.weights else [""] * len(self.parts)
        return "+".join(weight + part.version for weight, part in zip(weights, self.parts, strict=True))

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where a part gives maps only, of weighted ones where all do."""
        self._judging()

    def _judging(self) -> list[tuple[Matcher, float]]:
        """Return the parts that give probabilities, with their weights; raises as `require_support`."""
        found, refused = list[tuple[Matcher, float]](), None
        for part, weight in zip(self.parts, self.weights or [1.0] * len(self.parts), strict=True):
            try:
                part.require_support()
                found.append((part, weight))
            except UnsupportedCallError as error:
                refused = error
        if refused is not None and (self.weights is None or not found):
            raise refused
        return found

    def expect(self, pictures: int) -> None:
        """Make room for a call's pictures in each part."""
        for part in self.parts:
            part.expect(pictures)

    def forget(self) -> None:
        """Let each part forget."""
        for part in self.parts:
            part.forget()

    def knows(self, claims: Sequence[str]) -> list[bool]:
        """Return on which claims any part has an opinion."""
        return [any(told) for told in zip(*(part.knows(claims) for part in self.parts), strict=True)]

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the combined probability that claim i holds in image i, [n]; `ABSTAIN` where no part knows."""
        odds, opinions = torch.zeros(len(claims), dtype=torch.float64), torch.zeros(len(claims), dtype=torch.float64)
        for part, weight in self._judging():
            known = [index for index, knows in enumerate(part.knows(claims)) if knows]
            if known:
                p = part.support_pairs([images[i] for i in known], [claims[i] for i in known])
                odds[known] += weight * p.double().logit()
                opinions[known] += weight
        mean = (odds / opinions.where(opinions > 0, 1)).sigmoid()
        return torch.where(opinions > 0, mean, ABSTAIN).float()

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i, by the first part that knows what the text asks; weighted ones by all that do."""
        if self.weights is not None:
            told = [(part(images, texts), part.knows(texts)) for part in self.parts]
            return [
                _mean([(found[i], w) for (found, knows), w in zip(told, self.weights, strict=True) if knows[i]])
                or told[-1][0][i]
                for i in range(len(texts))
            ]
        known = [part.knows(texts) for part in self.parts[:-1]]
        chosen = [next((k for k, knows in enumerate(known) if knows[i]), len(known)) for i in range(len(texts))]
        found: dict[int, Match] = {}
        for k, part in enumerate(self.parts):
            mine = [i for i, of in enumerate(chosen) if of == k]
            if mine:
                found |= dict(zip(mine, part([images[i] for i in mine], [texts[i] for i in mine]), strict=True))
        return [found[i] for i in range(len(texts))]


def _mean(found: Sequence[tuple[Match, float]]) -> Match | None:
    """Return the weighted mean of matches, smaller maps enlarged to the largest, whatever their order; None of none."""
    if not found:
        return None
    size = max(tuple(match.relevance.shape) for match, _ in found)
    total = math.fsum(w for _, w in found)
    maps = [interpolate(match.relevance[None, None].double(), size, mode="bilinear")[0, 0] * w for match, w in found]
    score = math.fsum(match.score * w for match, w in found) / total
    notes = sorted({match.note for match, _ in found if match.note})
    return Match((torch.stack(maps).sum(0) / total).float(), score, "; ".join(notes) or None)


class Foreign(Matcher):
    """Wraps a callable, and its `support(image, claims)`, if there is one.

    Of (list of RGB pictures, list of texts) it gives a list: a match each, or a map [h, w] as a tensor or an array, of
    bools, a segmenter's mask, which stays as it is, or of numbers, more where it matters more.
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
        """Match image i with text i; raises `KnobError` where the callable gave something else."""
        matches = [_as_match(found) for found in self.call(list(images), list(texts))]
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


def _as_match(found: Any) -> Any:
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
