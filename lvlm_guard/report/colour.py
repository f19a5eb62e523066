"""A colour ramp for relevance maps whose lightness rises evenly, so that equal steps look equal.

It is a straight line in lightness and an arc in hue through OKLab (Björn Ottosson, 2020,
https://bottosson.github.io/posts/oklab/), from a dark blue over magenta and orange to a pale yellow.
Printed in grey or seen without red-green discrimination, the order stays.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIGHTNESS = (0.22, 0.93)
HUE = (-80.0, 98.0)  # degrees: blue over magenta and orange to yellow
CHROMA = 0.17

_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def ramp(values: ArrayLike) -> NDArray[np.uint8]:
    """Return the colour of each value.

    Args:
        values: any shape, 0 (dark) to 1 (bright); clipped, NaN counts as 0.

    Returns:
        [..., 3] uint8, sRGB.
    """
    x = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0).clip(0, 1)
    colours: NDArray[np.uint8] = _table()[np.rint(x * 255).astype(np.intp)]
    return colours


@cache
def _table() -> NDArray[np.uint8]:
    x = np.linspace(0, 1, 256)
    lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * x
    hue = np.radians(HUE[0] + (HUE[1] - HUE[0]) * x)
    # the most chroma sRGB can show at this lightness and hue, up to CHROMA
    chroma = np.zeros(256)
    for candidate in np.linspace(0, CHROMA, 171):
        inside = _linear(lightness, candidate, hue)
        fits = ((inside >= -1e-9) & (inside <= 1 + 1e-9)).all(-1)
        chroma = np.where(fits, candidate, chroma)
    linear = _linear(lightness, chroma, hue).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(encoded * 255).astype(np.uint8)
    return colours


def _linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64] | float, hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1)
    rgb: NDArray[np.float64] = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    return rgb
