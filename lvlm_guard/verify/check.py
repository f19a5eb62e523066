"""Verify one claim, or every object that an answer names: `generate(..., verify=True)`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.vocabulary import TEMPLATE, Objects, Vocabulary, claim_about
from lvlm_guard.verify.verdict import Thresholds, Verdict, absolute, against_swaps

if TYPE_CHECKING:
    from PIL import Image

    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.method import Method
    from lvlm_guard.matching import Matcher

SWAPS = 8
"""Objects that a mentioned one stands against."""


@dataclass(frozen=True)
class Mention:
    """An object that a text names: by its name in the vocabulary, the words as written, and where in characters."""

    object: str
    text: str
    start: int
    end: int


def mentions(text: str, vocabulary: Vocabulary) -> list[Mention]:
    """Return what a text names, in order; of names within one another the longest ("hot dog", no "dog").

    A spelling that stands for several objects gives a mention of each.
    """
    spellings = vocabulary.spellings()
    return [
        Mention(name, text[run.start : run.end], run.start, run.end)
        for run in spellings.named(text)
        for name in sorted(spellings[run.spelling])
    ]


@dataclass(frozen=True)
class Checked:
    """A mention, and the verdict on whether its object is in the picture."""

    mention: Mention
    verdict: Verdict


def verify(
    matcher: Matcher,
    image: Image.Image,
    claim: str,
    swaps: Sequence[str] = (),
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Return whether a picture supports a claim.

    Args:
        matcher: with `similarity`, it is asked about claim and swaps; else its `support` decides by itself; with
            neither it raises `UnsupportedCallError`.
        image, claim: the picture and a sentence.
        swaps: sentences that differ from it in one thing and are taken not to hold; none: the matcher's own
            probability decides, and the verdict's `kind` says so.
        thresholds: None for the defaults.
    """
    return _verdicts(matcher, image, [(claim, swaps)], thresholds)[0]


def verify_answer(
    matcher: Matcher,
    images: Sequence[Image.Image],
    text: str,
    vocabulary: Vocabulary,
    thresholds: Thresholds | None = None,
    swaps: int = SWAPS,
) -> list[Checked]:
    """Return a verdict on each object that an answer names, in order; one object has one verdict throughout.

    With several pictures an object is as well supported as in the picture that supports it best.

    Args:
        matcher, thresholds: as in `verify`.
        images: the pictures that the answer is about, at least one.
        text: the answer.
        vocabulary: the objects; others are not checked.
        swaps: how many objects each mentioned one stands against, where the matcher compares; such as the
            answer does not name, since those are likely to be there too.
    """
    found = mentions(text, vocabulary)
    objects = list(dict.fromkeys(mention.object for mention in found))
    best = verify_objects(matcher, images, objects, vocabulary, thresholds, swaps)
    return [Checked(mention, best[mention.object]) for mention in found]


def verify_objects(
    matcher: Matcher,
    images: Sequence[Image.Image],
    objects: Sequence[str],
    vocabulary: Vocabulary,
    thresholds: Thresholds | None = None,
    swaps: int = SWAPS,
) -> dict[str, Verdict]:
    """Return the verdict on each of the objects that one answer names; arguments as in `verify_answer`."""
    others = [name for name in vocabulary.names if name not in objects]
    claims = [
        (claim_of(matcher, name), [claim_of(matcher, other) for other in drawn(name, others, swaps)])
        for name in objects
    ]
    best: dict[str, Verdict] = {}
    for image in images:
        for name, verdict in zip(objects, _verdicts(matcher, image, claims, thresholds), strict=True):
            if name not in best or verdict.p_supported > best[name].p_supported:
                best[name] = verdict
    return best


def _verdicts(
    matcher: Matcher,
    image: Image.Image,
    claims: Sequence[tuple[str, Sequence[str]]],
    thresholds: Thresholds | None,
) -> list[Verdict]:
    """Return the verdict on each claim with its swaps; the matcher is asked once about each sentence."""
    compared = {claim: swaps for claim, swaps in claims if swaps and matcher.compares}
    against = list(dict.fromkeys(text for claim, swaps in compared.items() for text in (claim, *swaps)))
    s = dict(zip(against, matcher.similarity([image], against)[0].tolist(), strict=True)) if against else {}
    alone = [claim for claim, _ in claims if claim not in compared]
    p = dict(zip(alone, matcher.support(image, alone).tolist(), strict=True)) if alone else {}
    known = dict(zip(alone, matcher.knows(alone), strict=True))

    def verdict(claim: str) -> Verdict:
        if claim in compared:
            swaps = [(swap, s[swap]) for swap in compared[claim]]
            return against_swaps(claim, s[claim], swaps, matcher.temperature, thresholds)
        found = absolute(claim, p[claim], thresholds)
        return found if known[claim] else replace(found, kind="abstained", label="unsure")

    return [verdict(claim) for claim, _ in claims]


def claim_of(matcher: Matcher, name: str) -> str:
    """Return the sentence that says an object is there, as a matcher knows it best."""
    return claim_about(name, matcher.template or TEMPLATE)


def drawn(name: str, others: Sequence[str], most: int) -> list[str]:
    """Return the same few others for the same object each time, whatever else is listed before them."""
    return sorted(others, key=lambda other: hashlib.sha256(f"{name}\0{other}".encode()).digest())[:most]


@dataclass(frozen=True)
class Verifier:
    """Checks each object that an answer of a guarded `generate()` names against the pictures of its prompt.

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
        """Return what `verify=` stands for; raises `KnobError` where it is neither True nor a Verifier."""
        if asked is True:
            return cls()
        if isinstance(asked, cls):
            return asked
        raise KnobError(f"verify is {asked!r}: give True, or a lvlm_guard.verify.Verifier(matcher=..., objects=...).")

    def judge(self, method: Method, model: Any) -> Matcher:
        """Return the matcher that judges a guarded model's answers; raises `WeightsError` where it can't be had."""
        from lvlm_guard.matching import load_matcher

        asked = self.matcher if self.matcher is not None else getattr(method, "matcher", None)
        return load_matcher(asked, model=model)

    def bound(self, call: Call, method: Method) -> Callable[[int, str], dict[str, list[Checked]]]:
        """Return what checks the answers of one call: (request, text) -> {"verdicts": ...}, none without a picture.

        Raises `MissingViewError` where the call's inputs came without their pictures, `WeightsError` where the matcher
        can't be loaded, `UnsupportedCallError` where it can't judge claims.
        """
        vocabulary = Vocabulary.of(self.objects or getattr(method, "objects", None))
        requests = call.requests() if any(call.has_picture) else [[] for _ in call.has_picture]
        matcher = self.judge(method, call.model)
        matcher.expect(sum(map(len, requests)))
        if not matcher.compares or not self.swaps:
            matcher.require_support()

        def check(request: int, text: str) -> dict[str, list[Checked]]:
            images, how = [view.image for view in requests[request]], (self.thresholds, self.swaps)
            return {"verdicts": verify_answer(matcher, images, text, vocabulary, *how) if images else []}

        return check
