"""Charts of a run: differences with their intervals, and a sweep of knobs as heat maps, the best points framed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from markupsafe import Markup

from lvlm_guard.evals.report.layout import JUDGED, Results, Row, Task, digits, interval, judged, title, written
from lvlm_guard.report.colour import ramp
from lvlm_guard.report.plots import Interval, dot_plot


def differences(results: Results, task: Task) -> Iterator[Markup]:
    """Draw each main metric: every decoder's difference to the reference with its 95 % interval."""
    for row, metric in results.main(task):
        shown = []
        for decoder in results.lines(task):
            change = results.difference(row, decoder["name"], metric)
            if change is not None and change["value"] is not None:
                mark = judged(change) + (" hollow" if decoder["role"] not in JUDGED else "")
                shown.append(Interval(decoder["name"], change["value"], change["low"], change["high"], mark))
        if shown:
            axis = f"{title(metric)} less {results.reference}'s"
            how: dict[str, Any] = {"reference": 0, "digits": digits(metric), "signed": True}
            yield dot_plot(shown, title=f"{title(metric)} on {row}", axis=axis, **how)


class Cell(NamedTuple):
    text: str
    colours: str = ""  # as CSS; "" where the point was not run
    best: bool = False


class Grid(NamedTuple):
    """Values over two knobs: a heading for each value of the first, a line for each of the second."""

    title: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


class Sweep(NamedTuple):
    """A method's points by one metric: heat maps over two knobs each, and the best of the points in a sentence."""

    grids: Sequence[Grid]
    best: str


def sweeps(results: Results) -> Iterator[Sweep]:
    """Yield every swept method by every main metric of every task."""
    points = [decoder for decoder in results.decoders if decoder["point"]]
    for method, task in product(dict.fromkeys(point["method"] for point in points), results.tasks):
        own = [point for point in points if point["method"] == method]
        for row, metric in results.main(task):
            found = [(point["point"], results.value(row, point["name"], metric)) for point in own]
            known = [(point, one) for point, one in found if one is not None and one["value"] is not None]
            if known:
                knobs = {knob: _values(own, knob) for knob in dict.fromkeys(knob for p in own for knob in p["point"])}
                yield _sweep(results, f"{method} on {row}, {title(metric)}", knobs, known)


def _sweep(
    results: Results, name: str, knobs: Mapping[str, Sequence[Any]], points: Sequence[tuple[Mapping[str, Any], Row]]
) -> Sweep:
    less = points[0][1]["direction"] == "lower"
    best, top = (min if less else max)(points, key=lambda point: point[1]["value"])
    values = [row["value"] for _, row in points]
    # colours stand for the best one's interval at least, so that noise does not look like a trend
    width = (top["high"] or 0.0) - (top["low"] or 0.0)
    worst = max(*values, top["value"] + width) if less else min(*values, top["value"] - width)

    def cell(here: Mapping[str, Any]) -> Cell:
        row = next((row for point, row in points if all(point.get(knob) == here[knob] for knob in here)), None)
        if row is None:
            return Cell("–")
        good = (row["value"] - worst) / (top["value"] - worst) if worst != top["value"] else 0.5
        return Cell(written(row), _colours(good), row["value"] == top["value"])

    sides: list[list[dict[str, Any]]] = [[{knob: value} for value in of] for knob, of in knobs.items()]
    if len(sides) == 1:
        sides.append([{}])
    across, down, *rest = sides
    grids = []
    for others in product(*rest):
        fixed = {knob: value for other in others for knob, value in other.items()}
        title = f"{', '.join([name, *_knobs(fixed)])}: {'less' if less else 'more'} is better"
        lines = [("".join(_knobs(line)), [cell(column | line | fixed) for column in across]) for line in down]
        grids.append(Grid(title, ["".join(_knobs(column)) for column in across], lines))
    tied = values.count(top["value"]) - 1
    told = f"Best of {len(values)} points: {', '.join(_knobs(best))}"
    told += f"{f' (and {tied} others alike)' if tied else ''}, {written(top)} {interval(top)}"
    plain = results.value(top["task"], results.reference, top["metric"])
    if plain is not None:
        clear = judged(results.difference(top["task"], top["decoder"], top["metric"]))
        told += f"; {results.reference} {written(plain)}{'' if clear else ', not told apart from it'}"
    if top["low"] is not None:
        inside = sum(top["low"] <= value <= top["high"] for value in values if value != top["value"])
        told += f". {inside} more lie within its interval: the optimum is not sharp" if inside else ""
    return Sweep(grids, f"{told}.")


def _values(points: Sequence[Mapping[str, Any]], knob: str) -> list[Any]:
    values = list(dict.fromkeys(point["point"].get(knob) for point in points))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else values


def _knobs(point: Mapping[str, Any]) -> list[str]:
    return [f"{knob}={value:g}" if isinstance(value, float) else f"{knob}={value}" for knob, value in point.items()]


def _colours(good: float) -> str:
    red, green, blue = ramp(good).tolist()
    # the W3C's weights of the channels: black on what is bright, white on what is dark
    ink = "#14161a" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
    return f"background: rgb({red} {green} {blue}); color: {ink}"
