"""Values with their intervals, one a line, as SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.tables import number

WIDTH, LABEL, VALUE, LINE, HEAD, FOOT = 720, 190, 60, 26, 8, 44  # units of the drawing
NEAR = 1e-9


@dataclass(frozen=True)
class Interval:
    """One line of the plot.

    Args:
        label: its name.
        value: the dot.
        low, high: ends of the 95 % interval; None where there is none.
        mark: "good", "bad", "plain" (the reference) or "" for the colour.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


def dot_plot(
    intervals: Sequence[Interval],
    *,
    title: str,
    axis: str,
    reference: float | None = None,
    digits: int = 2,
    signed: bool = False,
) -> Html:
    """Draw dots with intervals.

    Args:
        intervals: top to bottom.
        title: what the figure shows, also read out by screen readers.
        axis: name and unit of the horizontal axis.
        reference: a vertical line, such as 0 for differences or 1 for ratios.
        digits: of the values written at the right.
        signed: write a plus before positive values.

    Raises:
        ValueError: there is no line, or a number is not finite.
    """
    if not intervals:
        raise ValueError("There is nothing to plot: give at least one interval.")
    numbers = [x for i in intervals for x in (i.value, i.low, i.high) if x is not None]
    numbers += [] if reference is None else [reference]
    if not all(math.isfinite(x) for x in numbers):
        raise ValueError(f"A plot needs finite numbers; {title!r} got {numbers}.")
    ticks = ticks_over(min(numbers), max(numbers))
    left, right = ticks[0], ticks[-1]
    bottom = HEAD + LINE * len(intervals)

    def x(value: float) -> float:
        return round(LABEL + (WIDTH - LABEL - VALUE - 16) * (value - left) / (right - left), 2)

    grid: list[Html] = []
    for tick in ticks:
        grid.append(tag("line", x1=x(tick), x2=x(tick), y1=HEAD, y2=bottom, class_="grid"))
        grid.append(tag("text", tick_text(tick, ticks), x=x(tick), y=bottom + 16, class_="tick"))
    if reference is not None:
        grid.append(tag("line", x1=x(reference), x2=x(reference), y1=HEAD, y2=bottom, class_="reference"))
    grid.append(tag("text", axis, x=(LABEL + WIDTH - VALUE) / 2, y=bottom + 36, class_="axis"))
    drawn = []
    for index, item in enumerate(intervals):
        y = HEAD + LINE * (index + 0.5)
        parts = [tag("text", item.label, x=LABEL - 14, y=y + 4.5, class_="label")]
        if item.low is not None and item.high is not None:
            parts.append(tag("line", x1=x(item.low), x2=x(item.high), y1=y, y2=y, class_="whisker"))
        parts.append(tag("circle", cx=x(item.value), cy=y, r=5))
        parts.append(tag("text", number(item.value, digits, signed=signed), x=WIDTH - 4, y=y + 4.5, class_="number"))
        drawn.append(tag("g", tag("title", _spoken(item, digits, signed)), *parts, class_=f"row {item.mark}".strip()))
    picture = tag(
        "svg",
        tag("title", title),
        *grid,
        *drawn,
        viewBox=f"0 0 {WIDTH} {bottom + FOOT}",
        role="img",
        aria_label=title,
        class_="dots",
    )
    return titled(title, picture)


def _spoken(item: Interval, digits: int, signed: bool) -> str:
    said = f"{item.label}: {number(item.value, digits, signed=signed)}"
    if item.low is not None and item.high is not None:
        low, high = (number(end, digits, signed=signed) for end in (item.low, item.high))
        said += f", 95 % interval {low} to {high}"
    return said


def titled(title: str, picture: Html) -> Html:
    """Return a drawing under its title; one that is too wide for the page can be scrolled."""
    return tag(
        "figure",
        tag("div", title, class_="figure-title"),
        tag("div", picture, class_="scroll"),
        class_="plot",
    )


def ticks_over(low: float, high: float, aim: int = 5) -> list[float]:
    """Return round numbers, evenly spaced, the first at or below `low` and the last at or above `high`."""
    # closer than this, values are one value as far as the page's digits go
    span = next((size for size in (high - low, abs(high)) if size > NEAR), 1.0)
    rough = span / aim
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(k * step, 12) for k in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many digits as tell it from the next."""
    step = ticks[1] - ticks[0]
    digits = next((d for d in range(7) if abs(step - round(step, d)) < step * 1e-6), 6)
    return number(value, digits)
