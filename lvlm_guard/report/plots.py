"""Plots as SVG that follows the page's colours: values with their intervals, and values over steps.

Here is where things lie; `parts.html.jinja` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.report.html import Html, part
from lvlm_guard.report.tables import number

# units of the drawings
DOTS = {"width": 720, "label": 190, "line": 26, "head": 8, "foot": 44}
VALUE = 60  # beside the dots, for the values
LETTER = 7  # of a label
LINES = {"width": 720, "height": 260}
LEFT, RIGHT, TOP, FOOT = 60, 14, 10, 44  # margins of the lines
NEAR = 1e-9
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Where values lie in a drawing.

    Args:
        ticks: evenly spaced values, the first and the last at the axis' ends.
        start, end: places of the two, in units of the drawing.
    """

    ticks: Sequence[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        first, last = self.ticks[0], self.ticks[-1]
        return round(self.start + (self.end - self.start) * (value - first) / (last - first), 2)

    def labels(self) -> list[tuple[float, str]]:
        """Return the ticks' places and texts, with as many digits as tell one from the next."""
        step = self.ticks[1] - self.ticks[0]
        digits = next((d for d in range(7) if abs(step - round(step, d)) < step * 1e-6), 6)
        return [(self(tick), number(tick, digits)) for tick in self.ticks]


@dataclass(frozen=True)
class Interval:
    """One line of a dot plot.

    Args:
        label: its name.
        value: the dot.
        low, high: ends of the 95 % interval; None where there is none.
        mark: "good", "bad", "plain" (the reference) or "" for the colour, or classes of the page's own.
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
    """Draw dots with intervals; raises `ValueError` where there is no line, or a number is not finite.

    Args:
        intervals: top to bottom.
        title: what the figure shows, also read out by screen readers.
        axis: name and unit of the horizontal axis.
        reference: a vertical line, such as 0 for differences or 1 for ratios.
        digits: of the values written at the right.
        signed: write a plus before positive values.
    """
    if not intervals:
        raise ValueError("There is nothing to plot: give at least one interval.")
    numbers = [x for i in intervals for x in (i.value, i.low, i.high) if x is not None]
    numbers += [] if reference is None else [reference]
    if not all(math.isfinite(x) for x in numbers):
        raise ValueError(f"A plot needs finite numbers; {title!r} got {numbers}.")
    lines = []
    for item in intervals:
        value, low, high = (number(x, digits, signed=signed) for x in (item.value, item.low, item.high))
        bounded = item.low is not None and item.high is not None
        lines.append((item, f"{item.label}: {value}" + f", 95 % interval {low} to {high}" * bounded, value))
    label = max(DOTS["label"], *(LETTER * len(item.label) + 20 for item in intervals))
    box = DOTS | {"label": label, "width": DOTS["width"] + label - DOTS["label"]}
    box["bottom"] = DOTS["head"] + DOTS["line"] * len(intervals)
    x = Axis(ticks_over(min(numbers), max(numbers)), box["label"], box["width"] - VALUE - 16)
    return titled(title, part("dots", title, axis, x, reference, lines, box))


def line_plot(lines: Mapping[str, Sequence[Point]], *, title: str, axis: str) -> Html:
    """Draw values over steps, a line for each name; raises `ValueError` where there is no point.

    Args:
        lines: name -> (step, value), at least one point in all.
        title: what the figure shows, also read out by screen readers.
        axis: name of the horizontal axis.
    """
    points = [point for each in lines.values() for point in each]
    if not points:
        raise ValueError(f"There is nothing to plot in {title!r}: give at least one point.")
    steps, values = zip(*points, strict=True)
    x = Axis(ticks_over(0.0, max(steps)), LEFT, LINES["width"] - RIGHT)
    y = Axis(ticks_over(min(values), max(values), aim=4), LINES["height"] - FOOT, TOP)
    drawn = [line for line in lines.items() if line[1]]
    return titled(title, part("lines", title, axis, x, y, drawn, LINES))


def titled(title: str, picture: Html) -> Html:
    """Return a drawing under its title; one that is too wide for the page can be scrolled."""
    return part("plot", title, picture)


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
