"""The README of an adapter: what it is, what it is not, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
