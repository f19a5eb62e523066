"""The tasks of the embedded world: POPE questions and captions whose right answers are known by drawing.

World POPE follows POPE (arXiv:2305.10355) on drawn scenes: for each picture three objects in view and
three that are not, chosen at random, by frequency, or by co-occurrence; frequencies are counted on
training scenes. World CHAIR captions scenes and compares with what is in view.

Splits: "val" is for choosing anything, "test" for reporting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from lvlm_guard.embedded import world
from lvlm_guard.embedded.questions import MODES, pope_set
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer

Split = Literal["val", "test"]
KINDS = MODES
NOUNS: tuple[str, ...] = world.CLASSES
"""Everything that can be named: the objects of POPE, the vocabulary of CHAIR, what `vote` votes on."""

LIMITS = (
    "The world is drawn and its bias is built in. Props mislead the language model because it was trained on labels "
    "that assume what usually goes with them; it was trained on partly blacked pictures too; the matcher was trained "
    "on clean labels and told to ignore props. So this world meets AGLA's premise, and makes the matcher the better "
    "judge, by design. The figures show that the code does what the methods promise where their premise holds, for "
    "one training seed. They do not show that a method helps a real model: that must be measured on one."
)
"""What this world shows and what it does not; said wherever its figures are."""


@dataclass(frozen=True)
class WorldQuestion:
    """One question about a scene.

    Args:
        question_id: its number, from 1.
        picture: index of the scene in its split.
        kind: how its absent objects were chosen.
        name: the object asked about.
        text: the question.
        label: whether the object is in view.
        assumed: whether it is absent but suggested by a prop in view, which is what the model hallucinates.
    """

    question_id: int
    picture: int
    kind: str
    name: str
    text: str
    label: Answer
    assumed: bool


@dataclass(frozen=True)
class WorldPope:
    """Scenes and the questions about them, 18 a scene, in order of scenes."""

    scenes: world.Scenes
    questions: list[WorldQuestion]


@dataclass(frozen=True)
class WorldCaptions:
    """Scenes to be captioned; `objects[i]` are the names in view in scene i, `props[i]` whether a prop is."""

    scenes: world.Scenes
    objects: dict[int, frozenset[str]]
    props: dict[int, bool]
    prompt: str = world.CAPTION_PROMPT


def picture(scenes: world.Scenes, index: int) -> Image.Image:
    """Return a scene as an RGB picture of 96 x 96."""
    return Image.fromarray(scenes.image[index])


def world_pope(pictures: int = 300, split: Split = "test") -> WorldPope:
    """Return POPE questions about the first scenes of a split that have three objects in view.

    Args:
        pictures: how many scenes.
        split: "test", or "val" for choosing a setting.

    Raises:
        DataError: the split has fewer such scenes, or is none.
    """
    _check(split)
    if pictures < 1:
        raise DataError(f"World POPE needs a picture or more; got pictures={pictures}.")
    drawn, asked = pope_set(split, pictures)
    found = len({question.scene for question in asked})
    if found < pictures:
        raise DataError(
            f"{pictures} pictures were asked for, but the split {split!r} has {found} scenes with three objects in "
            "view: ask for fewer."
        )
    questions = [
        WorldQuestion(
            question_id=number,
            picture=q.scene,
            kind=q.mode,
            name=NOUNS[q.asked],
            text=world.question(NOUNS[q.asked]),
            label="yes" if q.present else "no",
            assumed=q.assumed,
        )
        for number, q in enumerate(asked, 1)
    ]
    return WorldPope(drawn, questions)


def world_chair(captions: int = 400, split: Split = "test") -> WorldCaptions:
    """Return the first scenes of a caption split, and what is in view in each.

    Raises:
        DataError: the split has fewer scenes, or is none.
    """
    _check(split)
    name = f"{split}_cap"
    if not 1 <= captions <= world.SPLITS[name].size:
        raise DataError(f"World CHAIR has 1 to {world.SPLITS[name].size} scenes in {split!r}; got captions={captions}.")
    drawn = world.scenes(name, captions)
    seen = [drawn.visible(i) for i in range(captions)]
    return WorldCaptions(
        drawn,
        {i: frozenset(world.CLASSES[o] for o in objects) for i, (objects, _) in enumerate(seen)},
        {i: bool(props) for i, (_, props) in enumerate(seen)},
    )


def _check(split: str) -> None:
    if split not in ("val", "test"):
        raise DataError(f"The split is {split!r}: give 'test' to report, or 'val' to choose a setting.")
