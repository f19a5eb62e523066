"""Answers against labels as a square whose four areas are their shares, so that a lean to "yes" is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lvlm_guard.report.html import Html, tag

SIDE, HEAD, FOOT = 132, 22, 6  # units of the drawing
GAP = 2
ROOM = 18  # height from which on a number fits into its area


def confusion_square(
    tp: float, fn: float, fp: float, tn: float, *, title: str, unread: tuple[float, float] = (0, 0)
) -> Html:
    """Draw the square: left what is labelled yes, right what is labelled no; answered yes above, no below.

    Right answers are upper left and lower right. The columns are as wide as the labels' shares, so each
    area is a share of all answers.

    Args:
        tp, fn: labelled yes, answered yes and no; counts, which may be means over runs.
        fp, tn: labelled no, answered yes and no.
        title: whose answers they are.
        unread: answers that are neither, labelled yes and labelled no; drawn at the bottom.

    Raises:
        ValueError: a count is negative or not finite, or all are zero.
    """
    left, right = (tp, fn, unread[0]), (fp, tn, unread[1])
    total = sum(left) + sum(right)
    if not all(math.isfinite(count) and count >= 0 for count in (*left, *right)) or not total:
        raise ValueError(f"A confusion square needs counts, not all of them zero; {title!r} got {left} and {right}.")
    yes = SIDE * sum(left) / total
    drawn = [
        *_column(0, yes, left, "labelled yes", ("good", "bad", "none")),
        *_column(yes, SIDE - yes, right, "labelled no", ("bad", "good", "none")),
    ]
    heads = [
        tag("text", f"label {name}", x=round(x + width / 2, 1), y=HEAD - 7, class_="tick")
        for name, x, width in (("yes", 0, yes), ("no", yes, SIDE - yes))
        if width >= SIDE / 3
    ]
    said = f"{title}: {_count(tp)} of {_count(sum(left))} yes and {_count(tn)} of {_count(sum(right))} no are right"
    picture = tag(
        "svg",
        tag("title", said),
        *heads,
        *drawn,
        viewBox=f"0 0 {SIDE} {HEAD + SIDE + FOOT}",
        width=SIDE,
        height=HEAD + SIDE + FOOT,
        role="img",
        aria_label=said,
        class_="square",
    )
    return tag("figure", picture, tag("figcaption", title))


def _column(x: float, width: float, counts: Sequence[float], label: str, kinds: Sequence[str]) -> list[Html]:
    parts: list[Html] = []
    y = float(HEAD)
    for count, kind, said in zip(counts, kinds, ("answered yes", "answered no", "unreadable"), strict=True):
        if count == 0:
            continue
        height = SIDE * count / sum(counts)
        across, down = (size - min(GAP, size / 2) for size in (width, height))
        box = tag(
            "rect",
            x=round(x + (width - across) / 2, 2),
            y=round(y + (height - down) / 2, 2),
            width=round(across, 2),
            height=round(down, 2),
        )
        text = (
            tag("text", _count(count), x=round(x + width / 2, 2), y=round(y + height / 2 + 4.5, 2))
            if height >= ROOM and width >= 9 * len(_count(count))
            else None
        )
        parts.append(tag("g", tag("title", f"{label}, {said}: {_count(count)}"), box, text, class_=kind))
        y += height
    return parts


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
