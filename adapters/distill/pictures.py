"""Where the pictures come from: a folder, or scenes of the embedded world. Labels are never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lvlm_guard.adapters.distill.settings import Lessons
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.images import load_image

SCENES = 4000  # of the embedded world, unasked
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".jp2", ".heic"}


@dataclass(frozen=True)
class Pictures:
    """Pictures by name.

    Args:
        learnt: names of those to learn from.
        held_out: names of those that are only measured on.
        load: reads one, RGB; raises `ImageError`.
    """

    learnt: tuple[str, ...]
    held_out: tuple[str, ...]
    load: Callable[[str], Image.Image]


def pictures_of(lessons: Lessons) -> Pictures:
    """Return the pictures of some lessons, the same ones each time.

    Raises:
        TrainingError: the folder is missing or holds too few.
    """
    return _world(lessons) if not lessons.images else _folder(lessons, Path(lessons.images))


def _world(lessons: Lessons) -> Pictures:
    from lvlm_guard.embedded.world import SPLITS, scenes

    count = SCENES if lessons.pictures is None else lessons.pictures
    most = SPLITS["train"].size - lessons.held_out
    if count > most:
        raise TrainingError(f"The embedded world has {most} training scenes beside those held out: ask for fewer.")
    drawn = scenes("train", count + lessons.held_out).image
    names = tuple(f"train:{number}" for number in range(len(drawn)))
    place = dict(zip(names, drawn, strict=True))
    return Pictures(names[:count], names[count:], lambda name: Image.fromarray(place[name]))


def _folder(lessons: Lessons, folder: Path) -> Pictures:
    if not folder.is_dir():
        raise TrainingError(f"{folder} is no folder: give one that holds pictures (--images).")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if len(found) <= lessons.held_out:
        raise TrainingError(
            f"{folder} holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}), of which {lessons.held_out} would "
            "be held out, so that there is none to learn from. Give more pictures, or a smaller --held-out."
        )
    order = np.random.default_rng(lessons.seed).permutation(len(found))
    names = [found[place] for place in order]
    return Pictures(
        tuple(names[lessons.held_out :][: lessons.pictures]),
        tuple(names[: lessons.held_out]),
        lambda name: load_image(folder / name),
    )
