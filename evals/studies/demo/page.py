"""`demo.html`: what the guard did on a few pictures, the tables, and what they do and do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lvlm_guard.evals.infer.generate import Asker
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.page import charts, page_environment
from lvlm_guard.evals.report.saved import Run, write_whole
from lvlm_guard.evals.report.terminal import explained, sentences
from lvlm_guard.evals.studies.demo.examples import Example
from lvlm_guard.pretrained import spoken
from lvlm_guard.report import Picture, TokenMark, legend, overlay, panel, token_marks, token_strip


def write(saved: Run, examples: Sequence[Example], prepared: Prepared) -> Path:
    """Write `demo.html` into the folder of a run; void runs have no page."""
    assert isinstance(prepared.answerer, Asker)
    results, processor = saved.results, prepared.answerer.processor
    text = (
        page_environment()
        .get_template("demo.html.jinja")
        .render(
            run=saved,
            results=results,
            headline=_headline(results),
            examples=[_shown(one, processor) for one in examples],
            legend=Markup(str(legend())),
            sentences=sentences(results),
            charts=charts,
            explained=explained,
        )
    )
    return write_whole(saved.folder, "demo.html", text)


def _headline(results: Results) -> str:
    """Return the first paragraph: what happens without a guard, and with one."""

    def share(decoder: str, task: str, metric: str) -> str:
        row = results.value(task, decoder, metric)
        return "–" if row is None else f"{row['value']:.0%}"

    hard = [share(name, "pope_adversarial", "accuracy") for name in ("greedy", "agla", "vote")]
    wrong = [share(name, "chair", "chair_i") for name in ("greedy", "vote")]
    return (
        "A LLaVA of about a million weights, trained by this project on a drawn world, names things that usually go "
        "together whether they are there or not, and overlooks others. Asked about such things (POPE, adversarial), it "
        f"answers {hard[0]} of the questions right; guarded by AGLA {hard[1]}, by vote {hard[2]}. How much of that a "
        "moved threshold gives by itself, the matched accuracy, AUROC and the controls say. Of the objects that its "
        f"captions name, {wrong[0]} are not in the picture; guarded by vote {wrong[1]}."
    )


def _shown(example: Example, processor: Any) -> dict[str, Any]:
    """Return an example for the template, with its pictures and its marked tokens as they stand there."""
    pictures = [Picture(example.image, "The picture", example.truth)]
    if example.local is not None:
        keep = example.match.keep
        pictures += [
            Picture(
                overlay(example.image, example.match.relevance, keep=keep),
                "What matters to the question",
                "Bright: relevant, says the matcher. The pale line bounds what is kept.",
                alt="relevance map over the picture",
            ),
            Picture(example.local, "The local view", f"{float(keep.float().mean()):.0%} of the picture is kept."),
        ]
    marks = token_marks(example.trace, lambda tokens: spoken(processor, tokens))
    told = {"pictures": Markup(str(panel(pictures))), "strip": Markup(str(token_strip(marks)))}
    return vars(example) | told | {"why": _why(example, marks), "wrong": example.wrong or ((), ())}


def _why(example: Example, marks: Sequence[TokenMark]) -> str:
    if not marks:
        return ""
    if example.wrong is None:
        token = marks[0]
        views = {"global": "the whole picture", "local": "the local view", "assembled": "both together"}
        found = [(words, token.log_prob.get(name)) for name, words in views.items()]
        told = ", ".join(f"{words} {math.exp(value):.2f}" for words, value in found if value is not None)
        decided = " No other word was plausible enough, so the guard had no say." if token.decided else ""
        return f"Probability of “{token.text.strip()}”: {told}.{decided}"
    changed = [f"{(m.overruled or '').strip()} → {m.text.strip()}" for m in marks if m.overruled is not None]
    return f"Overruled: {'; '.join(changed) or 'nothing'}."
