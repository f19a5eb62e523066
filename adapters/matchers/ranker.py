"""`ranker`: a ranking-aware CLIP as matcher; what `lvlm-guard train ranker` writes on counts.

It answers one question: is there any of an object? The score is 1 - P(none), calibrated on validation; the map is the
gradient of the count times the attention to its instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.matchers import AdapterMatcher, digested, object_of, objects_in
from lvlm_guard.adapters.ranker.ranker import PATH, Ranker
from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.matching.match import EDGE, Match
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.matching.vocabulary import Objects, Vocabulary

SCORES = 1 << 16
NO_OBJECT = "the text names no object, about which alone a ranker can be asked; the whole picture is kept"


class RankerMatcher(AdapterMatcher):
    """A matcher on a ranker.

    Several objects of a text have the larger of their maps at each place and the mean of their scores; a text that
    names none has a map and a score that keep the whole picture, and a note.

    Args:
        ranker: calibrated, with an instruction about an object.
        objects: that free texts may name, as `Vocabulary.of` reads it; None for COCO's 80. Questions such as "is there
            a dog?" may ask for any.

    Raises:
        UnsupportedModelError: its instruction is about no object, or its tokens form no square.
        UnsupportedCallError: it is not calibrated.
    """

    name = "ranker"

    def __init__(self, ranker: Ranker, objects: Objects = None) -> None:
        ranker.card.absent(0.0)  # raises
        if "{object}" not in ranker.card.instruction:
            raise UnsupportedModelError(
                f"This ranker's instruction is {ranker.card.instruction!r}, which asks for no object, so it can't say "
                "whether there is one: train one on counts."
            )
        self.ranker, self.vocabulary = ranker, Vocabulary.of(objects)
        self.side: int = ranker.inputs.side
        rows, columns = ranker.model.trunk.grid(self.side, self.side)
        if rows != columns:
            raise UnsupportedModelError(f"The CLIP has {rows} x {columns} image tokens; a map needs a square.")
        told = digested(f"{ranker.card!r}, map of {PATH} places", ranker.model, _tells)
        super().__init__(ranker.model, f"ranker:{told.hexdigest()}")
        self._seen: Recent[tuple[bytes, str], float] = Recent(SCORES)

    @classmethod
    def _read(cls, place: str, device: torch.device) -> Self:
        ranker = Ranker.from_pretrained(place, device=device)
        if ranker.card.backbone != "embedded":
            return cls(ranker)
        from lvlm_guard.embedded.catalog import CLASSES

        return cls(ranker, CLASSES)

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """See `Matcher`; claims that ask for more than an object's presence have 0.5: it has no opinion on them."""
        keys = {id(image): digest(image) for image in images}
        asked = [(keys[id(image)], object_of(claim)) for image, claim in zip(images, claims, strict=True)]
        pictures = {pair[0]: image for pair, image in zip(asked, images, strict=True)}  # so that each is encoded once

        def made(missing: list[tuple[bytes, str]]) -> list[float]:
            values = self.ranker.values([pictures[key] for key, _ in missing], [name for _, name in missing])
            return [min(max(1 - self.ranker.card.absent(value), EDGE), 1 - EDGE) for value in values.tolist()]

        with self._alone():
            found = self._seen.filled([(key, name) for key, name in asked if name is not None], made)
        return torch.tensor([0.5 if name is None else found[key, name] for key, name in asked])

    def _asked(self, text: str) -> tuple[str, ...]:
        return tuple(objects_in(text, self.vocabulary))

    def _match(self, images: Sequence[Image.Image], keys: Any, asked: Sequence[tuple[str, ...]]) -> list[Match]:
        return [self._one(image, names) for image, names in zip(images, asked, strict=True)]

    def _one(self, image: Image.Image, names: Sequence[str]) -> Match:
        if not names:
            return Match(torch.ones(self.side, self.side), 0.0, NO_OBJECT)
        each = [self.ranker.relevance(image, name) for name in names]
        cam = torch.stack([heat for heat, _ in each]).amax(0)
        score = sum(1 - self.ranker.card.absent(value) for _, value in each) / len(each)
        note = None if float(cam.max()) > float(cam.min()) else "the relevance map is constant, so it says nothing"
        return Match(heat_map(cam[None], self.side)[0].cpu(), score, note)


def _tells(name: str) -> bool:
    return "original_module" not in name and (".score." in name or ".fusion.in_" in name)
