"""What the embedded world keeps in files: its sheet of drawings, and how often objects appear together.

`python -m embedded_training.stored [NotoColorEmoji.ttf]` renders the sheet from the font (Debian:
fonts-noto-color-emoji).
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lvlm_guard.embedded.catalog import N_OBJECTS, OBJECTS, PROP_LIST
from lvlm_guard.embedded.sprites import CELL, COLUMNS, SHEET, SIZES

FONT, STRIKE = "NotoColorEmoji.ttf", 109  # the font's only bitmap size


def render(font: str = FONT) -> NDArray[np.uint8]:
    """Draw the sheet anew from the font (a file's path, or a name to be found in the system's folders)."""
    face = ImageFont.truetype(font, STRIKE)
    glyphs = [*OBJECTS.values(), *(drawing for _, drawing in PROP_LIST)]
    out = np.zeros((-(-len(glyphs) // COLUMNS) * CELL[1], COLUMNS * CELL[0], 4), np.uint8)
    for k, character in enumerate(glyphs):
        row, column = divmod(k, COLUMNS)
        y, x = row * CELL[1], column * CELL[0]
        for size in SIZES:
            out[y : y + size, x : x + size] = _fitted(character, size, face)
            x += size
    return out


def _fitted(character: str, size: int, face: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), character, font=face, embedded_color=True)
    drawing = canvas.crop(canvas.getbbox())
    scale = size / max(drawing.size)
    drawing = drawing.resize(
        (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))), Image.Resampling.LANCZOS
    )
    out = np.zeros((size, size, 4), np.uint8)
    y, x = (size - drawing.height) // 2, (size - drawing.width) // 2
    out[y : y + drawing.height, x : x + drawing.width] = np.asarray(drawing)
    return out


def cooccurrence(objects: Iterable[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count over scenes, given as the objects in view of each: (pairs (54, 54), occurrences (54,))."""
    pairs, single = np.zeros((N_OBJECTS, N_OBJECTS), np.int64), np.zeros(N_OBJECTS, np.int64)
    for members in objects:
        for a in members:
            single[a] += 1
            for b in members:
                if a != b:
                    pairs[a, b] += 1
    return pairs, single


if __name__ == "__main__":
    Image.fromarray(render(*sys.argv[1:2])).save(SHEET, optimize=True)
