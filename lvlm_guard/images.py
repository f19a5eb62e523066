"""Any picture a user has, as an upright 8-bit RGB one; or a clear error.

What is done to a picture, and what is not:

- EXIF orientation is applied, so that a phone's portrait stands upright.
- Transparent pixels are laid over white. (Dropping alpha, which `convert("RGB")` does, would show
  the colours that editors leave under transparent pixels.)
- 16-bit greys are scaled by 1/257, so that 65535 becomes 255; `convert("RGB")` would clip them to white.
- Of an animation the frame it stands at is taken: the first one, when read from a file.
- Colour profiles are left alone, as transformers' processors leave them alone.

What was changed and can matter is said by `notes(picture)`. Pictures over `MAX_PIXELS` are refused
before they are decoded. EPS and WMF are refused: Pillow would start other programs to read them.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from lvlm_guard.errors import ImageError

MAX_PIXELS = 128_000_000
"""Largest picture taken by default: 384 MB decoded, above the 108-megapixel phones'."""

Source: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any]"

_LENIENT = Lock()  # held while Pillow is made strict
_NOTES = "lvlm_guard"  # key of a picture's `info` under which notes are kept
_STARTS_PROGRAMS = frozenset({"EPS", "WMF"})
_GREYS = {"I": "greys of more than 8 bits", "F": "floating-point greys"}
_GREYS |= dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "16-bit greys")


def load_image(
    source: Source, *, max_pixels: int | None = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Return a picture as `as_rgb` does, from wherever it is.

    Args:
        source: a path, an open binary file, the bytes of one, a Pillow picture, or an array as `from_array` takes it.
        max_pixels: most pixels (width times height) to decode; None for no limit of ours. Pillow has
            one too, `PIL.Image.MAX_IMAGE_PIXELS`: above it it warns, and it refuses twice that.
        formats: of files, as Pillow calls them; None: all that start no programs.

    Raises:
        ImageError: there is no such file, it is no picture, it is corrupt, empty or too large.
    """
    if isinstance(source, Image.Image):
        return as_rgb(source, max_pixels=max_pixels)
    file: Any = source
    if isinstance(source, str | os.PathLike):
        name, file = os.fspath(source), _existing(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        name, file = "the bytes given", io.BytesIO(source)
    elif callable(getattr(source, "read", None)):
        name = str(getattr(source, "name", "the open file"))
    elif hasattr(source, "__array__"):  # behind the others: NumPy's texts and bytes have it too
        return as_rgb(from_array(source), max_pixels=max_pixels)
    else:
        raise ImageError(
            f"A {type(source).__name__} is no picture. Give a path, an open binary file, the bytes of a picture file, "
            "a PIL image, or an array of height x width x 3."
        )
    with _opened(file, name, max_pixels, formats) as image:
        return as_rgb(image, max_pixels=max_pixels)


def as_rgb(image: Image.Image, *, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Return an upright 8-bit RGB picture; the argument is left as it is.

    A picture that is RGB, upright and opaque comes back itself; calling twice changes nothing.

    Raises:
        ImageError: the picture is corrupt, empty, too large, or of a mode without a meaning in RGB.
    """
    name = str(getattr(image, "filename", "") or "the picture")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height}: it has no pixels. Give a picture of at least 1 x 1.")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} is {width} x {height}, {width * height:,} pixels; the limit is {max_pixels:,}, so that a "
            "small file can't fill the memory. Make it smaller first, image.thumbnail((4096, 4096)); models see far "
            f"less anyway. Or raise the limit: load_image(..., max_pixels={width * height}) (--max-pixels)."
        )
    try:
        with _whole():
            image.load()
        animated = bool(getattr(image, "is_animated", False))
        frames = int(getattr(image, "n_frames", 1))  # looks for the others' headers, which may be damaged
        upright = _upright(image)
        flat, notes = _flattened(upright)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} is {width} x {height} and does not fit in memory. Make it smaller first: "
            "image.thumbnail((4096, 4096))."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise _corrupt(name, error) from error
    # an MPO's second frame is a phone's depth map or thumbnail, not an animation
    if animated and image.format != "MPO":
        frame = image.tell() + 1
        notes = [f"{'the first' if frame == 1 else f'number {frame}'} of {frames} frames alone is used", *notes]
        flat = flat.copy()
    if flat is not image:
        flat.info = {}  # the EXIF orientation is spent; a second call must not turn the picture again
    if notes:
        flat.info[_NOTES] = notes
    return flat


def squash(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the RGB picture squeezed to width x height (bicubic, aspect ratio not kept)."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BICUBIC)


def data_url(image: Image.Image, compress_level: int = 1) -> str:
    """Return a picture as a `data:` URL, as chat requests carry it: PNG, without loss, 1 quick to 9 small."""
    written = io.BytesIO()
    image.save(written, "PNG", compress_level=compress_level)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


@contextmanager
def _whole() -> Iterator[None]:
    """Refuse files that were cut short, also where a library has told Pillow to fill them up with grey.

    lmms-eval does so for the whole process as soon as it is imported.
    """
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _LENIENT:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


class Held(Image.Image):
    """A picture that the guard holds for itself: nobody paints on it, so what is computed of it may be kept with it."""

    digest: bytes | None = None

    @classmethod
    def of(cls, image: Image.Image) -> Held:
        """Return a copy: of 12 megapixels it takes milliseconds, their digest .15 s."""
        if isinstance(image, cls):
            return image
        held: Any = image.copy()
        held.__class__ = cls  # Pillow's own way to make one would go through its internals
        made: Held = held
        return made


def any_picture(source: Any) -> Image.Image:
    """Return what a transformers processor takes as a picture, also a URL, base64 text or a tensor, as a held RGB one.

    Raises `ImageError` as `load_image` does, or where it can't be fetched.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        from transformers.image_utils import load_image as fetch

        try:
            source = fetch(source)
        except (ValueError, OSError) as error:
            raise ImageError(f"The picture {source[:80]!r} can't be fetched: {error}") from error
    return Held.of(load_image(source.cpu().numpy() if hasattr(source, "cpu") else source))


def notes(image: Image.Image) -> list[str]:
    """Return what `as_rgb` changed that can matter: a frame chosen, transparency filled, bits dropped."""
    return list(image.info.get(_NOTES, ()))


def from_array(array: Any) -> Image.Image:
    """Return an array or a CPU tensor as a picture; raises `ImageError` on another shape, type or range.

    It is [h, w], [h, w, c] or [c, h, w] with c = 1, 3 or 4, of integers in 0 to 255, uint16 over its whole range, bool,
    or floats in 0 to 1.
    """
    try:
        values = np.asarray(array)
    except Exception as error:  # tensors on a device, in bfloat16, or with gradients refuse in their own ways
        raise ImageError(
            f"The {type(array).__name__} can't be read as an array ({error}). "
            "For a tensor: tensor.detach().float().cpu().numpy()."
        ) from error
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise ImageError(
            f"An array of shape {list(np.shape(array))} is no picture: give height x width, or height x width x 3 or 4 "
            "(channels first is read too). One picture at a time: not a batch."
        )
    if 0 in values.shape:
        raise ImageError(f"The array of shape {list(np.shape(array))} is empty: give at least one pixel.")
    return Image.fromarray(np.ascontiguousarray(_eight_bits(values)))


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return 0 to 255; uint16 over its range, floats from 0 to 1, other integers as they are."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.newbyteorder("=") == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An array of {values.dtype} is no picture: give uint8, uint16, bool or float.")
    if not np.isfinite(values).all():
        raise ImageError("The picture's array holds NaN or infinity: give finite values, 0 to 1 for floats.")
    low, high = float(values.min()), float(values.max())
    top = 1 if values.dtype.kind == "f" else 255
    if low < 0 or high > top:
        raise ImageError(
            f"The picture's array of {values.dtype} goes from {low:g} to {high:g}, but {values.dtype} is read as "
            f"0 to {top}. Scale it, or give uint8; values that a processor has normalised are no picture any more."
        )
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _existing(path: str | os.PathLike[str]) -> Path:
    shown = os.fspath(path)
    if isinstance(shown, str) and shown.startswith(("http://", "https://", "data:")):
        raise ImageError(f"{shown[:60]!r} is an address, and nothing is fetched here. Save the picture, give its path.")
    try:
        file = Path(path)
        if file.is_file():
            return file
        found = "it is a folder" if file.is_dir() else "it is no regular file" if file.exists() else "there is none"
    except (OSError, ValueError) as error:  # a name with a null byte, or a folder that may not be read
        found = str(error)
    raise ImageError(f"No picture at {shown!r}: {found}. Check the path; this run's folder is {os.getcwd()!r}.")


def _opened(file: Any, name: str, max_pixels: int | None, formats: tuple[str, ...] | None) -> Image.Image:
    Image.init()
    try:
        with _whole():
            return Image.open(file, formats=formats or [kind for kind in Image.ID if kind not in _STARTS_PROGRAMS])
    except Image.DecompressionBombError as error:
        limit = "none" if max_pixels is None else f"{max_pixels:,}"
        raise ImageError(
            f"{name} has more pixels than Pillow decodes ({2 * (Image.MAX_IMAGE_PIXELS or 0):,}); the limit here is "
            f"{limit}. Make it smaller first, or, if you trust the file, set PIL.Image.MAX_IMAGE_PIXELS "
            "= None and give max_pixels=None (--max-pixels 0)."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is no picture that Pillow reads: another kind of file, or a damaged header. PNG, JPEG, WebP, "
            "AVIF, GIF, TIFF, BMP and more are read; HEIC after `pip install pillow-heif` and its "
            "register_heif_opener(); EPS and WMF are refused."
        ) from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: {error.strerror}. Check the file's permissions.") from error
    except Exception as error:  # as above: header parsers stumble in many ways
        raise _corrupt(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = image.getexif().get(0x0112, 1)
        return image if turn not in range(2, 9) else ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return image


def _flattened(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return RGB and what was lost on the way."""
    if what := _GREYS.get(image.mode):
        values = np.asarray(image)
        if image.mode == "F":  # those that go to 255 are taken for 0 to 255
            values = values / 255 if 1 < values.max() <= 255 else values
        else:
            values = _integers(values) if image.mode == "I" else values.astype(np.uint16)
        return from_array(values).convert("RGB"), [f"{what}, scaled to 8 bits"]
    if image.mode == "LAB":
        from_lab, to_rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        plain = ImageCms.profileToProfile(image, from_lab, to_rgb, outputMode="RGB")
        if plain is None:
            raise ImageError("The picture's LAB colours can't be converted. Save it as RGB first.")
        return plain, []
    if image.has_transparency_data:
        with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if with_alpha.getchannel("A").getextrema()[0] == 255:
            return with_alpha.convert("RGB"), []
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB"), ["transparent pixels, laid over white"]
    return (image if image.mode == "RGB" else image.convert("RGB")), notes(image)


def _integers(values: NDArray[Any]) -> NDArray[Any]:
    """Return 32-bit greys as 8 or 16 bits, whichever holds them: the mode doesn't say its range."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"The picture's 32-bit greys go from {low} to {high}, and nothing says what is white. "
            "Scale them to 0 to 255 and give uint8."
        )
    return values.astype(np.uint8 if high <= 255 else np.uint16)


def _corrupt(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name} can't be decoded: {error or type(error).__name__}. The file is damaged, cut short, or of a kind that "
        "Pillow reads only in part. Save it anew as PNG or JPEG."
    )
