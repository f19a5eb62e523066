"""How a training went, as a page, and a comparison as a table that says where the adapter does not win."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.training.trainer import VALIDATION
from lvlm_guard.report import Html, Interval, dot_plot, page, section, table, tag, with_interval, write_page
from lvlm_guard.report.axes import Frame
from lvlm_guard.report.plots import titled

Row = Mapping[str, Any]

LESS_IS_BETTER = ("mae", "brier")


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each difference: won, lost, or not decided by these pictures."""
    found = []
    for row in rows:
        other = row.get("baseline")
        if not other or row["value"] is None:
            continue
        ours = row["method"].removesuffix(f"-{other}")
        sign = -1 if row["metric"] in LESS_IS_BETTER else 1
        worst, best = sorted((sign * row["low"], sign * row["high"]))
        said = (
            f"{ours} beats {other}"
            if worst > 0
            else f"{ours} does not win here: {other} is better"
            if best < 0
            else f"{ours} does not win here: no difference from {other} is shown"
        )
        found.append(
            f"{row['metric']}: {said} ({_signed(row['value'])} [{_signed(row['low'])}, {_signed(row['high'])}])"
        )
    return found


def markdown(rows: Sequence[Row], lead: str) -> str:
    """Return a table of all methods with 95 % intervals for each task, and the verdicts."""
    lines = [lead]
    for task in dict.fromkeys(row["task"] for row in rows):
        cells = {(row["method"], row["metric"]): row for row in rows if row["task"] == task and not row.get("baseline")}
        methods, metrics = ([*dict.fromkeys(key[k] for key in cells)] for k in (0, 1))
        lines += ["", f"| {task} | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
        for metric in metrics:
            each = [cells.get((method, metric)) for method in methods]
            lines.append(f"| {metric} | {' | '.join(_cell(one) for one in each)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(rows)), ""])


def _cell(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["value"] >= 1000:
        return f"{row['value']:,.0f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


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


def write_report(folder: Path, report: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write report.html from a report's data and the curves of its trainings; returns its path."""
    ours = report["method"]
    parts = [_curves(name, curve, report["measures"]) for name, curve in curves.items()]
    rows = report.get("rows") or []
    tasks = dict.fromkeys(row["task"] for row in rows)
    parts[:0] = [_compared([row for row in rows if row["task"] == task], task, ours, report) for task in tasks]
    settings = {key: report[key] for key in ("plan", "recipe", "data", "seeds", "kept", "environment") if key in report}
    return write_page(
        folder / "report.html",
        page(
            f"Training: {ours}",
            *parts,
            section("Settings", tag("pre", json.dumps(settings, indent=1, default=str))),
            lead=report["lead"],
            foot=f"lvlm-guard {report['version']}: {report['call']}",
        ),
    )


def _curves(name: str, curve: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Html:
    losses = [(float(entry["step"]), float(entry["loss"])) for entry in curve if "loss" in entry]
    found = {
        key: [
            (float(entry["step"]), float(entry[VALIDATION + key]))
            for entry in curve
            if entry.get(VALIDATION + key) is not None
        ]
        for key in measures
    }
    drawn = [line_plot({"loss": losses}, title="Training loss", axis="step")] if losses else []
    if any(found.values()):
        drawn.append(line_plot(found, title="On validation", axis="step"))
    return section(name, *drawn)


def _compared(rows: Sequence[Mapping[str, Any]], task: str, ours: str, report: Mapping[str, Any]) -> Html:
    own = [row for row in rows if not row.get("baseline")]
    methods = [*dict.fromkeys(row["method"] for row in own)]
    cells = {(row["method"], row["metric"]): row for row in own}
    unknown = dict.fromkeys(("value", "low", "high"))
    body = [
        (
            metric,
            *(with_interval(*(cells.get((method, metric), unknown)[end] for end in unknown)) for method in methods),
        )
        for metric in dict.fromkeys(row["metric"] for row in own)
    ]
    differences = [
        row for row in rows if row.get("baseline") and row["value"] is not None and row["method"].startswith(f"{ours}-")
    ]
    plot = (
        [
            dot_plot(
                [
                    Interval(f"{row['metric']}: {row['method']}", row["value"], row["low"], row["high"])
                    for row in differences
                ],
                title=f"{ours} less each other method",
                axis="difference",
                reference=0.0,
                digits=3,
                signed=True,
            )
        ]
        if differences
        else []
    )
    return section(
        f"Beside others, on held-out pictures: {task}",
        table(("", *methods), body),
        *plot,
        tag("ul", *(tag("li", line) for line in verdicts(rows))),
        lead=f"Means over {len(report['seeds'])} trainings; 95 % intervals by bootstrap over pictures and trainings.",
    )
