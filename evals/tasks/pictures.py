"""Where the user's pictures are, all of them found before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lvlm_guard.evals.errors import DataError

FOLDERS = ("", "val2014", "train2014", "images", "coco/val2014", "coco/train2014", "gqa", "gqa/images")
"""Where a picture may lie below `--images`, so that one folder can serve several data sets."""

SOURCES = {
    "coco": "COCO's are in http://images.cocodataset.org/zips/val2014.zip (6 GB)",
    "gqa": "GQA's are in https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip (20 GB)",
    "amber": "AMBER's are behind the link in github.com/junyangwang0410/AMBER",
    "mme": "MME's are given by its authors on request",
    "mmhal": "MMHal-Bench's are with it on the hub, Shengcao1006/MMHal-Bench (174 MB)",
    "dash_b": "DASH-B's are with it on the hub, YanNeu/DASH-B (673 MB)",
}
"""Data set -> where its pictures come from."""


def find_pictures(
    names: Iterable[str],
    folder: str,
    task: str,
    data_set: str = "",
    places: Callable[[str], Iterable[str]] | None = None,
) -> dict[str, Path]:
    """Return the file of each picture, in `folder` (`--images`) or `FOLDERS` below it.

    `data_set` is one of `SOURCES`; "": COCO's or GQA's, as the names tell. `places` gives the paths that a name may
    have there, where they are not the name. Raises `DataError` where no folder was given, pictures are missing (how
    many, and the first), or a file is none.
    """
    wanted = list(dict.fromkeys(names))
    data_set = data_set or ("coco" if any("COCO_" in name for name in wanted) else "gqa")
    root = check_folder(folder, task, data_set)
    inside = [root / part for part in FOLDERS if (root / part).is_dir()]
    found: dict[str, Path] = {}
    for name in wanted:
        tried = [part / path for part in inside for path in (places(name) if places else [name])]
        if path := next(filter(Path.is_file, tried), None):
            found[name] = path
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} pictures of {task} are not in {folder}; the first is {missing[0]}. "
            f"{SOURCES[data_set]}."
        )
    broken = [path for path in found.values() if not _is_picture(path)]
    if broken:
        raise DataError(
            f"{len(broken)} of {len(wanted)} pictures of {task} are empty or no pictures; the first is {broken[0]} "
            f"({broken[0].stat().st_size} bytes): get them again."
        )
    return found


def check_folder(folder: str, task: str, data_set: str) -> Path:
    """Return the folder of `--images`; raises `DataError` where none was given or it is none."""
    if not folder:
        raise DataError(f"{task} needs pictures: give their folder with --images. {SOURCES[data_set]}.")
    if not Path(folder).is_dir():
        raise DataError(f"--images {folder} is no folder: the pictures of {task} are looked for there.")
    return Path(folder)


def _is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does; its pixels are not read."""
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, ValueError):
        return False
