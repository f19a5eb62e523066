"""`detector`: any stock closed-set object detector of transformers as a matcher: which objects, how many, and where.

One pass over a picture answers every claim about it. Scores are read from the logits, since post-processing keeps but
some of them: at a threshold of 0 RT-DETR's keeps Q of Q x C pairs. Per object, boxes after suppression with scores
s_1 >= s_2 >= ...; P_i = sigmoid(a logit(s_i) + b), with P_1 at least f, the share of present objects that it misses:

    exists P_1    at least k P_k    exactly k P_k (1 - P_(k+1))    needs: P_1 of each, but never more than abstaining

What a text asks beside objects it can't know, and abstains: `asking`. Ours; MARINE (arXiv:2402.08680), Woodpecker
(arXiv:2310.16045) and HALC (arXiv:2403.00425) cut detectors at thresholds instead. A detector of COCO's labels was
taught the very labels that POPE and CHAIR are graded by: show it alone too, and on a set outside COCO.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.errors import LogitsError, UnsupportedModelError, WeightsError
from lvlm_guard.matching.asking import Asked, asked, object_of
from lvlm_guard.matching.match import ABSTAIN, EDGE, Match, Matcher, device_of, unaffected
from lvlm_guard.matching.memory import Recent, digest
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.matching.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIDE = 384
LEAST = 0.02  # boxes below are not kept
BOXES = 16  # kept of an object in a picture
OVERLAP = 0.7  # share of intersection over union from which two boxes are one thing
MISSED = 0.05  # share of present objects without a box, where none was measured
REACH = 0.05  # how far from a box half of the relevance is left, in shares of the picture
FOUND = 0.25  # probability from which an object's boxes make a map
LEAST_SURE = 1e-4  # scores are clipped to it before their log-odds are scaled


@dataclass(frozen=True)
class Boxes:
    """An object's boxes in a picture."""

    scores: Tensor  # falling, [n]
    boxes: Tensor  # left, top, right and bottom in shares of the picture, [n, 4]


class DetectorMatcher(Matcher):
    """A matcher on a closed-set detector; raises `UnsupportedModelError` where its labels name no object.

    Args:
        model: of `AutoModelForObjectDetection`; its config may hold `lvlm_guard: {"platt": [a, b], "missed": f}`.
        processor: its image processor.
        name: what `version` calls it, beside a digest of weights, labels and calibration.
    """

    usual: ClassVar[str] = "PekingU/rtdetr_v2_r18vd"
    kinds: ClassVar[str] = "a stock detector of transformers (RT-DETR v2, D-FINE, DETR, ...)"
    open: ClassVar[bool] = False
    """Whether it can be asked for what it does not know by name."""

    def __init__(self, model: PreTrainedModel, processor: Any, name: str = "detector") -> None:
        self.model, self.processor = model.eval(), processor
        labels, self.names, customary = self._told(name)
        self.known = frozenset(self.names)
        own = getattr(model.config, "lvlm_guard", None) or {}
        self.platt = tuple(own.get("platt") or (1.0, -log_odds(customary, LEAST_SURE)))
        self.missed = float(own.get("missed", MISSED))
        self._version = f"{labels}:{_digest(model)}" + ("" if "platt" in own else ":uncalibrated")
        self._found: Recent[bytes, Mapping[str, Boxes]] = Recent(256)

    def _told(self, name: str) -> tuple[str, Sequence[str], float]:
        """Return the version's beginning, the objects that are known by name, and the threshold that such detectors are
        post-processed with; without a calibration it stands for p = .5."""
        told = self.model.config.id2label or {}
        self._columns: dict[str, list[int]] = {}
        for index, label in sorted((int(index), object_of(str(label))) for index, label in told.items()):
            if label is not None:
                self._columns.setdefault(label, []).append(index)
        if not self._columns:
            raise UnsupportedModelError(
                f"The labels of {name!r} ({', '.join(map(str, told.values()))[:80]}) name no object: "
                "set config.id2label to the names that it was trained on."
            )
        return name, tuple(self._columns), 0.5

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], *, device: str | torch.device | None = None) -> Matcher:
        """Load a detector from a folder or the hub; raises `WeightsError` where it can't be had."""
        try:
            model, processor = cls._read(source)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"The detector {str(source)!r} can't be loaded ({error}). Give a folder or hub id of {cls.kinds}, or "
                "fetch it first: `hf download ID`."
            ) from error
        return cls(model.to(torch.device(device or "cpu")), processor)

    @classmethod
    def _read(cls, source: str | PathLike[str]) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, RTDetrImageProcessor

        model = AutoModelForObjectDetection.from_pretrained(source)
        try:
            return model, AutoImageProcessor.from_pretrained(source)
        except (OSError, ValueError):
            return model, RTDetrImageProcessor()  # what RT-DETR v2 and D-FINE have

    @classmethod
    def load(cls, model: PreTrainedModel | None = None) -> Matcher:
        """Load the usual detector, where the model is; raises `WeightsError`."""
        return cls.from_pretrained(cls.usual, device=device_of(model))

    @property
    def version(self) -> str:
        """Name, a digest of weights, labels and calibration, and whether there is no calibration."""
        return self._version

    def forget(self) -> None:
        """Drop what was found in earlier pictures."""
        self._found.clear()

    def expect(self, pictures: int) -> None:
        """Make room for a call's pictures."""
        self._found.capacity = max(self._found.capacity, pictures)

    def knows(self, claims: Sequence[str]) -> list[bool]:
        """Return for which claims it has an answer: those that name an object that it can tell."""
        return [self.asked(claim).kind != "nothing" for claim in claims]

    def asked(self, text: str) -> Asked:
        """Return what a text asks of it."""
        return asked(text, self.known, self.open)

    def support_pairs(self, images: Sequence[Image.Image], claims: Sequence[str]) -> Tensor:
        """Return the probability that claim i holds in image i, [n]; `ABSTAIN` where it does not know."""
        wanted = [self.asked(claim) for claim in claims]
        found = self.boxes(images, [each.objects for each in wanted])
        told = [self._holds(seen, each) for seen, each in zip(found, wanted, strict=True)]
        return torch.tensor(told, dtype=torch.float32).clamp(EDGE, 1 - EDGE)

    def objects(self, image: Image.Image, at: float = 0.5, among: Vocabulary | None = None) -> list[str]:
        """Return the objects that a picture holds with a probability of `at` or more; None: among all known by name."""
        listed = self.names if among is None else dict.fromkeys(among.names)
        names = [name for name in listed if self.open or name in self.known]
        (seen,) = self.boxes([image], [names])
        return sorted(name for name in names if self.probability(seen, name) >= at)

    def probability(self, seen: Mapping[str, Boxes], name: str, k: int = 1) -> float:
        """Return the probability that there are k or more of an object."""
        if k < 1:
            return 1.0
        scores = seen[name].scores.tolist() if name in seen else []
        a, b = self.platt
        odds = a * log_odds(scores[k - 1] if k <= len(scores) else 0.0, LEAST_SURE) + b
        p = 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
        return max(p, self.missed / (1 + self.missed)) if k == 1 else p

    def _holds(self, seen: Mapping[str, Boxes], text: Asked) -> float:
        if text.kind in ("nothing", "needs"):
            return min([ABSTAIN, *(self.probability(seen, name) for name in text.objects)])
        (name,) = text.objects
        enough = self.probability(seen, name, text.number)
        exactly = text.kind == "counts" and not text.at_least
        return enough * (1 - self.probability(seen, name, text.number + 1)) if exactly else enough

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        """Match image i with text i: the boxes of what the text asks about, the relevance falling outside them.

        Where an object is unknown or not found, the map is constant and keeps the whole picture, and a note says so.
        """
        wanted = [self.asked(text) for text in texts]
        found = self.boxes(images, [each.objects for each in wanted])
        return [self._match(seen, each) for seen, each in zip(found, wanted, strict=True)]

    def _match(self, seen: Mapping[str, Boxes], wanted: Asked) -> Match:
        counts = max(1, wanted.number)
        found = [self.probability(seen, name, counts) for name in wanted.objects]
        if not found or min(found) < FOUND:
            what = f"does not find {', '.join(wanted.objects)}" if found else "knows nothing that the text names"
            note = f"the detector {what}, so the whole picture is kept"
            return Match(torch.ones(SIDE, SIDE), min(found, default=0.0), note, share=1.0)
        maps = [self._map(seen[name]) for name in wanted.objects]
        return Match(torch.stack(maps).amax(0), min(found))

    def _map(self, boxes: Boxes) -> Tensor:
        """Return an object's map, [SIDE, SIDE]: falling with the distance from its boxes, so that no share ties."""
        a, b = self.platt
        p = (a * boxes.scores.clamp(LEAST_SURE, 1 - LEAST_SURE).logit() + b).sigmoid()
        kept = p >= p[0] / 2
        at = (torch.arange(SIDE) + 0.5) / SIDE
        left, top, right, bottom = boxes.boxes[kept].T[..., None]
        across = (left - at).clamp(min=0) + (at - right).clamp(min=0)  # [n, SIDE]
        down = (top - at).clamp(min=0) + (at - bottom).clamp(min=0)
        away = across[:, None] ** 2 + down[:, :, None] ** 2
        shown = (p[kept][:, None, None] / (1 + away / REACH**2)).amax(0)
        scaled: Tensor = shown / shown.max()
        return scaled

    def boxes(
        self, images: Sequence[Image.Image], names: Sequence[Sequence[str]] | None = None
    ) -> list[Mapping[str, Boxes]]:
        """Return each picture's objects with their boxes; each is looked for once in a picture.

        `names` are of each picture the objects to look for, None for all that are known by name. Raises `LogitsError`
        where the detector's scores hold NaN.
        """
        keys, found = [digest(image) for image in images], dict[bytes, dict[str, Boxes]]()
        for key, image, wanted in zip(keys, images, names or [self.names] * len(images), strict=True):
            held = found.setdefault(key, dict(self._found.get(key) or {}))
            if new := [name for name in dict.fromkeys(wanted) if name not in held]:
                with unaffected(self.model.device):
                    held |= self._look(key, image if image.mode == "RGB" else image.convert("RGB"), new)
                self._found.put(key, held)
        return [found[key] for key in keys]

    def _look(self, key: bytes, image: Image.Image, names: Sequence[str]) -> dict[str, Boxes]:
        """Return an RGB picture's objects, those of some names at least.

        The picture is read by itself: beside one of another shape a detector says other things.
        """
        out = self._run(self.processor(images=image, return_tensors="pt"))
        logits, corners = checked(out.logits[0]), corners_of(out.pred_boxes[0])
        softmax = logits.shape[-1] == self.model.config.num_labels + 1
        scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
        return {name: best(scores[:, columns].amax(-1), corners) for name, columns in self._columns.items()}

    def _run(self, read: Any) -> Any:
        inputs = read.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self.model(**inputs)


def checked(found: Tensor) -> Tensor:
    """Return numbers as float32 on the CPU; raises `LogitsError` where they hold NaN or infinity."""
    if not bool(found.isfinite().all()):
        raise LogitsError("The detector's scores hold NaN: its weights overflow. Load it in float32.")
    return found.float().cpu()


def corners_of(places: Tensor) -> Tensor:
    """Return left, top, right and bottom of middles and sizes, in shares of the picture, [n, 4], `checked`."""
    middle, size = checked(places).split(2, -1)
    return torch.cat([middle - size / 2, middle + size / 2], -1).clamp(0, 1)


def best(scores: Tensor, corners: Tensor) -> Boxes:
    """Return the boxes that are kept of an object, by their scores [n] and corners [n, 4].

    One goes that overlaps a better one by more than `OVERLAP` of their union.
    """
    from torchvision.ops import nms  # type: ignore[import-untyped]  # it has no types

    (some,) = (scores >= LEAST).nonzero(as_tuple=True)
    kept = some[nms(corners[some], scores[some], OVERLAP)[:BOXES]]
    return Boxes(scores[kept], corners[kept])


def _digest(model: PreTrainedModel) -> str:
    """Return what tells weights, labels and calibration: the heads of the last layers, and the config's own."""
    own = sorted((getattr(model.config, "lvlm_guard", None) or {}).items())  # a saved config has another order
    told = hashlib.blake2b(f"{model.config.id2label} {own}".encode(), digest_size=6)
    for name, value in sorted(model.state_dict().items()):
        if any(part in name for part in ("class", "score_head", "bbox_embed")):
            told.update(value.detach().float().cpu().numpy().tobytes())
    return told.hexdigest()
