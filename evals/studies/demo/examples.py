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

Rule = tuple[str, str, bool | None, bool, bool]
"""Title, why it is shown, whether greedy is right (None: either), whether the guard is, hardest questions alone."""

QUESTIONS: tuple[Rule, ...] = (
    (
        "AGLA corrects a wrong answer",
        "the first adversarial question that greedy gets wrong and AGLA right",
        *(False, True, True),
    ),
    ("AGLA leaves a wrong answer", "the first adversarial question that both get wrong", False, False, True),
    (
        "AGLA breaks a right answer",
        "the first question of any kind that greedy gets right and AGLA wrong",
        *(True, False, False),
    ),
)
CAPTIONS: tuple[Rule, ...] = (
    (
        "Vote keeps a caption to what is there",
        "the first caption in which greedy names something absent, and vote nothing absent",
        *(False, True, False),
    ),
    (
        "Vote lets one through",
        "the first caption in which vote still names something absent",
        *(None, False, False),
    ),
)


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
    wrong: tuple[Sequence[str], Sequence[str]] | None
    trace: dict[str, Any]
    match: Any
    local: Image.Image | None
    good: bool


def choose(prepared: Prepared, saved: Run) -> list[Example]:
    """Return the examples; a rule that no scene meets gives none."""
    asker = prepared.answerer
    assert isinstance(asker, Asker)
    found: list[Example] = []
    for task in prepared.tasks:
        method, rules = ("vote", CAPTIONS) if task.kind == "chair" else ("agla", QUESTIONS)
        if method in asker.decoders:
            cases = list(_cases(task, saved, method))
            for title, why, plain, guarded, hard in rules:
                case = next((c for c in cases if plain in (None, c[1]) and c[2] == guarded and c[3] >= hard), None)
                if case is not None:
                    found.append(_shown(title, why, case[0], case[4], guarded, method, task, asker))
    return found


def _cases(task: EvalTask, saved: Run, method: str) -> Iterator[tuple[Item, bool, bool, bool, Any]]:
    """Yield each item: whether greedy and the method are right, whether it is hard, and what captions name wrongly."""
    said = {row["item"]: {name: each[0]["text"] for name, each in of.items()} for row, of in saved.by_item(task.name)}
    for item in task.items:
        texts = [said[item.key][name] for name in (REFERENCE, method)]
        if task.kind == "chair":
            absent = [_absent(task, item, text) for text in texts]
            yield item, not absent[0], not absent[1], False, (absent[0], absent[1])
        else:
            right = [pope.read(text) == item.truth for text in texts]
            yield item, right[0], right[1], "pope_adversarial" in item.rows, None


def _absent(task: EvalTask, item: Item, caption: str) -> list[str]:
    rows = [{"image_id": 0, "caption": caption}]
    (read,) = chair.compare(rows, {0: item.truth}, vocabulary=task.vocabulary)
    return [node for _, node, _ in read.hallucinated]


def _shown(
    title: str, rule: str, item: Item, wrong: Any, good: bool, method: str, task: EvalTask, asker: Asker
) -> Example:
    """Ask once more, alone and with a trace; float32 gives the tokens of the batch again."""
    guards = [asker.decoders[name].guard for name in (REFERENCE, method)]
    assert guards[0] is not None
    assert guards[1] is not None
    model, inputs = asker.model, prepare(asker.processor, [item])
    options: dict[str, Any] = {**PLAIN, "max_new_tokens": task.max_new_tokens}
    plain = model.generate(**inputs, guard=guards[0](0), **options)
    out = model.generate(**inputs, guard=guards[1](0), return_dict_in_generate=True, **options)
    view, start = inputs["guard_views"].views()[0], inputs["input_ids"].shape[1]
    if task.kind == "chair":
        truth = "in view: " + (", ".join(sorted(item.truth)) or "nothing nameable")
    else:
        truth = f"{item.truth}: {article(item.tags['object'])} is {'' if item.truth == 'yes' else 'not '}in view"
    return Example(
        title=title,
        rule=rule,
        image=item.pictures()[0],
        asked=item.prompt,
        truth=truth,
        plain=asker.processor.batch_decode(plain[:, start:], skip_special_tokens=True)[0],
        wrong=wrong,
        trace=out.guard.to_dict(),
        match=view.match,
        local=view.local,
        good=good,
    )
