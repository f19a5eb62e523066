"""Sets of the world's pictures with an order: how many of an object, how large it is, how bright the picture."""

from __future__ import annotations

import numpy as np

from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import RankRow
from lvlm_guard.adapters.world.captions import SIZES
from lvlm_guard.adapters.world.pictures import Pictures, known, plan, scene
from lvlm_guard.adapters.world.scenes import LUMA
from lvlm_guard.embedded.catalog import CLASSES

ORDERS = {
    "count": COUNTS,
    "size": "Rank the size of the {object}.",
    "brightness": "Rank the brightness of the {object}.",
}
"""What pictures are ordered by, and how that is asked for."""

WHOLE = "image"  # the "object" of a value that is the whole picture's


def ranks(split: str | None = None, by: str = "count", n: int | None = None) -> RankData:
    """Return values of a split's pictures.

    Args:
        split: "train", "val" or "test"; None for the three together, marked in the rows.
        by: "count": 0 to 6 of each of 54 objects, all exhaustive; "size": the side of the object's drawing, 16 to 64
            pixels; "brightness": the picture's mean luma, 0 to 10.
        n: pictures of each split; None for 4 000, 500 and 1 000.

    Raises:
        UnknownNameError: there is no such split or order.
    """
    known(by, ORDERS, "order")
    rows: list[RankRow] = []
    for name in [split] if split else SIZES:
        for i in range(n or SIZES.get(name, 1000)):
            rows += _rows(by, name, i)
    exhaustive = CLASSES if by == "count" else ()
    where = f"the embedded world by {by}{f' ({split})' if split else ''}"
    return RankData(rows, Pictures(), where, exhaustive, ORDERS[by])


def _rows(by: str, split: str, index: int) -> list[RankRow]:
    image, marked = f"{by}/{split}/{index}", split if split in SIZES else None
    if by == "brightness":
        light = float((scene(by, split, index).image.astype(np.float32) @ LUMA).mean()) / 25.5
        return [RankRow(image, WHOLE, round(light, 4), split=marked)]
    planned = plan(by, split, index)
    if by == "count":
        return [RankRow(image, group.name, float(group.count), split=marked) for group in planned.groups]
    return [RankRow(image, planned.groups[0].name, float(planned.side or 0), split=marked)]
