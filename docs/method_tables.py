"""The table of all methods, and the advice of the page "Which method should I use?", out of two runs' results alone.

python docs/method_tables.py DRAWN.json REAL.json > docs/results/methods.json    (of `lvlm-guard eval run --json`)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from machines import machine
from rows import Rows, by_columns, captions, questions, short, time, times_of

QUESTIONS, RANKED = ("pope_all", "accuracy_matched"), ("pope_all", "auroc")
ABSENT, THERE = ("chair", "chair_i"), ("chair", "object_recall")
KEPT = {
    "pope_all": ("accuracy", "accuracy_matched", "auroc", "yes_ratio"),
    "chair": ("chair_i", "object_recall", "f1", "length", "repeats"),
}
COLUMNS = (
    "| method | POPE accuracy | at the labels' share of yes | AUROC | share of yes | verdict | accuracy over the best "
    "control | CHAIR_i (less is better) | object recall | F1 | words | repeats | time × greedy: questions, captions |"
)


def trimmed(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the tables need of `lvlm-guard eval run --json`."""
    roles = {decoder["name"]: decoder["role"] for decoder in result["decoders"]}
    verdicts = [v for v in result["verdicts"] if v["task"] in KEPT]
    controls = {v["decoder"]: v["best_control"] for v in verdicts if v["task"] == "pope_all"}
    rows = [
        row
        for row in result["rows"]
        if row["metric"] in KEPT.get(row["task"], ())
        and roles[row["decoder"]] != "control"
        and (row["baseline"] in (None, "greedy") or row["baseline"] == controls.get(row["decoder"]))
    ]
    return {
        "command": result["command"],
        "version": result["version"],
        "environment": result["environment"],
        "settings": result["settings"],
        "allowed": result["allowed"],
        "decoders": [{key: d[key] for key in ("name", "role", "method", "sampled")} for d in result["decoders"]],
        "tasks": [{key: task[key] for key in ("name", "n", "pictures", "calibration")} for task in result["tasks"]],
        "rows": rows,
        "verdicts": [{key: v[key] for key in ("task", "decoder", "verdict", "best_control")} for v in verdicts],
        "costs": [c for c in result["costs"] if c["metric"] == "time_ratio"],
        "flags": result["flags"],
        "warnings": [words for words in result["warnings"] if "exactly as" in words or "no AUROC" in words],
    }


def methods_table(result: dict[str, Any]) -> str:
    """Return the table of all methods on the drawn scenes, and on the scenes with photographs' textures."""
    parts = []
    for kind, title in (("drawn", "Drawn scenes"), ("real", "Scenes on photographs' textures")):
        run = result[kind]
        asked = {task["name"]: task for task in run["tasks"]}
        pope, chair = (next(task for name, task in asked.items() if part in name) for part in ("pope", "chair"))
        settings = run["settings"]
        options = [f"--allow-truncated {run['allowed']['truncated']}"]
        options += [f"--{name} {settings[name]}" for name in ("seeds", "limit", "captions") if settings[name]]
        options += [
            f"--knob {method}.{knob}={_written(setting)}"
            for method, knobs in settings["knobs"].items()
            for knob, setting in knobs.items()
        ]
        parts += [
            f"**{title}**: {pope['pictures']} pictures × 18 questions and {chair['n']} captions.",
            "",
            *_rows(run),
            "",
            f"`lvlm-guard eval run --methods all --tasks {','.join(asked)} {' '.join(options)}`. "
            + " ".join(run["flags"] + run["warnings"]),
            "",
        ]
    return "\n".join(
        [
            *parts,
            "After a value its paired difference to greedy with its 95 % interval by bootstrap over pictures, bold "
            "where it excludes zero; accuracy over the best control of the same decoding, which was "
            "chosen on validation questions; one training of the model. The files of statistics: `python "
            "docs/world_pictures.py pictures 200`, then `lvlm-guard calibrate NAME --images pictures --out "
            f"NAME.safetensors` for each. On {machine(result['drawn']['environment'])}.",
        ]
    )


def _written(setting: Any) -> str:
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def _rows(run: dict[str, Any]) -> list[str]:
    rows = by_columns(run["rows"])
    times = times_of(run["costs"])
    verdicts = {v["decoder"]: v for v in run["verdicts"] if v["task"] == "pope_all"}
    lines = [COLUMNS, "|---" * COLUMNS.count("| ") + "|"]
    for decoder in run["decoders"]:
        name = decoder["name"]
        if decoder["role"] == "control" or ("pope_all", name, None, "accuracy") not in rows:
            continue
        verdict = verdicts.get(name, {"verdict": "", "best_control": None})
        over = rows.get(("pope_all", name, verdict["best_control"], "accuracy")) if verdict["best_control"] else None
        cells = [
            f"`{name}`" if decoder["role"] == "method" else name,
            *questions(rows, name, verdict["verdict"]),
            "–" if over is None or decoder["role"] != "method" else f"{_less(over)} ({verdict['best_control']})",
            *captions(rows, name),
            time(times, name),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def which_table(result: dict[str, Any]) -> str:
    """Return what each method changes, in words, and below it which to take, by rules that the figures decide."""
    run = result["drawn"]
    rows = by_columns(run["rows"])
    times = {(r["task"], r["decoder"]): r["value"] for r in run["costs"]}
    verdicts = {v["decoder"]: v["verdict"] for v in run["verdicts"] if v["task"] == QUESTIONS[0]}
    methods = [d["name"] for d in run["decoders"] if d["role"] == "method" and not d["sampled"]]
    lines = [
        "| method | yes/no questions: verdict, accuracy | captions: objects that are absent | captions: objects that "
        "are there | time × greedy: questions, captions |",
        "|---|---|---|---|---|",
    ]
    for method in methods:
        cells = [
            f"`{method}`",
            said(rows, method, QUESTIONS, (verdicts.get(method, "no verdict"),) * 3),
            said(rows, method, ABSENT, ("fewer", "not told apart", "more")),
            said(rows, method, THERE, ("fewer", "not told apart", "more")),
            f"{times['world_pope', method]:.2f}, {times['world_chair', method]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    better = sorted(
        (method for method in methods if verdicts.get(method) == "ranks better"),
        key=lambda method: -rows[QUESTIONS[0], method, "greedy", QUESTIONS[1]]["value"],
    )
    fewer = [method for method in methods if sign(rows, method, ABSENT) < 0]
    free = [method for method in fewer if sign(rows, method, THERE) >= 0]
    paid = [method for method in fewer if method not in free]
    worse = [method for method in methods if verdicts.get(method) == "ranks worse"]
    return "\n".join(
        [
            *lines,
            "",
            f"- **Yes/no questions**: {listed(better)}, the largest gain first."
            + (f" Ranked worse than no guard: {listed(worse)}." if worse else ""),
            f"- **Captions**: fewer absent objects, and no fewer of those that are there: {listed(free)}."
            + (f" Paid for with objects that are there: {listed(paid)}." if paid else ""),
            f"- **Both at once**: {listed(both(rows, times, methods))}; `guard(model, processor)` takes the first.",
            f"- **Cheapest for questions**: {cheapest(times, better, 'world_pope')}; **for captions**: "
            f"{cheapest(times, free, 'world_chair')}.",
            "",
            "Differences to greedy, paired by picture, with 95 % intervals; accuracy is at the labels' share of yes, "
            "the verdict is what no threshold can give. Below is the whole table, with the command and the machine.",
        ]
    )


def both(rows: Rows, times: dict[tuple[str, str], float], methods: list[str]) -> list[str]:
    """Return the methods that answer questions better and name fewer absent objects at no loss of recall, best first.

    Better is by accuracy at the labels' share of yes; what ties in that takes less time.
    """
    found = [
        method
        for method in methods
        if sign(rows, method, QUESTIONS) > 0 and sign(rows, method, ABSENT) < 0 and sign(rows, method, THERE) >= 0
    ]
    gain = {method: rows[QUESTIONS[0], method, "greedy", QUESTIONS[1]]["value"] for method in found}
    return sorted(found, key=lambda m: (-round(gain[m], 3), times["world_pope", m] + times["world_chair", m]))


def sign(rows: Rows, method: str, column: tuple[str, str]) -> int:
    """Return 1 or -1 where a method's difference to greedy is above or below zero, 0 where that can't be told."""
    found = rows.get((column[0], method, "greedy", column[1]))
    return 0 if found is None or found["low"] is None else (found["low"] > 0) - (found["high"] < 0)


def said(rows: Rows, method: str, column: tuple[str, str], words: tuple[str, str, str]) -> str:
    """Return what a difference means, in words for below, not told apart and above zero, and the difference."""
    less = rows.get((column[0], method, "greedy", column[1]))
    return "–" if less is None or less["low"] is None else f"{words[sign(rows, method, column) + 1]}: {_less(less)}"


def _less(row: dict[str, Any]) -> str:
    return f"{short(row['value'], True)} [{short(row['low'], True)}, {short(row['high'], True)}]"


def listed(methods: list[str]) -> str:
    """Return names in a row."""
    return ", ".join(f"`{method}`" for method in methods) or "none"


def cheapest(times: dict[tuple[str, str], float], among: list[str], task: str) -> str:
    """Return the method that takes the least time of some, and how much."""
    if not among:
        return "none"
    best = min(among, key=lambda method: times[task, method])
    return f"`{best}` ({times[task, best]:.2f} × greedy)"


if __name__ == "__main__":
    drawn, real = (trimmed(json.loads(Path(path).read_text(encoding="utf-8"))) for path in sys.argv[1:3])
    print(json.dumps({"drawn": drawn, "real": real}, indent=1))
