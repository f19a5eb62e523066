"""The pictures of the demo's page: chosen by stated rules, in the order of the test scenes, failures included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lvlm_guard.embedded.text import article
from lvlm_guard.evals import pope as scorer
from lvlm_guard.evals.answers import Answers, Asker, Item, prepare
from lvlm_guard.evals.decoders import PLAIN, Decoder
from lvlm_guard.evals.demo_tasks import CAPTION_TOKENS, Run, pope_answers, read_captions
from lvlm_guard.evals.world import WorldQuestion, picture


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


def choose(run: Run, answers: Answers) -> list[Example]:
    """Return the examples; a rule that no scene meets gives none."""
    decoders = {d.name: d for d in run.tasks["pope"].decoders}
    greedy, agla, vote = (decoders[name] for name in ("greedy", "agla", "vote"))
    return [*_questions(run, answers, greedy, agla), *_captions(run, answers, greedy, vote)]


def _questions(run: Run, answers: Answers, greedy: Decoder, agla: Decoder) -> list[Example]:
    pope = run.pope
    plain, guarded = (pope_answers(pope, answers, decoder) for decoder in (greedy, agla))
    right = [
        (q, scorer.read(a) == q.label, scorer.read(b) == q.label)
        for q, a, b in zip(pope.questions, plain, guarded, strict=True)
    ]
    adversarial = [row for row in right if row[0].kind == "adversarial"]
    rules = [
        (
            "AGLA corrects a wrong answer",
            "the first adversarial question that greedy gets wrong and AGLA right",
            _first(adversarial, False, True),
            True,
        ),
        (
            "AGLA leaves a wrong answer",
            "the first adversarial question that both get wrong",
            _first(adversarial, False, False),
            False,
        ),
        (
            "AGLA breaks a right answer",
            "the first question of any kind that greedy gets right and AGLA wrong",
            _first(right, True, False),
            False,
        ),
    ]
    found = []
    for title, rule, question, good in rules:
        if question is not None:
            item = Item(question.picture, picture(pope.scenes, question.picture), question.text)
            truth = f"{question.label}: {article(question.name)} is {'' if question.label == 'yes' else 'not '}in view"
            found.append(_shown(title, rule, item, truth, None, greedy, agla, 1, run.asker, good))
    return found


def _first(rows: Iterable[tuple[WorldQuestion, bool, bool]], plain: bool, guarded: bool) -> WorldQuestion | None:
    return next((question for question, a, b in rows if (a, b) == (plain, guarded)), None)


def _captions(run: Run, answers: Answers, greedy: Decoder, vote: Decoder) -> list[Example]:
    captions = run.captions
    plain, guarded = (read_captions(captions, answers, decoder) for decoder in (greedy, vote))
    wrong = [
        ([node for _, node, _ in a.hallucinated], [node for _, node, _ in b.hallucinated])
        for a, b in zip(plain, guarded, strict=True)
    ]
    rules = [
        (
            "Vote keeps a caption to what is there",
            "the first caption in which greedy names something absent, and vote nothing absent",
            next((i for i, (a, b) in enumerate(wrong) if a and not b), None),
            True,
        ),
        (
            "Vote lets one through",
            "the first caption in which vote still names something absent",
            next((i for i, (_, b) in enumerate(wrong) if b), None),
            False,
        ),
    ]
    found = []
    for title, rule, index, good in rules:
        if index is not None:
            item = answers.tasks["chair"].items[index]
            truth = "in view: " + (", ".join(sorted(captions.objects[item.picture])) or "nothing nameable")
            shown = _shown(title, rule, item, truth, wrong[index], greedy, vote, CAPTION_TOKENS, run.asker, good)
            found.append(shown)
    return found


def _shown(
    title: str,
    rule: str,
    item: Item,
    truth: str,
    wrong: tuple[Sequence[str], Sequence[str]] | None,
    greedy: Decoder,
    decoder: Decoder,
    tokens: int,
    asker: Asker,
    good: bool,
) -> Example:
    """Ask once more, alone and with a trace; float32 gives the tokens of the batch again."""
    assert greedy.guard is not None
    assert decoder.guard is not None
    model, processor = asker.model, asker.processor
    inputs = prepare(processor, [item])
    plain = model.generate(**inputs, guard=greedy.guard(0), max_new_tokens=tokens, **PLAIN)
    out = model.generate(**inputs, guard=decoder.guard(0), max_new_tokens=tokens, return_dict_in_generate=True, **PLAIN)
    view = inputs["guard_views"].views()[0]
    start = inputs["input_ids"].shape[1]
    said = processor.batch_decode([plain[0, start:], out.sequences[0, start:]], skip_special_tokens=True)
    return Example(
        title=title,
        rule=rule,
        image=item.image,
        asked=item.text,
        truth=truth,
        plain=said[0],
        guarded=said[1],
        wrong=wrong,
        trace=out.guard.to_dict(),
        match=view.match,
        local=view.local,
        good=good,
    )
