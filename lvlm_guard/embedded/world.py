"""Emoji-COCO, the embedded world: 96 x 96 scenes of objects that appear together, and props that mislead.

Needs numpy and Pillow alone. Every split is drawn from its own fixed seed, about 1 ms a scene, so nothing is stored
and the first n scenes of a split are the same for every n.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.embedded.catalog import CLASSES as CLASSES
from lvlm_guard.embedded.catalog import GROUND, N_OBJECTS, N_PROPS, PROP_LIST, PROPS, TOPIC_NAMES, TOPICS
from lvlm_guard.embedded.photographs import ground
from lvlm_guard.embedded.sprites import SIZES, area, glyph
from lvlm_guard.embedded.text import CAPTION_PROMPT as CAPTION_PROMPT
from lvlm_guard.embedded.text import assumed as assumed
from lvlm_guard.embedded.text import question as question
from lvlm_guard.errors import UnknownNameError

COUNTED = 4000  # training scenes behind `training_cooccurrence`
SIZE = 96  # side of a scene in pixels
GRID = 8  # drawings start at multiples of this many pixels
ITEMS = 8  # no scene holds more items
IN_VIEW = 0.4  # an item is in view when this share of its drawing is seen
SIZE_SHARES = (0.3, 0.35, 0.25, 0.1)  # of objects, for SIZES
PROP_SIZES, STRAY_SIZES = (24, 32, 40), (24, 32)
SHADES = (0.8, 1.15)  # gain of a drawing's colours
OF_TOPIC = 0.7  # share of a scene's objects that are drawn from its topic, the others from anywhere
FREQUENCY = [1 / (1.5 + 0.5 * rank) for rank in range(9)]  # of the k-th object of a topic, before normalising


@dataclass(frozen=True)
class Split:
    """How many scenes a split has, its seed, and how many objects its scenes hold (POPE needs three).

    `photographs` names the part of the photographs that its grounds are cut from; "" where they are drawn. Its scenes
    are then those of the split of the same seed, but for their grounds.
    """

    size: int
    seed: int
    fewest: int = 1
    most: int = 5
    photographs: str = ""


SPLITS = {
    "train": Split(30_000, 11),
    "train_empty": Split(2_500, 66, fewest=0, most=0),
    "val": Split(400, 22, fewest=3),
    "test": Split(800, 33, fewest=3),
    "val_cap": Split(300, 44),
    "test_cap": Split(600, 55),
    "val_real": Split(400, 22, fewest=3, photographs="val"),
    "test_real": Split(800, 33, fewest=3, photographs="test"),
    "val_real_cap": Split(300, 44, photographs="val"),
    "test_real_cap": Split(600, 55, photographs="test"),
}


@dataclass(frozen=True)
class Scene:
    """One picture and what it shows.

    `image` is uint8 (96, 96, 3). `items` are (kind 0 object / 1 prop, index, y, x, size in pixels), later ones
    painted on top. `owner` is int8 (96, 96): the item seen at a pixel, -1 for the background.
    """

    image: NDArray[np.uint8]
    topic: int
    items: list[tuple[int, int, int, int, int]]
    owner: NDArray[np.int8]


def background(rng: np.random.Generator, topic: int) -> NDArray[np.float32]:
    """Return a ground of its own for a scene of this topic, (96, 96, 3) of about 0 to 255."""
    base = np.array(GROUND[TOPIC_NAMES[topic]], np.float32)
    if rng.random() < 0.35:
        base = rng.uniform(70, 230, 3).astype(np.float32)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    waves = rng.uniform(1, 5)
    wave = np.sin(2 * np.pi * waves * (np.cos(angle) * xx + np.sin(angle) * yy) + phase)[..., None]
    image = base + 12 * wave * rng.uniform(0.2, 1)
    image = image + rng.normal(0, 9, (SIZE, SIZE, 1)) + rng.uniform(-30, 30) * (yy - 0.5)[..., None]
    return np.asarray(image, np.float32)


def _cast(rng: np.random.Generator, topic: int, split: Split, prop_rate: float) -> list[tuple[int, int, int]]:
    """Return the (kind, index, size) of what a scene holds."""
    names = TOPICS[TOPIC_NAMES[topic]]
    weights = np.array(FREQUENCY[: len(names)])
    weights /= weights.sum()
    count = int(rng.integers(split.fewest, split.most + 1))
    objects: set[int] = set()
    while len(objects) < count:
        if rng.random() < OF_TOPIC:
            objects.add(CLASSES.index(names[rng.choice(len(names), p=weights)]))
        else:
            objects.add(int(rng.integers(N_OBJECTS)))
    items = [(0, o, int(rng.choice(SIZES, p=SIZE_SHARES))) for o in objects]
    if rng.random() < prop_rate:
        for k in rng.choice(4, int(rng.integers(1, 3)), replace=False):
            prop = PROP_LIST.index((TOPIC_NAMES[topic], PROPS[TOPIC_NAMES[topic]][k]))
            items.append((1, prop, int(rng.choice(PROP_SIZES))))
    elif rng.random() < 0.25:  # so that a prop is no sure sign of its topic
        items.append((1, int(rng.integers(N_PROPS)), int(rng.choice(STRAY_SIZES))))
    return items


def _scene(
    rng: np.random.Generator, split: Split, textures: np.random.Generator | None = None, prop_rate: float = 0.55
) -> Scene:
    topic = int(rng.integers(len(TOPICS)))
    items = _cast(rng, topic, split, prop_rate)
    order = rng.permutation(len(items))
    image = background(rng, topic)
    if textures is not None:
        image = ground(textures, split.photographs, SIZE)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    taken = np.zeros((SIZE, SIZE), np.float32)
    placed: list[tuple[int, int, int, int, int]] = []
    for i in sorted(order, key=lambda i: -items[i][2]):
        kind, index, size = items[i]
        y, x = _place(rng, taken, size)
        taken[y : y + size, x : x + size] = 1
        drawing = glyph(kind, index, size)
        colours = np.clip(drawing[..., :3] * rng.uniform(*SHADES) + rng.uniform(-15, 15, 3), 0, 255)
        alpha = drawing[..., 3:]
        image[y : y + size, x : x + size] = image[y : y + size, x : x + size] * (1 - alpha) + colours * alpha
        owner[y : y + size, x : x + size][drawing[..., 3] > 0.5] = len(placed)
        placed.append((kind, index, y, x, size))
    return Scene(np.clip(image, 0, 255).astype(np.uint8), topic, placed, owner)


def _place(rng: np.random.Generator, taken: NDArray[np.float32], size: int) -> tuple[int, int]:
    """Return the corner of the least taken of up to 12 places, the first free one if any."""
    best, least = (0, 0), np.inf
    for _ in range(12):
        y, x = (int(rng.integers(0, (SIZE - size) // GRID + 1)) * GRID for _ in range(2))
        overlap = float(taken[y : y + size, x : x + size].mean())
        if overlap < least:
            best, least = (y, x), overlap
        if overlap < 0.05:
            break
    return best


@dataclass(frozen=True)
class Scenes(Sequence[Scene]):
    """Many scenes as arrays: image (n, 96, 96, 3) uint8, owner (n, 96, 96) int8, items (n, 8, 5) int16, topic (n,).

    Rows of `items` after a scene's last item are -1.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    items: NDArray[np.int16]
    topic: NDArray[np.int8]
    _areas: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        areas = np.full(self.items.shape[:2], np.iinfo(np.int64).max, np.int64)
        for i, k in np.argwhere(self.items[:, :, 0] >= 0):
            kind, index, _, _, size = (int(v) for v in self.items[i, k])
            areas[i, k] = area(kind, index, size)
        object.__setattr__(self, "_areas", areas)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> Scene:  # type: ignore[override]
        rows = self.items[i][self.items[i, :, 0] >= 0].tolist()
        return Scene(self.image[i], int(self.topic[i]), [tuple(row) for row in rows], self.owner[i])

    def seen(self, i: int, keep: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return how many pixels are seen of each of a scene's 8 places for items; `keep` as for `visible`."""
        owner = self.owner[i] if keep is None else self.owner[i][keep]
        return np.bincount(owner.ravel() + 1, minlength=ITEMS + 1)[1:]

    def visible(self, i: int, keep: NDArray[np.bool_] | None = None) -> tuple[list[int], list[int]]:
        """Return what is in view in scene i: (objects, large to small; props).

        Args:
            keep: (96, 96), the pixels that are left of the picture; None for all.
        """
        seen = np.flatnonzero(self.seen(i, keep) >= IN_VIEW * self._areas[i]).tolist()
        items = self.items[i]
        objects = [(int(items[k, 4]), int(items[k, 1])) for k in seen if items[k, 0] == 0]
        props = [int(items[k, 1]) for k in seen if items[k, 0] == 1]
        return [o for _, o in sorted(objects, key=lambda pair: -pair[0])], props


def scenes(split: str, n: int | None = None) -> Scenes:
    """Draw the first n scenes of a split (all of it by default), about 1 ms each; raises `UnknownNameError` where there
    is no such split, `GuardError` where its grounds are cut from photographs whose package is not installed."""
    if split not in SPLITS:
        raise UnknownNameError(
            f"No split of the embedded world is called {split!r}. Known: {', '.join(SPLITS)}; choose one of them."
        )
    plan = SPLITS[split]
    count = plan.size if n is None else min(n, plan.size)
    rng = np.random.default_rng(plan.seed)
    textures = np.random.default_rng([plan.seed, 1]) if plan.photographs else None
    image = np.empty((count, SIZE, SIZE, 3), np.uint8)
    owner = np.empty((count, SIZE, SIZE), np.int8)
    items = np.full((count, ITEMS, 5), -1, np.int16)
    topic = np.empty(count, np.int8)
    for i in range(count):
        scene = _scene(rng, plan, textures)
        image[i], owner[i], topic[i] = scene.image, scene.owner, scene.topic
        if scene.items:
            items[i, : len(scene.items)] = scene.items
    return Scenes(image, owner, items, topic)


def training_cooccurrence() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how often objects are in view together, pairs (54, 54), and at all, (54,): POPE's negatives come from it.

    Counted once over the first `COUNTED` training scenes (`embedded_training.stored`); drawing them takes 5 s.
    """
    stored = json.loads((Path(__file__).parent / "cooccurrence.json").read_text())
    return np.array(stored["pairs"], np.int64), np.array(stored["single"], np.int64)
