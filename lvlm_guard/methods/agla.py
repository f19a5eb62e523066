"""AGLA: add what the model says of the picture's relevant part alone.

Source: An et al., "Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of
Global and Local Attention", CVPR 2025, arXiv:2406.12718. A matcher (BLIP-ITM with GradCAM) says which
pixels matter to the question; the rest is painted black; the logits for both pictures are added (eq. 8)
within the plausibility constraint.

Differs from the authors' release: the local branch has a KV cache of its own (theirs copies the global
one's at every step, so the masked picture acts on the first token only), and the arithmetic is float32.
`agla-official` (`evals/decoders/published.py`) is the release.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lvlm_guard.engine import Branch, Call, Complement, choice, knob, plausibility, weight
from lvlm_guard.matching.views import Frame, check_share, masked_view, matcher_of


@dataclass(frozen=True)
class AGLA(Complement):
    """Two branches, l + alpha * l_local, then the plausibility cut on l.

    Args:
        alpha: weight of the local branch, >= 0; 2 in the paper. Equal branches are sharpened to
            temperature 1 / (1 + alpha): report sampling at that temperature beside it.
        beta: plausibility cut, a share of the best token's probability, 0 to 1; .5 in the paper.
        matcher: what finds the relevant pixels: a registered name, a hub id or folder, a matcher, or
            None for the model's default (`blip-itm`).
        frame: where the mask is painted. "squashed" is the paper's (the picture squeezed to the
            matcher's square), "original" keeps the picture's shape; "auto" takes "squashed" unless
            the family's number of image tokens depends on the picture's shape.
        share: which share of the picture stays, above 0 to 1; None for the paper's rule, which keeps more of a picture
            that matches the question less (half of it or more).
    """

    paper: ClassVar[str] = "arXiv:2406.12718"
    cost: ClassVar[str] = "a matcher's map, a second branch at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    alpha: float = weight(2.0)
    beta: float = plausibility(0.5)
    matcher: Any = None
    frame: Frame = choice("auto", "squashed", "original")
    share: float | None = knob(None, check_share)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("local", pixels=lambda call: masked_view(call, self.matcher, self.frame, self.share)),)

    def check(self, call: Call) -> None:
        """Raise `TextError` where a picture comes without a question, `WeightsError` without a matcher."""
        call.require_text()
        if not call.pictures.given:
            matcher_of(call, self.matcher)
