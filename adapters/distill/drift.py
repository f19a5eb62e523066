"""Stage 3: on held-out pictures, how often the tuned model answers as its teacher, and what else it changed.

Needs no labels. "Untouched" answers are those of which the plain model had decided every token, so that the guard
had nothing to say: what training changed there, it changed for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_guard.adapters.distill.answers import Answer, Lesson, Pictures
from lvlm_guard.adapters.distill.rows import Layout
from lvlm_guard.adapters.distill.settings import Lessons
from lvlm_guard.adapters.distill.teacher import GREEDY, ends_of
from lvlm_guard.adapters.distill.training import log_probs, plain_log_probs
from lvlm_guard.engine.trace import answers_of
from lvlm_guard.pretrained import ask

Row = dict[str, Any]
DRAWS = 4000
PLAIN, TUNED = "greedy", "distilled"


@dataclass(frozen=True)
class Compared:
    """One held-out answer.

    Args:
        picture: its name.
        kind: "question" about an object, "caption", or "other": a prompt that was not trained on.
        untouched: the plain model had decided every token of it.
        plain: the plain model's answer is the teacher's.
        tuned: the tuned model's is.
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
    advance: Callable[[int], object],
) -> list[Compared]:
    """Ask the tuned model what its teacher was asked about held-out pictures.

    Args:
        student: the PEFT model; its base is the plain model.
        processor: plain.
        held_out: what the teacher said.
        at_once: prompts of one generate() call.
        advance: told how many pictures were done.
    """
    layout = Layout(student.get_base_model(), processor)
    found = []
    few = max(1, at_once // 16)
    for start in range(0, len(held_out), few):
        part = [lesson for lesson in held_out[start : start + few] if not lesson.failed]
        images = {lesson.picture: pictures.load(lesson.picture) for lesson in part}
        asked = [(lesson.picture, answer) for lesson in part for answer in lesson.answers]
        tuned = _said(student, processor, lessons, images, asked, at_once)
        # where the guard changed no token, the plain model's answer is the guarded one
        changed = [pair for pair in asked if pair[1].changed]
        with student.disable_adapter():
            plain = iter(_said(student, processor, lessons, images, changed, at_once))
        divergence = [one for lesson in part for one in _divergence(student, layout, images[lesson.picture], lesson)]
        for (name, answer), tokens, kl in zip(asked, tuned, divergence, strict=True):
            kind = "caption" if answer.prompt in lessons.free else "other"
            found.append(
                Compared(
                    name,
                    kind if answer.object is None else "question",
                    untouched=not answer.open,
                    plain=next(plain) == answer.tokens if answer.changed else True,
                    tuned=tokens == answer.tokens,
                    kl=kl,
                    decided=len(answer.tokens) - len(answer.open),
                )
            )
        advance(min(few, len(held_out) - start))
    return found


def _said(
    student: Any,
    processor: Any,
    lessons: Lessons,
    images: dict[str, Any],
    asked: Sequence[tuple[str, Answer]],
    at_once: int,
) -> list[list[int]]:
    """Return the greedy answers' tokens, in the order asked; long answers are made apart from short ones."""
    order = sorted(range(len(asked)), key=lambda place: len(asked[place][1].tokens))
    found: dict[int, list[int]] = {}
    ends = ends_of(student.get_base_model())
    for start in range(0, len(order), at_once):
        block = order[start : start + at_once]
        prompts = [asked[place][1].prompt for place in block]
        inputs = ask(processor, [[images[asked[place][0]]] for place in block], prompts)
        given = inputs["input_ids"]
        with torch.inference_mode():
            inputs = inputs.to(student.device, student.dtype)
            out = student.generate(**inputs, **GREEDY, max_new_tokens=lessons.max_new_tokens)
        # InstructBLIP's stock generate() gives the answer alone, all others the prompt before it
        prompt = given.shape[1]
        whole = out.shape[1] > prompt and torch.equal(out[:, :prompt].cpu(), given.cpu())
        found |= dict(zip(block, answers_of(out, prompt if whole else 0, ends), strict=True))
    return [found[place] for place in range(len(asked))]


def _divergence(student: Any, layout: Layout, image: Any, lesson: Lesson) -> list[float]:
    """Return the divergence of each answer over its decided steps, in nats."""
    rows = layout.rows([(image, lesson.answers)]).to(student.device)
    with torch.inference_mode():
        plain, tuned = plain_log_probs(student, rows), log_probs(student, rows)
    each = (plain.exp() * (plain - tuned)).nan_to_num(nan=0.0).sum(-1).clamp(min=0).masked_fill(rows.open, 0.0)
    return [float(part.sum()) for part in each.cpu().split([len(answer.tokens) for answer in lesson.answers])]


def rows_of(model: str, method: str, seeds: Sequence[Sequence[Compared]]) -> list[Row]:
    """Return what was found in long form, each value with its 95 % interval over pictures, means over seeds.

    "agreement" is the share of answers that are the teacher's, token for token; "changed" the share of untouched
    answers that the tuned model gives otherwise, "kl" its divergence from the plain model there, nats a token; and
    also at the decided steps of all answers.
    """
    rows: list[Row] = []
    for kind in ("question", "caption", "other"):
        mine = [[one for one in compared if one.kind == kind] for compared in seeds]
        left = [[one for one in compared if one.untouched] for compared in mine]
        rows += _row((model, PLAIN, f"held_out_{kind}", "agreement"), mine, lambda one: (one.plain, 1))
        rows += _row((model, TUNED, f"held_out_{kind}", "agreement"), mine, lambda one: (one.tuned, 1))
        rows += _row((model, TUNED, f"untouched_{kind}", "changed"), left, lambda one: (not one.tuned, 1))
        rows += _row((model, TUNED, f"untouched_{kind}", "kl"), left, lambda one: (one.kl, one.decided))
        rows += _row((model, TUNED, f"decided_{kind}", "kl"), mine, lambda one: (one.kl, one.decided))
    return [row | {"teacher": method} for row in rows]


def _row(
    named: tuple[str, str, str, str],
    seeds: Sequence[Sequence[Compared]],
    part: Callable[[Compared], tuple[float, float]],
) -> list[Row]:
    """Return the row of a ratio, whose parts are summed over answers; none where there are no answers."""
    counts: dict[str, NDArray[np.float64]] = {}
    for one in (one for compared in seeds for one in compared):
        counts[one.picture] = counts.get(one.picture, np.zeros(2)) + np.array(part(one), dtype=float) / len(seeds)
    if not counts:
        return []
    value, low, high = ratio_interval(np.array(list(counts.values())))
    row = dict(zip(("model", "method", "task", "metric"), named, strict=True))
    return [row | {"value": value, "low": low, "high": high, "n": len(seeds[0])}]


def ratio_interval(counts: NDArray[np.float64], seed: int = 0) -> tuple[float, float | None, float | None]:
    """Return sum over sum of [pictures, 2], and its 95 % percentile-bootstrap interval over pictures."""
    value = float(counts[:, 0].sum() / counts[:, 1].sum())
    if len(counts) < 2:
        return value, None, None
    drawn = np.random.default_rng(seed).integers(0, len(counts), (DRAWS, len(counts)))
    sums = counts[drawn].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return value, float(low), float(high)
