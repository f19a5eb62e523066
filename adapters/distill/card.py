"""The README of an adapter: what it is, what it is not, and how it is used.

The report of a distillation as one page: plain, distilled and guarded side by side, drift, and how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.report import Html, note, page, section, table, tag, with_interval, write_page

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


def card(report: Mapping[str, Any]) -> str:
    """Return the README.md of an adapter, from its report."""
    lessons, recipe = report["lessons"], report["recipe"]
    model = lessons["model"]
    base = "lvlm_guard/embedded/llava" if model == "embedded" else model
    pictures = f"a folder of {report['answers']['train']['pictures']} pictures"
    if not lessons["images"]:
        pictures = f"{report['answers']['train']['pictures']} training scenes of lvlm-guard's embedded world"
    projector = " and of the projector" if recipe["projector"] else ""
    return f"""---
library_name: peft
base_model: {base}
tags: [lora, distillation, hallucination]
---
# A LoRA distilled from `{model}` under the guard `{lessons["method"]}`

A tuned model: its weights were trained on what `{model}` answered while lvlm-guard's method
`{lessons["method"]}` steered its decoding. **Nothing guards its answers any more**: no picture is matched and no token
is checked when it speaks, and on pictures unlike those it learnt from it may have learnt nothing. It costs what
the plain model costs.

- Learnt from: {pictures}, without labels; {report["answers"]["train"]["answers"]} answers, of which the
  guard had changed {report["answers"]["train"]["changed"]}.
- LoRA of rank {recipe["rank"]}, alpha {recipe["alpha"]}, on every linear layer of the language model{projector};
  {recipe["steps"]} steps of {recipe["batch"] * recipe["accumulate"]} pictures, AdamW at {recipe["rate"]:g}.
- Made by `lvlm-guard train distill` {report["version"]}; its report (report.html, report.json) has every setting.

{_measured(report)}
## Use

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "THIS_FOLDER")  # then generate() as ever
merged = model.merge_and_unload()                        # or a plain model with the change inside
```

{_vllm(recipe, base)}
"""


def _vllm(recipe: Mapping[str, Any], base: str) -> str:
    if recipe["projector"]:
        return """In vLLM serve the merged model: `merged.save_pretrained(DIR)`, its processor too; `vllm serve DIR`.
With `--enable-lora` vLLM 0.32 leaves this adapter's part for the projector out without a word, and with
`--enable-tower-connector-lora` it fails on LLaVA's image tower."""
    return f"""In vLLM:

```bash
vllm serve {base} --enable-lora --max-lora-rank {max(16, recipe["rank"])} --lora-modules distilled=THIS_FOLDER
```"""


def _measured(report: Mapping[str, Any]) -> str:
    lines = ["| measured | plain | distilled | guarded | distilled - plain, 95 % |", "|---|---|---|---|---|"]
    lines += [
        f"| {what} | {_short(plain)} | {_short(tuned)} | {_short(guarded)} | {_ends(difference)} |"
        for what, plain, tuned, guarded, difference in side_by_side(report)
    ]
    return "\n".join(lines) + "\n"


def side_by_side(report: Mapping[str, Any]) -> list[tuple[str, Any, Any, Any, Any]]:
    """Return (what, plain, distilled, guarded, difference) of what was measured; each a row of the report or None."""
    found = {(row["method"], row["task"], row["metric"]): row for row in report["rows"]}
    guarded = report["lessons"]["method"]
    lines: list[tuple[str, Any, Any, Any, Any]] = []
    tasks = [(f"pope_{kind}", "accuracy") for kind in ("random", "popular", "adversarial", "all")]
    tasks += [("chair", metric) for metric in ("chair_s", "chair_i", "object_recall", "length")]
    for task, metric in tasks:
        if ("distilled", task, metric) in found:
            what = NAMES.get(task if metric == "accuracy" else metric, f"{task} {metric}")
            plain, tuned, taught = (found.get((method, task, metric)) for method in ("greedy", "distilled", guarded))
            lines.append((what, plain, tuned, taught, found.get(("distilled-greedy", task, metric))))
    for kind in _KINDS:
        task = f"held_out_{kind}"
        if ("distilled", task, "agreement") in found:
            plain, tuned = (found.get((method, task, "agreement")) for method in ("greedy", "distilled"))
            lines.append((f"answers word for word as the guarded model: {_KINDS[kind]}", plain, tuned, None, None))
        for (part, metric), what in _DRIFT.items():
            if (row := found.get(("distilled", f"{part}_{kind}", metric))) is not None:
                lines.append((f"{what}: {_KINDS[kind]}", None, row, None, None))
    return lines


def _short(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.3f}"


def _ends(row: Mapping[str, Any] | None) -> str:
    return "" if row is None or row["low"] is None else f"{row['value']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"


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
