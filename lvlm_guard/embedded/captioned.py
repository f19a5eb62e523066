"""Scenes with colours, counts and order, their captions with four that are wrong each, and what is known of them.

Here drawings may be tinted and repeated, captions name colour and number, and sets of pictures have an order (how many,
how large, how bright). Every picture is drawn from its split's seed and its number alone, so nothing is stored and no
two splits share a scene. What is known is told as a line of facts, which `lvlm_guard.adapters.data.read` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.tinted import (
    COLOURS,
    ITEMS,
    LUMA,
    META_OF,
    METAS,
    MOST,
    NUMBERS,
    Group,
    Scene,
    cast,
    colour,
    draw,
    listing,
)
from lvlm_guard.errors import UnknownNameError, did_you_mean

Picked = TypeVar("Picked")

SPLITS = {"train": 101, "val": 202, "test": 303, "pretrain": 404, "test_real": 505}
"""Seeds. "pretrain" is what the tiny CLIP saw; an adapter trains on "train". Grounds of "test_real" are photographs."""

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
    """Return what scene number `index` shows, without drawing it, in a twentieth of the time; raises `UnknownNameError`
    where there is no such kind or split."""
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
    drawn = draw(rng, planned.groups, side=planned.side, photographs="test" if split == "test_real" else "")
    if kind == "brightness":
        return replace(drawn, image=(drawn.image * rng.uniform(*LIGHT)).astype(np.uint8))
    return drawn


def known(name: str, names: Collection[str], what: str) -> None:
    """Raise `UnknownNameError` where `name` is none of `names`."""
    if name not in names:
        raise UnknownNameError(
            f"The world has no {what} {name!r}. {did_you_mean(name, names)}Known: {', '.join(names)}."
        )


class Pictures:
    """The world's pictures by key, "count/train/17": a store as `lvlm_guard.adapters.data` reads them from."""

    def load(self, key: str) -> Image.Image:
        """Return a picture, RGB 96 x 96; raises `UnknownNameError` where the key is none of this world."""
        kind, _, rest = key.partition("/")
        split, _, index = rest.partition("/")
        if not index.isdecimal():
            raise UnknownNameError(
                f"{key!r} is no picture of the world. Its keys are KIND/SPLIT/NUMBER: count/train/17."
            )
        return Image.fromarray(scene(kind, split, int(index)).image)

    def __str__(self) -> str:
        return "the embedded world"


EXCHANGED = ("category", "colour", "number", "exchange")
"""An object by another of its kind; a colour or number by another; two objects' colours by each other."""

SIZES = {"train": 4000, "val": 500, "test": 1000}
"""Pictures of a split, one caption each, where nobody says how many."""


def caption(split: str, index: int) -> dict[str, Any]:
    """Return the caption of picture `index` of a split as facts hold it; raises `UnknownNameError`."""
    groups = plan("captions", split, index).groups
    rng = np.random.default_rng((index, len(split), 1))
    said = [groups[int(k)] for k in rng.permutation(len(groups))]
    first, wrong = said[0], _swaps(rng, said)
    return {
        "text": _told(said),
        "category": first.name,
        "meta": META_OF[first.name],
        "attributes": {"number": NUMBERS[first.count]} | ({"colour": first.colour} if first.colour else {}),
        "negatives": [text for _, text in wrong],
        "kinds": [kind for kind, _ in wrong],
    }


def _told(groups: Sequence[Group]) -> str:
    return listing([group.phrase() for group in groups])


def _swaps(rng: np.random.Generator, said: Sequence[Group]) -> list[tuple[str, str]]:
    """Return (kind, caption), one of every kind that these groups allow, filled up to four with category swaps."""
    made: list[tuple[str, str]] = []
    while len(made) < len(EXCHANGED):
        kind = EXCHANGED[len(made)]
        text = _swapped(rng, said, kind)
        if text is None:
            kind, text = "category", _swapped(rng, said, "category")
        if text is not None and text not in {other for _, other in made}:
            made.append((kind, text))
    return made


def _swapped(rng: np.random.Generator, said: Sequence[Group], kind: str) -> str | None:
    groups = list(said)
    if kind == "exchange":
        return _exchanged(rng, groups)
    able = [k for k, group in enumerate(groups) if kind != "colour" or group.colour]
    if not able:
        return None
    k = able[int(rng.integers(len(able)))]
    group = groups[k]
    if kind == "category":
        names = [name for name in METAS[META_OF[group.name]] if name not in {other.name for other in said}]
        groups[k] = replace(group, name=_pick(rng, names))
    elif kind == "colour":
        groups[k] = replace(group, colour=_pick(rng, [colour for colour in COLOURS if colour != group.colour]))
    else:
        groups[k] = replace(group, count=_pick(rng, [n for n in range(1, MOST + 1) if n != group.count]))
    return _told(groups)


def _exchanged(rng: np.random.Generator, groups: list[Group]) -> str | None:
    """Exchange the colours of two groups: the same words, a different picture."""
    tinted = [k for k, group in enumerate(groups) if group.colour]
    pairs = [(a, b) for a in tinted for b in tinted if b < a and groups[a].colour != groups[b].colour]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    groups[a], groups[b] = replace(groups[a], colour=groups[b].colour), replace(groups[b], colour=groups[a].colour)
    return _told(groups)


def _pick(rng: np.random.Generator, values: Sequence[Picked]) -> Picked:
    return values[int(rng.integers(len(values)))]


WHOLE = "image"  # the "object" of a value that is the whole picture's


def told(kind: str, split: str, index: int) -> dict[str, Any]:
    """Return what is known of a picture as a line of facts; raises `UnknownNameError`.

    Of "captions" a caption that names all there is, and counts; of "count" 0 to 6 of each of 54 objects; of "size" the
    side of the object's drawing, 16 to 64 pixels; of "brightness" the picture's mean luma, 0 to 10.
    """
    line: dict[str, Any] = {"image": f"{kind}/{split}/{index}", "split": split if split in SIZES else None}
    if kind == "brightness":
        light = float((scene(kind, split, index).image.astype(np.float32) @ LUMA).mean()) / 25.5
        return line | {"objects": {WHOLE: round(light, 4)}}
    planned = plan(kind, split, index)
    if kind == "size":
        return line | {"objects": {planned.groups[0].name: planned.side}}
    line["objects"] = {group.name: group.count for group in planned.groups}
    if kind == "captions":
        tints = {group.name: [group.colour] for group in planned.groups if group.colour}
        line |= {"captions": [caption(split, index)], "attributes": tints}
    return line
