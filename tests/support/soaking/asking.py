"""Who is asked, and pictures as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo


@dataclass(frozen=True)
class Arm:
    """One way to be answered: a model's name, and its guard (None: plain)."""

    name: str
    guard: str | None


def arms_of(names: Mapping[str, str | None]) -> list[Arm]:
    """Return the first plain name of a server (`Endpoint.names`) and those of its guards."""
    plain = next(name for name, guard in names.items() if guard is None)
    return [Arm(plain, None), *(Arm(name, guard) for name, guard in names.items() if name == f"{plain}-{guard}")]


def png(picture: Image.Image, noted: PngInfo | None = None) -> bytes:
    """Return a picture as a PNG file, with something noted in it beside the pixels."""
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=1, pnginfo=noted)
    return held.getvalue()
