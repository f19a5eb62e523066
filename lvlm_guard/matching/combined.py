"""Several matchers as one: the mean of the log-odds of those that have an opinion.

"detector+blip-itm" asks a detector and BLIP-ITM. On a claim that none of them knows it abstains, as they do. The
map is that of the first matcher that knows what the text asks; the last one's where none does. Each should be
calibrated: a mean of log-odds on different scales is one matcher's opinion and another's noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.match import ABSTAIN, Match, Matcher


class Combined(Matcher):
    """A matcher of several.

    Args:
        parts: two or more, the one whose maps come first at the front.

    Raises:
        KnobError: fewer than two.
    """

    def __init__(self, parts: Sequence[Matcher]) -> None:
        if len(parts) < 2:
            raise KnobError("Matchers are combined of two or more: write 'detector+blip-itm'.")
        self.parts = tuple(parts)

    @property
    def version(self) -> str:
        """The parts' versions."""
        return "+".join(part.version for part in self.parts)

    def require_support(self) -> None:
        """Raise `UnsupportedCallError` where a part gives maps only."""
        for part in self.parts:
            part.require_support()

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

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return the combined probability of each claim, [n]; `ABSTAIN` where no part knows."""
        return self.support_pairs([image] * len(claims), claims)

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the combined probability that claim i holds in image i, [n]; a part is asked what it knows alone."""
        odds, opinions = torch.zeros(len(claims), dtype=torch.float64), torch.zeros(len(claims), dtype=torch.float64)
        for part in self.parts:
            known = [index for index, knows in enumerate(part.knows(claims)) if knows]
            if known:
                p = part.support_pairs([images[i] for i in known], [claims[i] for i in known])
                odds[known] += p.double().logit()
                opinions[known] += 1
        mean = (odds / opinions.clamp(min=1)).sigmoid()
        return torch.where(opinions > 0, mean, ABSTAIN).float()

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i, by the first part that knows what the text asks."""
        known = [part.knows(texts) for part in self.parts[:-1]]
        chosen = [next((k for k, knows in enumerate(known) if knows[i]), len(known)) for i in range(len(texts))]
        found: dict[int, Match] = {}
        for k, part in enumerate(self.parts):
            mine = [i for i, of in enumerate(chosen) if of == k]
            if mine:
                found |= dict(zip(mine, part([images[i] for i in mine], [texts[i] for i in mine]), strict=True))
        return [found[i] for i in range(len(texts))]
