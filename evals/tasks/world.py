"""The embedded world as tasks, `world_pope` and `world_chair`: right answers are known by drawing.

World POPE follows POPE (arXiv:2305.10355): for each picture three objects in view and three that are not, chosen at
random, by frequency, or by co-occurrence; frequencies are counted on training scenes. World CHAIR captions scenes and
compares with what is in view. `world_pope_real` and `world_chair_real` are the same drawings pasted on photographs.
The test of World POPE has scenes of the split "val" beside it, on which controls are fitted and chosen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from PIL import Image

from lvlm_guard.embedded import world
from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.spec.items import EvalTask, Item, Split
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import benchmarks, made

PICTURES, CAPTIONS, CALIBRATION = 240, 320, 80
LABELS: dict[bool, Answer] = {True: "yes", False: "no"}
NOUNS: tuple[str, ...] = world.CLASSES
"""Everything that can be named: the objects of POPE, the vocabulary of CHAIR, what `vote` votes on."""

LIMITS: str = benchmarks()["world"]["limits"]
"""What this world shows and what it does not; said wherever its figures are."""


def picture(scenes: world.Scenes, index: int) -> Image.Image:
    """Return a scene as an RGB picture of 96 x 96."""
    return Image.fromarray(scenes.image[index])


def scenes_of(split: str, real: bool = False, captions: bool = False) -> str:
    """Return the name of a split's scenes in `embedded.world`, such as "test_real"; raises `DataError`."""
    if split not in ("val", "test"):
        raise DataError(f"The split is {split!r}: give 'test' to report, or 'val' to choose a setting.")
    return split + "_real" * real + "_cap" * captions


def world_pope_task(settings: Settings, real: bool = False) -> list[EvalTask]:
    """Return the yes/no questions, 18 a picture; a question that several kinds share is asked once."""
    pictures = settings.limit or PICTURES
    about = {
        "source": f"embedded world, split {scenes_of(settings.split, real)}, its first {pictures} scenes with three "
        "objects in view",
        "limits": LIMITS,
    }
    items = _questions(pictures, settings.split, real)
    task = made("world_pope", settings, items, about, name="world_pope" + "_real" * real)
    held_out = _questions(min(CALIBRATION, pictures), "val", real, "val-") if settings.split == "test" else []
    return [replace(task, calibration=held_out)]


def _questions(pictures: int, split: Split, real: bool, prefix: str = "") -> list[Item]:
    """Return the questions about the first scenes that have three objects in view; raises `DataError` of too few."""
    name = scenes_of(split, real)
    drawn, asked = pope_set(name, pictures)
    rows: dict[tuple[int, int], list[str]] = {}
    for q in asked:
        rows.setdefault((q.scene, q.asked), []).append(f"pope_{q.mode}")
    if (found := len({q.scene for q in asked})) < pictures:
        there = f"the split {name!r} has {found} scenes with three objects in view"
        raise DataError(f"{pictures} pictures were asked for, but {there}: ask for fewer.")
    items = []
    for n, q in enumerate(asked):
        if kinds := rows.pop((q.scene, q.asked), None):
            noun, label, shown = NOUNS[q.asked], LABELS[q.present], (picture(drawn, q.scene),)
            key, tags = f"{prefix}{n}", {"object": noun, "assumed": q.assumed}
            items.append(Item(key, f"{prefix}{q.scene}", world.question(noun), shown, "", label, tuple(kinds), tags))
    return items


def world_chair_task(settings: Settings, real: bool = False) -> list[EvalTask]:
    """Return the first scenes of a caption split, with the names of what is in view; raises `DataError` of too few."""
    name, captions = scenes_of(settings.split, real, captions=True), settings.captions or settings.limit or CAPTIONS
    if not 1 <= captions <= (there := world.SPLITS[name].size):
        raise DataError(f"World CHAIR has 1 to {there} scenes in {settings.split!r}; got captions={captions}.")
    drawn, items = world.scenes(name, captions), []
    for i in range(captions):
        objects, props = drawn.visible(i)
        truth, shown = sorted(NOUNS[o] for o in objects), (picture(drawn, i),)
        items.append(Item(str(i), str(i), world.CAPTION_PROMPT, shown, "", truth, ("chair",), {"prop": bool(props)}))
    about = {"source": f"embedded world, split {name}, its first {captions} scenes", "limits": LIMITS}
    task = made("world_chair", replace(settings, limit=None), items, about, name="world_chair" + "_real" * real)
    return [replace(task, vocabulary=NOUNS)]


world_pope_real_task = partial(world_pope_task, real=True)
world_chair_real_task = partial(world_chair_task, real=True)  # the same on photographs
