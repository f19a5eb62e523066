"""POPE's questions about scenes, for calibration and acceptance; the benchmark's scorers live in `evals/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.embedded.catalog import N_OBJECTS
from lvlm_guard.embedded.text import assumed
from lvlm_guard.embedded.world import Scenes, scenes, training_cooccurrence

MODES = ("random", "popular", "adversarial")
EACH = 3  # present and absent objects asked about, for each scene and mode


class Question(NamedTuple):
    """One yes/no question; `assumed` marks an absent object that a prop in view suggests."""

    scene: int
    mode: str
    asked: int
    present: bool
    assumed: bool


def ask(
    rng: np.random.Generator,
    objects: Sequence[int],
    mode: str,
    pairs: NDArray[np.int64],
    single: NDArray[np.int64],
) -> list[tuple[int, bool]]:
    """Return POPE's (object, present) for one scene: three in view, three absent.

    The absent ones are drawn at random, or the most frequent, or those that most often appear with what is in view
    (Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023).
    """
    present = [int(o) for o in rng.choice(list(objects), EACH, replace=False)]
    others = [o for o in range(N_OBJECTS) if o not in objects]
    if mode == "random":
        absent = [int(o) for o in rng.choice(others, EACH, replace=False)]
    elif mode == "popular":
        absent = sorted(others, key=lambda o: -single[o])[:EACH]
    else:
        absent = sorted(others, key=lambda o: -pairs[list(objects), o].sum())[:EACH]
    return [(o, True) for o in present] + [(o, False) for o in absent]


def pope_set(split: str, n: int | None = None, seed: int = 7) -> tuple[Scenes, list[Question]]:
    """Return (scenes, questions) of the first n scenes of a split that have three objects in view."""
    pairs, single = training_cooccurrence()
    drawn, rng = scenes(split), np.random.default_rng(seed)
    questions: list[Question] = []
    used = 0
    for i in range(len(drawn)):
        objects, props = drawn.visible(i)
        if len(objects) < EACH:
            continue
        suggested = assumed(objects, props)
        for mode in MODES:
            questions += [Question(i, mode, o, y, o in suggested) for o, y in ask(rng, objects, mode, pairs, single)]
        used += 1
        if used == n:
            break
    return drawn, questions
