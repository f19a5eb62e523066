"""Scenes of tinted and repeated objects, 96 x 96, how they are drawn, and their words: "three red dogs".

Unlike the scenes of `lvlm_guard.embedded.world` nothing overlaps, so that a count is what can be counted, and each
object appears in one colour only, so that a caption with another colour or number is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.embedded.catalog import CLASSES, N_PROPS, TOPICS
from lvlm_guard.embedded.photographs import ground
from lvlm_guard.embedded.sprites import SIZES, glyph
from lvlm_guard.embedded.world import SIZE, background
from lvlm_guard.matching.vocabulary import article, plural

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40), "yellow": (240, 205, 40), "green": (50, 165, 60), "blue": (50, 95, 225),
    "purple": (150, 60, 190), "black": (48, 48, 48),
}  # fmt: skip
"""Tints, RGB 0-255. No "orange", which names a fruit here, and no white, which bright grounds hide."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MOST = len(NUMBERS) - 1  # of one object in a picture

METAS: dict[str, tuple[str, ...]] = {
    "vehicle": ("car", "bus", "truck", "bicycle", "motorcycle", "train", "airplane", "boat"),
    "animal": ("horse", "cow", "sheep", "bird", "elephant", "zebra", "dog", "cat", "person"),
    "food": ("apple", "banana", "orange", "broccoli", "carrot", "pizza", "cake", "donut", "sandwich", "hotdog"),
    "tableware": ("knife", "spoon", "bowl", "cup", "bottle", "wineglass"),
    "furnishing": ("couch", "tv", "clock", "vase", "plant"),
    "office": ("book", "laptop", "phone", "keyboard", "scissors"),
    "sport": ("kite", "surfboard", "frisbee", "ball", "bat", "racket", "skateboard"),
    "baggage": ("backpack", "suitcase", "handbag", "umbrella"),
}
"""Which objects are of one kind; a category swap stays within one."""

META_OF = {name: meta for meta, names in METAS.items() for name in names}


@dataclass(frozen=True)
class Group:
    """All of one object in a picture: "three red dogs".

    Args:
        name: the object, one of `lvlm_guard.embedded.catalog.CLASSES`.
        count: how many, 1 to 6.
        colour: their tint, one of `COLOURS`; None where they have the drawing's own colours.
    """

    name: str
    count: int
    colour: str | None = None

    def phrase(self, *, number: bool = True, colour: bool = True) -> str:
        """Return how a caption names it: "a red dog", "two dogs"; without its number "dogs", "a dog"."""
        tint = self.colour if colour else None
        words = ([tint] if tint else []) + [self.name if self.count == 1 else plural(self.name)]
        if self.count == 1:
            return f"{article(words[0])} {' '.join(words)}"
        return " ".join([NUMBERS[self.count], *words] if number else words)


def listing(phrases: Sequence[str]) -> str:
    """Return phrases as English lists them: "a dog, two cats and a bus"."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


ITEMS = 9  # most drawings in a scene: more of the smallest would still fit, but hardly be seen
STEP = 4  # drawings start at multiples of this many pixels
TINTED = 0.65  # share of groups with a colour of their own
GROUPS = (0.3, 0.45, 0.25)  # of scenes with 1, 2, 3 groups
COUNTS = (0.45, 0.2, 0.13, 0.09, 0.07, 0.06)  # of groups with 1 to 6 items
PROP_RATE = 0.25  # of scenes with one thing that no caption names
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's convert("L")


@dataclass(frozen=True)
class Scene:
    """One picture and all it shows.

    Args:
        image: uint8 (96, 96, 3).
        groups: what can be named; no object twice.
        owner: int8 (96, 96), the group seen at a pixel; -1 for ground and props.
        sides: of each group, the side in pixels of its largest drawing.
    """

    image: NDArray[np.uint8]
    groups: tuple[Group, ...]
    owner: NDArray[np.int8]
    sides: tuple[int, ...]


@lru_cache(maxsize=4096)
def drawing(kind: int, index: int, side: int, colour: str | None) -> NDArray[np.float32]:
    """Return a drawing of any side, tinted or as it is: (side, side, 4), colours 0-255, alpha 0-1."""
    if side in SIZES:
        plain = glyph(kind, index, side)
    else:
        rgba = glyph(kind, index, SIZES[-1]).copy()
        rgba[..., 3] *= 255
        picture = Image.fromarray(rgba.astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS)
        plain = np.asarray(picture).astype(np.float32)
        plain[..., 3] /= 255
    if colour is None:
        return plain
    # The tint keeps a part of the light and shade by which the drawing is recognised.
    light = (plain[..., :3] @ LUMA)[..., None] / 255
    tinted = np.array(COLOURS[colour], np.float32) * (0.45 + 0.7 * light)
    return np.concatenate([np.clip(tinted, 0, 255), plain[..., 3:]], -1)


def cast(rng: np.random.Generator, names: Sequence[str] = CLASSES) -> list[Group]:
    """Return the groups of a scene: 1 to 3 different objects out of `names`, at most 9 items together."""
    groups: list[Group] = []
    for k in rng.permutation(len(names))[: 1 + int(rng.choice(len(GROUPS), p=GROUPS))]:
        left = ITEMS - sum(group.count for group in groups)
        count = min(1 + int(rng.choice(MOST, p=COUNTS)), left)
        if count:
            groups.append(Group(names[int(k)], count, colour(rng)))
    return groups


def colour(rng: np.random.Generator) -> str | None:
    """Return a colour with probability `TINTED`, else None."""
    return list(COLOURS)[int(rng.integers(len(COLOURS)))] if rng.random() < TINTED else None


def draw(
    rng: np.random.Generator,
    groups: Sequence[Group],
    *,
    side: int | None = None,
    prop_rate: float = PROP_RATE,
    photographs: str = "",
) -> Scene:
    """Draw groups at free places; raises `GuardError` where the photographs are not installed.

    Args:
        groups: what to draw; at most `ITEMS` items together.
        side: of every drawing of the first group, in pixels up to 64; None for sizes at random.
        prop_rate: how often a prop stands beside them.
        photographs: the part of the photographs that the ground is cut from, "val" or "test"; "": it is drawn.
    """
    total = sum(group.count for group in groups)
    sizes = _sizes(rng, total)
    items = [(g, 0, CLASSES.index(group.name)) for g, group in enumerate(groups) for _ in range(group.count)]
    sides = [side if side is not None and g == 0 else sizes[k] for k, (g, _, _) in enumerate(items)]
    if rng.random() < prop_rate:
        items.append((-1, 1, int(rng.integers(N_PROPS))))
        sides.append(SIZES[0] if total > 4 or side is not None else SIZES[1])
    topic = int(rng.integers(len(TOPICS)))
    image = ground(rng, photographs, SIZE) if photographs else background(rng, topic)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    order = sorted(range(len(items)), key=lambda k: -sides[k])
    largest = [0] * len(groups)
    for k, (y, x, s) in zip(order, _places(rng, [sides[k] for k in order]), strict=True):
        g, kind, index = items[k]
        rgba = drawing(kind, index, s, groups[g].colour if g >= 0 else None)
        colours = np.clip(rgba[..., :3] * rng.uniform(0.9, 1.1) + rng.uniform(-8, 8), 0, 255)
        alpha = rgba[..., 3:]
        view = image[y : y + s, x : x + s]
        view += (colours - view) * alpha
        if g >= 0:
            owner[y : y + s, x : x + s][rgba[..., 3] > 0.5] = g
            largest[g] = max(largest[g], s)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), tuple(groups), owner, tuple(largest))


def _sizes(rng: np.random.Generator, total: int) -> list[int]:
    """Return a size for each of `total` items; the more, the smaller, so that all find a place."""
    most = 4 if total <= 2 else 3 if total <= 4 else 2
    fewest = 1 if total <= 3 else 0
    return [SIZES[int(k)] for k in rng.integers(fewest, most, total)]


def _places(rng: np.random.Generator, sides: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (y, x, side) for each, none overlapping another; later ones are made smaller where they must be."""
    while True:
        boxes: list[tuple[int, int, int]] = []
        for side in sides:
            place = _place(rng, boxes, side)
            if place is None:  # the earlier ones lie badly: start again
                break
            boxes.append(place)
        else:
            return boxes


def _place(rng: np.random.Generator, boxes: Sequence[tuple[int, int, int]], side: int) -> tuple[int, int, int] | None:
    while True:
        span = (SIZE - side) // STEP + 1
        for y, x in (rng.integers(0, span, (24, 2)) * STEP).tolist():
            if _free(y, x, side, boxes):
                return y, x, side
        places = ((y * STEP, x * STEP) for y in range(span) for x in range(span))
        free = [(y, x) for y, x in places if _free(y, x, side, boxes)]
        if free:
            return *free[int(rng.integers(len(free)))], side
        if side <= SIZES[0]:
            return None
        side = max(SIZES[0], side - 8)


def _free(y: int, x: int, side: int, boxes: Sequence[tuple[int, int, int]]) -> bool:
    return all(y + side <= b or b + s <= y or x + side <= c or c + s <= x for b, c, s in boxes)
