"""Stage 3: on held-out pictures, how often the tuned model answers as its teacher, and what else it changed.

Needs no labels. "Untouched" answers are those of which the plain model had decided every token, so that the guard
had nothing to say: what training changed there, it changed for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_guard.adapters.distill.lessons import Answer, Lesson, Lessons, Pictures
from lvlm_guard.adapters.distill.rows import Layout
from lvlm_guard.adapters.distill.teacher import answered
from lvlm_guard.adapters.distill.training import log_probs, plain_log_probs
from lvlm_guard.adapters.training.recipe import Advance
from lvlm_guard.bench.intervals import interval

Row = dict[str, Any]
PLAIN, TUNED = "greedy", "distilled"


@dataclass(frozen=True)
class Compared:
    """One held-out answer.

    Args:
        picture, kind: its name; "question" about an object, "caption", or "other": a prompt that was not trained on.
        untouched: the plain model had decided every token of it.
        plain, tuned: whether the plain model's answer is the teacher's, and the tuned model's.
        kl: divergence from the plain to the tuned model, summed over the steps that the plain model had decided, nats.
        decided: how many such steps there are: all, where it is untouched.
    """

    picture: str
    kind: str
    untouched: bool
    plain: bool
    tuned: bool
    kl: float
    decided: int


def compare(
    student: Any,
    processor: Any,
    lessons: Lessons,
    held_out: Sequence[Lesson],
    pictures: Pictures,
    at_once: int,
    advance: Advance,
) -> list[Compared]:
    """Ask the tuned model what its teacher was asked about held-out pictures, `at_once` prompts of one call.

    The student is a PEFT model whose base is the plain model, with the plain processor; `held_out` is what the teacher
    said, and `advance` is told how many pictures were done.
    """
    layout = Layout(student.get_base_model(), processor)
    found = []
    few = max(1, at_once // 16)

    def said(asked: Sequence[tuple[str, Answer]]) -> list[list[int]]:
        """Return the greedy answers' tokens, in the order asked; long answers are made apart from short ones."""
        order = sorted(range(len(asked)), key=lambda place: len(asked[place][1].tokens))
        told: dict[int, list[int]] = {}
        for start in range(0, len(order), at_once):
            block = order[start : start + at_once]
            shown, prompts = [images[asked[k][0]] for k in block], [asked[k][1].prompt for k in block]
            told |= zip(block, answered(student, processor, shown, prompts, lessons.max_new_tokens)[0], strict=True)
        return [told[place] for place in range(len(asked))]

    for start in range(0, len(held_out), few):
        part = [lesson for lesson in held_out[start : start + few] if not lesson.failed]
        images = {lesson.picture: pictures.load(lesson.picture) for lesson in part}
        asked = [(lesson.picture, answer) for lesson in part for answer in lesson.answers]
        tuned = said(asked)
        with student.disable_adapter():
            # where the guard changed no token, the plain model's answer is the guarded one
            plain = iter(said([pair for pair in asked if pair[1].changed]))
        divergence = [one for lesson in part for one in _divergence(student, layout, images[lesson.picture], lesson)]
        for (name, answer), tokens, kl in zip(asked, tuned, divergence, strict=True):
            kind = "caption" if answer.prompt in lessons.free else "other"
            kind = kind if answer.object is None else "question"
            same = next(plain) == answer.tokens if answer.changed else True
            decided = len(answer.tokens) - len(answer.open)
            found.append(Compared(name, kind, not answer.open, same, tokens == answer.tokens, kl, decided))
        advance(min(few, len(held_out) - start))
    return found


def _divergence(student: Any, layout: Layout, image: Any, lesson: Lesson) -> list[float]:
    """Return the divergence of each answer over its decided steps, in nats."""
    rows = layout.rows([(image, lesson.answers)]).to(student.device)
    with torch.inference_mode():
        plain, tuned = plain_log_probs(student, rows), log_probs(student, rows)
    each = (plain.exp() * (plain - tuned)).nan_to_num(nan=0.0).sum(-1).clamp(min=0).masked_fill(rows.open, 0.0)
    return [float(part.sum()) for part in each.cpu().split([len(answer.tokens) for answer in lesson.answers])]


MEASURES: Mapping[tuple[str, str, str], Callable[[Compared], tuple[float, float]]] = {
    (PLAIN, "held_out", "agreement"): lambda one: (one.plain, 1),
    (TUNED, "held_out", "agreement"): lambda one: (one.tuned, 1),
    (TUNED, "untouched", "changed"): lambda one: (not one.tuned, 1),
    (TUNED, "untouched", "kl"): lambda one: (one.kl, one.decided),
    (TUNED, "decided", "kl"): lambda one: (one.kl, one.decided),
}
"""(method, of which answers, figure) -> the parts of a ratio, which are summed over answers.

"agreement" is the share of answers that are the teacher's, token for token; "changed" the share of untouched answers
that the tuned model gives otherwise, "kl" its divergence from the plain model there, nats a token; and also at the
decided steps of all answers.
"""


def rows_of(model: str, method: str, seeds: Sequence[Sequence[Compared]]) -> list[Row]:
    """Return `MEASURES` in long form, each with its 95 % interval over pictures, means over seeds."""
    rows: list[Row] = []
    for kind in ("question", "caption", "other"):
        for (who, which, metric), part in MEASURES.items():
            mine = [[c for c in each if c.kind == kind and (c.untouched or which != "untouched")] for each in seeds]
            counts = defaultdict[str, NDArray[np.float64]](lambda: np.zeros(2))
            for one in chain(*mine):
                counts[one.picture] += np.array(part(one), dtype=float) / len(seeds)
            if counts:
                value, low, high = ratio_interval(np.array(list(counts.values())))
                named = {"model": model, "method": who, "task": f"{which}_{kind}", "metric": metric, "teacher": method}
                rows.append({**named, "value": value, "low": low, "high": high, "n": len(mine[0])})
    return rows


def ratio_interval(counts: NDArray[np.float64], seed: int = 0) -> tuple[float, float | None, float | None]:
    """Return sum over sum of [pictures, 2], and its 95 % percentile-bootstrap interval over pictures."""
    return interval(counts, lambda drawn: drawn[..., 0].sum(-1) / drawn[..., 1].sum(-1), seed)
