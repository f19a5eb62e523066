"""`ranker`: a ranking-aware CLIP as matcher; what `lvlm-guard train ranker` writes on counts.

It answers one question: is there any of an object? The score is 1 - P(none), calibrated on validation; the map is the
gradient of the count times the attention to its instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.adapters.matchers import (
    EDGE,
    MATCH_BYTES,
    AdapterMatcher,
    object_of,
    objects_in,
    place_for,
    required,
)
from lvlm_guard.adapters.ranker.card import absence
from lvlm_guard.adapters.ranker.ranker import PATH, Ranker
from lvlm_guard.adapters.retrieval.claims import TEMPLATE
from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.matching.loading import device_of
from lvlm_guard.matching.match import Match, Matcher
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.matching.vocabulary import Objects, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORES = 1 << 16
NO_OBJECT = "the text names no object, about which alone a ranker can be asked; the whole picture is kept"


class RankerMatcher(AdapterMatcher):
    """A matcher on a ranker.

    Args:
        ranker: calibrated, with an instruction about an object.
        objects: that free texts may name, as `Vocabulary.of` reads it; None for COCO's 80. Questions such as "is there
            a dog?" may ask for any.

    Raises:
        UnsupportedModelError: its instruction is about no object, or its tokens form no square.
        UnsupportedCallError: it is not calibrated.
    """

    name = "ranker"
    template = TEMPLATE

    def __init__(self, ranker: Ranker, objects: Objects = None) -> None:
        ranker.require_calibration()
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
        told = hashlib.blake2b(f"{ranker.card!r}, map of {PATH} places".encode(), digest_size=6)
        for name, value in sorted(ranker.model.state_dict().items()):
            if "original_module" not in name and (".score." in name or ".fusion.in_" in name):
                told.update(value.detach().float().cpu().numpy().tobytes())
        super().__init__(f"ranker:{told.hexdigest()}")
        self._matches: Recent[tuple[bytes, tuple[str, ...]], Match] = Recent(MATCH_BYTES)
        self._present: Recent[tuple[bytes, str], float] = Recent(SCORES)

    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str], *, device: str | torch.device | None = None, objects: Objects = None
    ) -> RankerMatcher:
        """Load a matcher from a ranker's folder, or "embedded".

        Raises:
            WeightsError: it can't be had.
        """
        place = ADAPTERS / cls.name if str(source) == "embedded" else source
        with torch.inference_mode(False):
            ranker = Ranker.from_pretrained(place, device=device)
        if objects is None and ranker.card.backbone == "embedded":
            from lvlm_guard.embedded.catalog import CLASSES

            objects = CLASSES
        return cls(ranker, objects)

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load what the name stands for with a model; raises `WeightsError` where nothing says it."""
        return cls.from_pretrained(place_for(cls.name, model), device=device_of(model))

    @property
    def device(self) -> torch.device:
        """Where the ranker is."""
        device: torch.device = self.ranker.model.device
        return device

    def forget(self) -> None:
        """Drop the matches and scores that are remembered."""
        self._matches.clear()
        self._present.clear()

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with the objects that text i names.

        Several objects have the larger of their maps at each place and the mean of their scores; a text that names
        none has a map and a score that keep the whole picture, and a note.

        Raises:
            TextError: a text is empty.
        """
        return [self._one(image, text) for image, text in zip(images, texts, strict=True)]

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        """Return the probability that each claim holds in the picture, [n] float32 in (0, 1).

        Claims that ask for more than an object's presence have 0.5: a ranker has no opinion on them.

        Raises:
            TextError: a claim is empty.
        """
        return self.support_pairs([image] * len(claims), claims)

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n]; see `support`."""
        keys = {id(image): digest(image) for image in images}
        names = [object_of(required(claim)) for claim in claims]
        asked = {(keys[id(image)], name): image for image, name in zip(images, names, strict=True) if name is not None}
        found = {pair: self._present.get(pair) for pair in asked}
        missing = [pair for pair, p in found.items() if p is None]
        if missing:
            pictures = {pair[0]: asked[pair] for pair in missing}  # one object a picture, so that it is encoded once
            with self._alone():
                values = self.ranker.values([pictures[key] for key, _ in missing], [name for _, name in missing])
            for pair, value in zip(missing, values.tolist(), strict=True):
                p = min(max(1 - absence(value, self.ranker.require_calibration()), EDGE), 1 - EDGE)
                found[pair] = p
                self._present.put(pair, p)
        return torch.tensor(
            [0.5 if name is None else found[keys[id(image)], name] for image, name in zip(images, names, strict=True)]
        )

    def _one(self, image: Image.Image, text: str) -> Match:
        names = tuple(objects_in(required(text), self.vocabulary))
        if not names:
            return Match(torch.ones(self.side, self.side), 0.0, NO_OBJECT)
        key = (digest(image), names)
        held = self._matches.get(key)
        if held is not None:
            return held
        with self._alone():
            each = [self.ranker.relevance(image, name) for name in names]
        calibration = self.ranker.require_calibration()
        cam = torch.stack([heat for heat, _ in each]).amax(0)
        score = sum(1 - absence(value, calibration) for _, value in each) / len(each)
        note = None if float(cam.max()) > float(cam.min()) else "the relevance map is constant, so it says nothing"
        match = Match(heat_map(cam[None], self.side)[0].cpu(), score, note)
        self._matches.put(key, match, match.relevance.nbytes)
        return match
