"""`open-detector`: Grounding DINO and OWLv2, which look for any phrase, as a matcher.

As `detector`, but a phrase need not be a label: "is there a lighthouse?" and "are there two lighthouses?" ask for what
they name, of up to four words; other texts, for COCO's objects that they name. Scores are read from the logits:

    OWLv2 (arXiv:2306.09683)             sigmoid of a phrase's column, in squares of the padded picture
    Grounding DINO (arXiv:2303.05499)    mean over a phrase's pieces of their sigmoids, as its authors do for COCO

OWLv2 reads picture and phrases apart: a picture is encoded once, a new phrase costs a text pass. Grounding DINO reads
both together, and what stands beside a phrase changes its scores, so that the prompt depends on the phrase alone:
COCO's 80 names are one list, any other phrase stands by itself and costs a pass over the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.matching.detector import Boxes, DetectorMatcher, best, checked, corners_of
from lvlm_guard.matching.memory import Recent
from lvlm_guard.matching.vocabulary import Vocabulary, article

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CUSTOMARY = {"owlv2": 0.1, "owlvit": 0.1, "grounding-dino": 0.25, "mm-grounding-dino": 0.25}
"""Model types, and the threshold that each is post-processed with."""
PICTURES, PHRASES = 16, 4096
"""Encoded by OWLv2 and remembered; a picture takes some megabytes."""


class OpenDetector(DetectorMatcher):
    """A matcher on Grounding DINO, OWLv2 or OWL-ViT; raises `UnsupportedModelError` on another model.

    Its arguments are `DetectorMatcher`'s, the processor one of pictures and texts.
    """

    usual = "google/owlv2-base-patch16-ensemble"
    kinds = "Grounding DINO or OWLv2"
    open = True

    def __init__(self, model: PreTrainedModel, processor: Any, name: str = "open-detector") -> None:
        super().__init__(model, processor, name)
        self._pictures: Recent[bytes, tuple[Tensor, Tensor]] = Recent(PICTURES)
        self._phrases: Recent[str, Tensor] = Recent(PHRASES)

    def _told(self, name: str) -> tuple[str, Sequence[str], float]:
        kind = self.model.config.model_type
        if kind not in CUSTOMARY:
            raise UnsupportedModelError(f"{name!r} is of the type {kind!r}: give one of {', '.join(CUSTOMARY)}.")
        return f"{name}:{kind}", Vocabulary.of(None).names, CUSTOMARY[kind]

    @classmethod
    def _read(cls, source: str | PathLike[str]) -> tuple[Any, Any]:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        return AutoModelForZeroShotObjectDetection.from_pretrained(source), AutoProcessor.from_pretrained(source)

    def forget(self) -> None:
        """Drop what was found in earlier pictures, and their encodings."""
        super().forget()
        self._pictures.clear()

    def _look(self, key: bytes, image: Image.Image, names: Sequence[str]) -> dict[str, Boxes]:
        if "grounding" in self.model.config.model_type:
            return self._together(image, names)
        features, corners = self._pictures.filled([key], lambda _: [self._encoded(image)])[key]
        held = self._phrases.filled(names, lambda missing: map(self._phrase, missing))
        queries = torch.stack([held[name] for name in names])
        model: Any = self.model
        logits = model.class_predictor(features, queries[None].to(features), None)[0]
        scores = checked(logits[0]).sigmoid()
        return {name: best(scores[:, column], corners) for column, name in enumerate(names)}

    def _encoded(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return a picture's features [1, n, D], and the corners of the box that each of them predicts [n, 4]."""
        model: Any = self.model
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        cells = model.image_embedder(pixel_values=pixels.to(model.device, model.dtype))[0]
        features = cells.flatten(1, 2)
        places = checked(model.box_predictor(features, cells)[0])
        if model.config.model_type == "owlv2":  # in shares of a square, the picture at its top left
            places = places * (max(image.size) / torch.tensor([*image.size, *image.size]))
        return features, corners_of(places)

    def _phrase(self, name: str) -> Tensor:
        model: Any = self.model
        told = self.processor(text=[f"a photo of {article(name)} {name}"], return_tensors="pt").to(model.device)
        read = getattr(model, model.base_model_prefix).get_text_features(**told).pooler_output[0]
        query: Tensor = read / read.norm()
        return query

    def _together(self, image: Image.Image, names: Sequence[str]) -> dict[str, Boxes]:
        """Look for objects with Grounding DINO: all that are listed in one pass, each other in one of its own."""
        lists = [self.names] if any(name in self.known for name in names) else []
        found: dict[str, Boxes] = {}
        for phrases in (*lists, *((name,) for name in names if name not in self.known)):
            text = "".join(f"{phrase}. " for phrase in phrases).strip()
            out = self._run(self.processor(images=image, text=text, return_tensors="pt"))
            logits = out.logits[0]  # of what is no piece minus infinity
            pieces = checked(logits.clamp(min=torch.finfo(logits.dtype).min)).sigmoid()
            corners = corners_of(out.pred_boxes[0])
            start, offsets = 0, self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            for phrase in phrases:
                end = start + len(phrase)
                columns = [at for at, (left, right) in enumerate(offsets) if start <= left < right <= end]
                found[phrase] = best(pieces[:, columns].mean(-1), corners)
                start = end + len(". ")
        return found
