"""From picture files to masks and scores; runs in the worker thread, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL.Image import Image

from lvlm_guard.errors import GuardError
from lvlm_guard.images import load_image
from lvlm_guard.matching import Matcher
from lvlm_guard.serve.maskd.asks import FORMATS, Answer, Ask
from lvlm_guard.serve.settings import Limits
from lvlm_guard.serve.wire import pack_mask, pack_scores

Outcome = Answer | Exception
Seen = tuple[Ask, Image]


class Matching:
    """Answers batches of asks by a matcher. What is amiss with one ask leaves the others alone.

    Args:
        matcher: gives masks and scores.
        limits: of pixels.
    """

    def __init__(self, matcher: Matcher, limits: Limits) -> None:
        self.matcher = matcher
        self._pixels = limits.pixels

    def __call__(self, asks: Sequence[Ask]) -> list[Outcome]:
        """Return for each ask its text on the wire, or what is wrong with it."""
        found: dict[Ask, Outcome] = {}
        group: list[Seen] = []
        decoded: dict[bytes, Image] = {}
        for ask in asks:
            image = decoded.get(ask.digest)
            if image is None:
                try:
                    image = load_image(ask.image, max_pixels=self._pixels, formats=FORMATS)
                except GuardError as error:
                    found[ask] = error
                    continue
                # decoded pictures are large: no more of them at once than one request may bring
                if sum(map(_pixels, decoded.values())) + _pixels(image) > self._pixels:
                    found |= self._answered(group)
                    group, decoded = [], {}
                decoded[ask.digest] = image
            group.append((ask, image))
        found |= self._answered(group)
        return [found[ask] for ask in asks]

    def _answered(self, group: list[Seen]) -> dict[Ask, Outcome]:
        found: dict[Ask, Outcome] = {}
        for kind, answer in (("mask", self._masks), ("scores", self._scores)):
            seen = [(ask, image) for ask, image in group if ask.kind == kind]
            found |= dict(zip((ask for ask, _ in seen), _apart(answer, seen), strict=True))
        return found

    def _masks(self, seen: Sequence[Seen]) -> list[Answer]:
        matches = self.matcher([image for _, image in seen], [ask.texts[0] for ask, _ in seen])
        return [Answer(pack_mask(match.keep.cpu().numpy()), match.note or "") for match in matches]

    def _scores(self, seen: Sequence[Seen]) -> list[Answer]:
        self.matcher.require_support()
        pairs = [(image, claim) for ask, image in seen for claim in ask.texts]
        p = self.matcher.support_pairs([image for image, _ in pairs], [claim for _, claim in pairs]).tolist()
        texts, start = [], 0
        for ask, _ in seen:
            texts.append(Answer(pack_scores(ask.texts, p[start : start + len(ask.texts)])))
            start += len(ask.texts)
        return texts


def _apart(answer: Callable[[Sequence[Seen]], list[Answer]], seen: list[Seen]) -> list[Outcome]:
    """Answer together; where that fails, each alone, so that the fault stays with its own ask."""
    if not seen:
        return []
    try:
        return list(answer(seen))
    except Exception as error:  # of any matcher; the caller tells the client, by its kind
        if len(seen) == 1:
            return [error]
    return [outcome for one in seen for outcome in _apart(answer, [one])]


def _pixels(image: Image) -> int:
    return image.width * image.height
