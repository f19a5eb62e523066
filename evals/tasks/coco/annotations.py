"""COCO's annotation files: what is in each picture, and what people said of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    """Return COCO's file of instances or of captions for a task; raises `DataError` where it is not there.

    `given` (`--annotations`) is the file, its neighbour, the folder of both (val2014 is taken), or the one above that.
    """
    if not given:
        raise DataError(f"{task} needs COCO's {part}: give their folder with --annotations. They are in {SOURCE}.")
    path, needs = Path(given), f"{task} needs COCO's {part}"
    if path.is_file():
        mine = path.with_name(path.name.replace("captions" if part == "instances" else "instances", part))
        if part in mine.name and mine.is_file():
            return mine
        name = mine.name if part in mine.name else part
        raise DataError(f"{needs} beside {path}; there is no {name}. They are in {SOURCE}.")
    tried = [path / f"{part}_val2014.json", path / "annotations" / f"{part}_val2014.json"]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise DataError(
            f"{needs}, and {tried[0]} is not there. Give the folder that holds {tried[0].name}, or the file itself; it "
            f"is in {SOURCE}."
        )
    return found


def read_instances(path: Path) -> dict[ImageId, Annotated]:
    """Return every picture of a file of instances by its id, in the order of names; raises `DataError`."""
    with _table(
        path, "instances", "'images' (id, file_name), 'categories' (id, name) and 'annotations' (image_id, category_id)"
    ) as table:
        names = {category["id"]: str(category["name"]) for category in table["categories"]}
        found: dict[ImageId, dict[str, None]] = {picture["id"]: {} for picture in table["images"]}
        for one in table["annotations"]:
            found[one["image_id"]][names[one["category_id"]]] = None
        listed = sorted(table["images"], key=lambda picture: str(picture["file_name"]))
        return {p["id"]: Annotated(str(p["file_name"]), tuple(found[p["id"]])) for p in listed}


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """Return the captions that people wrote, by picture; raises `DataError`."""
    captions: dict[ImageId, list[str]] = {}
    with _table(path, "captions", "'annotations' (image_id, caption)") as table:
        for one in table["annotations"]:
            captions.setdefault(one["image_id"], []).append(str(one["caption"]))
    return captions


def chair_objects(categories: Iterable[str], captions: Iterable[str]) -> list[str]:
    """Return CHAIR's ground truth of a picture: what is annotated in it, and what people name in it.

    Captions are read with the published script's slips repaired, as those of a model are. Raises `DataError` where a
    category is none of COCO's.
    """
    words = coco_words()
    strange = next((category for category in categories if category not in words.nodes), None)
    if strange is not None:
        raise DataError(f"The annotations name {strange!r}, which is none of CHAIR's 80 objects.")
    objects = {words.nodes[category] for category in categories}
    return sorted(objects.union(*(words.find(caption).nodes for caption in captions)))


@contextmanager
def _table(path: Path, what: str, needs: str) -> Iterator[dict[str, Any]]:
    """Open an annotation file of COCO; what it lacks when it is read is a `DataError`."""
    table = document(path)
    if not isinstance(table, dict):
        raise DataError(f"{path} is no annotation file of COCO: it holds a {type(table).__name__}.")
    try:
        yield table
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no {what} as COCO has them ({type(error).__name__}: {error}): it needs {needs}."
        ) from None
