"""A sweep of knobs as heat maps, the best point marked, and the reminder that it is no result yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.report.figures import LOWER_IS_BETTER, ends, number, verdict
from lvlm_guard.evals.report.page.scores import main_metrics
from lvlm_guard.evals.stats.results import Row, find
from lvlm_guard.report import Html, note, section, tag, value_grid

Run = Mapping[str, Any]
Point = Mapping[str, Any]


def sweep_section(run: Run) -> Html:
    """Return the section of a run's sweep; nothing where there is none."""
    sweep = run.get("sweep")
    if not sweep or not sweep["points"]:
        return Html("")
    splits = ", ".join(dict.fromkeys(task["split"] for task in run["tasks"]))
    drawn: list[Html] = []
    for method in dict.fromkeys(point["method"] for point in sweep["points"]):
        points = [point for point in sweep["points"] if point["method"] == method]
        for task in run["tasks"]:
            for name, metric in main_metrics(task, run["rows"]):
                drawn.append(tag("div", *_grids(run, method, points, name, metric)))
    told = note(
        tag(
            "p",
            tag("b", f"Measured on the {'validation' if splits == 'val' else splits} split. "),
            "The best point was chosen by these same numbers, so they flatter it. Run that one setting once on the "
            "test split, and report that.",
        )
    )
    return section("The sweep", told, tag("div", *drawn, class_="grids"), lead=_LEAD)


_LEAD = (
    "Brighter is better, and the best points of each map are framed. The darkest colour stands for at least the width "
    "of the best point's 95 % interval below it, so that a map without contrast has no clear trend."
)


def _grids(run: Run, method: str, points: Sequence[Point], name: str, metric: str) -> Iterator[Html]:
    knobs = list(dict.fromkeys(knob for point in points for knob in point["knobs"]))
    rows = {id(point): find(run["rows"], point["decoder"], name, metric) for point in points}
    known = [(point, row) for point in points if (row := rows[id(point)]) and row["value"] is not None]
    if not known:
        return
    less = metric in LOWER_IS_BETTER
    best, top = (min if less else max)(known, key=lambda pair: pair[1]["value"])
    ties = [point for point, row in known if row["value"] == top["value"]]
    across, down, rest = knobs[0], knobs[1] if len(knobs) > 1 else "", knobs[2:]
    columns = _values(points, across)
    lines = _values(points, down) if down else [None]
    for others in _combinations(points, rest):
        slab = {
            (point["knobs"].get(down) if down else None, point["knobs"][across]): rows[id(point)]
            for point in points
            if all(point["knobs"].get(knob) == value for knob, value in others.items())
        }
        framed = [
            (lines.index(point["knobs"].get(down) if down else None), columns.index(point["knobs"][across]))
            for point in ties
            if all(point["knobs"].get(knob) == value for knob, value in others.items())
        ]
        yield value_grid(
            [[_value(slab.get((line, column))) for column in columns] for line in lines],
            [_text(value) for value in columns],
            [_text(value) for value in lines] if down else ("",),
            title=f"{method} on {name}, {metric}{_fixed(others)}: {'less' if less else 'more'} is better",
            column_axis=across,
            row_axis=down,
            best=framed,
            span=top["high"] - top["low"] if top["low"] is not None else 0.0,
            less_is_better=less,
        )
    yield tag("p", _best(run, best, top, known, name, metric), class_="note")


def _best(run: Run, best: Point, top: Row, known: Sequence[tuple[Point, Row]], name: str, metric: str) -> str:
    plain = find(run["rows"], run["reference"], name, metric)
    change = find(run["rows"], f"{best['decoder']}-{run['reference']}", name, metric)
    ties = sum(row["value"] == top["value"] for _, row in known) - 1
    inside = [row for _, row in known if row["value"] != top["value"] and _within(row, top)]
    tied = f" (and {ties} others alike)" if ties else ""
    said = f"Best of {len(known)} points: {_knobs(best)}{tied}, {number(top['value'])} {ends(top)}"
    if plain is not None and plain["value"] is not None:
        clear = "" if change is None or verdict(change) else ", not told apart from it"
        said += f"; {run['reference']} {number(plain['value'])}{clear}"
    if inside:
        said += f". {len(inside)} more lie within its interval: the optimum is not sharp"
    return said + "."


def _within(row: Row, top: Row) -> bool:
    return top["low"] is not None and top["low"] <= row["value"] <= top["high"]


def _values(points: Sequence[Point], knob: str) -> list[Any]:
    values = list(dict.fromkeys(point["knobs"].get(knob) for point in points))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else values


def _combinations(points: Sequence[Point], knobs: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for point in points:
        one = {knob: point["knobs"].get(knob) for knob in knobs}
        if one not in found:
            found.append(one)
    return found


def _value(row: Row | None) -> float | None:
    return None if row is None else row["value"]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fixed(others: Mapping[str, Any]) -> str:
    return "".join(f", {knob}={_text(value)}" for knob, value in others.items())


def _knobs(point: Point) -> str:
    return ", ".join(f"{knob}={_text(value)}" for knob, value in point["knobs"].items())
