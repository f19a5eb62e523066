"""COCO's annotation files: what is in each picture, and what people said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.chair import ImageId
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.spec.jsonl import document

Part = Literal["instances", "captions"]

SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip (241 MB)"


@dataclass(frozen=True)
class Annotated:
    """A picture: its file name, and the categories of its instances, each once, in the order of the file."""

    name: str
    categories: tuple[str, ...]


def annotation_file(given: str, part: Part, task: str) -> Path:
    """Return COCO's file of instances or of captions.

    Args:
        given: of `--annotations`: the file, its neighbour, the folder of both (val2014 is taken there), or the
            folder above that.
        part: which of the two.
        task: who needs it, for messages.

    Raises:
        DataError: it is not there.
    """
    if not given:
        raise DataError(f"{task} needs COCO's {part}: give their folder with --annotations. They are in {SOURCE}.")
    path = Path(given)
    if path.is_file():
        mine = path.with_name(path.name.replace("captions" if part == "instances" else "instances", part))
        if part in mine.name and mine.is_file():
            return mine
        raise DataError(
            f"{task} needs COCO's {part} beside {path}; there is no {mine.name if part in mine.name else part}. They "
            f"are in {SOURCE}."
        )
    tried = [path / f"{part}_val2014.json", path / "annotations" / f"{part}_val2014.json"]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise DataError(
            f"{task} needs COCO's {part}, and {tried[0]} is not there. Give the folder that holds {tried[0].name}, or "
            f"the file itself; it is in {SOURCE}."
        )
    return found


def read_instances(path: Path) -> dict[ImageId, Annotated]:
    """Return every picture of a file of instances by its id, in the order of names.

    Raises:
        DataError: the file can't be read, or holds no instances.
    """
    table = _table(path)
    try:
        names = {category["id"]: str(category["name"]) for category in table["categories"]}
        found: dict[ImageId, dict[str, None]] = {picture["id"]: {} for picture in table["images"]}
        for one in table["annotations"]:
            found[one["image_id"]][names[one["category_id"]]] = None
        listed = sorted(table["images"], key=lambda picture: str(picture["file_name"]))
        return {p["id"]: Annotated(str(p["file_name"]), tuple(found[p["id"]])) for p in listed}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no instances as COCO has them ({type(error).__name__}: {error}): it needs 'images' (id, "
            "file_name), 'categories' (id, name) and 'annotations' (image_id, category_id)."
        ) from None


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Return the captions that people wrote, by picture; raises `DataError` as `read_instances`."""
    captions: dict[ImageId, list[str]] = {}
    try:
        for one in _table(path)["annotations"]:
            captions.setdefault(one["image_id"], []).append(str(one["caption"]))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no captions as COCO has them ({type(error).__name__}: {error}): it needs 'annotations' "
            "(image_id, caption)."
        ) from None
    return captions


def chair_objects(categories: Iterable[str], captions: Iterable[str]) -> list[str]:
    """Return CHAIR's ground truth of a picture: what is annotated in it, and what people name in it.

    Captions are read with the published script's slips repaired, as those of a model are.

    Raises:
        DataError: a category is none of COCO's.
    """
    words = coco_words()
    strange = next((category for category in categories if category not in words.nodes), None)
    if strange is not None:
        raise DataError(f"The annotations name {strange!r}, which is none of CHAIR's 80 objects.")
    objects = {words.nodes[category] for category in categories}
    return sorted(objects.union(*(words.find(caption).nodes for caption in captions)))


def _table(path: Path) -> dict[str, Any]:
    table = document(path)
    if not isinstance(table, dict):
        raise DataError(f"{path} is no annotation file of COCO: it holds a {type(table).__name__}.")
    return table
