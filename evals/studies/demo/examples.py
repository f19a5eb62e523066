"""The pictures of the demo's page: chosen by stated rules, in the order of the test scenes, failures included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.embedded.text import article
from lvlm_guard.evals.decoders.decoder import PLAIN, REFERENCE
from lvlm_guard.evals.infer.generate import Asker, prepare
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.evals.spec.items import EvalTask, Item


@dataclass(frozen=True)
class Example:
    """One picture, asked plainly and guarded.

    Args:
        title: what happened.
        rule: why this one is shown.
        image: the scene.
        asked: the question or instruction.
        truth: the right answer, or what is in view.
        plain: greedy's answer.
        guarded: the guarded answer.
        wrong: for captions, objects named that are not in view: (plain's, guarded's); None for questions.
        trace: `GuardTrace.to_dict()` of the guarded answer.
        match: the matcher's `Match`, where a local view was made.
        local: the local view, where one was made.
        good: whether the guard was right.
    """

    title: str
    rule: str
    image: Image.Image
    asked: str
    truth: str
    plain: str
    guarded: str
    wrong: tuple[Sequence[str], Sequence[str]] | None
    trace: dict[str, Any]
    match: Any
    local: Image.Image | None
    good: bool


@dataclass(frozen=True)
class _Case:
    """Something asked, with what greedy and a method made of it.

    Args:
        item: what was asked.
        plain, guarded: whether it was answered rightly; of a caption, that it names nothing absent.
        wrong: for captions, the absent objects that each names.
    """

    item: Item
    plain: bool
    guarded: bool
    wrong: tuple[Sequence[str], Sequence[str]] | None = None


def choose(prepared: Prepared, saved: Saved) -> list[Example]:
    """Return the examples; a rule that no scene meets gives none."""
    tasks = {task.name: task for task in prepared.tasks}
    answerer = prepared.answerer
    assert isinstance(answerer, Asker)
    return [
        *_questions(tasks["world_pope"], saved, answerer),
        *_captions(tasks["world_chair"], saved, answerer),
    ]


def _questions(task: EvalTask, saved: Saved, asker: Asker) -> Iterator[Example]:
    cases = []
    for item, plain, guarded in _said(task, saved, "agla"):
        cases.append(_Case(item, pope.read(plain) == item.truth, pope.read(guarded) == item.truth))
    adversarial = [case for case in cases if "pope_adversarial" in case.item.rows]
    rules = [
        (
            "AGLA corrects a wrong answer",
            "the first adversarial question that greedy gets wrong and AGLA right",
            _first(adversarial, False, True),
        ),
        (
            "AGLA leaves a wrong answer",
            "the first adversarial question that both get wrong",
            _first(adversarial, False, False),
        ),
        (
            "AGLA breaks a right answer",
            "the first question of any kind that greedy gets right and AGLA wrong",
            _first(cases, True, False),
        ),
    ]
    for title, rule, case in rules:
        if case is not None:
            item = case.item
            truth = f"{item.truth}: {article(item.tags['object'])} is {'' if item.truth == 'yes' else 'not '}in view"
            yield _shown(title, rule, case, truth, "agla", task, asker)


def _captions(task: EvalTask, saved: Saved, asker: Asker) -> Iterator[Example]:
    cases = []
    for item, *captions in _said(task, saved, "vote"):
        wrong = [_absent(task, item, caption) for caption in captions]
        cases.append(_Case(item, not wrong[0], not wrong[1], (wrong[0], wrong[1])))
    rules = [
        (
            "Vote keeps a caption to what is there",
            "the first caption in which greedy names something absent, and vote nothing absent",
            _first(cases, False, True),
        ),
        (
            "Vote lets one through",
            "the first caption in which vote still names something absent",
            _first(cases, None, False),
        ),
    ]
    for title, rule, case in rules:
        if case is not None:
            truth = "in view: " + (", ".join(sorted(case.item.truth)) or "nothing nameable")
            yield _shown(title, rule, case, truth, "vote", task, asker)


def _said(task: EvalTask, saved: Saved, method: str) -> Iterator[tuple[Item, str, str]]:
    """Yield each item of a task with greedy's answer and a method's."""
    answers = {s["key"]: s["answers"] for s in saved.samples if s["task"] == task.name}
    for item in task.items:
        yield item, answers[item.key][REFERENCE][0], answers[item.key][method][0]


def _absent(task: EvalTask, item: Item, caption: str) -> list[str]:
    rows = [{"image_id": 0, "caption": caption}]
    (read,) = chair.compare(rows, {0: item.truth}, vocabulary=task.vocabulary)
    return [node for _, node, _ in read.hallucinated]


def _first(cases: Iterable[_Case], plain: bool | None, guarded: bool) -> _Case | None:
    return next((case for case in cases if plain in (None, case.plain) and case.guarded == guarded), None)


def _shown(title: str, rule: str, case: _Case, truth: str, method: str, task: EvalTask, asker: Asker) -> Example:
    """Ask once more, alone and with a trace; float32 gives the tokens of the batch again."""
    guards = [asker.decoders[name].guard for name in (REFERENCE, method)]
    assert guards[0] is not None
    assert guards[1] is not None
    model, processor, tokens = asker.model, asker.processor, task.max_new_tokens
    inputs = prepare(processor, [case.item])
    plain = model.generate(**inputs, guard=guards[0](0), max_new_tokens=tokens, **PLAIN)
    out = model.generate(**inputs, guard=guards[1](0), max_new_tokens=tokens, return_dict_in_generate=True, **PLAIN)
    view = inputs["guard_views"].views()[0]
    start = inputs["input_ids"].shape[1]
    said = processor.batch_decode([plain[0, start:], out.sequences[0, start:]], skip_special_tokens=True)
    return Example(
        title=title,
        rule=rule,
        image=case.item.pictures()[0],
        asked=case.item.prompt,
        truth=truth,
        plain=said[0],
        guarded=said[1],
        wrong=case.wrong,
        trace=out.guard.to_dict(),
        match=view.match,
        local=view.local,
        good=case.guarded,
    )
