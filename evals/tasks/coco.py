"""COCO: what is in its pictures, which of them no test may share, and the task `chair`, which captions them.

    lvlm-guard eval run --model M --tasks chair --images val2014 --annotations annotations
    lvlm-guard eval run --model M --tasks chair --images val2014 --annotations gt_objects.json.gz --captions 100

Papers caption 500 pictures of val2014 drawn at random, each its own 500 (arXiv:1809.02156 scores the whole
Karpathy test). Here the 500 are those whose ids have the smallest SHA-256: everybody's are the same, and
`--captions N` takes the first N of the same order. Another list, such as AGLA's 100 pictures, is a file of JSON
lines with "image" (and "text", the prompt), given with `--questions`; `--preset paper-agla` fetches AGLA's.

A validation split (of any task) takes pictures from the other half of COCO, none of a published test's, and none of
the lists in `--questions`: a setting that was chosen on a test's pictures makes that test's number worthless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.chair import ImageId, image_id, read_objects
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import document, read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import FOLDERS, check_folder, fetch, made, published
from lvlm_guard.evals.tasks.pope.questions import list_of_pictures

PROMPT = "Please describe this image in detail."
PICTURES, VAL2014 = 500, 40504  # pictures that are captioned, and those of COCO val2014
AGLA_PICTURES = published("chair_agla")["chair.jsonl"]  # the 100 pictures of COCO val2014 that AGLA captions
Asked = dict[str, str]  # file name of each picture to caption -> the prompt

Part = Literal["instances", "captions"]

SOURCE = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip (241 MB)"

_PICTURES = json.loads(files("lvlm_guard.evals").joinpath("data/test_pictures.json").read_bytes())
TESTED: dict[str, frozenset[int | str]] = {name: frozenset(numbers) for name, numbers in _PICTURES.items()}
"""Published test -> ids of its pictures (of AGLA's captions the beginnings of `digest`s)."""

FIRST_OF_VAL = "8"  # digests beginning with this digit or a later one are the validation half: half of all pictures


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
            told = f"it is not among the {self.source}. Give the annotations of its part of COCO"
            raise DataError(f"Nothing is known of {name}: {told}.")
        return sorted(objects)


def truth_of(annotations: str | Path, images: str = "") -> Truth:
    """Return the truth that `--annotations` gives, of the pictures in `--images`; raises `DataError`. With COCO's own
    files a picture's objects are those annotated in it and those that people name in it, whose captions are read with
    the published script's slips repaired, as a model's are."""
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
        for strange in (category for category in categories if category not in words.nodes):
            raise DataError(f"The annotations name {strange!r}, which is none of CHAIR's 80 objects.")
        return {words.nodes[name] for name in categories}.union(*(words.find(caption).nodes for caption in said[key]))

    source = f"categories of {instances.name} and objects that people name in {captions.name}"
    return Truth(source, [name for name, _ in annotated.values()], known)


def annotation_file(given: str | Path, part: Part, task: str) -> Path:
    """Return COCO's file of instances or of captions for a task; raises `DataError` where it is not there. `given`
    (`--annotations`) is the file, its neighbour, the folder of both (val2014 is taken), or the one above that."""
    path, usual = Path(given), f"{part}_val2014.json"
    tried = [path / usual, path / "annotations" / usual]
    if path.is_file():
        tried = [path.with_name(path.name.replace("captions" if part == "instances" else "instances", part))]
    found = next((file for file in tried if file.is_file() and part in file.name), None)
    if not given or found is None:
        lacking = tried[0] if part in tried[0].name else path.with_name(usual)
        told = f", and {lacking} is not there" if given else ""
        how = f"give their folder, or one of the files, with --annotations. They are in {SOURCE}"
        raise DataError(f"{task} needs COCO's {part}{told}: {how}.")
    return found


def read_instances(path: Path) -> dict[ImageId, tuple[str, tuple[str, ...]]]:
    """Return the name and categories (each once, in order) of every picture by its id, by name; raises `DataError`."""
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
    table = document(path)
    try:
        yield table
    except (KeyError, TypeError, AttributeError) as error:
        told = f"holds no {what} as COCO has them ({type(error).__name__}: {error})"
        raise DataError(f"{path} {told}: it needs {needs}.") from None


def of_published_test(name: str) -> bool:
    """Whether POPE (COCO, A-OKVQA, GQA) or AGLA's captions are tested on a picture of this file name. GQA's pictures
    carry other numbers than COCO's, so a picture that is in both is known by one name only."""
    number = image_id(name)
    if "COCO_" not in name:
        return number in TESTED["gqa"]
    return number in TESTED["coco"] | TESTED["aokvqa"] or digest(number)[:8] in TESTED["agla_chair"]


def in_val_half(name: str) -> bool:
    """Whether a picture is in the half of COCO that validation may use; the default tests use the other."""
    return digest(image_id(name)) >= FIRST_OF_VAL and not of_published_test(name)


def digest(number: int | str) -> str:
    """Return the digest by which pictures are halved and put in order, 64 hexadecimal digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def chair(settings: Settings) -> list[EvalTask]:
    """Return the pictures to caption, with the objects in them."""
    lists = _lists(settings)
    if settings.preset == PAPER and settings.split == "test" and not lists:
        lists = [fetch(AGLA_PICTURES, "chair")]
    listed: Asked = {name: prompt for path in lists for name, prompt in read_list(path).items()}
    check_folder(settings.images, "chair", "coco")
    truth = truth_of(settings.annotations, settings.images)
    warnings: list[str] = []
    number = settings.captions or settings.limit
    if listed and settings.split == "test":
        asked = dict(list(listed.items())[:number])
        how = f"the list {', '.join(path.name for path in lists)}"
    else:
        asked = dict.fromkeys(_drawn(truth.names, settings, listed)[: number or PICTURES], PROMPT)
        how = "smallest SHA-256 of the id" if settings.split == "test" else "the validation half, no test's pictures"
        if len(truth.names) < VAL2014:
            told = f"chosen among {len(truth.names)}, not among the {VAL2014} of COCO val2014"
            warnings.append(f"chair: the pictures were {told}, so they are others than elsewhere.")
    items = [Item(str(image_id(name)), name, prompt, (), rows=("chair",)) for name, prompt in asked.items()]
    about = {
        "source": f"COCO, {len(asked)} pictures: {how}",
        "truth": truth.source,
        "pictures": digest("\n".join(sorted(asked)))[:16],
        "warnings": warnings,
    }
    task = made("chair", replace(settings, limit=None), items, about)
    return [replace(task, items=[replace(item, truth=truth.of(item.picture)) for item in task.items])]


def read_list(path: Path) -> Asked:
    """Return a list of pictures to caption: JSON lines with "image", each once, and "text" for another prompt."""
    rows = read(path, ("image",), unique=("image",), what="picture to caption")
    return {str(row["image"]): str(row.get("text") or PROMPT) for _, row in rows}


def _lists(settings: Settings) -> list[Path]:
    """Return the files of `--questions` that are lists of pictures; raises `DataError` at others that no task asks."""
    given = list(map(Path, settings.questions))
    for lost in (path for path in given if not path.exists()):
        raise DataError(f"--questions {lost} is not there.")
    lists = [path for path in given if path.is_file() and list_of_pictures(path)]
    strange = [path for path in given if path not in lists]
    if strange and not any(task.startswith("pope") for task in settings.tasks):
        told = "is no list of pictures to caption, JSON lines with 'image' and 'text' (the prompt)"
        raise DataError(f"{strange[0]} {told}. Question files with labels are for pope.")
    return lists


def _drawn(names: Sequence[str], settings: Settings, apart: Asked) -> list[str]:
    """Return the pictures of a split in the order in which they are taken."""
    kept_out = {image_id(name) for name in apart}
    ordered = sorted(names, key=lambda name: digest(image_id(name)))
    if settings.split == "val":
        fit = [name for name in reversed(ordered) if in_val_half(name) and image_id(name) not in kept_out]
    else:
        fit = [name for name in ordered if digest(image_id(name)) < FIRST_OF_VAL]
    if not fit:
        told = f"None of the {len(names)} annotated pictures is of the {settings.split} half"
        raise DataError(f"{told}: give the annotations and pictures of COCO val2014.")
    return fit
