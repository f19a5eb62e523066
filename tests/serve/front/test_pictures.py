"""Pictures that are sent along: passed on as they came, written anew, or refused before they cost much."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from front_server import data_url, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvlm_guard.images import load_image
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.pictures import Picture, look_at, of_url


def resolve(url: str, most_bytes: int = 200_000, most_pixels: int = 10_000) -> Picture:
    return look_at(of_url(url, most_bytes), most_bytes=most_bytes, most_pixels=most_pixels)


def bad(url: str, **limits: int) -> Refused:
    with pytest.raises(Refused) as refusal:
        resolve(url, **limits)
    return refusal.value


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_plain_file_is_passed_on_as_it_came(kind: str) -> None:
    data = picture(3, kind)
    found = resolve(data_url(data, "image/whatever"))
    assert (found.data, found.media, found.width, found.height) == (data, f"image/{kind.lower()}", 12, 8)
    assert found.url.startswith(f"data:image/{kind.lower()};base64,")


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(4, "JPEG", exif=exif)


def _saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def _odd_files() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    return {
        "turned": _turned(),
        "transparent": _saved(Image.fromarray(noise)),
        "palette": _saved(rgb.convert("P")),
        "sixteen bits": _saved(Image.fromarray(noise[..., 0].astype(np.uint16) * 257)),
        "animated": _saved(rgb, "WEBP", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_180)]),
        "cmyk": _saved(rgb.convert("CMYK"), "JPEG"),
    }


@pytest.mark.parametrize("name", _odd_files())
def test_a_file_that_decoders_read_differently_is_written_anew_as_lvlm_guard_reads_it(name: str) -> None:
    data = _odd_files()[name]
    found = resolve(data_url(data))
    assert found.media == "image/png"
    with Image.open(io.BytesIO(found.data)) as plain:
        assert plain.mode == "RGB"
        assert plain.size == (found.width, found.height)
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(load_image(data)))


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "data:image/png;base64,", "data:image/png;base64,@@@@", "data:image/png;base64,AAAA=", "data:,hello",
        "data:text/html;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64;x,AAAA", "file:///etc/hostname",
        "/etc/hostname", "FILE:///etc/hostname", "data:image/png;base64,é", " data:image/png;base64,AAAA",
        "data:image/svg+xml;base64,PHN2Zy8+", "s3://bucket/key", "javascript:1",
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(url: str) -> None:
    assert bad(url).status == 400


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PPM", "GIF", "BMP", "TIFF"])
def test_formats_that_are_rare_or_start_programs_are_refused(kind: str) -> None:
    assert "PNG, JPEG" in bad(data_url(_saved(Image.new("RGB", (16, 16)), kind))).message


def test_a_file_that_is_cut_short_is_refused() -> None:
    assert bad(data_url(picture(1, "JPEG")[:-60])).status == 400
    assert bad(data_url(picture(1)[:-60])).status == 400


def test_a_small_file_with_many_pixels_is_refused_before_it_is_decoded() -> None:
    blank = _saved(Image.new("1", (6000, 6000)), "PNG")
    assert len(blank) < 20_000
    assert bad(data_url(blank)).status == 413
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    assert bad(data_url(bomb)).status == 413


def test_a_text_chunk_that_inflates_without_end_is_refused() -> None:
    body = b"x\0\0" + zlib.compress(b"\0" * (70 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = picture()
    assert bad(data_url(plain[:33] + chunk + plain[33:])).status == 400


def test_a_file_over_the_limit_is_refused_before_it_is_decoded_from_base64() -> None:
    assert bad(data_url(b"\0" * 300_000)).status == 413
    assert bad(data_url(picture()), most_bytes=10).status == 413
    exif = Image.Exif()
    exif[0x0112] = 6
    packed = picture(5, "JPEG", size=(60, 60), exif=exif)
    assert resolve(data_url(packed)).media == "image/png"
    assert bad(data_url(packed), most_bytes=len(packed) + 10).status == 413


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_in_a_file_is_refused_or_still_gives_one_picture(damage: bytes, at: int, length: int) -> None:
    data = picture(2)
    try:
        found = resolve(data_url((data[:at] + damage + data[at + len(damage) :])[: max(length, at)]))
    except Refused:
        return
    assert found.width * found.height <= 10_000
