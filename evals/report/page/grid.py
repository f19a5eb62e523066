"""Values over two knobs as a grid of coloured cells, each with its number, the best one framed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lvlm_guard.report.colour import ramp
from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.plots import titled
from lvlm_guard.report.tables import number

CELL, LINE, LEFT, TOP, FOOT, MARGIN = 92, 46, 84, 8, 48, 12  # units of the drawing


def value_grid(
    values: Sequence[Sequence[float | None]],
    columns: Sequence[str],
    rows: Sequence[str] = ("",),
    *,
    title: str,
    column_axis: str,
    row_axis: str = "",
    best: Collection[tuple[int, int]] = (),
    span: float = 0.0,
    beside: Sequence[float] = (),
    digits: int = 3,
    less_is_better: bool = False,
) -> Html:
    """Draw a grid; with one row it is a strip. A brighter cell is a better one.

    Args:
        values: a list for each row, a value for each column; None where there is none.
        columns, rows: the knobs' values along the two sides.
        title: what the figure shows, also read out by screen readers.
        column_axis, row_axis: names of the two knobs.
        best: row and column of the cells to frame.
        span: the difference that the colours must at least stand for, so that noise does not look like a trend.
        beside: values of other grids that share the colours.
        digits: of the values.
        less_is_better: the smallest value is the brightest.

    Raises:
        ValueError: there is no cell, the rows are of unequal length, or a number is not finite.
    """
    if not rows or not columns or [len(row) for row in values] != [len(columns)] * len(rows):
        raise ValueError(
            f"A grid of {len(rows)} rows and {len(columns)} columns needs as many values; {title!r} got rows of "
            f"{[len(row) for row in values]}."
        )
    known = [value for row in values for value in row if value is not None]
    if not all(math.isfinite(value) for value in known):
        raise ValueError(f"A grid needs finite numbers; {title!r} got {known}.")
    every = [*known, *beside]
    low, high = (min(every), max(every)) if every else (0.0, 0.0)
    low, high = (low, max(high, low + span)) if less_is_better else (min(low, high - span), high)
    left = LEFT if row_axis else MARGIN
    drawn: list[Html] = []
    for i, row in enumerate(values):
        y = TOP + LINE * i
        if row_axis:
            drawn.append(tag("text", rows[i], x=left - 10, y=y + LINE / 2 + 4.5, class_="label"))
        for j, value in enumerate(row):
            told = f"{f'{row_axis} {rows[i]}, ' if row_axis else ''}{column_axis} {columns[j]}"
            drawn.append(
                _cell(
                    value,
                    left + CELL * j,
                    y,
                    told,
                    digits,
                    place=_place(value, low, high, less_is_better),
                    framed=(i, j) in best,
                )
            )
    bottom = TOP + LINE * len(rows)
    for j, name in enumerate(columns):
        drawn.append(tag("text", name, x=left + CELL * (j + 0.5), y=bottom + 17, class_="tick"))
    width = left + CELL * len(columns) + MARGIN
    drawn.append(tag("text", column_axis, x=left + CELL * len(columns) / 2, y=bottom + 38, class_="axis"))
    if row_axis:
        middle = TOP + LINE * len(rows) / 2
        drawn.append(
            tag("text", row_axis, x=14, y=middle, class_="axis", transform=f"rotate(-90 14 {round(middle, 1)})")
        )
    height = bottom + FOOT
    picture = tag(
        "svg",
        tag("title", title),
        *drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
        class_="cells",
    )
    return titled(title, picture)


def _place(value: float | None, low: float, high: float, less_is_better: bool) -> float:
    if value is None or high == low:
        return 0.5
    share = (value - low) / (high - low)
    return 1 - share if less_is_better else share


def _cell(value: float | None, x: float, y: float, told: str, digits: int, *, place: float, framed: bool) -> Html:
    if value is None:
        return tag("g", tag("title", f"{told}: none"), tag("text", "–", x=x + CELL / 2, y=y + LINE / 2 + 5))
    red, green, blue = (int(channel) for channel in ramp(place))
    # the W3C's weights of the channels: black on what is bright, white on what is dark
    ink = "#14161a" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
    said = f"{told}: {number(value, digits)}{' (best)' if framed else ''}"
    shape = tag("rect", x=x + 1, y=y + 1, width=CELL - 2, height=LINE - 2, fill=f"#{red:02x}{green:02x}{blue:02x}")
    text = tag("text", number(value, digits), x=x + CELL / 2, y=y + LINE / 2 + 5, fill=ink)
    frame = (
        tag("rect", x=x + 3, y=y + 3, width=CELL - 6, height=LINE - 6, class_="frame", stroke=ink) if framed else None
    )
    return tag("g", tag("title", said), shape, text, frame, class_="best" if framed else None)
