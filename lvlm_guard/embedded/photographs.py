"""Grounds cut from real photographs, for the splits that ask what the models do beyond the textures they saw.

The photographs ship with scikit-image and scikit-learn (the extra `photographs`). Those taken show none of the 54
objects, so that the labels of a scene stay exact; they are parted by photograph, so that validation and test share no
texture.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.errors import GuardError

FILES = {
    "val": ("skimage/data/brick.png", "skimage/data/gravel.png", "skimage/data/ihc.png", "skimage/data/moon.png"),
    "test": (
        "skimage/data/grass.png", "skimage/data/hubble_deep_field.jpg", "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg", "sklearn/datasets/images/china.jpg",
    ),
}  # fmt: skip
"""Of each part, package and file in it."""

DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
SMALLEST, LARGEST = 96, 288  # side of a crop in the photograph's pixels


@cache
def photographs(part: str) -> list[NDArray[np.uint8]]:
    """Return the photographs of "val" or "test", each (height, width, 3).

    Raises:
        GuardError: the package that ships one is not installed.
    """
    found = []
    for name in FILES[part]:
        package, _, inside = name.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise GuardError(
                f"The splits with real textures need the photographs of {DISTRIBUTIONS[package]}, which is not "
                "installed: pip install 'lvlm-guard[photographs]'."
            )
        with Image.open(Path(spec.origin).parent / inside) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def ground(rng: np.random.Generator, part: str, side: int) -> NDArray[np.float32]:
    """Return a crop of a photograph of that part, scaled to (side, side, 3), of 0 to 255."""
    photograph = photographs(part)[int(rng.integers(len(FILES[part])))]
    crop = int(rng.integers(SMALLEST, min(LARGEST, *photograph.shape[:2]) + 1))
    y, x = (int(rng.integers(0, length - crop + 1)) for length in photograph.shape[:2])
    image = Image.fromarray(photograph[y : y + crop, x : x + crop])
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)
