"""Values over steps, a line for each name, as SVG that follows the page's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lvlm_guard.report.axes import Frame
from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.plots import titled

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 720, 260, 60, 14, 10, 44  # units of the drawing
Point = tuple[float, float]


def line_plot(lines: Mapping[str, Sequence[Point]], *, title: str, axis: str) -> Html:
    """Draw values over steps, a line for each name.

    Args:
        lines: name -> (step, value), at least one point in all.
        title: what the figure shows, also read out by screen readers.
        axis: name of the horizontal axis.

    Raises:
        ValueError: there is no point.
    """
    points = [point for each in lines.values() for point in each]
    if not points:
        raise ValueError(f"There is nothing to plot in {title!r}: give at least one point.")
    ends = min(y for _, y in points), max(y for _, y in points)
    frame = Frame(WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT, (0.0, max(x for x, _ in points)), ends)
    x, y = frame.x, frame.y
    drawn = [*frame.grid(), frame.named(axis)]
    for number, (name, each) in enumerate(line for line in lines.items() if line[1]):
        path = " ".join(f"{x(step)},{y(value)}" for step, value in each)
        dashes = ("", "6 4", "2 3", "9 3 2 3")[number % 4]
        style = f"fill:none;stroke:var(--accent);stroke-width:2;stroke-dasharray:{dashes or 'none'}"
        drawn.append(tag("g", tag("title", name), tag("polyline", points=path, style=style)))
        end = each[-1]
        drawn.append(tag("text", name, x=min(x(end[0]), frame.end) - 4, y=y(end[1]) - 6, style="text-anchor:end"))
    return titled(title, frame.picture(title, *drawn))
