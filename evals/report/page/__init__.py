"""The report of a run: one HTML file, made from the files of its folder alone, by a template.

    write_report("runs/first")  # runs/first/report.html

It holds no script and no address outside itself, and is made without any model. `templates/report.html.jinja` says what
stands where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from lvlm_guard.evals.report import disagreement, layout
from lvlm_guard.evals.report.disagreement import disagreements
from lvlm_guard.evals.report.page import charts
from lvlm_guard.evals.report.saved import EVIDENCE, INDEX, PICTURES, Run, read_run
from lvlm_guard.evals.report.terminal import explained, sentences
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.report.html import environment
from lvlm_guard.report.pictures import Picture, panel

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run, whatever its status; returns its path. Raises `DataError` where the
    folder holds no run that can be read, `RunError` where the file can't be written."""
    run = read_run(folder)
    return write_lines(run.folder / REPORT, [render(run)])


def render(run: Run) -> str:
    """Return the page as text. Only a complete run shows scores."""
    results = run.results if run.status == "complete" else None
    found = disagreements(run) if results else {}
    page = page_environment().get_template("report.html.jinja")
    return page.render(
        run=run,
        scored=run.scored or {},
        results=results,
        sentences=sentences(results) if results else [],
        sweeps=list(charts.sweeps(results)) if results else [],
        galleries={task: (f"pictures-{n}", one) for n, (task, one) in enumerate(found.items()) if one.shown},
        evidence=_collected(run.folder),
    )


def page_environment() -> Environment:
    """Return the templates of pages, for other rooms of the evaluation too: text is escaped, nothing is undefined."""
    made = environment("lvlm_guard.evals.report.page")
    made.globals["core_style"] = Markup(files("lvlm_guard.report").joinpath("style.css").read_text(encoding="utf-8"))
    filters = (layout.number, layout.written, layout.interval, layout.judged, layout.p_text, layout.title)
    made.filters |= {"plain": _told, **{one.__name__: one for one in filters}}
    made.globals |= {
        "charts": charts,
        "gallery": disagreement,
        "explained": explained,
        "readings": layout.SHOWN["readings"],
    }
    return made


class Evidence(NamedTuple):
    """What was collected of a run: what the maps are, and the entry of each task and item."""

    folder: Path
    about: str = ""
    entries: Mapping[tuple[str, str], Mapping[str, Any]] = {}

    def panel(self, task: str, key: str) -> str:
        """Return an item's pictures as markup, "" without any; a file that is gone is left out."""
        found = []
        for view in self.entries.get((task, key), {}).get("views", ()):
            kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
            for what, title in zip(PICTURES, ("Picture", "Relevance", f"Local view{kept}"), strict=True):
                path = self.folder / Path(view.get(what) or "none").name
                if path.is_file():
                    found.append(Picture(path, title, view.get("note", "") if what == "map" else ""))
        return panel(found) if found else ""


def _collected(folder: Path) -> Evidence:
    """Return what was collected of the run in a folder, nothing where that can't be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((folder / EVIDENCE / INDEX).read_text(encoding="utf-8"))
        entries = {(entry["task"], entry["key"]): entry for entry in index["items"]}
        return Evidence(folder / EVIDENCE, str(index["maps"]), entries)
    return Evidence(folder / EVIDENCE)


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return "" if value is None else str(value)
