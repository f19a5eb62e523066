"""The report of a distillation as one page: plain, distilled and guarded side by side, drift, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.distill.card import side_by_side
from lvlm_guard.report import Html, note, page, section, table, tag, with_interval, write_page


def write_report(folder: Path, report: Mapping[str, Any], command: str) -> Path:
    """Write report.html from a report's data; returns its path."""
    lessons, answers = report["lessons"], report["answers"]["train"]
    return write_page(
        folder / "report.html",
        page(
            f"Distilling {lessons['method']} into {lessons['model']}",
            note(
                "The distilled model is a tuned model, asked plainly. Nothing guards its answers, and on other "
                "pictures than those it learnt from it must be measured anew."
            ),
            section("Plain, distilled, guarded", _scores(report), *_seeds(report), lead=_lead(report)),
            section("What the teacher said", _answers(report), lead=_said(answers, lessons["method"])),
            section("Settings", tag("pre", json.dumps(_settings(report), indent=1)), *_remarks(report)),
            lead=f"A LoRA that answers plainly as the model does under {lessons['method']}.",
            foot=f"lvlm-guard {report['version']}: {command}",
        ),
    )


def _lead(report: Mapping[str, Any]) -> str:
    seeds = len(report["seeds"])
    many = (
        f" The distilled figures are means over {seeds} trainings; where answers are scored against labels, these are "
        "drawn beside the pictures."
        if seeds > 1
        else ""
    )
    return "On pictures that were not learnt from; 95 % intervals by bootstrap over pictures." + many


def _scores(report: Mapping[str, Any]) -> Html:
    header = ("measured", "plain, greedy", "distilled, plain greedy", report["lessons"]["method"], "distilled − plain")
    body = [
        (what, *(_value(row) for row in three), _value(difference, signed=True))
        for what, *three, difference in side_by_side(report)
    ]
    return table(
        header,
        body,
        note="“Where the guard had no say”: answers of which the plain model had decided every token, so that any "
        "change is one for nothing. CHAIR: lower is better. Divergence: Kullback–Leibler, plain to distilled, a token.",
    )


def _seeds(report: Mapping[str, Any]) -> list[Html]:
    rows = report.get("by_seed") or []
    if len({row["seed"] for row in rows}) < 2:
        return []
    metrics = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    found = {(row["seed"], row["task"], row["metric"]): row["value"] for row in rows}
    body = [
        (f"{task} {metric}", *(found.get((seed, task, metric)) for seed in report["seeds"])) for task, metric in metrics
    ]
    return [
        table(("distilled", *(f"seed {seed}" for seed in report["seeds"])), body, caption="Each training by itself")
    ]


def _value(row: Mapping[str, Any] | None, signed: bool = False) -> object:
    return None if row is None else with_interval(row["value"], row["low"], row["high"], signed=signed)


def _said(answers: Mapping[str, Any], method: str) -> str:
    return (
        f"{method} answered {answers['answers']} prompts about {answers['pictures']} pictures. The plain model had "
        "decided most answers, word for word; in the others the guard had a choice, and in some it chose otherwise."
    )


def _answers(report: Mapping[str, Any]) -> Html:
    names = {
        "pictures": "pictures", "failed": "pictures that can't be read", "answers": "answers",
        "yes": "yes, of an object", "open": "with a choice for the guard", "changed": "that the guard changed",
        "tokens": "tokens",
    }  # fmt: skip
    parts = report["answers"]
    return table(("", *parts), [(told, *(str(part[key]) for part in parts.values())) for key, told in names.items()])


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("lessons", "knobs", "recipe", "seeds", "environment") if key in report}


def _remarks(report: Mapping[str, Any]) -> list[Html]:
    return [tag("p", remark) for remark in report.get("remarks", ())]
