"""Pictures of a report: a relevance map over a picture, pictures side by side, pictures as data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lvlm_guard.errors import ImageError
from lvlm_guard.report.colour import ramp
from lvlm_guard.report.html import Html, part

SMALL, LARGE = 288, 768  # longest side in a page: the embedded world's 96 px are enlarged, photographs shrunk
LARGE_PNG = 400 * 400  # pixels above which a picture is written as JPEG


def overlay(image: Image.Image, relevance: Any, *, keep: Any = None, strength: float = 0.62) -> Image.Image:
    """Lay a relevance map over a picture; the picture's colours are muted where the map speaks.

    Args:
        image: any mode, any size; enlarged to `SMALL` when smaller, so that the map stays smooth.
        relevance: [h, w] in 0 to 1, an array or a CPU tensor, of any size: it is stretched over the picture.
        keep: [h, w] bool, the pixels a method left visible; their border is drawn as a pale line.
        strength: how opaque the map is where relevance is 1.

    Returns:
        RGB, of the (possibly enlarged) picture's size.

    Raises:
        ImageError: the map is not two-dimensional, is empty, or holds values outside 0 to 1.
    """
    values = _map(relevance)
    base = fitted(image.convert("RGB"), largest=None)
    stretched = Image.fromarray(values).resize(base.size, Image.Resampling.BICUBIC)
    heat = np.asarray(stretched, dtype=np.float32).clip(0, 1)
    pixels = np.asarray(base, dtype=np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    muted = 0.45 * pixels + 0.55 * grey[..., None]
    opacity = (0.30 + (strength - 0.30) * heat)[..., None]
    mixed = (1 - opacity) * muted + opacity * ramp(heat)
    if keep is not None:
        mixed[_border(keep, base.size)] = (255, 250, 235)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _map(relevance: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.asarray(relevance, dtype=np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ImageError(
            f"A relevance map has two axes, height and width; this one has shape {list(values.shape)}. "
            "Give `match.relevance` of one picture."
        )
    if not np.isfinite(values).all() or values.min() < -1e-4 or values.max() > 1 + 1e-4:
        raise ImageError(
            f"A relevance map holds shares from 0 to 1; this one goes from {values.min()} to {values.max()}. "
            "Scale it first: (map - map.min()) / (map.max() - map.min())."
        )
    return values


def _border(keep: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    mask = Image.fromarray(np.asarray(keep, dtype=np.float32)).resize(size, Image.Resampling.BICUBIC)
    inside = np.asarray(mask) >= 0.5
    grown: NDArray[np.bool_] = binary_dilation(inside, iterations=max(1, max(size) // 256))
    return grown & ~inside


def fitted(image: Image.Image, *, smallest: int = SMALL, largest: int | None = LARGE) -> Image.Image:
    """Scale a picture so that its longest side, in pixels, lies between two sizes."""
    longest = max(image.size)
    target = smallest if longest < smallest else longest if largest is None else min(longest, largest)
    if target == longest:
        return image
    size = (max(1, round(image.width * target / longest)), max(1, round(image.height * target / longest)))
    return image.resize(size, Image.Resampling.LANCZOS)


def data_address(image: Image.Image | Path) -> str:
    """Return a picture as a `data:` address: PNG, or JPEG where a large PNG would take megabytes.

    The file of a PNG or JPEG picture is taken as it is.
    """
    if isinstance(image, Path):
        kind, content = "png" if image.suffix == ".png" else "jpeg", image.read_bytes()
    else:
        small, buffer = fitted(image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")), io.BytesIO()
        kind = "jpeg" if small.mode == "RGB" and small.width * small.height > LARGE_PNG else "png"
        small.save(buffer, format=kind, optimize=True, **({"quality": 88} if kind == "jpeg" else {}))
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Picture:
    """One picture of a panel.

    Args:
        image: what is shown; a PNG or JPEG file is embedded as it is.
        title: a few words above it.
        caption: a sentence below it; `Html` or text.
        alt: what it shows, for those who can't see it; the title when empty.
    """

    image: Image.Image | Path
    title: str
    caption: object = ""
    alt: str = ""

    @property
    def address(self) -> str:
        """See `data_address`."""
        return data_address(self.image)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at which it is shown."""
        if isinstance(self.image, Path):
            with Image.open(self.image) as opened:
                return opened.size
        return fitted(self.image).size


def panel(pictures: Iterable[Picture]) -> Html:
    """Return pictures in a row that wraps on narrow screens."""
    return part("panel", list(pictures))


def side_by_side(images: Sequence[Image.Image], labels: Sequence[str] = (), *, height: int = 384) -> Image.Image:
    """Return pictures beside each other on white, scaled to one height in pixels, each under its label."""
    sizes = [(max(1, round(image.width * height / image.height)), height) for image in images]
    scaled = [
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS) for image, size in zip(images, sizes, strict=True)
    ]
    gap, head = 12, 28 if labels else 0
    sheet = Image.new("RGB", (sum(i.width for i in scaled) + gap * (len(scaled) + 1), height + head + 2 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    x = gap
    for index, image in enumerate(scaled):
        if index < len(labels):
            draw.text((x, gap), labels[index], fill=(30, 30, 34), font_size=16)
        sheet.paste(image, (x, gap + head))
        x += image.width + gap
    return sheet
