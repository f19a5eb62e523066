"""Turn what a request calls a picture into bytes, once, so that the matcher and the model see the same; needs no torch.

A picture that two decoders could read differently (EXIF orientation, transparency, frames, palettes, 16 bits) is
written anew as PNG, as the rest of lvlm-guard reads it: a mask belongs to pixels, not to a file.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass

from PIL import Image

from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image, squash
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import FORMATS

_PASSED_ON = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A picture as the model gets it: a PNG, JPEG or WebP file, and its size in pixels.

    Args:
        view: what the matcher is sent: the picture squashed to its square, as PNG; the file where it has no square.
    """

    data: bytes
    media: str
    width: int
    height: int
    view: bytes

    @property
    def url(self) -> str:
        """Return it as a data URL."""
        return f"data:{self.media};base64,{base64.b64encode(self.data).decode()}"


def is_address(url: str) -> bool:
    """Return whether a picture has to be fetched."""
    return re.match(r"https?:", url[:6], re.IGNORECASE) is not None


def of_url(url: str, most_bytes: int) -> bytes:
    """Return the file that a data URL holds.

    Raises:
        Refused: it is none, or too large.
    """
    head = _DATA.match(url[:64])
    if head is None:
        raise Refused(
            400,
            f"{url[:40]!r} is no picture: send data:image/png;base64,... (or jpeg, webp). Files of the server are not "
            "read.",
        )
    if (len(url) - head.end()) * 3 // 4 > most_bytes + 2:
        raise _too_large(most_bytes)
    try:
        return binascii.a2b_base64(url[head.end() :].encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refused(400, f"The picture's data URL is not base64 ({error}): encode the whole file.") from error


def look_at(data: bytes, *, most_bytes: int, most_pixels: int, side: int | None = None) -> Picture:
    """Return the picture of a file.

    Args:
        data: the file.
        most_bytes: of a file.
        most_pixels: width times height.
        side: of the matcher's square; None: it has none, or is not asked.

    Raises:
        Refused: 400, it is no picture that is read; 413, it is too large.
    """
    if len(data) > most_bytes:
        raise _too_large(most_bytes)
    try:
        kind, plain, size = _header(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"The picture has too many pixels; the limit is {most_pixels:,}.") from error
    except Exception as error:  # header parsers stumble in many ways
        raise Refused(
            400, f"The picture can't be read: it is damaged, or none of {', '.join(FORMATS)}. Save it anew as PNG."
        ) from error
    if size[0] * size[1] > most_pixels:
        raise Refused(
            413,
            f"The picture is {size[0]} x {size[1]} pixels; the limit is {most_pixels:,}. Make it smaller; models see "
            "far less anyway.",
        )
    try:
        image = load_image(data, max_pixels=most_pixels, formats=FORMATS)
    except ImageError as error:
        raise Refused(400, f"The picture can't be used. {error}") from error
    media = _PASSED_ON[kind] if plain else "image/png"
    if not plain:
        data = _png(image)
        if len(data) > most_bytes:
            raise _too_large(most_bytes)
    view = data if side is None else _png(squash(image, side, side))
    return Picture(data, media, *image.size, view)


def _png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=1)
    return written.getvalue()


def _too_large(most_bytes: int) -> Refused:
    return Refused(413, f"The picture is larger than {most_bytes:,} bytes: send a smaller one.")


def _header(data: bytes) -> tuple[str, bool, tuple[int, int]]:
    """Return the format, whether every decoder reads the file alike, and width and height."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        kind = image.format or ""
        plain = (
            kind in _PASSED_ON
            and image.mode in ("RGB", "L")
            and not image.has_transparency_data
            and not getattr(image, "is_animated", False)
            and image.getexif().get(_ORIENTATION, 1) == 1
        )
        return kind, plain, image.size
