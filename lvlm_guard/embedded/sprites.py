"""The drawings: Noto Color Emoji glyphs (OFL 1.1, see sprites.LICENSE) at four sizes on one sheet.

Only `python -m lvlm_guard.embedded.sprites [NotoColorEmoji.ttf]`, which renders the sheet, needs the font
(Debian: fonts-noto-color-emoji). Everything else reads the committed `sprites.png`.
"""

import sys
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lvlm_guard.embedded.catalog import N_OBJECTS, OBJECTS, PROP_LIST

SHEET = Path(__file__).parent / "sprites.png"
SIZES = (16, 24, 32, 40)  # sides in pixels, side by side in a cell of the sheet
CELL = (sum(SIZES), max(SIZES))
COLUMNS = 9
FONT, STRIKE = "NotoColorEmoji.ttf", 109  # the font's only bitmap size


@lru_cache(maxsize=1)
def sheet() -> NDArray[np.uint8]:
    """Return the sheet, (400, 1008, 4) RGBA."""
    with Image.open(SHEET) as image:
        return np.asarray(image.convert("RGBA"))


@cache
def glyph(kind: int, index: int, size: int) -> NDArray[np.float32]:
    """Return the drawing of object (kind 0) or prop (kind 1) `index`: (size, size, 4), colours 0-255, alpha 0-1."""
    row, column = divmod(index + kind * N_OBJECTS, COLUMNS)
    y, x = row * CELL[1], column * CELL[0] + sum(side for side in SIZES if side < size)
    drawing = sheet()[y : y + size, x : x + size].astype(np.float32)
    drawing[..., 3] /= 255
    return drawing


@cache
def area(kind: int, index: int, size: int) -> int:
    """Return how many pixels of the drawing are more than half opaque, at least 1."""
    return max(1, int((glyph(kind, index, size)[..., 3] > 0.5).sum()))


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


if __name__ == "__main__":
    Image.fromarray(render(*sys.argv[1:2])).save(SHEET, optimize=True)
