"""`chair`: captions of COCO pictures, against what is annotated and what people said of them.

    lvlm-guard eval run --model M --tasks chair --images val2014 --annotations annotations
    lvlm-guard eval run --model M --tasks chair --images val2014 --annotations gt_objects.json.gz --captions 100

Papers caption 500 pictures of val2014 drawn at random, each its own 500 (arXiv:1809.02156 scores the whole
Karpathy test). Here the 500 are those whose ids have the smallest SHA-256: everybody's are the same, and
`--captions N` takes the first N of the same order. Another list, such as AGLA's 100 pictures, is a file of JSON
lines with "image" (and "text", the prompt), given with `--questions`; `--preset paper-agla` fetches AGLA's.

`--split val` takes pictures from the other half of COCO, none of a published test's, and none of the lists in
`--questions`; give the list that is to be tested there, so that it stays apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.chair import ImageId, image_id, read_objects
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.coco import annotations as coco
from lvlm_guard.evals.tasks.coco.held_out import FIRST_OF_VAL, digest, in_val_half
from lvlm_guard.evals.tasks.fetching import Published, fetch
from lvlm_guard.evals.tasks.pictures import FOLDERS, check_folder, find_pictures
from lvlm_guard.evals.tasks.pope.files import list_of_pictures
from lvlm_guard.evals.tasks.pope.task import paper_tokens

PROMPT = "Please describe this image in detail."
PICTURES, CAPTION_TOKENS = 500, 512
VAL2014 = 40504
"""Pictures of COCO val2014."""

AGLA_PICTURES = Published(
    "https://raw.githubusercontent.com/Lackel/AGLA/efa126347c41631152a70d7db0a6ac0708bd9d00/data/CHAIR/chair.jsonl",
    "55a3883f5d779b4d0771d414c1ac52839e7ace12d2675e3eb0b20265bc337685",
)
"""The 100 pictures of COCO val2014 that AGLA captions."""

Asked = dict[str, str]
"""File name of each picture to caption -> the prompt."""


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


def truth_of(settings: Settings) -> Truth:
    """Return the truth that `--annotations` gives: COCO's, or a prepared ground truth; raises `DataError`."""
    path = Path(settings.annotations)
    if settings.annotations and path.is_file() and not path.name.startswith(("instances", "captions")):
        objects = read_objects(path)
        # such a table does not say which of its pictures are val2014's; the folder does
        inside = (file for part in FOLDERS for file in (Path(settings.images) / part).glob("COCO_val2014_*.jpg"))
        names = sorted({file.name for file in inside if image_id(file.name) in objects})
        return Truth(f"objects of {path.name}", names, objects.get)
    instances = coco.annotation_file(settings.annotations, "instances", "chair")
    captions = coco.annotation_file(settings.annotations, "captions", "chair")
    annotated, references = coco.read_instances(instances), coco.read_references(captions)

    def known(key: ImageId) -> list[str] | None:
        if key not in annotated or key not in references:
            return None
        return coco.chair_objects(annotated[key].categories, references[key])

    source = f"categories of {instances.name} and objects that people name in {captions.name}"
    return Truth(source, [picture.name for picture in annotated.values()], known)


def chair(settings: Settings) -> list[EvalTask]:
    """Return the pictures to caption, with the objects in them."""
    lists = [path for path in map(Path, settings.questions) if path.is_file() and list_of_pictures(path)]
    _check_questions(settings, lists)
    if settings.preset == PAPER and settings.split == "test" and not lists:
        lists = [fetch(AGLA_PICTURES, "chair")]
    listed: Asked = {}
    for path in lists:
        listed |= read_list(path)
    check_folder(settings.images, "chair", "coco")
    truth = truth_of(settings)
    warnings: list[str] = []
    number = settings.captions or settings.limit
    if listed and settings.split == "test":
        asked = dict(list(listed.items())[:number])
        how = f"the list {', '.join(path.name for path in lists)}"
    else:
        asked = dict.fromkeys(_drawn(truth.names, settings, listed)[: number or PICTURES], PROMPT)
        how = "smallest SHA-256 of the id" if settings.split == "test" else "the validation half, no test's pictures"
        if len(truth.names) < VAL2014:
            warnings.append(
                f"chair: the pictures were chosen among {len(truth.names)}, not among the {VAL2014} of COCO val2014, "
                "so they are others than elsewhere."
            )
    found = find_pictures(asked, settings.images, "chair")
    about = {
        "source": f"COCO, {len(asked)} pictures: {how}",
        "truth": truth.source,
        "protocol": "CHAIR (arXiv:1809.02156) over COCO's 80 objects",
        "prompt": next(iter(asked.values())),
        "pictures": hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16],
        "warnings": warnings,
    }
    items = [
        Item(str(image_id(name)), name, prompt, (found[name],), truth=truth.of(name), rows=("chair",))
        for name, prompt in asked.items()
    ]
    tokens = paper_tokens(settings.model) if settings.preset == PAPER else CAPTION_TOKENS
    return [EvalTask("chair", "chair", items, settings.max_new_tokens or tokens, split=settings.split, about=about)]


def read_list(path: Path) -> Asked:
    """Return a list of pictures to caption: JSON lines with "image", each once, and "text" for another prompt."""
    rows = read(path, ("image",), unique=("image",), what="picture to caption")
    return {str(row["image"]): str(row.get("text") or PROMPT) for _, row in rows}


def _check_questions(settings: Settings, lists: Sequence[Path]) -> None:
    for name in settings.questions:
        if not Path(name).exists():
            raise DataError(f"--questions {name} is not there.")
    alone = not any(task.startswith("pope") for task in settings.tasks)
    strange = [name for name in settings.questions if Path(name) not in lists]
    if alone and strange:
        raise DataError(
            f"{strange[0]} is no list of pictures to caption: chair takes JSON lines with 'image' (a file name) and "
            "'text' (the prompt). Question files with labels are for pope."
        )


def _drawn(names: Sequence[str], settings: Settings, apart: Asked) -> list[str]:
    """Return the pictures of a split in the order in which they are taken."""
    kept_out = {image_id(name) for name in apart}
    ordered = sorted(names, key=lambda name: digest(image_id(name)))
    if settings.split == "val":
        fit = [name for name in reversed(ordered) if in_val_half(name) and image_id(name) not in kept_out]
    else:
        fit = [name for name in ordered if digest(image_id(name)) < FIRST_OF_VAL]
    if not fit:
        raise DataError(
            f"None of the {len(names)} annotated pictures is of the {settings.split} half: give the annotations and "
            "pictures of COCO val2014."
        )
    return fit
