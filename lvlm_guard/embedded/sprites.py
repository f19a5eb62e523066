"""The drawings: Noto Color Emoji glyphs (OFL 1.1, see sprites.LICENSE) at four sizes on one sheet.

`python -m embedded_training.stored` renders the sheet from the font; here the committed `sprites.png` is read.
"""

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.embedded.catalog import N_OBJECTS

SHEET = Path(__file__).parent / "sprites.png"
SIZES = (16, 24, 32, 40)  # sides in pixels, side by side in a cell of the sheet
CELL = (sum(SIZES), max(SIZES))
COLUMNS = 9


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
