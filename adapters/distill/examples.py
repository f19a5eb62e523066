"""Which answers a training step sees: each example is drawn from its own number, so a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from lvlm_guard.adapters.distill.answers import Answer, Lesson
from lvlm_guard.adapters.distill.pictures import Pictures

YES, HARD_NO = 0.4, 0.2  # shares of questions that were answered yes; and no, though there was reason to doubt
DOUBT = 0.05  # the matcher's probability above which there was


class Examples:
    """A map-style data set: item i is a picture and answers about it.

    Args:
        lines: of the answer file, failed pictures left out.
        pictures: loads them.
        questions: about one picture, in one item.
        size: how many items there are; pictures come again, in another order, once all have been seen.
        seed: of every draw.
    """

    def __init__(self, lines: Sequence[str], pictures: Pictures, questions: int, size: int, seed: int) -> None:
        self._lines, self._pictures = lines, pictures
        self._questions, self._size, self._seed = questions, size, seed
        self._order: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[Image, list[Answer]]:
        lesson = Lesson.of(self._lines[self._place(index)])
        rng = np.random.default_rng([self._seed, 1, index])
        return self._pictures.load(lesson.picture), chosen(lesson.answers, self._questions, rng)

    def _place(self, index: int) -> int:
        round_, place = divmod(index, len(self._lines))
        if self._order[0] != round_:
            self._order = round_, np.random.default_rng([self._seed, 0, round_]).permutation(len(self._lines))
        return int(self._order[1][place])


def chosen(answers: Sequence[Answer], questions: int, rng: np.random.Generator) -> list[Answer]:
    """Return one free answer, and some about objects: 40 % yes, 20 % no where there was reason to doubt, the rest any.

    There was reason to doubt where the guard had a choice, or the matcher gave more than .05. A kind that a
    picture does not have is made up for from the rest. No answer comes twice.
    """
    free = [answer for answer in answers if answer.object is None]
    rest = [answer for answer in answers if answer.object is not None]
    taken = [free[int(rng.integers(len(free)))]] if free else []
    kinds = rng.random(min(questions, len(rest)))
    for u in kinds:
        pool = rest
        if u < YES:
            pool = [answer for answer in rest if answer.yes]
        elif u < YES + HARD_NO:
            pool = [answer for answer in rest if not answer.yes and doubtful(answer)]
        pool = pool or rest
        one = pool[int(rng.integers(len(pool)))]
        rest.remove(one)
        taken.append(one)
    return taken


def doubtful(answer: Answer) -> bool:
    """Tell whether there was reason to doubt an answer."""
    return bool(answer.open) or (answer.support or 0.0) > DOUBT
