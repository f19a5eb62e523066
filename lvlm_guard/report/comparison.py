"""A comparison from rows in long form: tables that say where a method does not win.

A row holds model, method, task, metric, value, low, high (95 %) and n; one of a difference "one-other" names the other
as its baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.report.html import Html, part
from lvlm_guard.report.page import section
from lvlm_guard.report.plots import Interval, dot_plot
from lvlm_guard.report.tables import table, with_interval

Row = Mapping[str, Any]

LESS_IS_BETTER = ("mae", "brier")
ENDS = ("value", "low", "high")


def compared(rows: Sequence[Row]) -> dict[str, tuple[list[str], dict[str, list[Row | None]]]]:
    """Return task -> (methods, figure -> the row of each method, None where one has none)."""
    found: dict[str, tuple[list[str], dict[str, list[Row | None]]]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        cells = {(row["method"], row["metric"]): row for row in rows if row["task"] == task and not row.get("baseline")}
        methods, metrics = ([*dict.fromkeys(key[k] for key in cells)] for k in (0, 1))
        found[task] = methods, {metric: [cells.get((method, metric)) for method in methods] for metric in metrics}
    return found


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
        said = f"{ours} beats {other}"
        if worst <= 0:
            why = f"{other} is better" if best < 0 else f"no difference from {other} is shown"
            said = f"{ours} does not win here: {why}"
        value, low, high = (f"{row[end]:+.3f}".replace("-", "−") for end in ("value", "low", "high"))
        found.append(f"{row['metric']}: {said} ({value} [{low}, {high}])")
    return found


def cell(row: Row | None) -> str:
    """Return a figure with its interval as text; a large one, such as parameters, without."""
    if row is None or row["value"] is None:
        return "–"
    if row["value"] >= 1000:
        return f"{row['value']:,.0f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def markdown(rows: Sequence[Row], lead: str) -> str:
    """Return a table of all methods with 95 % intervals for each task, and the verdicts."""
    lines = [lead]
    for task, (methods, figures) in compared(rows).items():
        lines += ["", f"| {task} | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
        lines += [f"| {metric} | {' | '.join(map(cell, each))} |" for metric, each in figures.items()]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(rows)), ""])


def comparison_section(rows: Sequence[Row], task: str, ours: str, lead: str) -> Html:
    """Return the section of a task: its table, the differences of `ours`, and the verdicts."""
    rows = [row for row in rows if row["task"] == task]
    methods, figures = compared(rows)[task]
    body = [
        (metric, *(None if row is None else with_interval(row["value"], row["low"], row["high"]) for row in each))
        for metric, each in figures.items()
    ]
    differences = [
        Interval(f"{row['metric']}: {row['method']}", *(row[end] for end in ENDS))
        for row in rows
        if row.get("baseline") and row["value"] is not None and row["method"].startswith(f"{ours}-")
    ]
    named = {"title": f"{ours} less each other method", "axis": "difference"}
    return section(
        f"Beside others, on held-out pictures: {task}",
        table(("", *methods), body),
        *([dot_plot(differences, **named, reference=0.0, digits=3, signed=True)] if differences else ()),
        part("verdicts", verdicts(rows)),
        lead=lead,
    )
