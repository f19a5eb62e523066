"""What a browser sends as a picture, within the limits, and the pictures to begin with.

A picture stays in the browser: each question brings it along as a data URL, and it is forgotten with the answer.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.embedded.text import CAPTION_PROMPT, question
from lvlm_guard.embedded.world import scenes
from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image
from lvlm_guard.play.snippet import file_code, packaged_code, scene_code
from lvlm_guard.report import data_address

MOST_BYTES = 20 << 20
"""Of a picture's file, as `lvlm-guard serve` takes it."""

MOST_PIXELS = 40_000_000
"""Of a picture, width times height, as `lvlm-guard serve` takes it."""

SCENES: tuple[tuple[int, str], ...] = (
    (0, question("ball")),
    (5, question("person")),
    (12, question("train")),
    (9, CAPTION_PROMPT),
    (7, CAPTION_PROMPT),
)
"""Held-out scenes and what to ask: first the first three adversarial questions, each of another scene, that greedy
decoding gets wrong and AGLA, focus and vote get right; then a caption that the guards change, and one in which all of
them name the racket that is not there. No fair sample: that is the README's table."""

PHOTOGRAPHS: tuple[tuple[str, str, str], ...] = (
    ("astronaut.png", "an astronaut", question("dog")),
    ("chelsea.png", "a cat", question("dog")),
    ("coffee.png", "a cup of coffee", CAPTION_PROMPT),
)
"""Files of scikit-image, what they show, what to ask."""


@dataclass(frozen=True)
class Example:
    """A picture to begin with.

    Args:
        name: of its file.
        shows: what it is, in words that give no answer away.
        question: to ask about it.
        data: the file.
        code: Python lines that open it, see `snippet`.
    """

    name: str
    shows: str
    question: str
    data: bytes
    code: str

    @property
    def thumbnail(self) -> str:
        """A small picture, as an address."""
        small = Image.open(io.BytesIO(self.data)).convert("RGB")
        small.thumbnail((160, 160), Image.Resampling.LANCZOS)
        return data_address(small)


def examples(embedded: bool) -> list[Example]:
    """Return the pictures to begin with: scenes of the embedded world, and photographs where scikit-image is installed.

    Args:
        embedded: whether the embedded model answers: its own world comes first, for other models photographs do.
    """
    drawn = scenes("test", 1 + max(number for number, _ in SCENES)).image
    worlds = [
        Example(f"scene-{number}.png", f"scene {number} of the embedded world", asked, _png(drawn[number]), code)
        for number, asked in SCENES
        for code in [scene_code(number)]
    ]
    found = find_spec("skimage")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    photographs = [
        Example(
            name,
            f"a photograph of {shows}",
            asked,
            (folder / name).read_bytes(),
            packaged_code("skimage", f"data/{name}"),
        )
        for name, shows, asked in PHOTOGRAPHS
        if folder is not None and (folder / name).is_file()
    ]
    return [*worlds, *photographs[:1]] if embedded else [*photographs, *worlds[:2]]


def _png(pixels: Any) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG", optimize=True)
    return written.getvalue()


def sent(example: Example) -> dict[str, str]:
    """Return an example as a browser would send it."""
    return {"name": example.name, "data": f"data:image/png;base64,{base64.b64encode(example.data).decode()}"}


def file_of(value: Any) -> bytes:
    """Return the file that a browser sent; raises `ImageError` where there is none, or it is too large."""
    data = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(data, str) or not data:
        raise ImageError("There is no picture yet: choose, drop or paste one, or take an example.")
    head, _, body = data.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise ImageError("That is no picture from this page: choose the file again.")
    if len(body) * 3 // 4 > MOST_BYTES + 2:
        raise ImageError(
            f"The file has more than {MOST_BYTES >> 20} MiB, the limit here. Save the picture smaller, as a JPEG; "
            "models see far less anyway."
        )
    try:
        return binascii.a2b_base64(body.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ImageError(f"The picture did not arrive whole ({error}): choose the file again.") from error


def picture_of(value: Any) -> Image.Image:
    """Return the picture that a browser sent, upright and RGB; raises `ImageError`."""
    data, name = file_of(value), name_of(value)
    _check_size(data, name)
    file = io.BytesIO(data)
    file.name = name  # what messages call it by
    return load_image(file, max_pixels=MOST_PIXELS)


def _check_size(data: bytes, name: str) -> None:
    """Refuse a picture by its header, in words for someone before a browser: they can change no argument."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        much = "far too many pixels"
    except Exception:  # header parsers stumble in many ways; `load_image` says what is amiss
        return
    else:
        much = f"{width} × {height} = {width * height:,} pixels"
        if width * height <= MOST_PIXELS:
            return
    raise ImageError(
        f"{name} has {much}; the limit here is {MOST_PIXELS:,}, so that a small file can't fill the memory. Make it "
        "smaller first; models see far less anyway."
    )


def name_of(value: Any) -> str:
    """Return the name of the file that a browser sent: without folders, at most 80 characters."""
    name = value.get("name") if isinstance(value, Mapping) else None
    flat = str(name or "").replace("\\", "/").rsplit("/", 1)[-1].strip()
    return flat[-80:] or "picture.png"


def code_of(value: Any, begun: Sequence[Example]) -> str:
    """Return the Python lines that open what a browser sent; an example is known by its bytes."""
    data = file_of(value)
    return next((one.code for one in begun if one.data == data), file_code(name_of(value)))
