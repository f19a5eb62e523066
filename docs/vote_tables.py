"""The table of what `vote` does about an object that an answer has named already.

lvlm-guard eval run --split val --methods vote --no-controls --tasks world_chair,world_chair_real --captions 300 \
        --batch 60 --sweep again=1,0.5,0.1,0.02 --sweep ends=0,0.5,1,1.5 --json > swept.json
    (the same, but --knob vote.lam=0.0001 --sweep ends=10000: a vote for ends alone) > alone.json
    python docs/vote_tables.py swept.json alone.json > docs/results/vote_named.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from machines import machine

SHOWN = {
    "greedy": "greedy",
    "vote[again=1,ends=0]": "a vote however often it is named",
    "vote[again=0.5,ends=0]": "no vote for what is named (`again=0.5`)",
    "vote[again=0.1,ends=0]": "believed .1 once it is named",
    "vote[again=0.02,ends=0]": "believed .02 once it is named",
    "vote[again=0.5,ends=0.5]": "no vote for what is named, .5 nats for an end",
    "vote[again=0.5,ends=1]": "**no vote for what is named, 1 nat for an end**",
    "vote[again=0.5,ends=1.5]": "no vote for what is named, 1.5 nats for an end",
    "vote[again=1,ends=1]": "a vote however often, 1 nat for an end",
    "vote[ends=10000]": "no votes but 1 nat for an end (control)",
}
KEYS = ("task", "decoder", "baseline", "metric")
METRICS = ("chair_i", "precision", "object_recall", "f1", "repeats", "length")


def reduced(swept: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Return what the table shows of two runs."""
    rows = {
        tuple(row[key] for key in KEYS): {key: row[key] for key in (*KEYS, "value", "low", "high", "bold")}
        for run in (swept, alone)
        for row in run["rows"]
        if row["decoder"] in SHOWN and row["metric"] in METRICS
    }
    return {"rows": list(rows.values()), "tasks": swept["tasks"], "environment": swept["environment"]}


def vote_named_table(result: dict[str, Any]) -> str:
    """Return the table."""
    from make_tables import by_columns, short, value

    rows = by_columns(result["rows"])
    drawn, real = "chair@world_chair", "chair@world_chair_real"
    lines = [
        "| vote | CHAIR_i | distinct precision | recall | F1 | repeats | words | on photographs: distinct precision "
        "| recall | repeats |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for decoder, about in SHOWN.items():
        cells = [value(rows, decoder, drawn, m) for m in ("chair_i", "precision", "object_recall", "f1")]
        cells += [short(rows[drawn, decoder, None, "repeats"]["value"])]
        cells += [f"{rows[drawn, decoder, None, 'length']['value']:.1f}"]
        cells += [value(rows, decoder, real, m) for m in ("precision", "object_recall")]
        cells += [short(rows[real, decoder, None, "repeats"]["value"])]
        lines.append("| " + " | ".join([about, *cells]) + " |")
    lines += [
        "",
        f"`docs/vote_tables.py` has the commands: {result['tasks'][0]['n']} captions of each validation split, greedy, "
        "one training of the model; after a value its paired difference to greedy, bold where its 95 % interval "
        f"excludes zero, on {machine(result['environment'])}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    found = reduced(*(json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3]))
    print(json.dumps(found))
