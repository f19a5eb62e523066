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

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import LogitsError, UnsupportedModelError, WeightsError
from lvlm_guard.matching.asking import Asked, asked
from lvlm_guard.matching.detector import Boxes, DetectorMatcher, best, corners_of
from lvlm_guard.matching.match import Matcher, unaffected
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.vocabulary import Vocabulary, article

if TYPE_CHECKING:
    from transformers import PreTrainedModel

USUAL = "google/owlv2-base-patch16-ensemble"
CUSTOMARY = {"owlv2": 0.1, "owlvit": 0.1, "grounding-dino": 0.25, "mm-grounding-dino": 0.25}
"""The threshold that each is post-processed with; without a calibration it stands for p = .5."""
PICTURES, PHRASES = 16, 4096
"""Encoded by OWLv2 and remembered; a picture takes some megabytes."""


class OpenDetector(DetectorMatcher):
    """A matcher on an open-vocabulary detector.

    Args:
        model: Grounding DINO, OWLv2 or OWL-ViT; its config may hold what a closed-set detector's may.
        processor: its processor of pictures and texts.
        name: what `version` calls it.

    Raises:
        UnsupportedModelError: it is another model.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, name: str = "open-detector") -> None:
        self.model, self.processor = model.eval(), processor
        kind = model.config.model_type
        if kind not in CUSTOMARY:
            raise UnsupportedModelError(f"{name!r} is of the type {kind!r}: give one of {', '.join(CUSTOMARY)}.")
        self._listed = Vocabulary.of(None).names
        self._encodes_apart = kind in ("owlv2", "owlvit")
        self._settle(frozenset(self._listed), f"{name}:{kind}", CUSTOMARY[kind])
        self._pictures: Recent[bytes, tuple[Tensor, Tensor]] = Recent(PICTURES)
        self._phrases: Recent[str, Tensor] = Recent(PHRASES)

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> Matcher:
        """Load a detector from a folder or the hub; raises `WeightsError` where it can't be had."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        try:
            model = AutoModelForZeroShotObjectDetection.from_pretrained(source)
            processor = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"The detector {str(source)!r} can't be loaded ({error}). Give a folder or hub id of Grounding DINO or "
                "OWLv2, or fetch it first: `hf download ID`."
            ) from error
        return cls(model.to(torch.device(device or "cpu")), processor)

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load the usual detector, where the model is; raises `WeightsError`."""
        from lvlm_guard.matching.loading import device_of

        return cls.from_pretrained(USUAL, device=device_of(model))

    def forget(self) -> None:
        """Drop what was found in earlier pictures, and their encodings."""
        super().forget()
        self._pictures.clear()

    def asked(self, text: str) -> Asked:
        """Return what a text asks of it."""
        return asked(text, self.known, anything=True)

    def objects(self, image: Image.Image, at: float = 0.5, among: Vocabulary | None = None) -> list[str]:
        """Return the objects that a picture holds with a probability of `at` or more; None: among COCO's."""
        names = self._listed if among is None else among.names
        (seen,) = self.boxes([image], [names])
        return sorted(name for name in names if self.probability(seen, name) >= at)

    def boxes(
        self, images: Sequence[Image.Image], names: Sequence[Sequence[str]] | None = None
    ) -> list[Mapping[str, Boxes]]:
        """Return each picture's objects with their boxes; each is looked for once in a picture.

        Args:
            images: the pictures.
            names: of each the objects to look for; None: COCO's in all.

        Raises:
            LogitsError: the detector's scores hold NaN.
        """
        found: dict[bytes, dict[str, Boxes]] = {}
        keys = [digest(image) for image in images]
        for key, image, wanted in zip(keys, images, names or [self._listed] * len(images), strict=True):
            held = found.setdefault(key, dict(self._found.get(key) or {}))
            new = [name for name in dict.fromkeys(wanted) if name not in held]
            if new:
                look = self._apart if self._encodes_apart else self._together
                rgb = image if image.mode == "RGB" else image.convert("RGB")
                with unaffected(self.model.device):
                    held |= look(key, rgb, new)
                self._found.put(key, held)
        return [found[key] for key in keys]

    def _apart(self, key: bytes, image: Image.Image, names: Sequence[str]) -> dict[str, Boxes]:
        """Look for objects with OWLv2 or OWL-ViT."""
        features, corners = self._encoded(key, image)
        queries = torch.stack([self._phrase(name) for name in names])
        model: Any = self.model
        logits = model.class_predictor(features, queries[None].to(features), None)[0]
        scores = _checked(logits[0]).sigmoid()
        return {name: best(scores[:, column], corners) for column, name in enumerate(names)}

    def _encoded(self, key: bytes, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return a picture's features [1, n, D], and the corners of the box that each of them predicts [n, 4]."""
        held = self._pictures.get(key)
        if held is None:
            model: Any = self.model
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
            cells = model.image_embedder(pixel_values=pixels.to(model.device, model.dtype))[0]
            features = cells.flatten(1, 2)
            places = _checked(model.box_predictor(features, cells)[0])
            if model.config.model_type == "owlv2":  # in shares of a square, the picture at its top left
                places = places * (max(image.size) / torch.tensor([*image.size, *image.size]))
            held = features, corners_of(places)
            self._pictures.put(key, held)
        return held

    def _phrase(self, name: str) -> Tensor:
        held = self._phrases.get(name)
        if held is None:
            model: Any = self.model
            told = self.processor(text=[f"a photo of {article(name)} {name}"], return_tensors="pt").to(model.device)
            tower = getattr(model, model.base_model_prefix)
            held = tower.get_text_features(**told).pooler_output[0]
            held = held / held.norm()
            self._phrases.put(name, held)
        return held

    def _together(self, key: bytes, image: Image.Image, names: Sequence[str]) -> dict[str, Boxes]:
        """Look for objects with Grounding DINO: all that are listed in one pass, each other in one of its own."""
        lists = [self._listed] if any(name in self.known for name in names) else []
        found: dict[str, Boxes] = {}
        for phrases in (*lists, *((name,) for name in names if name not in self.known)):
            text = "".join(f"{phrase}. " for phrase in phrases).strip()
            inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            out = self.model(**inputs)
            pieces = _checked(out.logits[0]).sigmoid()  # of what is no piece the logits are minus infinity
            corners = corners_of(_checked(out.pred_boxes[0]))
            start, offsets = 0, self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            for phrase in phrases:
                end = start + len(phrase)
                columns = [at for at, (left, right) in enumerate(offsets) if start <= left < right <= end]
                found[phrase] = best(pieces[:, columns].mean(-1), corners)
                start = end + len(". ")
        return found


def _checked(found: Tensor) -> Tensor:
    if bool(found.isnan().any()):
        raise LogitsError("The detector's scores hold NaN: its weights overflow. Load it in float32.")
    return found.float().cpu()
