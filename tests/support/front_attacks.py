"""Files that attack whoever reads them."""

from __future__ import annotations

import io
import struct


def of_frames(count: int) -> bytes:
    """Return a TIFF of a single pixel whose header names it so many times."""
    frame = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    frame += [(277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 1)]
    size = 2 + 12 * len(frame) + 4
    held = io.BytesIO()
    held.write(b"II*\0" + struct.pack("<I", 8))
    for number in range(count):
        held.write(struct.pack("<H", len(frame)))
        for tag, kind, many, value in frame:
            held.write(struct.pack("<HHII", tag, kind, many, value))
        held.write(struct.pack("<I", 8 + (number + 1) * size if number < count - 1 else 0))
    return held.getvalue()
