"""The local branch's pictures: matched with the question, masked, and turned into the model's tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.loading import Spec, load_matcher
from lvlm_guard.matching.match import local_view

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.pictures import View
    from lvlm_guard.matching.match import Match, Matcher

Frame = Literal["auto", "squashed", "original"]


def check_share(share: float, _: str = "") -> None:
    """Raise `KnobError` unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise KnobError(
            f"share is {share!r}, but it says how much of the picture stays: give a number above 0 (0.25 keeps the "
            "most relevant quarter) up to 1 (all of it)."
        )


def matcher_of(call: Call, spec: Spec) -> Matcher:
    """Return a call's matcher, with room for its pictures; the trace names its version. May raise `WeightsError`."""
    matcher = load_matcher(spec, model=call.model)
    matcher.expect(len(call.pictures.views()))
    call.trace.knobs["matcher"] = matcher.version
    return matcher


def matches_of(call: Call, matcher: Spec, share: float | None) -> list[Match]:
    """Match every picture of a call with its question, picture after picture.

    The trace gets the matches and what is kept: a share of each picture, or by AGLA's own rule, by the match's score.
    """
    views = call.pictures.views()
    found = load_matcher(matcher, model=call.model)([view.image for view in views], [view.text for view in views])
    matches = [match if share is None else replace(match, share=share) for match in found]
    noted = {known["image"] for known in call.trace.matches}
    for view, match in zip(views, matches, strict=True):
        call.trace.view(view.index).match = match
        if view.index not in noted:
            kept = float(match.keep.float().mean()) if share is None else share
            told = {"image": view.index, "text": view.text, "score": match.score, "kept": kept}
            call.trace.matches.append(told)
        if match.note:
            call.trace.note(match.note)
    return matches


def masked_view(call: Call, matcher: Spec, frame: Frame, share: float | None = None) -> dict[str, Tensor]:
    """Return the image tensors of a branch that sees what matters to the question and black elsewhere.

    `frame` is `local_view`'s; "auto" is "squashed" unless the family's number of image tokens depends on the picture's
    shape. The other arguments are those of `matches_of`.
    """
    if frame == "auto":
        frame = "squashed" if call.family.fixed_size else "original"

    def draw(views: list[View]) -> list[Image]:
        matches = matches_of(call, matcher, share)
        return [local_view(view.image, match, frame) for view, match in zip(views, matches, strict=True)]

    return call.redraw(draw)
