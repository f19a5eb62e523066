"""Whether a matcher's map points at what is asked for: alone on a canvas, and among other objects.

Pasted: one drawing on a canvas that shows nothing else. "noise" is a sensor's, grey with a deviation of 30; "static"
is every value alike, which no picture of the world comes near; "ground" is that of the world's own scenes. Among
others: scenes of the world with two or three objects, each asked for in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.adapters.evaluation.bootstrap import Interval, interval
from lvlm_guard.adapters.ranker.metrics import auroc
from lvlm_guard.adapters.world.pictures import scene
from lvlm_guard.adapters.world.scenes import drawing
from lvlm_guard.embedded.catalog import CLASSES, TOPICS
from lvlm_guard.embedded.world import SIZE, background
from lvlm_guard.matching import Matcher
from lvlm_guard.matching.vocabulary import article

SIDES = (32, 40, 48)  # of a pasted drawing, in pixels of 96

CANVASES: Mapping[str, Callable[[np.random.Generator], NDArray[np.float32]]] = {
    "noise": lambda rng: rng.normal(128, 30, (SIZE, SIZE, 3)).clip(0, 255).astype(np.float32),
    "static": lambda rng: rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.float32),
    "ground": lambda rng: background(rng, int(rng.integers(len(TOPICS)))),
}
"""What a drawing is pasted on."""


class Layout(NamedTuple):
    """A picture and where in it an object is.

    Args:
        image: RGB 96 x 96.
        name: of the object.
        square: [96, 96] bool, the square that the drawing takes.
        inside: [96, 96] bool, the drawing itself.
        others: [96, 96] bool, drawings of other objects.
    """

    image: Image.Image
    name: str
    square: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    others: NDArray[np.bool_]


def pasted(canvas: str, number: int, names: Sequence[str] = CLASSES) -> Layout:
    """Return layout `number`, the same whenever it is asked for: an object on one of `CANVASES`."""
    rng = np.random.default_rng((number, list(CANVASES).index(canvas)))
    name, side = names[number % len(names)], int(rng.choice(SIDES))
    image = CANVASES[canvas](rng)
    y, x = rng.integers(0, SIZE - side + 1, 2)
    drawn = drawing(0, CLASSES.index(name), side, None)
    view = image[y : y + side, x : x + side]
    view += (drawn[..., :3] - view) * drawn[..., 3:]
    square, inside = np.zeros((2, SIZE, SIZE), bool)
    square[y : y + side, x : x + side] = True
    inside[y : y + side, x : x + side] = drawn[..., 3] > 0.5
    shown = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return Layout(shown, name, square, inside, np.zeros_like(inside))


def among(split: str, n: int, kind: str = "captions", first: bool = False) -> Iterator[Layout]:
    """Yield the first n objects of scenes that show several.

    Args:
        split: of the world.
        n: objects.
        kind: of scenes.
        first: whether a scene's first object alone is asked for, as sets ordered by count are about it.
    """
    number = 0
    while n > 0:
        drawn = scene(kind, split, number)
        number += 1
        for place, group in enumerate(drawn.groups[:1] if first else drawn.groups):
            inside = drawn.owner == place
            others = (drawn.owner >= 0) & ~inside
            if n > 0 and inside.any() and others.any():
                n -= 1
                yield Layout(Image.fromarray(drawn.image), group.name, inside, inside, others)


class Pointed(NamedTuple):
    """What a map does with a layout: 1 or 0, but for `order`.

    Args:
        hit: its highest pixel lies in the object's square.
        strict: it lies on the drawing itself, whose gaps show the canvas.
        other: it lies on another object.
        mean: its mean on the drawing is above its mean beside it.
        order: AUROC of the drawing's pixels against all others.
    """

    hit: float
    strict: float
    other: float
    mean: float
    order: float


def pointed(matcher: Matcher, layouts: Sequence[Layout]) -> list[Pointed]:
    """Return what a matcher's maps do with layouts, asked whether the objects are there."""
    asked = [f"is there {article(layout.name)} {layout.name} in the image ?" for layout in layouts]
    found = []
    for layout, match in zip(layouts, matcher([layout.image for layout in layouts], asked), strict=True):
        heat = match.relevance.numpy()
        square, inside, others = (
            _enlarged(mask, *heat.shape) for mask in (layout.square, layout.inside, layout.others)
        )
        top = np.unravel_index(heat.argmax(), heat.shape)
        higher = bool(heat[inside].mean() > heat[~inside].mean())
        order = auroc(heat[inside], heat[~inside])
        found.append(Pointed(float(square[top]), float(inside[top]), float(others[top]), float(higher), order))
    return found


def shares(found: Sequence[Pointed]) -> dict[str, Interval]:
    """Return each figure's mean over layouts with its 95 % interval."""
    table = np.array(found, dtype=float)
    return {
        name: interval(lambda _, drawn, k=k: float(table[drawn, k].mean()), 1, len(table))  # type: ignore[misc]
        for k, name in enumerate(Pointed._fields)
    }


def _enlarged(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) > 0
