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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import check_folder, fetch, made, published
from lvlm_guard.evals.tasks.coco.annotations import FIRST_OF_VAL, digest, in_val_half, truth_of
from lvlm_guard.evals.tasks.pope.files import list_of_pictures

PROMPT = "Please describe this image in detail."
PICTURES, VAL2014 = 500, 40504
"""Pictures that are captioned, and those of COCO val2014."""

AGLA_PICTURES = published("chair_agla")["chair.jsonl"]
"""The 100 pictures of COCO val2014 that AGLA captions."""

Asked = dict[str, str]
"""File name of each picture to caption -> the prompt."""


def chair(settings: Settings) -> list[EvalTask]:
    """Return the pictures to caption, with the objects in them."""
    lists = _lists(settings)
    if settings.preset == PAPER and settings.split == "test" and not lists:
        lists = [fetch(AGLA_PICTURES, "chair")]
    listed: Asked = {}
    for path in lists:
        listed |= read_list(path)
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
            warnings.append(
                f"chair: the pictures were chosen among {len(truth.names)}, not among the {VAL2014} of COCO val2014, "
                "so they are others than elsewhere."
            )
    items = [Item(str(image_id(name)), name, prompt, (), rows=("chair",)) for name, prompt in asked.items()]
    about = {
        "source": f"COCO, {len(asked)} pictures: {how}",
        "truth": truth.source,
        "pictures": hashlib.sha256("\n".join(sorted(asked)).encode()).hexdigest()[:16],
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
    lost = next((path for path in given if not path.exists()), None)
    if lost is not None:
        raise DataError(f"--questions {lost} is not there.")
    lists = [path for path in given if path.is_file() and list_of_pictures(path)]
    strange = [path for path in given if path not in lists]
    if strange and not any(task.startswith("pope") for task in settings.tasks):
        raise DataError(
            f"{strange[0]} is no list of pictures to caption: chair takes JSON lines with 'image' (a file name) and "
            "'text' (the prompt). Question files with labels are for pope."
        )
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
        raise DataError(
            f"None of the {len(names)} annotated pictures is of the {settings.split} half: give the annotations and "
            "pictures of COCO val2014."
        )
    return fit
