"""What a distillation is told: what its teacher is asked about which pictures, and how a LoRA learns what it said.

Labels of pictures are never read. Answers lie on disk, a line a picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from typer import Option

from lvlm_guard.adapters.errors import TrainingError, check
from lvlm_guard.cli.options import PLACE, Dtype, Model
from lvlm_guard.cli.settings import EMBEDDED, Usual
from lvlm_guard.images import load_image
from lvlm_guard.matching.vocabulary import WORD, Vocabulary

SCENES = 4000  # of the embedded world, unasked
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".jp2", ".heic"}

DESCRIBE = (
    "Please describe this image in detail.",
    "What is in this image? Describe everything that you see.",
    "Write a caption for this image.",
)
QUESTION = "Is there {article} {object} in the image?"
OTHER = (
    "What are the main colors of this image?",
    "What is the mood of this image? Answer in one sentence.",
    "Was this image taken indoors or outdoors?",
)
"""Prompts that training does not see; where the guard leaves them alone, the tuned model should too."""

_IMAGES = Option(help="Folder of pictures; no labels. [default: scenes of the embedded world]", **PLACE)


@dataclass(frozen=True)
class Lessons:
    """What the teacher is asked, about which pictures. Other lessons are other answers.

    Args:
        prompts: what is asked of every picture, one at a time; with {object}: asked of `objects`.
        other: prompts for held-out pictures only, to see what training changed elsewhere.
        seed: draws which pictures are held out, and which objects are asked about.

    Raises:
        TrainingError: there would be nothing to ask, to learn from or to measure on.
    """

    model: Model = EMBEDDED
    images: Annotated[str, _IMAGES] = ""
    method: Annotated[str, Option(help="The guard to imitate; `lvlm-guard methods` lists them.")] = "vote"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = (*DESCRIBE, QUESTION)
    objects: tuple[str, ...] = ()
    other: tuple[str, ...] = OTHER
    pictures: Annotated[int | None, Option(min=1, help="To learn from. [default: all; embedded 4000]")] = None
    held_out: Annotated[int, Option(min=1, help="Pictures kept apart to measure on.")] = 100
    questions: int = 16
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 128
    corrupt: Annotated[Literal["skip", "refuse"], Option(help="Pictures that can't be read.")] = "skip"
    seed: int = 0
    revision: Annotated[str, Option(help="Of --model on the hub.")] = ""
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise TrainingError("There is no prompt to ask. Write one a line into --prompts, or leave it out.")
        if not self.images and self.model != EMBEDDED:
            raise TrainingError(
                f"{self.model!r} needs pictures to answer about: --images FOLDER. They need no labels, but should look "
                "like those that the model will be used on."
            )
        if self.pictures is not None and self.pictures < 1:
            raise TrainingError(f"{self.pictures} pictures to learn from: give 1 or more.")
        if self.held_out < 1:
            raise TrainingError(f"{self.held_out} pictures held out: give 1 or more, or nothing can be measured.")
        if self.questions < 1 and not self.free:
            raise TrainingError(
                "Every prompt asks about an object, and no object is asked about: --questions 1 or more."
            )

    @property
    def free(self) -> tuple[str, ...]:
        """The prompts that name no object."""
        return tuple(prompt for prompt in self.prompts if "{object}" not in prompt)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that are asked of objects."""
        return tuple(prompt for prompt in self.prompts if "{object}" in prompt)

    @property
    def names(self) -> tuple[str, ...]:
        """The objects that are asked about."""
        return Vocabulary.of(self.objects or None).names


_RATE = Option(min=1e-8, help="Peak learning rate.")
_PROJECTOR = Option("--projector", help="Adapt the layers that feed in the picture too; vLLM can't serve that.")
_SOFT = Option("--soft/--hard", help="Learn the guard's distribution where it had a choice, or its token.")
_KEEP = Option("--keep/--no-keep", help="Hold on to the plain distribution where the guard had no say.")
_FRESH = Option(min=0, help="Leave out what is named again where the rest holds this share; above 1: keep.")
_CHECKPOINTING = Option("--checkpointing", help="Recompute activations: slower, less memory.")


@dataclass(frozen=True)
class Recipe:
    """How the LoRA learns, by AdamW whose rate falls by a cosine.

    A batch is pictures that are in memory together, in each process. On the embedded world a short training learnt as
    much without the projector. `fresh` is the share of the guard's distribution that words naming nothing again must
    hold for what it names again to be left out of a description's lesson, with `soft`.

    Raises:
        TrainingError: a value outside its range.
    """

    steps: Annotated[int, Option(min=1, help="Of training.")] = 500
    batch: Annotated[int, Option(min=1, help="Pictures that are in memory together."), Usual(2, embedded=24)] = 24
    accumulate: Annotated[int, Option(min=1, help="Batches of one step."), Usual(12, embedded=1)] = 1
    questions: int = 12  # about one picture, in one step; one free prompt comes with them
    rate: Annotated[float, _RATE, Usual(2e-4, embedded=2e-3)] = 2e-3
    rank: Annotated[int, Option(min=1, help="Of the LoRA; its alpha is twice that.")] = 16
    alpha: int = 32
    projector: Annotated[bool, _PROJECTOR] = False
    soft: Annotated[bool, _SOFT] = True
    keep: Annotated[bool, _KEEP] = True
    fresh: Annotated[float, _FRESH] = 0.1
    checkpointing: Annotated[bool, _CHECKPOINTING] = False
    save_every: Annotated[int, Option(min=1, help="Steps between checkpoints.")] = 50

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "rank": 1, "save_every": 1, "questions": 0, "fresh": 0.0}
        check(self, least, error=TrainingError)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise TrainingError(
                f"The learning rate is {self.rate}: give a positive number, such as 2e-4 for a 7B model."
            )


@dataclass(frozen=True)
class Pictures:
    """Names of pictures to learn from, of those that are only measured on, and what reads one, RGB or `ImageError`."""

    learnt: tuple[str, ...]
    held_out: tuple[str, ...]
    load: Callable[[str], Image.Image]


def pictures_of(lessons: Lessons) -> Pictures:
    """Return the pictures of some lessons, the same each time; raises `TrainingError` where there are too few."""
    return _folder(lessons, Path(lessons.images)) if lessons.images else _world(lessons)


def _world(lessons: Lessons) -> Pictures:
    from lvlm_guard.embedded.world import SPLITS, scenes

    count = SCENES if lessons.pictures is None else lessons.pictures
    most = SPLITS["train"].size - lessons.held_out
    if count > most:
        raise TrainingError(f"The embedded world has {most} training scenes beside those held out: ask for fewer.")
    place = {f"train:{k}": image for k, image in enumerate(scenes("train", count + lessons.held_out).image)}
    names = tuple(place)
    return Pictures(names[:count], names[count:], lambda name: Image.fromarray(place[name]))


def _folder(lessons: Lessons, folder: Path) -> Pictures:
    if not folder.is_dir():
        raise TrainingError(f"{folder} is no folder: give one that holds pictures (--images).")
    there = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = sorted(path.relative_to(folder).as_posix() for path in there)
    if len(found) <= lessons.held_out:
        raise TrainingError(
            f"{folder} holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}), of which {lessons.held_out} would "
            "be held out, so that there is none to learn from. Give more pictures, or a smaller --held-out."
        )
    names = tuple(found[place] for place in np.random.default_rng(lessons.seed).permutation(len(found)))
    learnt, held_out = names[lessons.held_out :], names[: lessons.held_out]
    return Pictures(learnt[: lessons.pictures], held_out, lambda name: load_image(folder / name))


@dataclass(frozen=True)
class Answer:
    """One answer of the guarded model.

    Args:
        prompt, object: what was asked, and the object that it is about; None for a free prompt.
        support: the matcher's probability that it is there; None where the guard has no matcher.
        tokens, text: of the answer, end-of-text included if it came, and without special tokens.
        open: steps at which the guard had a choice; at all others the plain model had decided.
        changed: those of them at which it chose otherwise than the plain model.
        soft: for each open step the most likely token ids and their probabilities in the guard's distribution.
    """

    prompt: str
    object: str | None
    support: float | None
    tokens: list[int]
    text: str
    open: list[int]
    changed: list[int]
    soft: list[tuple[list[int], list[float]]]

    @property
    def yes(self) -> bool:
        """Whether its first word is yes."""
        first = WORD.search(self.text)
        return first is not None and first[0].lower() == "yes"


@dataclass(frozen=True)
class Lesson:
    """All answers about one picture; `failed` says why there are none."""

    picture: str
    answers: Sequence[Answer] = ()
    failed: str | None = None

    def line(self) -> str:
        """Return the lesson as its line of the file."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def of(cls, line: str) -> Lesson:
        """Read a line."""
        told = json.loads(line)
        return cls(told["picture"], [Answer(**answer) for answer in told["answers"]], told["failed"])


class AnswerFile:
    """The lessons of one part ("train", "held-out"): a JSON line a picture, appended as it comes.

    Each process that answers has a file of its own in the folder, which it writes to; all are read.

    Raises (whatever it does):
        TrainingError: a file can't be read or written, or a line is no lesson.
    """

    def __init__(self, folder: Path, part: str, process: int = 0) -> None:
        self.folder, self.part = folder, part
        self._own = folder / f"{part}-{process}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        there = self._own.read_bytes() if self._own.exists() else b""
        end = there.rfind(b"\n") + 1
        if end < len(there):  # a last line that a killed process left unfinished
            with self._own.open("r+b") as file:
                file.truncate(end)

    def lines(self) -> Iterator[str]:
        """Yield every line, file after file."""
        for path in sorted(self.folder.glob(f"{self.part}-*.jsonl")):
            try:
                with path.open(encoding="utf-8") as file:
                    yield from (line for line in file if line.endswith("\n"))
            except (OSError, UnicodeDecodeError) as error:
                raise TrainingError(
                    f"{path} can't be read ({error}): repair or delete it; it is asked anew."
                ) from error

    def lessons(self) -> Iterator[Lesson]:
        """Yield every lesson."""
        for number, line in enumerate(self.lines(), 1):
            try:
                yield Lesson.of(line)
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(
                    f"Line {number} of {self.folder}/{self.part}-*.jsonl is no answer ({error}): it was changed. "
                    "Delete the line, and the same command asks about that picture anew."
                ) from error

    def add(self, lessons: Sequence[Lesson]) -> None:
        """Append lessons."""
        try:
            with self._own.open("a", encoding="utf-8") as file:
                file.write("".join(lesson.line() for lesson in lessons))
        except OSError as error:
            raise TrainingError(
                f"{self._own} can't be written ({error.strerror or error}). What was answered before is kept; make "
                "room, and the same command goes on from there."
            ) from error


def summary(lessons: Iterator[Lesson]) -> dict[str, Any]:
    """Return what some lessons hold, in numbers."""
    counts = dict.fromkeys(("pictures", "failed", "answers", "yes", "open", "changed", "tokens"), 0)
    for lesson in lessons:
        counts["failed" if lesson.failed else "pictures"] += 1
        for answer in lesson.answers:
            counts["answers"] += 1
            counts["yes"] += answer.object is not None and answer.yes
            counts["open"] += bool(answer.open)
            counts["changed"] += bool(answer.changed)
            counts["tokens"] += len(answer.tokens)
    return counts
