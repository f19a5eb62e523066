"""The README of an adapter: what it is, what it is not, how it is used; and the report of a distillation as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.report import Html, note, page, section, table, tag, with_interval, write_page

Report = Mapping[str, Any]
Row = Mapping[str, Any] | None

NAMES = {
    "pope_random": "POPE random", "pope_popular": "popular", "pope_adversarial": "adversarial", "pope_all": "all",
    "chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "object_recall": "recall", "length": "words",
}  # fmt: skip

_KINDS = {"question": "questions", "caption": "captions", "other": "other prompts"}
_DRIFT = {
    ("untouched", "changed"): "answers changed where the guard had no say",
    ("untouched", "kl"): "divergence there, nats a token",
    ("decided", "kl"): "divergence at all steps without a choice, nats a token",
}
_COUNTS = {
    "pictures": "pictures", "failed": "pictures that can't be read", "answers": "answers",
    "yes": "yes, of an object", "open": "with a choice for the guard", "changed": "that the guard changed",
    "tokens": "tokens",
}  # fmt: skip

SERVED = """In vLLM:

```bash
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules distilled=THIS_FOLDER
```"""
MERGED = """In vLLM serve the merged model: `merged.save_pretrained(DIR)`, its processor too; `vllm serve DIR`.
With `--enable-lora` vLLM 0.32 leaves this adapter's part for the projector out without a word, and with
`--enable-tower-connector-lora` it fails on LLaVA's image tower."""


def card(report: Report) -> str:
    """Return the README.md of an adapter, from its report."""
    lessons, recipe, answers = report["lessons"], report["recipe"], report["answers"]["train"]
    base = "lvlm_guard/embedded/llava" if lessons["model"] == "embedded" else lessons["model"]
    pictures = f"a folder of {answers['pictures']} pictures"
    if not lessons["images"]:
        pictures = f"{answers['pictures']} training scenes of lvlm-guard's embedded world"
    lines = [
        f"| {what} | {_short(plain)} | {_short(tuned)} | {_short(guarded)} | {_ends(difference)} |"
        for what, plain, tuned, guarded, difference in side_by_side(report)
    ]
    vllm = MERGED if recipe["projector"] else SERVED.format(base=base, rank=max(16, recipe["rank"]))
    told = {**lessons, **answers, **recipe, "batch": recipe["batch"] * recipe["accumulate"], "pictures": pictures}
    told |= {"projector": " and of the projector" if recipe["projector"] else "", "version": report["version"]}
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return template.format(**told, base=base, measured="\n".join(lines), vllm=vllm)


def side_by_side(report: Report) -> list[tuple[str, Row, Row, Row, Row]]:
    """Return (what, plain, distilled, guarded, difference) of what was measured; each a row of the report or None."""
    found = {(row["method"], row["task"], row["metric"]): row for row in report["rows"]}
    methods = ("greedy", "distilled", report["lessons"]["method"], "distilled-greedy")
    lines: list[tuple[str, Row, Row, Row, Row]] = []

    def add(what: str, task: str, metric: str) -> None:
        plain, tuned, taught, difference = (found.get((method, task, metric)) for method in methods)
        if tuned is not None:
            lines.append((what, plain, tuned, taught, difference))

    for kind in ("random", "popular", "adversarial", "all"):
        add(NAMES[f"pope_{kind}"], f"pope_{kind}", "accuracy")
    for metric in ("chair_s", "chair_i", "object_recall", "length"):
        add(NAMES[metric], "chair", metric)
    for kind, of in _KINDS.items():
        add(f"answers word for word as the guarded model: {of}", f"held_out_{kind}", "agreement")
        for (part, metric), what in _DRIFT.items():
            add(f"{what}: {of}", f"{part}_{kind}", metric)
    return lines


def _short(row: Row) -> str:
    return "" if row is None else f"{row['value']:.3f}"


def _ends(row: Row) -> str:
    return "" if row is None or row["low"] is None else f"{row['value']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def write_report(folder: Path, report: Report, command: str) -> Path:
    """Write report.html from a report's data; returns its path."""
    method, answers = report["lessons"]["method"], report["answers"]
    lead = "On pictures that were not learnt from; 95 % intervals by bootstrap over pictures."
    if len(report["seeds"]) > 1:
        lead += (
            f" The distilled figures are means over {len(report['seeds'])} trainings; where answers are scored against "
            "labels, these are drawn beside the pictures."
        )
    said = (
        f"{method} answered {answers['train']['answers']} prompts about {answers['train']['pictures']} pictures. The "
        "plain model had decided most answers, word for word; in the others the guard had a choice, and in some it "
        "chose otherwise."
    )
    counts = [(told, *(str(part[key]) for part in answers.values())) for key, told in _COUNTS.items()]
    settings = {key: report[key] for key in ("lessons", "knobs", "recipe", "seeds", "environment") if key in report}
    made = page(
        f"Distilling {method} into {report['lessons']['model']}",
        note(
            "The distilled model is a tuned model, asked plainly. Nothing guards its answers, and on other "
            "pictures than those it learnt from it must be measured anew."
        ),
        section("Plain, distilled, guarded", _scores(report), *_seeds(report), lead=lead),
        section("What the teacher said", table(("", *answers), counts), lead=said),
        section(
            "Settings",
            tag("pre", json.dumps(settings, indent=1)),
            *(tag("p", remark) for remark in report.get("remarks", ())),
        ),
        lead=f"A LoRA that answers plainly as the model does under {method}.",
        foot=f"lvlm-guard {report['version']}: {command}",
    )
    return write_page(folder / "report.html", made)


def _scores(report: Report) -> Html:
    def value(row: Row, signed: bool = False) -> object:
        return None if row is None else with_interval(row["value"], row["low"], row["high"], signed=signed)

    header = ("measured", "plain, greedy", "distilled, plain greedy", report["lessons"]["method"], "distilled − plain")
    body = [
        (what, *map(value, three), value(difference, signed=True)) for what, *three, difference in side_by_side(report)
    ]
    return table(
        header,
        body,
        note="“Where the guard had no say”: answers of which the plain model had decided every token, so that any "
        "change is one for nothing. CHAIR: lower is better. Divergence: Kullback–Leibler, plain to distilled, a token.",
    )


def _seeds(report: Report) -> list[Html]:
    rows = report.get("by_seed") or []
    if len({row["seed"] for row in rows}) < 2:
        return []
    found = {(row["seed"], row["task"], row["metric"]): row["value"] for row in rows}
    body = [
        (f"{task} {metric}", *(found.get((seed, task, metric)) for seed in report["seeds"]))
        for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows)
    ]
    named = ("distilled", *(f"seed {seed}" for seed in report["seeds"]))
    return [table(named, body, caption="Each training by itself")]
