"""Where a matcher looks for a text, and what it holds of the objects that an answer names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvlm_guard.matching import Matcher, Vocabulary
from lvlm_guard.report.answer import Looked
from lvlm_guard.verify import Checked, verify_answer
from lvlm_guard.verify.check import claim_of

if TYPE_CHECKING:
    from PIL.Image import Image


class Judge:
    """A matcher and the objects that it is asked about.

    Args:
        matcher: as `lvlm_guard.matching.load_matcher` returns it.
        objects: what is verified in an answer, as `Vocabulary.of` reads it; None for COCO's 80 categories.
    """

    def __init__(self, matcher: Matcher, objects: Any = None) -> None:
        self.matcher = matcher
        self._vocabulary = Vocabulary.of(objects)

    def looked(self, picture: Image, text: str) -> Looked:
        """Return where the matcher looks for a text; raises `TextError` where it is empty."""
        (match,) = self.matcher([picture], [text])
        keep = match.keep.cpu().numpy()
        said = f"Matched with “{text}”: score {match.score:.3f}, {keep.mean():.0%} of the picture kept."
        return Looked(picture, match.relevance.cpu().numpy(), keep, caption=f"{said} {match.note or ''}".strip())

    def looked_for(self, picture: Image, name: str) -> Looked:
        """Return where the matcher looks for an object of the list."""
        return self.looked(picture, claim_of(self.matcher, name))

    def verdicts(self, picture: Image, answer: str) -> list[Checked]:
        """Return what is held of each object that an answer names.

        Raises:
            UnsupportedCallError: the matcher gives maps only.
        """
        return verify_answer(self.matcher, [picture], answer, self._vocabulary)

    def knows(self, name: str) -> bool:
        """Return whether an object is on the list; what a browser sends may be anything."""
        return name in self._vocabulary.names

    def forget(self) -> None:
        """Drop what was computed of pictures."""
        self.matcher.forget()


def objects_of(objects: str | None, embedded: bool) -> str | Sequence[str] | None:
    """Return the list of what is verified: the user's, else the embedded model's own objects, else COCO's (None)."""
    if objects is None and embedded:
        from lvlm_guard.embedded.world import CLASSES

        return tuple(CLASSES)
    return objects
