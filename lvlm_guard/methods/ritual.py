"""RITUAL: add what the model says of a randomly transformed picture.

Source: Woo et al., "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large Vision
Language Models", arXiv:2405.17821; code sangminwoo/RITUAL at 52065a6 (MIT). One of six transforms is drawn for a
picture, uniformly: horizontal or vertical flip, rotation, colour jitter, Gaussian blur, a random resized crop. Then

    assembled = l + alpha * l_transformed    within the plausibility constraint on l

Differs from the release: the draw depends on the seed and the picture alone, so that batches and the sampler's stream
can't change it, and is noted in the trace; it is drawn with Pillow, whose blur is unbounded and by boxes; the crop
comes back in the picture's own size instead of 336 x 336, since both readings must take the same tokens. RITUAL+, whose
transform the model itself chooses, is left out: its prompt is not published. Equal views are sharpened to temperature
1 / (1 + alpha): report sampling at that temperature beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from lvlm_guard.engine import Branch, Call, Complement, plausibility, weight
from lvlm_guard.engine.pictures import View
from lvlm_guard.matching.memory import digest

TRANSFORMS = ("flipped", "upside down", "rotated", "recoloured", "blurred", "cropped")


@dataclass(frozen=True)
class RITUAL(Complement):
    """Two branches, l + alpha * l_transformed, then the plausibility cut on l.

    Args:
        alpha: weight of the transformed branch, >= 0; 3 in the paper.
        beta: plausibility cut, a share of the best token's probability, 0 to 1; .1 in the paper.
        seed: together with a picture's pixels it fixes that picture's transform.
    """

    paper: ClassVar[str] = "arXiv:2405.17821"
    cost: ClassVar[str] = "a second branch at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    alpha: float = weight(3.0)
    beta: float = plausibility(0.1)
    seed: int = 0

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("transformed", pixels=self._view),)

    def _view(self, call: Call) -> dict[str, Tensor]:
        def draw(views: list[View]) -> list[Image.Image]:
            drawn = [transformed(view.image, self.seed) for view in views]
            for view, (_, kind) in zip(views, drawn, strict=True):
                call.trace.note(f"Picture {view.index} was {kind} for the second branch.")
            return [image for image, _ in drawn]

        return call.redraw(draw)


def transformed(image: Image.Image, seed: int, kind: str | None = None) -> tuple[Image.Image, str]:
    """Return the picture after a transform, in its own size, and which of `TRANSFORMS` it was; None draws one."""
    rng = Random(f"{seed} {digest(image).hex()}")
    drawn, rgb = rng.choice(TRANSFORMS), image.convert("RGB")
    kind = kind or drawn
    if kind == "flipped":
        return rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT), kind
    if kind == "upside down":
        return rgb.transpose(Image.Transpose.FLIP_TOP_BOTTOM), kind
    if kind == "rotated":
        return rgb.rotate(rng.uniform(-180, 180)), kind  # nearest pixel, black corners, as torchvision's
    if kind == "blurred":
        return rgb.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 2))), kind
    if kind == "recoloured":
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            rgb = enhance(rgb).enhance(rng.uniform(0, 2))
        hsv = np.asarray(rgb.convert("HSV")).copy()
        hsv[..., 0] += np.uint8(round(rng.uniform(-0.5, 0.5) * 255) % 256)
        return Image.fromarray(hsv, "HSV").convert("RGB"), kind
    width, height = rgb.size
    area, ratio = rng.uniform(0.08, 1) * width * height, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = (max(1, min(round(math.sqrt(area * r)), most)) for r, most in ((ratio, width), (1 / ratio, height)))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    box = (left, top, left + w, top + h)
    return rgb.resize((width, height), Image.Resampling.BILINEAR, box=box), kind
