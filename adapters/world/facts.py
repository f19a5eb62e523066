"""What is known of the world's pictures: how many of each object, how large one is, how bright the picture."""

from __future__ import annotations

import numpy as np

from lvlm_guard.adapters.data.dataset import FactsData
from lvlm_guard.adapters.data.facts import Facts
from lvlm_guard.adapters.data.views import COUNTS, CaptionData, RankData
from lvlm_guard.adapters.world.captions import SIZES, row
from lvlm_guard.adapters.world.pictures import KINDS, Pictures, known, plan, scene
from lvlm_guard.adapters.world.scenes import LUMA
from lvlm_guard.embedded.catalog import CLASSES

ORDERS = {
    "count": COUNTS,
    "size": "Rank the size of the {object}.",
    "brightness": "Rank the brightness of the {object}.",
}
"""What pictures are ordered by, and how that is asked for."""

WHOLE = "image"  # the "object" of a value that is the whole picture's


def facts(kind: str = "captions", split: str | None = None, n: int | None = None) -> FactsData:
    """Return what is known of a split's pictures.

    Args:
        kind: "captions": a caption that names all there is, and counts; "count": 0 to 6 of each of 54 objects, all
            exhaustive; "size": the side of the object's drawing, 16 to 64 pixels; "brightness": the picture's mean
            luma, 0 to 10.
        split: "train", "val" or "test"; None for the three together, marked in the facts.
        n: pictures of each split; None for 4 000, 500 and 1 000.

    Raises:
        UnknownNameError: there is no such split or kind.
    """
    known(kind, KINDS, "kind of facts")
    found = [_facts(kind, name, i) for name in ([split] if split else SIZES) for i in range(n or SIZES.get(name, 1000))]
    where = f"the embedded world's {kind}{f' ({split})' if split else ''}"
    exhaustive = CLASSES if kind in ("captions", "count") else ()
    return FactsData(found, Pictures(), where, exhaustive, ORDERS.get(kind, COUNTS))


def captions(split: str | None = None, n: int | None = None) -> CaptionData:
    """Return captions of a split, with what is known of their pictures; see `facts`."""
    return facts("captions", split, n).captions


def ranks(split: str | None = None, by: str = "count", n: int | None = None) -> RankData:
    """Return values of a split's pictures; see `facts`."""
    known(by, ORDERS, "order")
    return facts(by, split, n).ranks


def _facts(kind: str, split: str, index: int) -> Facts:
    image, marked = f"{kind}/{split}/{index}", split if split in SIZES else None
    if kind == "brightness":
        light = float((scene(kind, split, index).image.astype(np.float32) @ LUMA).mean()) / 25.5
        return Facts(image, objects={WHOLE: round(light, 4)}, split=marked)
    planned = plan(kind, split, index)
    if kind == "size":
        return Facts(image, objects={planned.groups[0].name: float(planned.side or 0)}, split=marked)
    counts = {group.name: float(group.count) for group in planned.groups}
    if kind == "count":
        return Facts(image, objects=counts, split=marked)
    tints = {group.name: (group.colour,) for group in planned.groups if group.colour}
    return Facts(image, (row(split, index),), counts, tints, split=marked)
