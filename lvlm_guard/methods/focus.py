"""Focus: AGLA's local branch inside the model's own KV cache.

Ours. The local branch is the global one with the irrelevant image tokens taken out of its cache: it shares what the
model has computed for the tokens that matter and reads only the text behind the picture again. No second picture is
encoded:

    assembled = l + alpha * l_focus    within the plausibility constraint on l

Related: AGLA (arXiv:2406.12718) reads a second, masked picture; API prompting (arXiv:2409.17143) overlays the map on
it; HALC (arXiv:2403.00425) reads crops; SID (arXiv:2408.02032) keeps the *least* attended image tokens and subtracts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine import Branch, Call, Complement, knob, plausibility, weight
from lvlm_guard.errors import UnsupportedCallError, UnsupportedModelError
from lvlm_guard.matching.attention import Attention, attended
from lvlm_guard.matching.cells import token_relevance
from lvlm_guard.matching.relevance import kept_tokens
from lvlm_guard.matching.views import check_share, matcher_of, matches_of


@dataclass(frozen=True)
class Focus(Complement):
    """Two branches, l + alpha * l_focus, then the plausibility cut on l.

    Args:
        alpha: weight of the local branch, >= 0. Equal branches are sharpened to temperature 1 / (1 + alpha).
        beta: plausibility cut, a share of the best token's probability, 0 to 1.
        share: how many of each picture's image tokens stay, the most relevant ones, above 0 to 1; at 1 the branch is
            the global one. Tokens that show nothing (ends of lines) always stay. On the embedded world's validation
            split fewer rank questions better (.1 > .25 > .4 > .5) and cost captions objects: a quarter is where
            captions lose none that can be told.
        matcher: what finds the relevant part: a registered name, a hub id or folder, a matcher, None for the model's
            default (`blip-itm`), or "attention" for where the model itself looks, which is measured to be worse.
    """

    paper: ClassVar[str] = "ours"
    cost: ClassVar[str] = "a matcher's map, the text behind the picture read again at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    sampled: ClassVar[bool] = False
    alpha: float = weight(2.0)
    beta: float = plausibility(0.5)
    share: float = knob(0.25, check_share)
    matcher: Any = None

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("local", hides=self._hides),)

    def check(self, call: Call) -> None:
        """Raise `TextError` where a picture comes without a question, `WeightsError` without a matcher,
        `UnsupportedModelError` where hiding is not proven, `UnsupportedCallError` beside second pictures."""
        matcher = matcher_of(call, self.matcher)
        if isinstance(matcher, Attention):
            _ = call.image_positions, call.decoder
        else:
            call.require_text()
        if not call.family.proof.hides:
            reason = call.family.proof.why.get("hides", "that was not tried (check='never')")
            raise UnsupportedModelError(
                f"`focus` hides image tokens, which is not proven right on a {type(call.model).__name__}: {reason}. "
                "Use 'agla', which paints the picture itself; `lvlm-guard doctor --families` says where `focus` works."
            )
        if call.pictures.given:
            raise UnsupportedCallError(
                "guard_images are second pictures, but `focus` reads no second picture: it hides a part of the first. "
                "Leave guard_images out, or use 'agla'."
            )

    def _hides(self, call: Call) -> Tensor:
        """Mark the image tokens outside the most relevant share of their picture, [B, T] bool."""
        if isinstance(matcher_of(call, self.matcher), Attention):
            return self._hidden(call, [[kept_tokens(one, self.share)] for one in attended(call)])
        matches = matches_of(call, self.matcher, self.share)
        found = token_relevance(call, [match.relevance for match in matches])
        # a matcher that abstains gives a constant map, and hides nothing
        shares = [self.share if match.relevance.min() < match.relevance.max() else 1.0 for match in matches]
        kept = iter([kept_tokens(tokens, share) for tokens, share in zip(found, shares, strict=True)])
        return self._hidden(call, [[next(kept) for _ in row] for row in call.requests()])

    @staticmethod
    def _hidden(call: Call, rows: list[list[Tensor]]) -> Tensor:
        hides = torch.zeros_like(call.image_positions)
        for request, kept in enumerate(rows):
            places = call.image_positions[request].nonzero().flatten()
            if len(places) != sum(map(len, kept)):
                raise UnsupportedCallError(
                    f"Request {request} holds {len(places)} image tokens, its pictures have "
                    f"{sum(map(len, kept))}: truncation may have cut some. Leave it out, or pass guard=False."
                )
            if kept:
                hides[request, places] = ~torch.cat(kept).to(places.device)
        return hides
