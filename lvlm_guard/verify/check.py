"""Verify one claim, or every object that an answer names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from lvlm_guard.matching import Matcher, Vocabulary
from lvlm_guard.matching.vocabulary import article
from lvlm_guard.verify.naming import Mention, mentions
from lvlm_guard.verify.verdict import Thresholds, Verdict, absolute, against_swaps

TEMPLATE = "is there {article} {object} in the image?"
"""The claim that an object is there, for matchers that read questions; see `Matcher.template`."""

SWAPS = 8
"""Objects that a mentioned one stands against."""


@dataclass(frozen=True)
class Checked:
    """A mention and what is held of it.

    Args:
        mention: the object, and where the answer names it.
        verdict: whether it is in the picture.
    """

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
        matcher: with `similarity`, it is asked about claim and swaps; else its `support` decides by itself.
        image: the picture.
        claim: a sentence.
        swaps: sentences that differ from it in one thing and are taken not to hold; none: the matcher's own
            probability decides, and the verdict's `kind` says so.
        thresholds: None for the defaults.

    Raises:
        UnsupportedCallError: the matcher gives neither.
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
        matcher: as in `verify`.
        images: the pictures that the answer is about, at least one.
        text: the answer.
        vocabulary: the objects; others are not checked.
        thresholds: None for the defaults.
        swaps: objects that each mentioned one stands against, where the matcher compares; such as the
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
    alone = [claim for claim, swaps in claims if not (swaps and matcher.compares)]
    against = list(dict.fromkeys(s for claim, swaps in claims if swaps and matcher.compares for s in (claim, *swaps)))
    p = dict(zip(alone, matcher.support(image, alone).tolist(), strict=True)) if alone else {}
    unknown = {claim for claim, known in zip(alone, matcher.knows(alone), strict=True) if not known}
    s = dict(zip(against, matcher.similarity([image], against)[0].tolist(), strict=True)) if against else {}
    return [
        against_swaps(claim, s[claim], [(swap, s[swap]) for swap in swaps], matcher.temperature, thresholds)
        if swaps and matcher.compares
        else replace(absolute(claim, p[claim], thresholds), kind="abstained", label="unsure")
        if claim in unknown
        else absolute(claim, p[claim], thresholds)
        for claim, swaps in claims
    ]


def claim_of(matcher: Matcher, name: str) -> str:
    """Return the sentence that says an object is there, as a matcher knows it best."""
    return (matcher.template or TEMPLATE).format(article=article(name), object=name)


def drawn(name: str, others: Sequence[str], most: int) -> list[str]:
    """Return the same few others for the same object each time, whatever else is listed before them."""
    return sorted(others, key=lambda other: hashlib.sha256(f"{name}\0{other}".encode()).digest())[:most]
