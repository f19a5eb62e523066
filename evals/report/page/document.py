"""What stands where in the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lvlm_guard.evals.report.page.charts import confusion_squares, interval_strips, trade_off
from lvlm_guard.evals.report.page.costs import cost_table
from lvlm_guard.evals.report.page.gallery import gallery
from lvlm_guard.evals.report.page.repeat import repeat
from lvlm_guard.evals.report.page.scores import pairs_table, score_tables
from lvlm_guard.evals.report.page.sweeps import sweep_section
from lvlm_guard.evals.report.remarks import remarks
from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.report import Html, note, page, section, tag

Run = Mapping[str, Any]
EVIDENCE = "evidence"

_STATUS = {
    "void": "This run is void: it has no scores",
    "stopped": "This run has not finished: it has no scores yet",
}


def document(saved: Saved) -> str:
    """Return the page as text. Only a complete run shows scores."""
    run = saved.run
    parts: list[object] = [_banner(run), _cautions(run)]
    rules = ""
    if run["status"] == "complete":
        sections, rules = gallery(run, saved.samples, saved.folder / EVIDENCE)
        parts += [*_results(saved), *sections]
    if run["tasks"]:
        lead = "The command, in a folder of its own, gives the same numbers but for the times."
        parts.append(section("To repeat this run", *repeat(run), lead=lead))
    foot = f"Made by lvlm-guard {run.get('version', '')} from run.json, samples.jsonl and {EVIDENCE}/ alone."
    return page(_title(run), *parts, lead=_lead(run), foot=foot, style=f"main {{ max-width: 70rem; }}\n{rules}")


def _title(run: Run) -> str:
    methods = ", ".join(run["settings"].get("methods", ())) or "an evaluation"
    return f"{methods} on {run['settings'].get('model', '')}"


def _lead(run: Run) -> str:
    tasks = ", ".join(f"{task['name']} ({task['n']} items, {task['pictures']} pictures)" for task in run["tasks"])
    splits = ", ".join(dict.fromkeys(task["split"] for task in run["tasks"]))
    told = [f"Status: {run['status']}"]
    if run.get("times", {}).get("started"):
        told.append(f"Started {run['times']['started']}")
    if tasks:
        told.append(f"On the {splits} split: {tasks}")
    if run["settings"].get("preset"):
        told.append(f"Preset {run['settings']['preset']}")
    if run["settings"].get("server"):
        told.append(f"Asked at {run['settings']['server']}")
    return ". ".join(told) + "."


def _banner(run: Run) -> Html | None:
    if run["status"] == "complete":
        return None
    said = _STATUS.get(run["status"], f"Status {run['status']}: it has no scores")
    reasons = run.get("void", ())
    return tag(
        "aside",
        tag("p", tag("strong", said + ".")),
        tag("ul", *(tag("li", reason) for reason in reasons)) if reasons else None,
        class_="banner",
        role="alert",
    )


def _cautions(run: Run) -> Html | None:
    told = [*run.get("warnings", ()), *run.get("flags", ())]
    return note(tag("ul", *(tag("li", one) for one in told), class_="plain")) if told else None


def _results(saved: Saved) -> Iterator[Html]:
    run = saved.run
    sentences = remarks(run)
    if sentences:
        yield section("In words", tag("ul", *(tag("li", one) for one in sentences)))
    yield sweep_section(run)
    for task in run["tasks"]:
        samples = [sample for sample in saved.samples if sample["task"] == task["name"]]
        yes_no = task["kind"] in ("pope", "mme")
        yield section(
            f"{task['name']}: scores",
            *score_tables(run, task),
            tag("h3", f"Against {run['reference']}"),
            *interval_strips(run, task),
            confusion_squares(run, task, samples) if yes_no else None,
            trade_off(run, task),
            cost_table(run, task),
            lead=_about(task),
        )
    pairs = pairs_table(run)
    if pairs:
        yield section(
            "What the gain is made of",
            pairs,
            lead="Paired differences with 95 % intervals. A method's gain is its own only where it beats its controls.",
        )


def _about(task: Mapping[str, Any]) -> str:
    about = task.get("about", {})
    told = [f"{name.capitalize()}: {about[name]}" for name in ("source", "protocol") if about.get(name)]
    told += [f"Prompt: “{about['prompt']}”"] if about.get("prompt") else []
    return ". ".join(told) + ("." if told else "")
