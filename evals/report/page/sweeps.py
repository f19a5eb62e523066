"""A sweep of knobs as heat maps, the best points framed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.numbers import Row, interval, judged, title, written
from lvlm_guard.report.colour import ramp


class Cell(NamedTuple):
    """A point of a sweep: its value, its colours (brighter is better), and whether none is better."""

    text: str = ""
    paper: str = "none"
    ink: str = "inherit"
    best: bool = False


class Grid(NamedTuple):
    """Values over two knobs: their names, across and down ("" for one that there is not), and the cells."""

    title: str
    knobs: tuple[str, str]
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


class Sweep(NamedTuple):
    """A method's points by one metric: heat maps, and the best of them in a sentence."""

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
    spread = max(max(values) - min(values), (top["high"] or 0.0) - (top["low"] or 0.0), 1e-12)

    def cell(wanted: Mapping[str, Any]) -> Cell:
        row = next((row for point, row in points if all(point.get(k) == v for k, v in wanted.items())), None)
        if row is None:
            return Cell()
        share = 1 - abs(row["value"] - top["value"]) / spread
        paper = "#{:02x}{:02x}{:02x}".format(*(int(part) for part in ramp(share)))
        return Cell(written(row), paper, "#fff" if share < 0.6 else "#111", row["value"] == top["value"])

    across, down, *rest = [*knobs, ""][: max(2, len(knobs))]
    grids = []
    for others in product(*(knobs[knob] for knob in rest)):
        fixed = dict(zip(rest, others, strict=True))
        told = "".join(f", {knob}={_text(value)}" for knob, value in fixed.items())
        lines = []
        for line in knobs.get(down, [""]):
            here = fixed | ({down: line} if down else {})
            lines.append((_text(line), [cell({**here, across: column}) for column in knobs[across]]))
        heading = f"{name}{told}: {'less' if less else 'more'} is better"
        grids.append(Grid(heading, (across, down), [_text(column) for column in knobs[across]], lines))
    tied = values.count(top["value"]) - 1
    told = f"Best of {len(values)} points: {', '.join(f'{knob}={_text(value)}' for knob, value in best.items())}"
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


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
