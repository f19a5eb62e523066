"""One answer as a page: what the guard looked at, what it said, which tokens it overruled, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from lvlm_guard.report.html import Html, paragraph, part
from lvlm_guard.report.page import note, page, section
from lvlm_guard.report.pictures import Picture, overlay, panel
from lvlm_guard.report.tables import table
from lvlm_guard.report.tokens import legend, token_marks, token_strip


@dataclass(frozen=True)
class Looked:
    """One picture and what the method made of it.

    Args:
        image: the picture.
        relevance: [h, w] in 0 to 1, where a matcher was asked.
        keep: [h, w] bool, what stayed in the local view.
        local: the second view, where one was made.
        caption: a sentence on the match.
    """

    image: Image
    relevance: Any = None
    keep: Any = None
    local: Image | None = None
    caption: str = ""


@dataclass(frozen=True)
class Said:
    """One answer; `trace` is `GuardTrace.to_dict()`, None for a plain one."""

    method: str
    text: str
    seconds: float
    trace: Mapping[str, Any] | None = None


def answer_page(
    prompt: str,
    pictures: Sequence[Looked],
    answers: Sequence[Said],
    decode: Callable[[Sequence[int]], str],
    *,
    model: str,
    remarks: Sequence[str] = (),
    made: str = "",
) -> str:
    """Return the page of one prompt.

    Args:
        prompt: what was asked.
        pictures: in the prompt's order.
        answers: plain ones first; the last one is the guarded one.
        decode: token ids to text, special tokens dropped.
        model: its name.
        remarks: what a reader must know.
        made: how the page was made.
    """
    trace = answers[-1].trace
    parts: list[object] = [note(*(paragraph(remark) for remark in remarks))] if remarks else []
    for looked in pictures:
        parts.append(panel(_views(looked)))
        if looked.relevance is None and trace and not trace.get("masks"):
            parts.append(paragraph(_no_view(trace), "note"))
    said = [(one.method, answer_strip(one, decode)) for one in answers]
    parts.append(section("What it says", part("said", said), legend()))
    if trace is not None:
        if trace.get("verdicts"):
            parts.append(section("What the picture supports", _verdicts(trace["verdicts"][0])))
        knobs = ", ".join(f"{name} {value}" for name, value in trace["knobs"].items() if value is not None)
        told = [paragraph(f"{trace['method']}: {knobs}", "note")] if knobs else []
        parts.append(section("What it cost", cost_table(answers), *told))
    return page(prompt, *parts, lead=f"Asked of {model}, guarded by {answers[-1].method}.", foot=made)


def _views(looked: Looked) -> list[Picture]:
    views = [Picture(looked.image, "The picture", f"{looked.image.width} × {looked.image.height}")]
    if looked.relevance is not None:
        shown = overlay(looked.image, looked.relevance, keep=looked.keep)
        views.append(
            Picture(shown, "What matters to the question", looked.caption, alt="relevance map over the picture")
        )
    if looked.local is not None:
        views.append(Picture(looked.local, "The second view", "what the local branch was shown"))
    return views


def _no_view(trace: Mapping[str, Any]) -> str:
    if trace["execution"] == "lazy":
        return "No second view was made: each token was decided without it, so no other view could have changed one."
    return f"{trace['method']} makes no second view of the picture."


def answer_strip(one: Said, decode: Callable[[Sequence[int]], str]) -> Html:
    """Return an answer with its overruled tokens marked, as far as there is a trace of them."""
    marks = token_marks(one.trace, decode) if one.trace is not None and one.trace.get("steps") else None
    return token_strip(marks) if marks else paragraph(one.text or "(nothing)", "tokens")


def _verdicts(checked: Sequence[Mapping[str, Any]]) -> Html:
    if not checked:
        return paragraph("The answer names no object of the list that is verified.", "note")
    told = {one["mention"]["object"]: one["verdict"] for one in checked}
    header = ["object", "probability that it is there", "verdict", "strongest other claim"]
    rows = [
        [name, f"{verdict['p_supported']:.2f}", verdict["label"], verdict["runner_up"] or "–"]
        for name, verdict in told.items()
    ]
    return table(header, rows, note="By the verifier's matcher once the answer was written; it changed nothing in it.")


def cost_table(answers: Sequence[Said]) -> Html:
    """Return what each answer cost."""
    counts = {
        "run": "execution", "forwards": "global_forwards", "for other branches": "local_forwards",
        "their tokens": "local_tokens", "second views": "masks",
    }  # fmt: skip
    rows = []
    for one in answers:
        told = one.trace or {"execution": "plain"}
        rows.append([one.method, f"{one.seconds:.3f}", *(told.get(name) for name in counts.values())])
    note = "Seconds are of one call each, the first ones of their kind; lvlm-guard bench measures."
    return table(["answer", "seconds", *counts], rows, note=note)
