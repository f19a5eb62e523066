import base64
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.errors import ImageError
from lvlm_guard.report import Picture, data_address, overlay, panel, ramp, side_by_side


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* by its own definition, not by OKLab, from which the ramp is made."""
    c = rgb / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_the_ramp_gets_lighter_with_every_step_and_evenly_so() -> None:
    values = lightness(ramp(np.linspace(0, 1, 33)))
    steps = np.diff(values)
    assert (steps > 0).all()
    assert values[0] < 15
    assert values[-1] > 88
    assert steps.max() < 2.2 * steps.mean()


def test_the_ramp_clips_and_takes_nan_for_nothing() -> None:
    assert (ramp([-1.0, np.nan, 0.0]) == ramp(0.0)).all()
    assert (ramp(7.0) == ramp(1.0)).all()


def test_the_overlay_is_brightest_where_relevance_is_highest() -> None:
    grey = Image.new("RGB", (400, 300), (90, 90, 90))
    relevance = np.zeros((24, 24))
    relevance[4:8, 4:8] = 1
    pixels = np.asarray(overlay(grey, relevance), dtype=float).sum(-1)
    assert pixels.shape == (300, 400)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 50 <= y < 100
    assert 66 <= x < 134


def test_a_small_picture_is_enlarged_so_that_the_map_stays_smooth() -> None:
    assert overlay(Image.new("L", (96, 96)), np.zeros((96, 96))).size == (288, 288)


def test_the_border_of_what_is_kept_is_drawn_outside_the_kept_pixels() -> None:
    black = Image.new("RGB", (300, 300))
    keep = np.zeros((300, 300), bool)
    keep[100:200, 100:200] = True
    plain = np.asarray(overlay(black, np.zeros((2, 2))))
    drawn = np.asarray(overlay(black, np.zeros((2, 2)), keep=keep))
    changed = (plain != drawn).any(-1)
    assert changed.any()
    assert not changed[102:198, 102:198].any()
    assert not changed[:90].any()


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2)), np.zeros((0, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan)])
def test_a_map_that_is_no_map_is_refused_with_a_way_out(bad: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"match\.relevance|Scale it"):
        overlay(Image.new("RGB", (8, 8)), bad)


@pytest.mark.parametrize("size", [(1, 1), (96, 96), (3000, 10), (1200, 900)])
def test_a_data_address_holds_the_whole_picture_at_a_readable_size(size: tuple[int, int]) -> None:
    head, _, body = data_address(Image.new("RGB", size, (10, 200, 30))).partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    shown = Image.open(io.BytesIO(base64.b64decode(body)))
    assert 288 <= max(shown.size) <= 768
    assert max(np.abs(np.asarray(shown.convert("RGB"))[0, 0].astype(int) - (10, 200, 30))) <= 3


def test_pictures_side_by_side_have_one_height_and_their_labels() -> None:
    sheet = side_by_side([Image.new("RGB", (96, 96)), Image.new("CMYK", (200, 100))], ["one", "two"], height=100)
    assert sheet.size == (100 + 200 + 3 * 12, 100 + 28 + 24)
    assert (np.asarray(sheet)[12:38] < 200).any()


def test_every_picture_of_a_panel_is_described() -> None:
    html = panel([Picture(Image.new("RGB", (4, 4)), "A <map>", "below"), Picture(Image.new("L", (4, 4)), "b", alt="c")])
    assert 'alt="A &lt;map&gt;"' in html
    assert 'alt="c"' in html
    assert html.count("<figcaption>") == 1


def test_a_picture_file_is_embedded_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "small.jpg"
    Image.new("RGB", (40, 20), "red").save(path)
    assert base64.b64decode(data_address(path).removeprefix("data:image/jpeg;base64,")) == path.read_bytes()
    shown = ElementTree.fromstring(panel([Picture(path, "it")])).find(".//img")
    assert shown is not None
    assert (shown.get("width"), shown.get("height")) == ("40", "20")
