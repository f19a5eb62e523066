"""The pictures of the demo's page: chosen by stated rules, in the order of the test scenes, failures included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.embedded.text import article
from lvlm_guard.evals.decoders.decoder import PLAIN, REFERENCE
from lvlm_guard.evals.infer.generate import Asker, prepare
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.report.saved import Run
from lvlm_guard.evals.spec.items import EvalTask, Item

Rule = tuple[str, bool | None, bool, bool]
"""Why it is shown; whether greedy is right (None: either), whether the guard is; the hardest questions alone."""

QUESTIONS: dict[str, Rule] = {
    "AGLA corrects a wrong answer": (
        "the first adversarial question that greedy gets wrong and AGLA right",
        False,
        True,
        True,
    ),
    "AGLA leaves a wrong answer": ("the first adversarial question that both get wrong", False, False, True),
    "AGLA breaks a right answer": (
        "the first question of any kind that greedy gets right and AGLA wrong",
        True,
        False,
        False,
    ),
}
CAPTIONS: dict[str, Rule] = {
    "Vote keeps a caption to what is there": (
        "the first caption in which greedy names something absent, and vote nothing absent",
        False,
        True,
        False,
    ),
    "Vote lets one through": (
        "the first caption in which vote still names something absent",
        None,
        False,
        False,
    ),
}
Wrong = tuple[Sequence[str], Sequence[str]]
"""Objects that a caption names and that are not in view: the plain one's, the guarded one's."""


@dataclass(frozen=True)
class Example:
    """One picture, asked plainly and guarded."""

    title: str  # what happened
    rule: str  # why this one is shown
    image: Image.Image
    asked: str
    truth: str  # the right answer, or what is in view
    plain: str  # greedy's answer
    wrong: Wrong | None  # None for questions
    trace: dict[str, Any]  # `GuardTrace.to_dict()` of the guarded answer
    match: Any  # the matcher's `Match`, where a local view was made
    local: Image.Image | None  # that view
    good: bool  # whether the guard was right


def choose(prepared: Prepared, saved: Run) -> list[Example]:
    """Return the examples; a rule that no scene meets gives none."""
    asker, found = prepared.answerer, []
    assert isinstance(asker, Asker)
    for task in prepared.tasks:
        method, rules = ("vote", CAPTIONS) if task.kind == "chair" else ("agla", QUESTIONS)
        cases = list(_cases(task, saved, method)) if method in asker.decoders else []
        for title, (why, plain, guarded, hard) in rules.items():
            for item, right, hardest, wrong in cases:
                if plain in (None, right[0]) and right[1] == guarded and hardest >= hard:
                    found.append(_shown(asker, task, item, method, title=title, rule=why, wrong=wrong, good=guarded))
                    break
    return found


def _cases(task: EvalTask, saved: Run, method: str) -> Iterator[tuple[Item, list[bool], bool, Wrong | None]]:
    """Yield each item: whether greedy and the method are right, whether it is hard, and what captions name wrongly."""
    for item, (_, said) in zip(task.items, saved.by_item(task.name), strict=True):
        plain, guarded = (said[name][0]["text"] for name in (REFERENCE, method))
        if task.kind == "chair":
            wrong = _absent(task, item, plain), _absent(task, item, guarded)
            yield item, [not each for each in wrong], False, wrong
        else:
            right = [pope.read(text) == item.truth for text in (plain, guarded)]
            yield item, right, "pope_adversarial" in item.rows, None


def _absent(task: EvalTask, item: Item, caption: str) -> list[str]:
    rows = [{"image_id": 0, "caption": caption}]
    (read,) = chair.compare(rows, {0: item.truth}, vocabulary=task.vocabulary)
    return [node for _, node, _ in read.hallucinated]


def _shown(asker: Asker, task: EvalTask, item: Item, method: str, **told: Any) -> Example:
    """Ask once more, alone and with a trace; float32 gives the tokens of the batch again."""
    greedy, guard = (asker.decoders[name].guard for name in (REFERENCE, method))
    assert greedy is not None
    assert guard is not None
    inputs = prepare(asker.processor, [item])
    options: dict[str, Any] = {**PLAIN, "max_new_tokens": task.max_new_tokens}
    plain = asker.model.generate(**inputs, guard=greedy(0), **options)
    out = asker.model.generate(**inputs, guard=guard(0), return_dict_in_generate=True, **options)
    view, start = out.guard.view(0), inputs["input_ids"].shape[1]
    if task.kind == "chair":
        truth = "in view: " + (", ".join(sorted(item.truth)) or "nothing nameable")
    else:
        truth = f"{item.truth}: {article(item.tags['object'])} is {'' if item.truth == 'yes' else 'not '}in view"
    return Example(
        image=item.pictures()[0],
        asked=item.prompt,
        truth=truth,
        plain=asker.processor.batch_decode(plain[:, start:], skip_special_tokens=True)[0],
        trace=out.guard.to_dict(),
        match=view.match,
        local=None if view.match is None else view.local,
        **told,
    )
