"""Turn what a request calls a picture into bytes, once, so that the matcher and the model see the same.

A picture that two decoders could read differently (EXIF orientation, transparency, frames, palettes, 16 bits) is
written anew as PNG, as the rest of lvlm-guard reads it: a mask belongs to pixels, not to a file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from dataclasses import dataclass

from PIL import Image

from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.fetching import Fetcher
from lvlm_guard.serve.maskd.asks import FORMATS

_PASSED_ON = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A picture as the matcher and the model get it.

    Args:
        data: the file, PNG, JPEG or WebP.
        media: its media type.
        width: in pixels.
        height: in pixels.
    """

    data: bytes
    media: str
    width: int
    height: int

    @property
    def url(self) -> str:
        """Return it as a data URL."""
        return f"data:{self.media};base64,{base64.b64encode(self.data).decode()}"


class Pictures:
    """Resolves the pictures of requests.

    Args:
        fetcher: of pictures at http(s) addresses.
        most_bytes: of one picture's file.
        most_pixels: of one picture, width times height.
        at_once: decoded at the same time; more wait, so that memory has a bound.
    """

    def __init__(self, fetcher: Fetcher, *, most_bytes: int, most_pixels: int, at_once: int) -> None:
        self._fetcher = fetcher
        self.most_bytes = most_bytes
        self.most_pixels = most_pixels
        self._turn = asyncio.Semaphore(at_once)

    async def resolve(self, url: str) -> Picture:
        """Return the picture of a request's `image_url`.

        Raises:
            Refused: it is none, may not be fetched, or is too large.
        """
        data = await self._read(url)
        async with self._turn:
            return await asyncio.to_thread(self._looked_at, data)

    async def _read(self, url: str) -> bytes:
        head = _DATA.match(url[:64])
        if head is not None:
            if (len(url) - head.end()) * 3 // 4 > self.most_bytes + 2:
                raise self._too_large()
            try:
                return binascii.a2b_base64(url[head.end() :].encode("ascii"), strict_mode=True)
            except (binascii.Error, UnicodeEncodeError) as error:
                raise Refused(400, f"The picture's data URL is not base64 ({error}): encode the whole file.") from error
        if re.match(r"https?:", url[:6], re.IGNORECASE):
            return await self._fetcher.fetch(url)
        raise Refused(
            400,
            f"{url[:40]!r} is no picture: send data:image/png;base64,... (or jpeg, webp). Files of the "
            "server are not read.",
        )

    def _looked_at(self, data: bytes) -> Picture:
        if len(data) > self.most_bytes:
            raise self._too_large()
        try:
            kind, plain, size = _header(data)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Refused(413, f"The picture has too many pixels; the limit is {self.most_pixels:,}.") from error
        except Exception as error:  # header parsers stumble in many ways
            raise Refused(
                400, f"The picture can't be read: it is damaged, or none of {', '.join(FORMATS)}. Save it anew as PNG."
            ) from error
        if size[0] * size[1] > self.most_pixels:
            raise Refused(
                413,
                f"The picture is {size[0]} x {size[1]} pixels; the limit is {self.most_pixels:,}. "
                "Make it smaller; models see far less anyway.",
            )
        try:
            image = load_image(data, max_pixels=self.most_pixels, formats=FORMATS)
        except ImageError as error:
            raise Refused(400, f"The picture can't be used. {error}") from error
        if plain:
            return Picture(data, _PASSED_ON[kind], *image.size)
        written = io.BytesIO()
        image.save(written, "PNG", compress_level=1)
        if written.tell() > self.most_bytes:
            raise self._too_large()
        return Picture(written.getvalue(), "image/png", *image.size)

    def _too_large(self) -> Refused:
        return Refused(413, f"The picture is larger than {self.most_bytes:,} bytes: send a smaller one.")


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
