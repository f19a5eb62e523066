"""`demo.html`: what the guard did on a few pictures, the tables, and what they do and do not show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.infer.generate import Asker
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.page import charts, page_environment
from lvlm_guard.evals.report.saved import Run, write_whole
from lvlm_guard.evals.report.terminal import explained, sentences
from lvlm_guard.evals.studies.demo.examples import Example
from lvlm_guard.pretrained import spoken
from lvlm_guard.report import Html, Picture, TokenMark, legend, overlay, panel, tag, token_marks, token_strip
from lvlm_guard.report.html import join

PAGE = "demo.html"


def write(saved: Run, examples: Sequence[Example], prepared: Prepared) -> Path:
    """Write `demo.html` into the folder of a run; void runs have no page."""
    assert isinstance(prepared.answerer, Asker)
    text = document(saved, examples, prepared.answerer.processor)
    with disk_trouble(saved.folder):
        return write_whole(saved.folder, PAGE, text)


def document(saved: Run, examples: Sequence[Example], processor: Any) -> str:
    """Return the page as text."""
    results = saved.results
    return (
        page_environment()
        .get_template("demo.html.jinja")
        .render(
            run=saved,
            results=results,
            headline=headline(results),
            examples=[Markup(str(_example(one, processor))) for one in examples],
            legend=Markup(str(legend())),
            sentences=sentences(results),
            charts=charts,
            explained=explained,
        )
    )


def headline(results: Results) -> str:
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


def _example(example: Example, processor: Any) -> Html:
    pictures = [Picture(example.image, "The picture", example.truth)]
    if example.match is not None and example.local is not None:
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
    plain, guarded = example.wrong or ((), ())
    words = [tag("span", word, class_="absent") if word in plain else word for word in example.plain.split(" ")]
    said = tag(
        "div",
        tag("p", "Asked: ", tag("b", example.asked)),
        _said("Plain, greedy", tag("p", join(words, " ") or "(nothing)", class_="tokens"), plain),
        _said(f"Guarded by {example.trace['method']}", token_strip(marks), guarded),
        tag("p", _why(example, marks), class_="note"),
        class_="said",
    )
    return tag(
        "article",
        tag("h3", example.title, class_="good" if example.good else "bad"),
        tag("p", f"Chosen as {example.rule}.", class_="note"),
        tag("div", panel(pictures), said, class_="stacked" if len(pictures) > 1 else "beside"),
        class_="example",
    )


def _said(who: str, strip: Html, absent: Sequence[str]) -> Html:
    words = ", ".join(dict.fromkeys(absent))
    wrong = tag("span", f"not in the picture: {words}", class_="absent") if words else None
    return tag("div", tag("div", who, " " if wrong else None, wrong, class_="figure-title"), strip)


def _why(example: Example, marks: Sequence[TokenMark]) -> str:
    if not marks:
        return ""
    if example.wrong is None:
        token = marks[0]
        views = (("global", "the whole picture"), ("local", "the local view"), ("assembled", "both together"))
        told = [
            f"{words} {math.exp(value):.2f}" for name, words in views if (value := token.log_prob.get(name)) is not None
        ]
        decided = " No other word was plausible enough, so the guard had no say." if token.decided else ""
        return f"Probability of “{token.text.strip()}”: {', '.join(told)}.{decided}"
    changed = [f"{(m.overruled or '').strip()} → {m.text.strip()}" for m in marks if m.overruled is not None]
    return f"Overruled: {'; '.join(changed) or 'nothing'}."
