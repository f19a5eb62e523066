"""COCO's pictures: what is in them, by its annotation files or a ground truth of CHAIR, and which are kept from tests.

A validation split uses no picture of a published test, nor of the default tests here: a setting that was chosen on a
test's pictures makes that test's number worthless. The rule goes by the picture, for all tasks at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.chair import ImageId, image_id, read_objects
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.spec.jsonl import document
from lvlm_guard.evals.tasks.benchmark import FOLDERS

Part = Literal["instances", "captions"]

SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip (241 MB)"

FIRST_OF_VAL = "8"
"""Digests beginning with this digit or a later one are the validation half: half of all pictures."""


@dataclass(frozen=True)
class Truth:
    """What is in the pictures: where that is from, file names to choose from, and a picture's id -> its objects."""

    source: str
    names: Sequence[str]
    known: Callable[[ImageId], Iterable[str] | None]

    def of(self, name: str) -> list[str]:
        """Return the objects of a picture; raises `DataError` where nothing is known of it."""
        objects = self.known(image_id(name))
        if objects is None:
            raise DataError(
                f"Nothing is known of {name}: it is not among the {self.source}, so all that its caption names would "
                "count as hallucinated. Give the annotations of its part of COCO."
            )
        return sorted(objects)


def truth_of(annotations: str | Path, images: str = "") -> Truth:
    """Return the truth that `--annotations` gives, of the pictures in `--images`; raises `DataError`.

    With COCO's own files a picture's objects are those annotated in it and those that people name in it, whose captions
    are read with the published script's slips repaired, as a model's are.
    """
    path = Path(annotations)
    if annotations and path.is_file() and not path.name.startswith(("instances", "captions")):
        objects = read_objects(path)
        # such a table does not say which of its pictures are val2014's; the folder does
        inside = (file for part in FOLDERS for file in (Path(images) / part).glob("COCO_val2014_*.jpg"))
        names = sorted({file.name for file in inside if image_id(file.name) in objects})
        return Truth(f"objects of {path.name}", names, objects.get)
    instances, captions = (annotation_file(annotations, part, "chair") for part in ("instances", "captions"))
    annotated, words = read_instances(instances), coco_words()
    said: dict[ImageId, list[str]] = {}
    with _table(captions, "captions", "'annotations' (image_id, caption)") as table:
        for one in table["annotations"]:
            said.setdefault(one["image_id"], []).append(str(one["caption"]))

    def known(key: ImageId) -> set[str] | None:
        if key not in annotated or key not in said:
            return None
        _, categories = annotated[key]
        strange = next((category for category in categories if category not in words.nodes), None)
        if strange is not None:
            raise DataError(f"The annotations name {strange!r}, which is none of CHAIR's 80 objects.")
        return {words.nodes[name] for name in categories}.union(*(words.find(caption).nodes for caption in said[key]))

    source = f"categories of {instances.name} and objects that people name in {captions.name}"
    return Truth(source, [name for name, _ in annotated.values()], known)


def annotation_file(given: str | Path, part: Part, task: str) -> Path:
    """Return COCO's file of instances or of captions for a task; raises `DataError` where it is not there.

    `given` (`--annotations`) is the file, its neighbour, the folder of both (val2014 is taken), or the one above that.
    """
    path, usual = Path(given), f"{part}_val2014.json"
    tried = [path / usual, path / "annotations" / usual]
    if path.is_file():
        tried = [path.with_name(path.name.replace("captions" if part == "instances" else "instances", part))]
    found = next((file for file in tried if file.is_file() and part in file.name), None)
    if not given or found is None:
        lacking = tried[0] if part in tried[0].name else path.with_name(usual)
        told = f", and {lacking} is not there" if given else ""
        raise DataError(
            f"{task} needs COCO's {part}{told}: give their folder, or one of the files, with --annotations. They are "
            f"in {SOURCE}."
        )
    return found


def read_instances(path: Path) -> dict[ImageId, tuple[str, tuple[str, ...]]]:
    """Return every picture of a file of instances by its id, in the order of file names.

    Each has its file name, and the categories of its instances, each once, in the order of the file. Raises
    `DataError`.
    """
    needs = "'images' (id, file_name), 'categories' (id, name) and 'annotations' (image_id, category_id)"
    with _table(path, "instances", needs) as table:
        names = {category["id"]: str(category["name"]) for category in table["categories"]}
        found: dict[ImageId, dict[str, None]] = {picture["id"]: {} for picture in table["images"]}
        for one in table["annotations"]:
            found[one["image_id"]][names[one["category_id"]]] = None
        listed = sorted((str(picture["file_name"]), picture["id"]) for picture in table["images"])
        return {key: (name, tuple(found[key])) for name, key in listed}


@contextmanager
def _table(path: Path, what: str, needs: str) -> Iterator[dict[str, Any]]:
    """Open an annotation file of COCO; what it lacks when it is read is a `DataError`."""
    table = document(path)
    try:
        yield table
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no {what} as COCO has them ({type(error).__name__}: {error}): it needs {needs}."
        ) from None


def of_published_test(name: str) -> bool:
    """Whether POPE (COCO, A-OKVQA, GQA) or AGLA's captions are tested on a picture of this file name.

    GQA's pictures carry other numbers than COCO's, so a picture that is in both is known by one name only.
    """
    number, tests = image_id(name), _tests()
    if "COCO_" not in name:
        return number in tests["gqa"]
    return number in tests["coco"] or number in tests["aokvqa"] or digest(number)[:8] in tests["agla_chair"]


def in_val_half(name: str) -> bool:
    """Whether a picture is in the half of COCO that validation may use; the default tests use the other."""
    return digest(image_id(name)) >= FIRST_OF_VAL and not of_published_test(name)


def digest(number: int | str) -> str:
    """Return the digest by which pictures are halved and put in order, 64 hexadecimal digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


@cache
def _tests() -> dict[str, frozenset[int | str]]:
    text = files("lvlm_guard.evals").joinpath("data/test_pictures.json").read_text(encoding="utf-8")
    return {name: frozenset(numbers) for name, numbers in json.loads(text).items()}
