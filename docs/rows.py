"""Rows of results, and how a table writes a share and its difference to greedy."""

from __future__ import annotations

from typing import Any

Rows = dict[tuple[str, str, str | None, str], dict[str, Any]]


def by_columns(rows: list[dict[str, Any]]) -> Rows:
    """Return results by task, decoder, baseline (None: a value) and metric."""
    return {(r["task"], r["decoder"], r["baseline"], r["metric"]): r for r in rows}


def short(value: float, signed: bool = False) -> str:
    """Write a share without its leading zero."""
    return (f"{value:+.3f}" if signed else f"{value:.3f}").replace("0.", ".", 1).replace("-", "−")


def value(rows: Rows, decoder: str, task: str, metric: str) -> str:
    """Write a value, and in brackets its paired difference to greedy, bold where its 95 % interval excludes zero."""
    found, less = rows.get((task, decoder, None, metric)), rows.get((task, decoder, "greedy", metric))
    if found is None or found["value"] is None:
        return "–"
    if less is None or less["low"] is None or max(abs(less["low"]), abs(less["high"])) < 5e-4:
        return short(found["value"])
    text = f"{short(less['value'], True)} [{short(less['low'], True)}, {short(less['high'], True)}]"
    return f"{short(found['value'])} {f'**{text}**' if less['bold'] else text}"


def times_of(costs: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return each decoder's time over plain greedy by task and decoder, whichever split of the world was asked."""
    return {
        (row["task"].removesuffix("_real"), row["decoder"]): row["value"]
        for row in costs
        if row["metric"] == "time_ratio"
    }


def questions(rows: Rows, decoder: str, verdict: str) -> list[str]:
    """Return a decoder's cells about yes/no questions: three values, the share of yes, the verdict."""
    shown = [value(rows, decoder, "pope_all", metric) for metric in ("accuracy", "accuracy_matched", "auroc")]
    return [*shown, short(rows["pope_all", decoder, None, "yes_ratio"]["value"]), verdict]


def captions(rows: Rows, decoder: str) -> list[str]:
    """Return a decoder's cells about captions: three values, words, repeats; dashes where it writes none."""
    shown = [value(rows, decoder, "chair", metric) for metric in ("chair_i", "object_recall", "f1")]
    length = rows.get(("chair", decoder, None, "length"))
    if length is None:
        return [*shown, "–", "–"]
    return [*shown, f"{length['value']:.1f}", short(rows["chair", decoder, None, "repeats"]["value"])]


def time(times: dict[tuple[str, str], float], decoder: str) -> str:
    """Return the times of questions and captions over plain greedy."""
    tasks = ("world_pope", "world_chair")
    return ", ".join(f"{times[task, decoder]:.2f}" if (task, decoder) in times else "–" for task in tasks)
