"""The page of real models: released captions scored, and its tables.

    NLTK_DATA=... python docs/real_tables.py > docs/results/real_captions.json

scores the captions in tests/data/benchmarks/captions as `lvlm-guard eval score` does, model by model, and keeps the
rows that the page shows.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
MODELS = {"LLaVA-1.5-7B": "llava-1.5", "MiniGPT-4": "minigpt4"}
DECODERS = {"greedy": "greedy", "beam5": "beam5", "OPERA": "ours"}  # OPERA's authors call theirs "ours"
DIALECTS = {"default": "", "pattern": "_official", "wordnet": "_wordnet"}
WORDS = (16, 32, 64, 96)
CUT = "cut as short as"
SHARES = ("chair_s", "chair_i", "object_recall", "precision", "f1")
PLAIN = ("length", "distinct_1")
NAMES = {
    "chair_s": "CHAIR_s (less!)",
    "chair_i": "CHAIR_i (less!)",
    "object_recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "length": "words",
    "distinct_1": "Distinct-1",
}
Row = dict[str, Any]


def part(model: str, whole: bool) -> list[Row]:
    """Score a model's captions, whole in all dialects, or cut to equal lengths; returns the rows that are shown."""
    from lvlm_guard.evals.foreign.score import Data, score_files

    captions = DATA / "benchmarks" / "captions"
    files = {who: captions / f"opera_{MODELS[model]}_{written}.jsonl.gz" for who, written in DECODERS.items()}
    truth = DATA / "chair" / "gt_objects.json.gz"
    data = Data(annotations=truth, dialect=list(DIALECTS)) if whole else Data(annotations=truth, words=WORDS)
    found = score_files(files, "chair", data)
    kept = {*SHARES, *PLAIN, *(f"{metric}{suffix}" for metric in SHARES[:3] for suffix in DIALECTS.values())}
    told = ("task", "decoder", "baseline", "metric", "value", "low", "high", "p", "bold", "n")
    return [
        {name: row[name] for name in told}
        for row in found["rows"]
        if row["metric"] in kept and (row["task"] == "chair") == whole
    ]


def real_captions() -> dict[str, Any]:
    """Score both models' captions; returns what docs/results/real_captions.json holds."""
    from lvlm_guard.cli.console import environment

    with ProcessPoolExecutor() as pool:
        parts = {model: [pool.submit(part, model, whole) for whole in (True, False)] for model in MODELS}
        models = {model: [row for found in futures for row in found.result()] for model, futures in parts.items()}
    return {"environment": environment(), "models": models}


def find(rows: list[Row], decoder: str, metric: str, task: str = "chair", baseline: str | None = None) -> Row:
    """Return the one row of a value or difference."""
    wanted = (decoder, baseline, task, metric)
    (row,) = (row for row in rows if (row["decoder"], row["baseline"], row["task"], row["metric"]) == wanted)
    return row


def number(metric: str, value: float, signed: bool = False) -> str:
    """Write a share without its leading zero, a number of words with one digit."""
    digits = 1 if metric == "length" else 3
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return (text if metric == "length" else text.replace("0.", ".", 1)).replace("-", "−")


def value(row: Row, *, interval: bool = True) -> str:
    """Write a value, with its interval."""
    text = number(row["metric"], row["value"])
    return f"{text} [{number(row['metric'], row['low'])}, {number(row['metric'], row['high'])}]" if interval else text


def difference(row: Row) -> str:
    """Write a difference with its interval and p-value, bold where the interval excludes zero."""
    text, low, high = (number(row["metric"], row[name], True) for name in ("value", "low", "high"))
    p = "p<.001" if row["p"] < 0.001 else f"p={row['p']:.3f}".replace("0.", ".", 1)
    return f"**{text}** [{low}, {high}] {p}" if row["bold"] else f"{text} [{low}, {high}] {p}"


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Write a table."""
    return "\n".join(["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines)])


def whole_table(result: dict[str, Any]) -> str:
    """Whole captions: values of each decoder."""
    metrics = (*SHARES, *PLAIN)
    lines = []
    for model, rows in result["models"].items():
        for name in DECODERS:
            lines.append([model, name, *(value(find(rows, name, m), interval=m not in PLAIN) for m in metrics)])
    return table(["model", "decoder", *(NAMES[metric] for metric in metrics)], lines)


def gain_table(result: dict[str, Any]) -> str:
    """Whole captions: differences to greedy, and to greedy at equal length."""
    lines = []
    metrics = ("chair_s", "chair_i", "object_recall", "f1")
    for model, rows in result["models"].items():
        for name in list(DECODERS)[1:]:
            pairs = {"as they are": (name, "greedy"), "equal length": (f"{name} {CUT} greedy", f"greedy {CUT} {name}")}
            for lengths, (ours, theirs) in pairs.items():
                words = find(rows, ours, "length", baseline=theirs)
                cells = (difference(find(rows, ours, metric, baseline=theirs)) for metric in metrics)
                lines.append([model, f"{name} − greedy", lengths, number("length", words["value"], True), *cells])
    return table(["model", "difference", "captions", "words", *(NAMES[metric] for metric in metrics)], lines)


def dialect_table(result: dict[str, Any]) -> str:
    """Whole captions: each decoder by dialect."""
    lines = []
    for model, rows in result["models"].items():
        for name in DECODERS:
            for dialect, suffix in DIALECTS.items():
                cells = [number(metric, find(rows, name, metric + suffix)["value"]) for metric in SHARES[:3]]
                gains = (find(rows, name, m + suffix, baseline="greedy") for m in SHARES[:2] if name != "greedy")
                cells += [difference(gain) for gain in gains] or ["", ""]
                lines.append([model, name, dialect, *cells])
    heads = [NAMES[metric] for metric in SHARES[:3]]
    return table(["model", "decoder", "dialect", *heads, "CHAIR_s − greedy's", "CHAIR_i − greedy's"], lines)


def length_table(result: dict[str, Any]) -> str:
    """The first words of captions: values by length, and the difference to greedy at that length."""
    lines = []
    metrics = ("chair_s", "chair_i", "object_recall", "f1", "distinct_1")
    for model, rows in result["models"].items():
        for words in (*WORDS, None):
            task = f"chair_{words}_words" if words else "chair"
            for name in DECODERS:
                cells = [number(m, find(rows, name, m, task)["value"]) for m in metrics]
                gain = "" if name == "greedy" else difference(find(rows, name, "chair_i", task, "greedy"))
                lines.append([model, str(words or "whole"), name, *cells, gain])
    return table(["model", "words", "decoder", *(NAMES[m] for m in metrics), "CHAIR_i − greedy's"], lines)


TABLES = {
    "real_captions whole": whole_table,
    "real_captions gains": gain_table,
    "real_captions dialects": dialect_table,
    "real_captions lengths": length_table,
}
"""Name in a page -> the table of docs/results/real_captions.json."""

if __name__ == "__main__":
    json.dump(real_captions(), sys.stdout, indent=1, ensure_ascii=False)
    print()
