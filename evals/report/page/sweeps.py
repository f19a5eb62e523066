"""A sweep of knobs as heat maps, the best points framed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.numbers import Row, interval, judged, title, written
from lvlm_guard.report.colour import ramp

Point = Mapping[str, Any]


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
            found = {point["name"]: results.value(row, point["name"], metric) for point in own}
            known = {name: one for name, one in found.items() if one is not None and one["value"] is not None}
            if known:
                yield _sweep(results, f"{method} on {row}, {title(metric)}", own, known)


def _sweep(results: Results, name: str, points: Sequence[Point], rows: Mapping[str, Row]) -> Sweep:
    less = next(iter(rows.values()))["direction"] == "lower"
    top = (min if less else max)(rows.values(), key=lambda row: row["value"])
    values = [row["value"] for row in rows.values()]
    spread = max(max(values) - min(values), (top["high"] or 0.0) - (top["low"] or 0.0), 1e-12)
    knobs = list(dict.fromkeys(knob for point in points for knob in point["point"]))
    across, down, rest = knobs[0], knobs[1] if len(knobs) > 1 else "", knobs[2:]

    def cell(fixed: Mapping[str, Any], line: Any, column: Any) -> Cell:
        wanted = {**fixed, across: column} | ({down: line} if down else {})
        row = next(
            (rows.get(p["name"]) for p in points if all(p["point"].get(k) == v for k, v in wanted.items())), None
        )
        if row is None:
            return Cell()
        share = 1 - abs(row["value"] - top["value"]) / spread
        paper = "#{:02x}{:02x}{:02x}".format(*(int(part) for part in ramp(share)))
        return Cell(written(row), paper, "#fff" if share < 0.6 else "#111", row["value"] == top["value"])

    grids = []
    columns, lines = _values(points, across), _values(points, down)
    for others in product(*(_values(points, knob) for knob in rest)):
        fixed = dict(zip(rest, others, strict=True))
        told = "".join(f", {knob}={_text(value)}" for knob, value in fixed.items())
        cells = [(_text(line) if down else "", [cell(fixed, line, column) for column in columns]) for line in lines]
        heading = f"{name}{told}: {'less' if less else 'more'} is better"
        grids.append(Grid(heading, (across, down), [_text(column) for column in columns], cells))
    return Sweep(grids, _best(results, points, rows, top))


def _best(results: Results, points: Sequence[Point], rows: Mapping[str, Row], top: Row) -> str:
    best = next(point for point in points if rows.get(point["name"]) is top)
    values = [row["value"] for row in rows.values()]
    tied = values.count(top["value"]) - 1
    knobs = ", ".join(f"{knob}={_text(value)}" for knob, value in best["point"].items())
    alike = f" (and {tied} others alike)" if tied else ""
    told = f"Best of {len(rows)} points: {knobs}{alike}, {written(top)} {interval(top)}"
    plain = results.value(top["task"], results.reference, top["metric"])
    if plain is not None:
        clear = judged(results.difference(top["task"], best["name"], top["metric"]))
        told += f"; {results.reference} {written(plain)}{'' if clear else ', not told apart from it'}"
    if top["low"] is not None:
        inside = sum(top["low"] <= value <= top["high"] for value in values if value != top["value"])
        told += f". {inside} more lie within its interval: the optimum is not sharp" if inside else ""
    return told + "."


def _values(points: Sequence[Point], knob: str) -> list[Any]:
    values = list(dict.fromkeys(point["point"].get(knob) for point in points))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else values


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
