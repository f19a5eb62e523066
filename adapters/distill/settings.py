"""What decides a distillation: what the teacher is asked, how the LoRA learns it, and which layers it adapts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lvlm_guard.adapters.errors import TrainingError, check
from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.matching.vocabulary import Vocabulary
from lvlm_guard.pretrained import EMBEDDED

LANGUAGE = ("language_model", "text_model")
PROJECTORS = ("multi_modal_projector", "merger", "language_projection")  # LLaVA and LLaVA-NeXT, Qwen, InstructBLIP
HEADS = ("lm_head", "embed_out")


def target_modules(model: Any, projector: bool) -> str:
    """Return PEFT's `target_modules` for every linear layer of the language model, as one regular expression.

    Args:
        model: not wrapped yet.
        projector: whether the layers between image tower and language model are among them.

    Raises:
        UnsupportedModelError: no part of the model has a name that is known.
    """
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        path = name.split(".")
        part = next((one for one in path if one in (*LANGUAGE, *(PROJECTORS if projector else ()))), None)
        if part is not None and isinstance(module, nn.Linear) and path[-1] not in HEADS:
            found.setdefault(part, set()).add(path[-1])
    if not found.keys() & set(LANGUAGE):
        raise UnsupportedModelError(
            f"In this {type(model).__name__} no linear layer lies in a part called {' or '.join(LANGUAGE)}, so it is "
            "not known what to adapt. Add its name to LANGUAGE in lvlm_guard/adapters/distill/settings.py."
        )
    return "|".join(_pattern(part, leaves) for part, leaves in sorted(found.items()))


def _pattern(part: str, leaves: set[str]) -> str:
    if leaves == {part}:  # a projector of one layer
        return rf"(.*\.)?{part}"
    return rf"(.*\.)?{part}\.(.*\.)?({'|'.join(sorted(leaves))})"


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


@dataclass(frozen=True)
class Lessons:
    """What the teacher is asked, about which pictures. Other lessons are other answers.

    Args:
        model: "embedded", a folder, or a hub id.
        images: folder of pictures; "" for scenes of the embedded world, whose labels are not looked at.
        method: registered name of the guard.
        knobs: its knobs.
        prompts: what is asked of every picture, one at a time; with {object}: asked of objects.
        objects: names that prompts with {object} are filled with.
        other: prompts for held-out pictures only, to see what training changed elsewhere.
        pictures: how many to learn from; None for all of the folder, or 4000 scenes.
        held_out: how many are kept apart to measure on.
        questions: objects asked about in each picture.
        max_new_tokens: of an answer.
        corrupt: "skip" counts pictures that can't be read, "refuse" stops at the first.
        seed: draws which pictures are held out, and which objects are asked about.
        revision: of a hub id.
        dtype: of the model's weights.

    Raises:
        TrainingError: there would be nothing to ask, to learn from or to measure on.
    """

    model: str = EMBEDDED
    images: str = ""
    method: str = "vote"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = (*DESCRIBE, QUESTION)
    objects: tuple[str, ...] = ()
    other: tuple[str, ...] = OTHER
    pictures: int | None = None
    held_out: int = 100
    questions: int = 16
    max_new_tokens: int = 128
    corrupt: Literal["skip", "refuse"] = "skip"
    seed: int = 0
    revision: str = ""
    dtype: str = "auto"

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


@dataclass(frozen=True)
class Recipe:
    """How the LoRA learns.

    Args:
        steps: of the optimiser.
        batch: pictures of a step, in each process.
        accumulate: batches of one optimiser step, where a step's pictures don't fit in memory together.
        questions: about one picture, in one step; one free prompt comes with them.
        rate: peak learning rate of AdamW, which falls by a cosine.
        rank, alpha: of the LoRA.
        projector: whether the layers between image tower and language model learn too. On the embedded world a
            short training learnt as much without, and vLLM can't serve that part (see `card`).
        soft: learn the guard's distribution where it had a choice; else the token that it took.
        keep: learn the plain model's own distribution where the guard had none; else its token.
        fresh: share of the guard's distribution that words naming nothing again must hold for what it names again to be
            left out of a description's lesson; above 1 nothing is left out. With `soft`.
        checkpointing: recompute activations instead of keeping them: slower, less memory.
        save_every: steps between checkpoints.

    Raises:
        TrainingError: a value outside its range.
    """

    steps: int = 500
    batch: int = 24
    accumulate: int = 1
    questions: int = 12
    rate: float = 2e-3
    rank: int = 16
    alpha: int = 32
    projector: bool = False
    soft: bool = True
    keep: bool = True
    fresh: float = 0.1
    checkpointing: bool = False
    save_every: int = 50

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulate": 1, "rank": 1, "save_every": 1, "questions": 0, "fresh": 0.0}
        check(self, least, error=TrainingError)
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise TrainingError(
                f"The learning rate is {self.rate}: give a positive number, such as 2e-4 for a 7B model."
            )
