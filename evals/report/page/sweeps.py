"""A sweep of knobs as heat maps, the best points framed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from markupsafe import Markup

from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.report.numbers import Row, interval, judged, title, written
from lvlm_guard.evals.report.page.charts import grid

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A method's points by one metric: heat maps, and the best of them in a sentence."""

    charts: Sequence[Markup]
    best: str


def sweeps(results: Results) -> Iterator[Sweep]:
    """Yield every swept method by every main metric of every task."""
    points = [decoder for decoder in results.decoders if decoder.get("point")]
    for method in dict.fromkeys(point["method"] for point in points):
        own = [point for point in points if point["method"] == method]
        for task in results.tasks:
            for row, metric in results.main(task):
                found = {point["name"]: results.value(row, point["name"], metric) for point in own}
                known = {name: one for name, one in found.items() if one is not None and one["value"] is not None}
                if known:
                    yield _sweep(results, f"{method} on {row}, {title(metric)}", own, known)


def _sweep(results: Results, name: str, points: Sequence[Point], rows: Mapping[str, Row]) -> Sweep:
    less = next(iter(rows.values()))["direction"] == "lower"
    top = (min if less else max)(rows.values(), key=lambda row: row["value"])
    knobs = list(dict.fromkeys(knob for point in points for knob in point["point"]))
    across, down, rest = knobs[0], knobs[1] if len(knobs) > 1 else "", knobs[2:]
    columns, lines = _values(points, across), _values(points, down)
    charts = []
    for others in product(*(_values(points, knob) for knob in rest)):
        at = {
            (point["point"].get(down), point["point"].get(across)): rows.get(point["name"])
            for point in points
            if all(point["point"].get(knob) == value for knob, value in zip(rest, others, strict=True))
        }
        cells = [[at.get((line, column)) for column in columns] for line in lines]
        fixed = "".join(f", {knob}={_text(value)}" for knob, value in zip(rest, others, strict=True))
        charts.append(
            grid(
                [[None if cell is None else cell["value"] for cell in line] for line in cells],
                [_text(value) for value in columns],
                [_text(value) if down else "" for value in lines],
                name=f"{name}{fixed}: {'less' if less else 'more'} is better",
                axes_names=(across, down),
                best=[
                    (i, j)
                    for i, line in enumerate(cells)
                    for j, cell in enumerate(line)
                    if cell is not None and cell["value"] == top["value"]
                ],
                span=top["high"] - top["low"] if top["low"] is not None else 0.0,
                less_is_better=less,
            )
        )
    return Sweep(charts, _best(results, points, rows, top))


def _best(results: Results, points: Sequence[Point], rows: Mapping[str, Row], top: Row) -> str:
    best = next(point for point in points if rows.get(point["name"]) is top)
    tied = sum(row["value"] == top["value"] for row in rows.values()) - 1
    knobs = ", ".join(f"{knob}={_text(value)}" for knob, value in best["point"].items())
    told = f"Best of {len(rows)} points: {knobs}{f' (and {tied} others alike)' if tied else ''}, "
    told += f"{written(top)} {interval(top)}"
    plain = results.value(top["task"], results.reference, top["metric"])
    change = results.difference(top["task"], best["name"], top["metric"])
    if plain is not None:
        clear = "" if change is None or judged(change) else ", not told apart from it"
        told += f"; {results.reference} {written(plain)}{clear}"
    if top["low"] is not None:
        inside = sum(
            row["value"] != top["value"] and top["low"] <= row["value"] <= top["high"] for row in rows.values()
        )
        told += f". {inside} more lie within its interval: the optimum is not sharp" if inside else ""
    return told + "."


def _values(points: Sequence[Point], knob: str) -> list[Any]:
    values = list(dict.fromkeys(point["point"].get(knob) for point in points))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else values


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
