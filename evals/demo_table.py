"""The demo's table on a terminal: every decoder, its intervals, and how it differs from greedy."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.decoders import COMPARED, REFERENCE
from lvlm_guard.evals.figures import ends, methods_of, number, p_text, said, verdict
from lvlm_guard.evals.rows import Row, find

WIDE, MIDDLE = 126, 94  # columns from which on all kinds of questions, and the intervals of values, are shown


def table(rows: Sequence[Row], width: int = 120) -> Table:
    """Return the table; narrower terminals get fewer columns, never cut ones."""
    wide, middle = width >= WIDE, width >= MIDDLE
    shown = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="Embedded world, held-out scenes",
        title_justify="left",
    )
    shown.add_column("decoder", no_wrap=True)
    if wide:
        shown.add_column("POPE\nrandom", justify="right", no_wrap=True)
        shown.add_column("POPE\npopular", justify="right", no_wrap=True)
    for title in ("POPE\nadv.", "against\ngreedy", "CHAIR_i\n(less!)", "against\ngreedy", "object\nrecall"):
        shown.add_column(title, justify="right", no_wrap=True)
    if wide:
        shown.add_column("against\ngreedy", justify="right", no_wrap=True)
    for method in methods_of(rows):
        cells: list[Text | str] = [method]
        if wide:
            cells += [_value(rows, method, f"pope_{kind}", "accuracy", short=True) for kind in ("random", "popular")]
        cells.append(_value(rows, method, "pope_adversarial", "accuracy", short=not middle))
        cells.append(_difference(rows, method, "pope_adversarial", "accuracy"))
        cells.append(_value(rows, method, "chair", "chair_i", short=not middle))
        cells.append(_difference(rows, method, "chair", "chair_i"))
        cells.append(_value(rows, method, "chair", "object_recall", short=True))
        if wide:
            cells.append(_difference(rows, method, "chair", "object_recall"))
        shown.add_row(*cells)
    questions, captions = _n(rows, "pope_adversarial"), _n(rows, "chair")
    shown.caption = (
        f"POPE: accuracy on {questions} questions a kind; CHAIR: {captions} captions. [95 % interval] of the value and "
        "of the paired difference, pictures drawn with replacement; p by swapping the two on pictures."
    )
    shown.caption_justify = "left"
    return shown


def _value(rows: Sequence[Row], method: str, task: str, metric: str, *, short: bool = False) -> Text | str:
    row = find(rows, method, task, metric)
    if row is None:
        return "–"
    if short:
        return number(row["value"])
    return Text.assemble(number(row["value"]), ("\n" + ends(row), "dim"))


def _difference(rows: Sequence[Row], method: str, task: str, metric: str) -> Text | str:
    row = find(rows, f"{method}-{REFERENCE}", task, metric)
    if row is None:
        return "" if method == REFERENCE else "–"
    style = {"good": "bold green", "bad": "bold red", "": ""}[verdict(row)]
    return Text.assemble(
        (number(row["value"], signed=True), style),
        f" {p_text(row['p_value'])}",
        ("\n" + ends(row, signed=True), "dim"),
    )


def _n(rows: Sequence[Row], task: str) -> int:
    return next((int(row["n"]) for row in rows if row["task"] == task), 0)


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the table says, in sentences whose verdicts follow the numbers."""
    sentences = []
    for (ours, theirs), tells in COMPARED.items():
        row = find(rows, f"{ours}-{theirs}", "pope_adversarial", "accuracy")
        if row is not None:
            sentences.append(f"{ours} − {theirs} on adversarial questions: {said(row)}; {tells}.")
    for method in ("agla", "vote"):
        wrong = find(rows, f"{method}-{REFERENCE}", "chair", "chair_i")
        recall = find(rows, f"{method}-{REFERENCE}", "chair", "object_recall")
        if wrong is not None and recall is not None:
            effect = {"good": "names fewer absent objects", "bad": "names more absent objects"}.get(
                verdict(wrong), "has no clear effect on absent objects"
            )
            sentences.append(
                f"In captions {method} {effect}: CHAIR_i {said(wrong)}; recall {said(recall)}{_repeats(rows, method)}."
            )
    alone = find(rows, "vote-matcher", "pope_all", "accuracy")
    if alone is not None:
        place = {"good": "beats", "bad": "is behind"}.get(verdict(alone), "is not told apart from")
        sentences.append(
            f"On yes/no questions of all kinds vote {place} the matcher alone ({said(alone)}); the matcher can't write "
            "captions."
        )
    return sentences


def _repeats(rows: Sequence[Row], method: str) -> str:
    """Say how much a method repeats itself: CHAIR_i counts an object as often as it is named."""
    ours, plain = find(rows, method, "chair", "repeats"), find(rows, REFERENCE, "chair", "repeats")
    if ours is None or plain is None:
        return ""
    return f"; of its object words {ours['value']:.0%} repeat one of the same caption (greedy: {plain['value']:.0%})"
