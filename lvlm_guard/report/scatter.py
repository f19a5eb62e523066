"""One score against another, a dot each, so that a gain that is paid for elsewhere is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.report.axes import Frame
from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.plots import titled
from lvlm_guard.report.tables import number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 720, 400, 64, 20, 14, 50  # units of the drawing
LETTER, TALL = 6.9, 15  # about what a letter takes of a line of 13 units, and a line's height

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Dot:
    """One dot.

    Args:
        label: its name.
        x, y: the two scores.
        mark: "good", "bad", "plain" (the reference), "quiet" (a control) or "" for the colour.
    """

    label: str
    x: float
    y: float
    mark: str = ""


def scatter(
    dots: Sequence[Dot],
    *,
    title: str,
    x_axis: str,
    y_axis: str,
    x_line: tuple[float, str] | None = None,
    digits: int = 3,
) -> Html:
    """Draw dots with their names beside them.

    Args:
        dots: the first ones get the best places for their names.
        title: what the figure shows, also read out by screen readers.
        x_axis, y_axis: names of the scores, and which way is better.
        x_line: a value to draw a vertical line at, and what it is.
        digits: of the values that a dot tells when it is pointed at.

    Raises:
        ValueError: there is no dot, or a number is not finite.
    """
    if not dots:
        raise ValueError("There is nothing to plot: give at least one dot.")
    xs = [dot.x for dot in dots] + ([x_line[0]] if x_line else [])
    ys = [dot.y for dot in dots]
    if not all(math.isfinite(value) for value in (*xs, *ys)):
        raise ValueError(f"A plot needs finite numbers; {title!r} got {xs} and {ys}.")
    frame = Frame(WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT, (min(xs), max(xs)), (min(ys), max(ys)))
    x, y, bottom = frame.x, frame.y, frame.bottom
    grid = frame.grid()
    if x_line:
        grid.append(tag("line", x1=x(x_line[0]), x2=x(x_line[0]), y1=TOP, y2=bottom, class_="reference"))
    grid.append(frame.named(x_axis))
    middle = (TOP + bottom) / 2
    grid.append(tag("text", y_axis, x=14, y=middle, class_="axis", transform=f"rotate(-90 14 {middle})"))

    spots = [(x(dot.x), y(dot.y)) for dot in dots]
    taken: list[Box] = [(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in spots]
    drawn = []
    if x_line:
        drawn.append(_name(x_line[1], x(x_line[0]), TOP + 4, taken, "told"))
    for dot, (cx, cy) in zip(dots, spots, strict=True):
        said = f"{dot.label}: {x_axis} {number(dot.x, digits)}, {y_axis} {number(dot.y, digits)}"
        name = _name(dot.label, cx, cy, taken)
        drawn.append(
            tag("g", tag("title", said), tag("circle", cx=cx, cy=cy, r=5), name, class_=f"row {dot.mark}".strip())
        )
    return titled(title, frame.picture(title, *grid, *drawn))


def _name(label: str, cx: float, cy: float, taken: list[Box], kind: str = "name") -> Html:
    """Write a name where it covers least of what is there, the nearest places first, and note the place."""
    width = LETTER * len(label)
    places = []
    for step in (0, 1, 2, 3):
        for left in (cx + 9, cx - 9 - width):
            for down in (0, -1, 1) if step == 0 else (-1, 1):
                places.append((left, cy + down * TALL * max(step, 0.8) - TALL / 2))
    boxes = [(left, top, left + width, top + TALL) for left, top in places]
    chosen = min(enumerate(boxes), key=lambda numbered: (_covered(numbered[1], taken), numbered[0]))[1]
    taken.append(chosen)
    return tag("text", label, x=round(chosen[0], 1), y=round(chosen[1] + 11.5, 1), class_=kind)


def _covered(box: Box, taken: Sequence[Box]) -> float:
    outside = max(0.0, -box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - (HEIGHT - FOOT))
    area = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return round(area + 100 * outside, 3)
