"""The report as files: report.json, report.md, and report.html with its drawings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.report.saved import plain, write_whole
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.studies.verify.rows import CALIBRATED
from lvlm_guard.evals.studies.verify.told import COLUMNS, lead, markdown
from lvlm_guard.report import Html, Interval, dot_plot, page, section, table, tag, with_interval, write_page
from lvlm_guard.report.axes import Frame
from lvlm_guard.report.plots import titled

SIDE, LEFT, RIGHT, TOP, FOOT = 330, 52, 14, 10, 50  # units of a reliability drawing
STYLE = """
.reliability { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.reliability .dots { min-width: 0; }
"""
MARKS = ("marked", "mark_precision", "mark_recall")


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write the three files; returns the page's path.

    Raises:
        RunError: the disk is full or can't be written to.
    """
    told = json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder, "report.json", told + "\n")
    write_whole(folder, "report.md", markdown(report))
    rows, task = report["rows"], report["task"]["name"]
    repeat = {key: report[key] for key in ("settings", "matchers", "clip", "environment", "seconds_a_description")}
    document = page(
        f"Verifiers on {report['model']}",
        tag("ul", *(tag("li", line) for line in report["remarks"])),
        section("Which mentions are hallucinated", _table(report), *_plots(report["verifiers"], rows, task)),
        section(
            "What a reader is warned of",
            _marks(report),
            lead="Mentions marked as doubtful at the default thresholds, and how far marks are on hallucinated ones.",
        ),
        section(
            "Are the probabilities right?",
            tag(
                "div",
                *(reliability_plot(name, bins) for name, bins in report["reliability"].items()),
                class_="reliability",
            ),
            lead="Mentions in ten bins of probability. On the line a verifier is right; larger dots hold more of them.",
        ),
        section("To repeat it", tag("pre", json.dumps(plain(repeat), indent=1, ensure_ascii=False))),
        lead=lead(report),
        style=STYLE,
        foot=f"lvlm-guard {report['version']}: {report['call']}",
    )
    return write_page(folder / "report.html", document)


def _table(report: Mapping[str, Any]) -> Html:
    rows, task = report["rows"], report["task"]["name"]
    shown = [metric for metric in COLUMNS if metric not in MARKS]
    body = [
        (one["name"], *(_cell(find(rows, one["name"], task, metric)) for metric in shown))
        for one in report["verifiers"]
    ]
    names = "; ".join(f"{one['name']}: {one['about']}" for one in report["verifiers"])
    return table(
        ("", *(COLUMNS[metric] for metric in shown)),
        body,
        note=f"{names}. n = {report['counts']['mentions']} mentions.",
    )


def _marks(report: Mapping[str, Any]) -> Html:
    rows, task = report["rows"], report["task"]["name"]
    found = [(one["name"], [find(rows, one["name"], task, metric) for metric in MARKS]) for one in report["verifiers"]]
    body = [(name, *map(_cell, each)) for name, each in found if each[0] is not None]
    return table(("", *(COLUMNS[metric] for metric in MARKS)), body)


def _cell(row: Mapping[str, Any] | None) -> Html | None:
    return None if row is None else with_interval(row["value"], row["low"], row["high"])


def _plots(verifiers: Sequence[Mapping[str, Any]], rows: Sequence[dict[str, Any]], task: str) -> list[Html]:
    whole = [(one["name"], find(rows, one["name"], task, "auroc")) for one in verifiers]
    less = [(one["name"], find(rows, f"{one['name']}-{CALIBRATED}", task, "auroc")) for one in verifiers]
    drawn = []
    for title, found, reference, signed in (
        ("AUROC, true against hallucinated mentions", whole, 0.5, False),
        (f"AUROC less that of {CALIBRATED}, on the same draws", less, 0.0, True),
    ):
        lines = [
            Interval(name, row["value"], row["low"], row["high"], _mark(row) if signed else "")
            for name, row in found
            if row is not None and row["value"] is not None
        ]
        if lines:
            drawn.append(dot_plot(lines, title=title, axis="AUROC", reference=reference, digits=3, signed=signed))
    return drawn


def _mark(row: Mapping[str, Any]) -> str:
    return "good" if row["low"] > 0 else "bad" if row["high"] < 0 else ""


def reliability_plot(name: str, bins: Sequence[Mapping[str, float]]) -> Html:
    """Draw the share of true mentions over their mean probability, a dot for each bin.

    Args:
        name: of the verifier.
        bins: see `lvlm_guard.evals.studies.verify.figures.reliability`; at least one.
    """
    frame = Frame(SIDE, SIDE, LEFT, RIGHT, TOP, FOOT, (0.0, 1.0), (0.0, 1.0))
    most = max(one["n"] for one in bins)
    line = tag("line", x1=frame.x(0), y1=frame.y(0), x2=frame.x(1), y2=frame.y(1), class_="reference")
    dots = [
        tag(
            "g",
            tag("title", f"probability {one['p']:.2f}: {one['true']:.2f} of {one['n']:.0f} mentions are true"),
            tag(
                "circle", cx=frame.x(one["p"]), cy=frame.y(one["true"]), r=round(2.5 + 6 * (one["n"] / most) ** 0.5, 1)
            ),
        )
        for one in bins
    ]
    middle = (TOP + frame.bottom) / 2
    side = tag("text", "share that is true", x=13, y=middle, class_="axis", transform=f"rotate(-90 13 {middle})")
    drawing = frame.picture(f"Reliability of {name}", *frame.grid(), line, *dots, frame.named("probability"), side)
    return titled(name, drawing)
