"""`demo.html`: what the guard did on a few pictures, the table, and what it does and does not show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.decoder import REFERENCE, Decoder
from lvlm_guard.evals.infer.generate import Asker
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.report.figures import Row, methods_of, number, p_text, verdict
from lvlm_guard.evals.report.remarks import remarks
from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.studies.demo.examples import Example
from lvlm_guard.pretrained import spoken
from lvlm_guard.report import (
    Cell,
    Html,
    Interval,
    Picture,
    TokenMark,
    dot_plot,
    legend,
    note,
    overlay,
    page,
    panel,
    section,
    table,
    tag,
    token_marks,
    token_strip,
    write_page,
)
from lvlm_guard.report.html import join

PAGE = "demo.html"
TITLE = "A small model hallucinates, and what a guard does about it"


def write(saved: Saved, examples: Sequence[Example], prepared: Prepared) -> Path:
    """Write `demo.html` into the folder of a run; void runs have no page."""
    assert isinstance(prepared.answerer, Asker)
    text = document(saved, examples, prepared.decoders, prepared.answerer.processor)
    return write_page(saved.folder / PAGE, text)


def document(saved: Saved, examples: Sequence[Example], decoders: Sequence[Decoder], processor: Any) -> str:
    """Return the page as text."""
    rows = saved.run["rows"]
    *said, limits = remarks(saved.run)
    shown = [_example(example, processor) for example in examples]
    return page(
        TITLE,
        section(
            "What happened",
            *shown,
            legend(),
            lead="Scenes that were held out from training. Each is the first, in their fixed order, that meets the "
            "rule under its title; nothing was picked by hand.",
        ),
        section(
            "How much",
            _table(rows),
            tag("h3", "What the rows are"),
            tag("ul", *(tag("li", tag("b", d.name), f": {d.about}", _runs(d)) for d in decoders)),
            lead=_scale(rows),
        ),
        section(
            "Against greedy decoding",
            *_plots(rows),
            tag("ul", *(tag("li", remark) for remark in said)),
            lead="Differences on the same pictures with 95 % intervals. Green: clearly better; red: clearly worse; "
            "blue: not told apart.",
        ),
        section("What this shows, and what it does not", note(tag("p", limits))),
        lead=_headline(rows),
        foot=_foot(saved.run),
    )


def _headline(rows: Sequence[Row]) -> str:
    asked, told = (("pope_adversarial", "accuracy"), ("chair", "chair_i"))

    def share(method: str, where: tuple[str, str]) -> str:
        row = find(rows, method, *where)
        return f"{row['value']:.0%}" if row else "–"

    return (
        "A LLaVA of about a million weights, trained by this project on a drawn world, names things that usually go "
        "together whether they are there or not. Asked about such things (POPE, adversarial), it answers "
        f"{share('greedy', asked)} of the questions right; guarded by AGLA {share('agla', asked)}, by vote "
        f"{share('vote', asked)}. Of the objects that its captions name, {share('greedy', told)} are not in the "
        f"picture; guarded by vote {share('vote', told)}."
    )


def _scale(rows: Sequence[Row]) -> str:
    questions = find(rows, REFERENCE, "pope_adversarial", "accuracy")
    captions = find(rows, REFERENCE, "chair", "chair_i")
    return (
        f"POPE: accuracy on {questions['n'] if questions else 0} yes/no questions of each kind, half of them about "
        f"absent objects. CHAIR on {captions['n'] if captions else 0} captions: CHAIR_i is the share of object words "
        "that are not in the picture, CHAIR_s that of captions with any (less is better); object recall is the share "
        "of the picture's objects that are named."
    )


def _runs(decoder: Decoder) -> str:
    return f" ({decoder.seeds} runs, averaged)" if decoder.seeds > 1 else ""


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
    said = tag(
        "div",
        tag("p", "Asked: ", tag("b", example.asked)),
        _said("Plain, greedy", tag("p", _marked(example.plain, plain) or "(nothing)", class_="tokens"), plain),
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


def _marked(text: str, absent: Sequence[str]) -> Html:
    words = [tag("span", word, class_="absent") if word in absent else word for word in text.split(" ")]
    return join(words, " ")


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


def _table(rows: Sequence[Row]) -> Html:
    columns = [
        ("pope_random", "accuracy", "POPE random"),
        ("pope_popular", "accuracy", "POPE popular"),
        ("pope_adversarial", "accuracy", "POPE adversarial"),
        ("chair", "chair_i", "CHAIR_i"),
        ("chair", "chair_s", "CHAIR_s"),
        ("chair", "object_recall", "object recall"),
    ]
    header: list[object] = ["decoder"]
    for _, _, title in columns:
        header.append(title)
    body: list[list[object]] = []
    for method in methods_of(rows):
        cells: list[object] = [method]
        for task, metric, _ in columns:
            row = find(rows, method, task, metric)
            if row is None:
                cells.append(None)
                continue
            change = find(rows, f"{method}-{REFERENCE}", task, metric)
            value = tag(
                "div",
                tag("div", number(row["value"]), class_="value"),
                tag("div", f"[{number(row['low'])}, {number(row['high'])}]", class_="interval"),
                tag("div", f"{number(change['value'], signed=True)}, {p_text(change['p_value'])}", class_="interval")
                if change
                else None,
            )
            cells.append(Cell(value, verdict(change) if change else ""))
        body.append(cells)
    return table(
        header,
        body,
        note="A cell: the value, its 95 % interval (pictures drawn with replacement), and the difference to greedy "
        "with its p-value (the share of random swaps of the two decoders on pictures that differ as much). Green: "
        "clearly better than greedy; red: clearly worse.",
    )


def _plots(rows: Sequence[Row]) -> list[Html]:
    drawn = []
    for task, metric, title in (
        ("pope_adversarial", "accuracy", "POPE adversarial accuracy: more is better"),
        ("chair", "chair_i", "CHAIR_i of captions: less is better"),
        ("chair", "object_recall", "Object recall of captions: more is better"),
    ):
        intervals = [
            Interval(method, row["value"], row["low"], row["high"], verdict(row))
            for method in methods_of(rows)
            if (row := find(rows, f"{method}-{REFERENCE}", task, metric)) is not None
        ]
        if intervals:
            drawn.append(
                dot_plot(intervals, title=title, axis="difference to greedy", reference=0.0, digits=3, signed=True)
            )
    return drawn


def _foot(run: Mapping[str, Any]) -> Html:
    made = ", ".join(f"{name} {version}" for name, version in run["environment"].items() if version)
    asked = "; ".join(f"{task['name']}: {task['n']} on {task['pictures']} pictures" for task in run["tasks"])
    settings = run["settings"]
    return join(
        (
            tag("p", "Made by ", tag("code", "lvlm-guard demo"), f" in {run['times']['seconds']:.0f} s of asking."),
            tag(
                "p",
                f"{asked}; {settings['seeds']} seeds, blocks of {settings['batch']}; code {run['code']}, weights "
                f"{run['weights']}; {made}.",
            ),
        )
    )
