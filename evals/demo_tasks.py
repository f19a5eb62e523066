"""What the demo asks, and the counts of what it was answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard import guard
from lvlm_guard.evals import chair
from lvlm_guard.evals.answers import Answers, Asker, Item, Task
from lvlm_guard.evals.decoders import Decoder, demo_decoders
from lvlm_guard.evals.rows import CHAIR_SCORES, POPE_SCORES, Measured, chair_counts, pope_counts
from lvlm_guard.evals.statistics import Array, per_picture
from lvlm_guard.evals.world import KINDS, NOUNS, WorldCaptions, WorldPope, picture, world_chair, world_pope
from lvlm_guard.matching import load_matcher
from lvlm_guard.pretrained import load_model

CAPTION_TOKENS = 40


@dataclass(frozen=True)
class Setting:
    """What decides the answers of a run.

    Args:
        model: folder of the model.
        pictures, captions: scenes to ask about, and to caption.
        seeds: runs of sampled decoders and random maps.
        batch: items of one `generate()` call.
    """

    model: str
    pictures: int
    captions: int
    seeds: int
    batch: int


@dataclass(frozen=True)
class Run:
    """All that a run asks, and who answers."""

    setting: Setting
    pope: WorldPope
    captions: WorldCaptions
    asker: Asker
    tasks: dict[str, Task]


def prepare_run(setting: Setting) -> Run:
    """Draw the scenes, load the models, and lay out the tasks; the same in every process.

    Raises:
        DataError: there are not as many scenes.
        WeightsError: the model can't be had.
    """
    pope, captions = world_pope(setting.pictures), world_chair(setting.captions)
    asker = load(setting.model)
    tasks = demo_tasks(pope, captions, demo_decoders(asker.matcher, NOUNS, setting.seeds))
    return Run(setting, pope, captions, asker, {task.name: task for task in tasks})


def load(model: str) -> Asker:
    """Return the guarded model of a folder, its processor and its matcher, in float32 on the CPU."""
    net, processor = guard(*load_model(model, device="cpu", dtype="float32"))
    return Asker(net, processor, load_matcher(None, model=net))


def demo_tasks(pope: WorldPope, captions: WorldCaptions, decoders: Sequence[Decoder]) -> list[Task]:
    """Return the questions, each (picture, text) once, and the pictures to caption."""
    # the three kinds of questions repeat each other
    once = dict.fromkeys((q.picture, q.text) for q in pope.questions)
    asked = [Item(index, picture(pope.scenes, index), text) for index, text in once]
    shown = [Item(index, picture(captions.scenes, index), captions.prompt) for index in captions.objects]
    return [
        Task("pope", asked, 1, decoders),
        Task("chair", shown, CAPTION_TOKENS, [d for d in decoders if d.guard is not None]),
    ]


def pope_answers(pope: WorldPope, answers: Answers, decoder: Decoder, seed: int = 0) -> list[str]:
    """Return a decoder's answer to each question."""
    task = answers.tasks["pope"]
    asked = [(item.picture, item.text) for item in task.items]
    said = dict(zip(asked, answers.of(decoder, task, seed), strict=True))
    return [said[q.picture, q.text] for q in pope.questions]


def read_captions(captions: WorldCaptions, answers: Answers, decoder: Decoder, seed: int = 0) -> list[chair.Caption]:
    """Return a decoder's captions, read and compared with what is in view."""
    task = answers.tasks["chair"]
    said = answers.of(decoder, task, seed)
    rows = [{"image_id": item.picture, "caption": text} for item, text in zip(task.items, said, strict=True)]
    return chair.compare(rows, captions.objects, vocabulary=NOUNS)


def measure(pope: WorldPope, captions: WorldCaptions, answers: Answers) -> list[Measured]:
    """Return the counts of every decoder in every task, picture by picture, means over seeds.

    The task `pope_all` holds the three kinds of questions together.
    """
    labels = [q.label for q in pope.questions]
    pictures = np.array([q.picture for q in pope.questions])
    kinds = np.array([q.kind for q in pope.questions])
    of_decoder: dict[str, Array] = {}
    for decoder in answers.tasks["pope"].decoders:
        runs = [pope_counts(labels, pope_answers(pope, answers, decoder, s)) for s in range(decoder.seeds)]
        of_decoder[decoder.name] = np.mean(runs, axis=0)
    measured = []
    for kind in (*KINDS, "all"):
        chosen = (kinds == kind) | (kind == "all")
        task = Measured(f"pope_{kind}", POPE_SCORES, int(chosen.sum()))
        for name, counts in of_decoder.items():
            task.counts[name] = per_picture(pictures[chosen], counts[chosen])[1]
        measured.append(task)
    captioned = Measured("chair", CHAIR_SCORES, len(captions.objects))
    for decoder in answers.tasks["chair"].decoders:
        runs = [chair_counts(read_captions(captions, answers, decoder, s)) for s in range(decoder.seeds)]
        captioned.counts[decoder.name] = np.mean(runs, axis=0)
    return [*measured, captioned]
