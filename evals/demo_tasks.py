"""What the demo asks, and the counts of what it was answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvlm_guard.evals import chair
from lvlm_guard.evals.answers import Answers, Item, Task
from lvlm_guard.evals.decoders import Decoder
from lvlm_guard.evals.rows import CHAIR_SCORES, POPE_SCORES, Measured, chair_counts, pope_counts
from lvlm_guard.evals.statistics import Array, per_picture
from lvlm_guard.evals.world import KINDS, NOUNS, WorldCaptions, WorldPope, picture

CAPTION_TOKENS = 40


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
