"""COCO-style instance annotations as values: how many of each category a picture shows.

All categories are exhaustive: a picture without a box of one has 0 of it. A crowd box marks objects that nobody
counted; the published protocol leaves it out (so a picture with nothing but a crowd of people would show 0 people).
Here the count of such a category is unknown, unless crowd="ignore" asks for the published one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.published import read_json
from lvlm_guard.adapters.data.rows import RankRow


def convert(
    annotations: str | Path, *, split: str | None = None, crowd: Literal["unknown", "ignore"] = "unknown"
) -> tuple[list[RankRow], list[str], dict[str, int]]:
    """Return (rows, exhaustive categories, counts of what was seen).

    Args:
        annotations: "instances_*.json"; rows name pictures by `file_name`.
        split: of all rows.
        crowd: what a crowd box makes of its category's count.

    Raises:
        DataError: the file is no such annotations.
    """
    found = _read(Path(annotations))
    names: dict[Any, str] = {entry["id"]: str(entry["name"]) for entry in found["categories"]}
    boxes: dict[Any, Counter[str]] = defaultdict(Counter)
    crowds: dict[Any, set[str]] = defaultdict(set)
    for box in found["annotations"]:
        name = names.get(box["category_id"])
        if name is None:
            raise DataError(f"{annotations}: a box is of the category {box['category_id']!r}, which is not listed.")
        if box.get("iscrowd"):
            crowds[box["image_id"]].add(name)
        else:
            boxes[box["image_id"]][name] += 1
    rows: list[RankRow] = []
    unknown = empty = 0
    for image in found["images"]:
        file, counts = str(image["file_name"]), boxes[image["id"]]
        hidden = crowds[image["id"]] if crowd == "unknown" else set()
        unknown += len(hidden)
        known = {name: float(count) for name, count in counts.items() if name not in hidden}
        rows += [RankRow(file, name, value, split=split) for name, value in known.items()]
        rows += [RankRow(file, name, None, split=split) for name in sorted(hidden)]
        if not known and not hidden:  # one row, so that the picture is known to hold none of anything
            empty += 1
            rows.append(RankRow(file, next(iter(names.values())), 0.0, split=split))
    seen = {"pictures": len(found["images"]), "without any object": empty, "unknown for a crowd": unknown}
    return rows, list(names.values()), seen


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = read_json(path)
    needed: dict[str, Sequence[str]] = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id"),
    }
    for part, keys in needed.items():
        listed = found.get(part) if isinstance(found, dict) else None
        if not isinstance(listed, list) or (not listed and part != "annotations"):
            raise DataError(f"{path} has no list {part!r}: it is no COCO-style file of instances.")
        for key in keys:
            if any(not isinstance(entry, dict) or key not in entry for entry in listed):
                raise DataError(f"{path}: an entry of {part!r} has no {key!r}; it is no COCO-style file of instances.")
    return found
