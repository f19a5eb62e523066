"""A frame with a grid, ticks and the names of both axes, into which values are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.plots import tick_text, ticks_over


@dataclass(frozen=True)
class Frame:
    """Where a plot's values are drawn, in units of the drawing.

    Args:
        width, height: of the whole.
        left, right, top, foot: margins, for tick labels and names.
        across, up: ends of what is drawn, in the values' own units; both lie within the ticks.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    foot: int
    across: tuple[float, float]
    up: tuple[float, float]

    @cached_property
    def columns(self) -> Sequence[float]:
        """Values of the vertical lines."""
        return ticks_over(*self.across)

    @cached_property
    def rows(self) -> Sequence[float]:
        """Values of the horizontal lines."""
        return ticks_over(*self.up, aim=4)

    @property
    def bottom(self) -> int:
        """Lower edge."""
        return self.height - self.foot

    @property
    def end(self) -> int:
        """Right edge."""
        return self.width - self.right

    def x(self, value: float) -> float:
        """Return the place of a value across."""
        first, last = self.columns[0], self.columns[-1]
        return round(self.left + (self.end - self.left) * (value - first) / (last - first), 2)

    def y(self, value: float) -> float:
        """Return the place of a value upwards."""
        first, last = self.rows[0], self.rows[-1]
        return round(self.bottom - (self.bottom - self.top) * (value - first) / (last - first), 2)

    def grid(self) -> list[Html]:
        """Return lines and tick labels."""
        drawn = []
        for tick in self.columns:
            at = self.x(tick)
            drawn.append(tag("line", x1=at, x2=at, y1=self.top, y2=self.bottom, class_="grid"))
            drawn.append(tag("text", tick_text(tick, self.columns), x=at, y=self.bottom + 17, class_="tick"))
        for tick in self.rows:
            at = self.y(tick)
            drawn.append(tag("line", x1=self.left, x2=self.end, y1=at, y2=at, class_="grid"))
            drawn.append(tag("text", tick_text(tick, self.rows), x=self.left - 8, y=at + 4, class_="tick side"))
        return drawn

    def named(self, text: str) -> Html:
        """Return the name of the horizontal axis."""
        return tag("text", text, x=(self.left + self.end) / 2, y=self.bottom + 40, class_="axis")

    def picture(self, title: str, *drawn: Html) -> Html:
        """Return the drawing, with its title for screen readers."""
        box = f"0 0 {self.width} {self.height}"
        return tag("svg", tag("title", title), *drawn, viewBox=box, role="img", aria_label=title, class_="dots")
