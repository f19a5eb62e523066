"""The embedded world as tasks, `world_pope` and `world_chair`: right answers are known by drawing.

World POPE follows POPE (arXiv:2305.10355): for each picture three objects in view and three that are not, chosen at
random, by frequency, or by co-occurrence; frequencies are counted on training scenes. World CHAIR captions scenes and
compares with what is in view. `world_pope_real` and `world_chair_real` are the same drawings pasted on photographs.
The test of World POPE has scenes of the split "val" beside it, on which controls are fitted and chosen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

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


class WorldQuestion(NamedTuple):
    question_id: int  # from 1
    picture: int  # index of the scene in its split
    kind: str
    name: str
    text: str
    label: Answer
    assumed: bool  # absent, but suggested by what is in view: what the model hallucinates


class WorldPope(NamedTuple):
    """Scenes and the questions about them, 18 a scene, in order of scenes."""

    scenes: world.Scenes
    questions: list[WorldQuestion]


class WorldCaptions(NamedTuple):
    """Scenes to be captioned; `objects[i]` are the names in view in scene i, `props[i]` whether a prop is."""

    scenes: world.Scenes
    objects: dict[int, frozenset[str]]
    props: dict[int, bool]
    prompt: str = world.CAPTION_PROMPT


def picture(scenes: world.Scenes, index: int) -> Image.Image:
    """Return a scene as an RGB picture of 96 x 96."""
    return Image.fromarray(scenes.image[index])


def scenes_of(split: str, real: bool = False, captions: bool = False) -> str:
    """Return the name of a split's scenes in `embedded.world`, such as "test_real"; raises `DataError`."""
    if split not in ("val", "test"):
        raise DataError(f"The split is {split!r}: give 'test' to report, or 'val' to choose a setting.")
    return split + "_real" * real + "_cap" * captions


def world_pope(pictures: int = 300, split: str = "test", real: bool = False) -> WorldPope:
    """Return POPE questions about the first scenes of a split that have three objects in view, or raise `DataError`."""
    name = scenes_of(split, real)
    if pictures < 1:
        raise DataError(f"World POPE needs a picture or more; got pictures={pictures}.")
    drawn, asked = pope_set(name, pictures)
    found = len({question.scene for question in asked})
    if found < pictures:
        there = f"the split {name!r} has {found} scenes with three objects in view"
        raise DataError(f"{pictures} pictures were asked for, but {there}: ask for fewer.")
    questions = []
    for n, q in enumerate(asked, 1):
        noun, label = NOUNS[q.asked], LABELS[q.present]
        questions.append(WorldQuestion(n, q.scene, q.mode, noun, world.question(noun), label, q.assumed))
    return WorldPope(drawn, questions)


def world_chair(captions: int = 400, split: str = "test", real: bool = False) -> WorldCaptions:
    """Return the first scenes of a caption split, and what is in view in each; raises `DataError` as `world_pope`."""
    name = scenes_of(split, real, captions=True)
    if not 1 <= captions <= world.SPLITS[name].size:
        raise DataError(f"World CHAIR has 1 to {world.SPLITS[name].size} scenes in {split!r}; got captions={captions}.")
    drawn = world.scenes(name, captions)
    seen = dict(enumerate(map(drawn.visible, range(captions))))
    objects = {i: frozenset(NOUNS[o] for o in found) for i, (found, _) in seen.items()}
    return WorldCaptions(drawn, objects, {i: bool(props) for i, (_, props) in seen.items()})


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
    drawn = world_pope(pictures, split, real)
    rows: dict[tuple[int, str], dict[str, None]] = {}
    for q in drawn.questions:
        rows.setdefault((q.picture, q.text), {})[f"pope_{q.kind}"] = None
    items = []
    for n, q in enumerate(drawn.questions):
        if kinds := rows.pop((q.picture, q.text), None):
            shown, tags = (picture(drawn.scenes, q.picture),), {"object": q.name, "assumed": q.assumed}
            key, name = f"{prefix}{n}", f"{prefix}{q.picture}"
            items.append(Item(key, name, q.text, shown, "", q.label, tuple(kinds), tags))
    return items


def world_chair_task(settings: Settings, real: bool = False) -> list[EvalTask]:
    """Return the scenes to caption, with the names of what is in view."""
    drawn = world_chair(settings.captions or settings.limit or CAPTIONS, settings.split, real)
    items = [
        Item(str(i), str(i), drawn.prompt, (picture(drawn.scenes, i),), "", sorted(seen), ("chair",), {"prop": prop})
        for (i, seen), prop in zip(drawn.objects.items(), drawn.props.values(), strict=True)
    ]
    name = scenes_of(settings.split, real, captions=True)
    about = {"source": f"embedded world, split {name}, its first {len(items)} scenes", "limits": LIMITS}
    task = made("world_chair", replace(settings, limit=None), items, about, name="world_chair" + "_real" * real)
    return [replace(task, vocabulary=NOUNS)]


world_pope_real_task = partial(world_pope_task, real=True)
world_chair_real_task = partial(world_chair_task, real=True)  # the same on photographs
