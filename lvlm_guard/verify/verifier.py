"""How the answers of a guarded `generate()` are verified: `generate(..., verify=True)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import KnobError
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.matching.vocabulary import Objects
from lvlm_guard.verify.check import SWAPS, Checked, verify_answer
from lvlm_guard.verify.verdict import Thresholds

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.method import Method
    from lvlm_guard.matching import Matcher


@dataclass(frozen=True)
class Verifier:
    """Checks each object that an answer names against the pictures of its prompt.

    Args:
        matcher: who judges: as `lvlm_guard.matching.load_matcher` takes it; None for the method's own.
        objects: what is checked, as `Vocabulary.of` reads it; None for the method's own, else COCO's 80 categories.
        thresholds: where verdicts change.
        swaps: objects that each mentioned one stands against, for matchers that compare.
    """

    matcher: Any = None
    objects: Objects = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    swaps: int = SWAPS

    def __post_init__(self) -> None:
        if isinstance(self.objects, list):
            object.__setattr__(self, "objects", tuple(self.objects))
        Vocabulary.of(self.objects)
        if self.swaps < 0:
            raise KnobError(f"swaps is {self.swaps}: give 0 (the matcher's own probability) or more.")

    @classmethod
    def of(cls, asked: Any) -> Verifier:
        """Return what `verify=` stands for.

        Raises:
            KnobError: it is neither True nor a Verifier.
        """
        if asked is True:
            return cls()
        if isinstance(asked, cls):
            return asked
        raise KnobError(f"verify is {asked!r}: give True, or a lvlm_guard.verify.Verifier(matcher=..., objects=...).")

    def judge(self, method: Method, model: Any) -> Matcher:
        """Return the matcher that judges a guarded model's answers; raises `WeightsError` where it can't be had."""
        asked = self.matcher if self.matcher is not None else getattr(method, "matcher", None)
        return load_matcher(asked, model=model)

    def bound(self, call: Call, method: Method) -> Callable[[int, str], list[Checked]]:
        """Return what checks the answers of one call: (request, text) -> verdicts; none where it has no picture.

        Raises:
            MissingViewError: the call's inputs came without their pictures.
            WeightsError: the matcher can't be loaded.
            UnsupportedCallError: it can't judge claims.
        """
        vocabulary = Vocabulary.of(self.objects or getattr(method, "objects", None))
        requests = call.requests() if any(call.has_picture) else [[] for _ in call.has_picture]
        matcher = self.judge(method, call.model)
        matcher.expect(sum(map(len, requests)))
        if not matcher.compares or not self.swaps:
            matcher.require_support()

        def check(request: int, text: str) -> list[Checked]:
            images = [view.image for view in requests[request]]
            return verify_answer(matcher, images, text, vocabulary, self.thresholds, self.swaps) if images else []

        return check
