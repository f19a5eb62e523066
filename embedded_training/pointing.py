"""Whether a matcher's map points at what is asked for: `python -m embedded_training.pointing` for the embedded ones.

Pasted: one drawing on a canvas that shows nothing else. "noise" is a sensor's, grey with a deviation of 30; "static"
is every value alike, which no picture of the world comes near; "ground" is that of the world's own scenes. Among
others: scenes of the world with two or three objects, each asked for in turn; the ranker is asked for those it counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.adapters.evaluation.metrics import Interval, auroc, ends_of, resampled
from lvlm_guard.adapters.loading import load_adapter
from lvlm_guard.adapters.matchers.clip import LAYERS, ClipMatcher
from lvlm_guard.cli.console import print_json
from lvlm_guard.embedded.captioned import COUNTED, scene
from lvlm_guard.embedded.catalog import CLASSES, TOPICS
from lvlm_guard.embedded.tinted import drawing
from lvlm_guard.embedded.world import SIZE, background
from lvlm_guard.matching import Matcher, load_matcher
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
    drawn = [layouts for _, layouts in resampled(1, len(table), 1000)]
    names = enumerate(Pointed._fields)
    return {name: ends_of(np.array([table[layouts, k].mean() for layouts in drawn])) for k, name in names}


def _enlarged(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) > 0


MATCHERS = {"clip": "embedded-clip", "dual-prompt": "embedded-dual-prompt", "ranker": "embedded-ranker"} | {
    "blip-itm": "embedded"
}


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.pointing", description=__doc__)
    parser.add_argument("--matcher", choices=list(MATCHERS), nargs="+", default=list(MATCHERS))
    parser.add_argument("--layers", type=int, nargs="+", default=[LAYERS], help="of clip and dual-prompt, the last")
    parser.add_argument("--layouts", type=int, default=50, help="of each canvas")
    parser.add_argument("--among", type=int, default=200, help="objects among others")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of the scenes with others")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not args.json:
        print("matcher | layouts | n | highest in square | on drawing | on another | mean higher | AUROC of pixels")
        print("--- | --- | --- | --- | --- | --- | --- | ---")
    rows = []
    for name in args.matcher:
        names, counted = (COUNTED, True) if name == "ranker" else (CLASSES, False)
        sets = {canvas: [pasted(canvas, k, names) for k in range(args.layouts)] for canvas in CANVASES}
        sets["among others"] = list(among(args.split, args.among, "count" if counted else "captions", first=counted))
        for told, matcher in _matchers(name, args.layers):
            for what, layouts in sets.items():
                each = shares(pointed(matcher, layouts))
                head = {"matcher": told, "task": what, "n": len(layouts)}
                rows += [head | {"metric": metric} | found._asdict() for metric, found in each.items()]
                if not args.json:
                    cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in each.values()]
                    print(" | ".join([told, what, str(len(layouts)), *cells]), flush=True)
    if args.json:
        print_json("python -m embedded_training.pointing", rows, settings=vars(args))
    return 0


def _matchers(name: str, layers: list[int]) -> Iterator[tuple[str, Matcher]]:
    """Yield a matcher as it is told and loaded, for each number of layers where it has them."""
    if name not in ("clip", "dual-prompt"):
        yield name, load_matcher(MATCHERS[name])
        return
    for number in layers:
        yield f"{name}, {number} layers", ClipMatcher(load_adapter(MATCHERS[name]), number)


if __name__ == "__main__":
    sys.exit(main())
