"""What a call's matcher says of texts about its pictures: each text is asked once a request, all requests together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lvlm_guard.matching.loading import Spec, load_matcher
from lvlm_guard.matching.vocabulary import WORD

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.call import Call


class Poll:
    """A call's matcher and its answers. With several pictures a text holds as well as in the one that it fits best.

    Args:
        call: whose requests are asked about.
        spec: see `load_matcher`.
        by_similarity: whether texts are compared with the pictures where the matcher can; else how probable they are.
    """

    def __init__(self, call: Call, spec: Spec, by_similarity: bool = False) -> None:
        self.matcher = load_matcher(spec, model=call.model)
        self.compares = by_similarity and self.matcher.compares
        self._pictures = [[view.image for view in row] for row in call.requests()]
        self._said: list[dict[str, float | None]] = [{} for _ in self._pictures]

    def ask(self, pairs: Iterable[tuple[int, str]]) -> None:
        """Ask what is not known yet of (request, text), in this order; nobody is asked about a text without words."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair[1] not in self._said[pair[0]]]
        for request, text in missing:
            self._said[request][text] = None
        some = [pair for pair in missing if (pair[1].strip() if self.compares else WORD.search(pair[1]))]
        if self.compares:
            for request in dict.fromkeys(request for request, _ in some):
                texts = [text for of, text in some if of == request]
                best = self.matcher.similarity(self._pictures[request], texts).amax(0).tolist()
                self._said[request] |= dict(zip(texts, best, strict=True))
        else:
            knows = self.matcher.knows([text for _, text in some])
            known = [pair for pair, told in zip(some, knows, strict=True) if told]
            asked = [(request, text, image) for request, text in known for image in self._pictures[request]]
            for (request, text, _), p in zip(asked, self._probable(asked), strict=True):
                self._said[request][text] = max(p, self._said[request][text] or 0.0)

    def _probable(self, asked: list[tuple[int, str, Image]]) -> list[float]:
        if not asked:
            return []
        found: list[float] = self.matcher.support_pairs([one[2] for one in asked], [one[1] for one in asked]).tolist()
        return found

    def __call__(self, request: int, text: str) -> float | None:
        """Return a similarity or a probability that was asked for; None where the matcher abstains."""
        return self._said[request][text]
