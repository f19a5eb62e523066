"""Pictures of the world by key, and the scenes behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lvlm_guard.adapters.world.scenes import ITEMS, Scene, cast, colour, draw
from lvlm_guard.adapters.world.words import MOST, Group
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.errors import UnknownNameError, did_you_mean

SPLITS = {"train": 101, "val": 202, "test": 303, "pretrain": 404}
"""Seeds. "pretrain" is what the tiny CLIP saw; an adapter trains on "train"."""


COUNTED = ("car", "boat", "dog", "bird", "sheep", "apple", "carrot", "cup", "book", "phone", "ball", "umbrella")
"""What sets ordered by count or size are about; the other objects stand beside them, and test what is unseen."""

LARGEST, SMALLEST = 64, 16  # sides of the object in a set ordered by size
LIGHT = (0.25, 1.0)  # what all colours are multiplied with in a set ordered by brightness


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, known before it is drawn.

    Args:
        groups: the first is what an ordered set is about.
        side: of the first group's drawings in pixels; None for sizes at random.
    """

    groups: tuple[Group, ...]
    side: int | None = None


def _captioned(rng: np.random.Generator) -> Plan:
    return Plan(tuple(cast(rng)))


def _counted(rng: np.random.Generator) -> Plan:
    name = COUNTED[int(rng.integers(len(COUNTED)))]
    groups = [Group(name, int(rng.integers(1, MOST + 1)), colour(rng))]
    others = [other for other in CLASSES if other != name]
    for k in rng.permutation(len(others))[: int(rng.integers(0, 3))]:
        count = min(int(rng.integers(1, MOST // 2 + 1)), ITEMS - sum(group.count for group in groups))
        if count:
            groups.append(Group(others[int(k)], count, colour(rng)))
    return Plan(tuple(groups))


def _sized(rng: np.random.Generator) -> Plan:
    name = COUNTED[int(rng.integers(len(COUNTED)))]
    side = int(rng.integers(SMALLEST // 4, LARGEST // 4 + 1)) * 4
    return Plan((Group(name, 1, colour(rng)),), side)


KINDS: dict[str, Callable[[np.random.Generator], Plan]] = {
    "captions": _captioned,
    "count": _counted,
    "size": _sized,
    "brightness": _captioned,
}
"""What scenes are for, and how one is planned."""


def plan(kind: str, split: str, index: int) -> Plan:
    """Return what scene number `index` shows, without drawing it, in a twentieth of the time.

    Raises:
        UnknownNameError: there is no such kind or split.
    """
    return _planned(kind, split, index)[0]


def _planned(kind: str, split: str, index: int) -> tuple[Plan, np.random.Generator]:
    known(kind, KINDS, "kind of scene")
    known(split, SPLITS, "split")
    rng = np.random.default_rng((SPLITS[split], list(KINDS).index(kind), index))
    return KINDS[kind](rng), rng


def scene(kind: str, split: str, index: int) -> Scene:
    """Draw scene number `index`, the same whenever it is asked for.

    Args:
        kind: one of `KINDS`.
        split: one of `SPLITS`.

    Raises:
        UnknownNameError: there is no such kind or split.
    """
    planned, rng = _planned(kind, split, index)
    drawn = draw(rng, planned.groups, side=planned.side)
    if kind != "brightness":
        return drawn
    light = rng.uniform(*LIGHT)
    return Scene((drawn.image * light).astype(np.uint8), drawn.groups, drawn.owner, drawn.sides)


def known(name: str, names: Collection[str], what: str) -> None:
    """Raise `UnknownNameError` where `name` is none of `names`."""
    if name not in names:
        raise UnknownNameError(
            f"The world has no {what} {name!r}. {did_you_mean(name, names)}Known: {', '.join(names)}."
        )


class Pictures:
    """The world's pictures by key, "count/train/17": a store as `lvlm_guard.adapters.data` reads them from."""

    def load(self, key: str) -> Image.Image:
        """Return a picture, RGB 96 x 96.

        Raises:
            UnknownNameError: the key is none of this world.
        """
        kind, _, rest = key.partition("/")
        split, _, index = rest.partition("/")
        if not index.isdecimal():
            raise UnknownNameError(
                f"{key!r} is no picture of the world. Its keys are KIND/SPLIT/NUMBER: count/train/17."
            )
        return Image.fromarray(scene(kind, split, int(index)).image)

    def describe(self) -> str:
        """Return what the store is, for messages."""
        return "the embedded world"
