"""What a browser sends as a picture: bounded as the server bounds it, and refused in words."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.embedded.world import scenes
from lvlm_guard.errors import ImageError
from lvlm_guard.play import pictures
from lvlm_guard.play.app import MOST_BODY
from lvlm_guard.serve.front.settings import FrontSettings


def sent(data: bytes, name: str = "photo.png") -> dict[str, str]:
    return {"name": name, "data": f"data:image/png;base64,{base64.b64encode(data).decode()}"}


def png(image: Image.Image, **more) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG", **more)
    return written.getvalue()


def test_the_limits_are_the_servers():
    served = FrontSettings(names=("x",), guards=())
    assert served.most_bytes == pictures.MOST_BYTES
    assert served.most_pixels == pictures.MOST_PIXELS
    assert served.most_body == MOST_BODY
    assert pictures.MOST_BYTES * 4 / 3 < MOST_BODY


def test_a_picture_arrives_as_it_was_sent_upright_and_in_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(pictures.picture_of(sent(png(Image.fromarray(pixels))))), pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert pictures.picture_of(sent(png(Image.fromarray(pixels), exif=turned))).size == (20, 30)


@pytest.mark.parametrize(
    ("size", "words"),
    [((20_000, 20_000), "far too many pixels; the limit here is 40,000,000"), ((8000, 5001), "8000 × 5001")],
)
def test_a_picture_of_too_many_pixels_is_refused_in_words_before_it_is_decoded(size, words, monkeypatch):
    data = png(Image.new("1", size), compress_level=1)
    assert len(data) < 1_000_000
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=words) as refused:
        pictures.picture_of(sent(data, "huge.png"))
    assert "huge.png" in str(refused.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no picture yet"),
        ({"name": "x"}, "no picture yet"),
        ({"data": 3}, "no picture yet"),
        ({"data": "/etc/passwd"}, "no picture from this page"),
        ({"data": "data:image/png;base64,@@@@"}, "did not arrive whole"),
        ({"data": "data:image/png;base64," + "A" * (pictures.MOST_BYTES * 4 // 3 + 8)}, "20 MiB"),
        (sent(b"no picture at all"), "no picture that Pillow reads"),
        (sent(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no picture that Pillow reads"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(value, words):
    with pytest.raises(ImageError, match=words):
        pictures.picture_of(value)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("../../etc/passwd", "passwd"), ("C:\\pictures\\a.png", "a.png"), ("", "picture.png"), ("x" * 300, "x" * 80)],
)
def test_of_a_files_name_only_the_last_part_is_kept(name, kept):
    assert pictures.name_of({"name": name}) == kept


def test_examples_are_the_scenes_themselves_and_their_code_draws_them():
    drawn = scenes("test", 13).image
    for one, (number, _) in zip(pictures.examples(True), pictures.SCENES, strict=False):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(one.data)).convert("RGB")), drawn[number])
    for one in pictures.examples(True) + pictures.examples(False):
        made: dict = {}
        exec(one.code, made)
        assert np.array_equal(
            np.asarray(made["picture"].convert("RGB")), np.asarray(pictures.picture_of(pictures.sent(one)))
        )


def test_for_a_real_model_photographs_come_first():
    assert "photograph" in pictures.examples(False)[0].shows
    assert "scene" in pictures.examples(True)[0].shows
