"""The local branch's pictures: matched with the question, masked, and turned into the model's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.loading import Spec, load_matcher
from lvlm_guard.matching.match import local_view

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lvlm_guard.engine.call import Call, View

Frame = Literal["auto", "squashed", "original"]


def check_frame(frame: str) -> None:
    """Raise `KnobError` unless the frame is one of three."""
    if frame not in ("auto", "squashed", "original"):
        raise KnobError(f"frame is {frame!r}: give 'auto', 'squashed' or 'original'.")


def masked_view(call: Call, matcher: Spec, frame: Frame) -> dict[str, Tensor]:
    """Return the image tensors of a branch that sees what matters to the question and black elsewhere.

    Args:
        call: the guarded call; its trace gets the matches and what was kept.
        matcher: see `load_matcher`.
        frame: see `local_view`; "auto" is "squashed" unless the family's number of image tokens depends on the
            picture's shape.
    """
    if frame == "auto":
        frame = "squashed" if call.family.fixed_size else "original"

    def draw(views: list[View]) -> list[Image]:
        chosen = load_matcher(matcher, model=call.model)
        matches = chosen([view.image for view in views], [view.text for view in views])
        drawn = []
        noted = {found["image"] for found in call.trace.matches}
        for view, match in zip(views, matches, strict=True):
            call.trace.view(view.index).match = match
            kept = float(match.keep.float().mean())
            if view.index not in noted:
                found = {"image": view.index, "text": view.text, "score": match.score, "kept": kept}
                call.trace.matches.append(found)
            if match.note:
                call.trace.note(match.note)
            drawn.append(local_view(view.image, match, frame))
        return drawn

    return call.redraw(draw)
