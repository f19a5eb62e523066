import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from lvlm_guard.errors import ImageError
from lvlm_guard.images import as_rgb, from_array, load_image, notes

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def quarters() -> Image.Image:
    """Red, green over blue, white: every flip and turn gives another picture."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30], pixels[:20, 30:], pixels[20:, :30], pixels[20:, 30:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: a bomb's header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_whatever_its_exif_orientation(
    quarters: Image.Image, kind: str, orientation: int, tmp_path: Path
) -> None:
    # how each orientation is stored (EXIF 2.3, tag 0x0112), undone by these operations
    stored_by = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = quarters
    for operation in stored_by:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p", kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    loaded = load_image(tmp_path / "p")
    assert loaded.mode == "RGB"
    assert loaded.size == (60, 40)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(quarters)).max() <= 4
    assert as_rgb(loaded).size == (60, 40)  # not turned a second time


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_picture(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.save(tmp_path / "p.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert load_image(tmp_path / "p.jpg").size == (60, 40)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_mode_becomes_the_same_picture_in_rgb(quarters: Image.Image, mode: str) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(quarters, srgb, lab, outputMode="LAB")
        assert converted is not None
    else:
        steps = {"RGBa": ["RGBA", "RGBa"], "La": ["LA", "La"], "PA": ["P", "PA"]}.get(mode, [mode])
        converted = quarters
        for step in steps:
            converted = converted.convert(step)
    out = as_rgb(converted)
    assert out.mode == "RGB"
    assert converted.mode == mode
    expected = quarters
    if mode in ("1", "L", "LA", "La"):
        expected = quarters.convert(mode if mode in ("1", "L") else "L").convert("RGB")
    closeness = 24 if mode == "LAB" else 3  # 8-bit a and b are coarse for saturated colours
    assert np.abs(np.asarray(out).astype(int) - np.asarray(expected)).max() <= closeness
    assert notes(out) == []


def test_places_and_bytes_out_of_an_array_are_read_as_such(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.save(tmp_path / "p.png")
    place, held = np.array([str(tmp_path / "p.png")])[0], np.bytes_((tmp_path / "p.png").read_bytes())
    assert isinstance(place, np.str_)
    for source in (place, held):
        assert (np.asarray(load_image(source)) == np.asarray(quarters)).all()


def test_a_cmyk_jpeg_keeps_its_colours(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.convert("CMYK").save(tmp_path / "p.jpg", quality=100, subsampling=0)
    assert np.abs(np.asarray(load_image(tmp_path / "p.jpg")).astype(int) - np.asarray(quarters)).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white_and_half_transparent_ones_half_white(mode: str, tmp_path: Path) -> None:
    hidden = np.zeros((4, 6, 4), np.uint8)
    hidden[:, 2:4, 3], hidden[:, 4:, 3] = 128, 255  # black, of alpha 0, one half, 1
    picture = Image.fromarray(hidden, "RGBA")
    if mode == "P":
        flat = picture.convert("RGB").quantize(4)
        flat.info["transparency"] = 0
        flat.save(tmp_path / "p.png", transparency=flat.getpixel((0, 0)))
        assert (np.asarray(load_image(tmp_path / "p.png")) == 255).all()
        return
    picture.convert(mode).save(tmp_path / "p.png")
    loaded = load_image(tmp_path / "p.png")
    assert np.asarray(loaded)[0, :, 0].tolist() == [255, 255, 127, 127, 0, 0]
    assert notes(loaded) == ["transparent pixels, laid over white"]
    assert notes(as_rgb(loaded)) == notes(loaded)


def test_an_rgb_png_with_a_transparent_colour_shows_white_there(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5), (1, 2, 3)).save(tmp_path / "p.png", transparency=(1, 2, 3))
    assert (np.asarray(load_image(tmp_path / "p.png")) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_sixteen_bit_picture_is_scaled_not_clipped(kind: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 30_000], [32_896, 65_000, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "p", kind)
    loaded = load_image(tmp_path / "p")
    assert (np.asarray(loaded)[..., 1] == np.rint(values / 257)).all()
    assert "16-bit" in notes(loaded)[0] or "more than 8 bits" in notes(loaded)[0]


def test_big_endian_sixteen_bit_greys_are_read_in_their_own_order() -> None:
    values = np.array([[0, 258, 65_535]], ">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 65_535]], np.int32), [0, 255]),
        (np.array([[0, 1]], np.float32), [0, 255]),
        (np.array([[0, 200]], np.float32), [0, 200]),
    ],
)
def test_wide_greys_are_scaled_by_what_they_hold(values: np.ndarray, expected: list[int]) -> None:
    assert np.asarray(as_rgb(Image.fromarray(values)))[0, :, 2].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame_and_says_so(quarters: Image.Image, kind: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    others = [Image.new("RGB", (60, 40), "black"), Image.new("RGB", (60, 40), "purple")]
    quarters.save(tmp_path / "p", kind, save_all=True, append_images=others, **options)
    loaded = load_image(tmp_path / "p")
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(quarters)).max() <= 2
    assert notes(loaded) == ["the first of 3 frames alone is used"]


def test_a_frame_that_a_user_chose_is_kept(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.save(tmp_path / "p.gif", save_all=True, append_images=[Image.new("RGB", (60, 40), "black")])
    with Image.open(tmp_path / "p.gif") as image:
        image.seek(1)
        chosen = as_rgb(image)
    assert not np.asarray(chosen).any()
    assert notes(chosen) == ["number 2 of 2 frames alone is used"]


def test_one_pixel_is_a_picture() -> None:
    assert as_rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_an_upright_opaque_rgb_picture_comes_back_itself(quarters: Image.Image) -> None:
    assert as_rgb(quarters) is quarters


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_empty_picture_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        as_rgb(Image.new("RGB", size))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 12_000)])
def test_a_picture_too_large_is_refused_before_it_is_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    with pytest.raises(ImageError, match=r"limit.*128,000,000.*(\n|.)*max_pixels"):
        load_image(tmp_path / "bomb.png")


def test_the_limit_can_be_raised_and_lowered(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.save(tmp_path / "p.png")
    with pytest.raises(ImageError, match=r"60 x 40, 2,400 pixels; the limit is 2,399.*max_pixels=2400"):
        load_image(tmp_path / "p.png", max_pixels=2399)
    assert load_image(tmp_path / "p.png", max_pixels=2400).size == (60, 40)
    assert load_image(tmp_path / "p.png", max_pixels=None).size == (60, 40)
    with pytest.raises(ImageError, match="limit"):
        load_image(quarters, max_pixels=10)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@given(share=st.floats(0.0, 0.97))
def test_a_file_cut_short_is_refused_and_never_a_foreign_error(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    whole = io.BytesIO()
    noise.save(whole, kind)
    with pytest.raises(ImageError, match=r"damaged|no picture"):
        load_image(whole.getvalue()[: int(share * len(whole.getvalue()))])


def test_a_file_cut_short_is_refused_where_another_package_has_made_pillow_lenient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(whole, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as `import lmms_eval` does
    Image.open(io.BytesIO(whole.getvalue()[:900])).load()
    with pytest.raises(ImageError, match="damaged"):
        load_image(whole.getvalue()[:900])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_picture_whose_further_frames_are_damaged_is_refused() -> None:
    whole = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(whole, "TIFF")
    body = bytearray(whole.getvalue())
    body[130] ^= 1  # the place of a second frame that is not there
    with pytest.raises(ImageError, match="damaged"):
        load_image(bytes(body))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.data())
def test_a_file_with_flipped_bytes_is_read_or_refused_and_never_a_foreign_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA"]))
    whole = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(whole, kind)
    body = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert load_image(bytes(body)).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"<svg xmlns='x'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_picture_is_named_as_such(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"p\.png is no picture"):
        load_image(tmp_path / "p.png")


def test_missing_files_folders_and_addresses_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is none"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="it is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="Save the picture"):
        load_image("https://example.org/cat.png")
    with pytest.raises(ImageError, match="Check the path"):
        load_image("a\0b.png")


@pytest.mark.parametrize("source", [None, 3, {"image": 1}, ["a.png"]])
def test_what_is_no_source_of_a_picture_is_refused(source: object) -> None:
    with pytest.raises(ImageError, match="is no picture"):
        load_image(source)  # type: ignore[arg-type]


def test_paths_open_files_bytes_pictures_and_arrays_give_the_same(quarters: Image.Image, tmp_path: Path) -> None:
    quarters.save(tmp_path / "p.png")
    expected = np.asarray(quarters)
    with (tmp_path / "p.png").open("rb") as file:
        assert (np.asarray(load_image(file)) == expected).all()
    for source in (str(tmp_path / "p.png"), (tmp_path / "p.png").read_bytes(), quarters, expected):
        assert (np.asarray(load_image(source)) == expected).all()
    assert (np.asarray(load_image(np.moveaxis(expected, -1, 0))) == expected).all()
    assert (np.asarray(load_image(expected / 255)) == expected).all()
    assert (np.asarray(load_image(expected.astype(np.int64))) == expected).all()
    assert (np.asarray(load_image(expected.astype(np.uint16) * 257)) == expected).all()
    assert (np.asarray(load_image(expected[..., :1] > 9))[..., 0] == (expected[..., 0] > 9) * 255).all()


def test_a_tensor_is_an_array_too(quarters: Image.Image) -> None:
    import torch

    pixels = torch.from_numpy(np.array(quarters))
    assert (np.asarray(load_image(pixels)) == np.asarray(quarters)).all()  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"detach"):
        load_image((pixels / 255).requires_grad_())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4),
        np.zeros((2, 3, 4, 5)),
        np.zeros((0, 5, 3)),
        np.zeros((5, 5, 2)),
        np.full((5, 5, 3), -1.5),
        np.full((5, 5, 3), np.nan),
        np.full((5, 5), 300),
        np.full((5, 5), "a"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError):
        from_array(array)


def test_reading_many_kinds_of_pictures_imports_no_torch() -> None:
    code = "import sys; import lvlm_guard.images; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
