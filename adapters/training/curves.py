"""How a training went, as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.training.tasks import VALIDATION
from lvlm_guard.report import Html, comparison_section, line_plot, page, section, tag, write_page

Row = Mapping[str, Any]


def write_report(folder: Path, report: Mapping[str, Any], curves: Mapping[str, Sequence[Row]]) -> Path:
    """Write report.html from a report's data and the curves of its trainings; returns its path."""
    rows, many = report.get("rows") or [], len(report["seeds"])
    lead = f"Means over {many} trainings; 95 % intervals by bootstrap over pictures and trainings."
    parts = [
        comparison_section(rows, task, report["method"], lead) for task in dict.fromkeys(row["task"] for row in rows)
    ]
    parts += [_curves(name, curve, report["measures"]) for name, curve in curves.items()]
    settings = {key: report[key] for key in ("plan", "recipe", "data", "seeds", "kept", "environment") if key in report}
    made = page(
        f"Training: {report['method']}",
        *parts,
        section("Settings", tag("pre", json.dumps(settings, indent=1, default=str))),
        lead=report["lead"],
        foot=f"lvlm-guard {report['version']}: {report['call']}",
    )
    return write_page(folder / "report.html", made)


def _curves(name: str, curve: Sequence[Row], measures: Sequence[str]) -> Html:
    def points(key: str) -> list[tuple[float, float]]:
        return [(float(entry["step"]), float(entry[key])) for entry in curve if entry.get(key) is not None]

    plots = {"Training loss": {"loss": points("loss")}, "On validation": {m: points(VALIDATION + m) for m in measures}}
    drawn = [line_plot(lines, title=title, axis="step") for title, lines in plots.items() if any(lines.values())]
    return section(name, *drawn)
