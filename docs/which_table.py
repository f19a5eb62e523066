"""The table and the advice of the page "Which method should I use?", out of the demo's results alone."""

from __future__ import annotations

from typing import Any

from machines import machine
from rows import Rows, by_columns, short

METHODS = ("agla", "focus", "vote", "vcd")
QUESTIONS, ABSENT, THERE = ("pope_all", "accuracy_matched"), ("chair", "chair_i"), ("chair", "object_recall")


def sign(rows: Rows, method: str, column: tuple[str, str]) -> int:
    """Return 1 or -1 where a method's difference to greedy is above or below zero, 0 where that can't be told."""
    found = rows[column[0], method, "greedy", column[1]]
    return (found["low"] > 0) - (found["high"] < 0)


def said(rows: Rows, method: str, column: tuple[str, str], words: tuple[str, str, str]) -> str:
    """Return what a difference means, in words for below, not told apart and above zero, and the difference."""
    less = rows[column[0], method, "greedy", column[1]]
    interval = f"{short(less['value'], True)} [{short(less['low'], True)}, {short(less['high'], True)}]"
    return f"{words[sign(rows, method, column) + 1]}: {interval}"


def which_table(result: dict[str, Any]) -> str:
    """Return the table, and below it which method to take, by rules that the figures decide."""
    rows = by_columns(result["rows"] + result["differences"])
    times = {(r["task"], r["decoder"]): r["value"] for r in result["costs"] if r["metric"] == "time_ratio"}
    verdicts = {v["decoder"]: v["verdict"] for v in result["verdicts"] if v["task"] == QUESTIONS[0]}
    lines = [
        "| method | yes/no questions: verdict, accuracy | captions: objects that are absent | captions: objects that "
        "are there | time × greedy: questions, captions |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS:
        cells = [
            f"`{method}`",
            said(rows, method, QUESTIONS, (verdicts[method],) * 3),
            said(rows, method, ABSENT, ("fewer", "not told apart", "more")),
            said(rows, method, THERE, ("fewer", "not told apart", "more")),
            f"{times['world_pope', method]:.2f}, {times['world_chair', method]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    better = sorted(
        (method for method in METHODS if verdicts[method] == "ranks better"),
        key=lambda method: -rows[QUESTIONS[0], method, "greedy", QUESTIONS[1]]["value"],
    )
    fewer = [method for method in METHODS if sign(rows, method, ABSENT) < 0]
    free = [method for method in fewer if sign(rows, method, THERE) >= 0]
    paid = [method for method in fewer if method not in free]
    return "\n".join(
        [
            *lines,
            "",
            f"- **Yes/no questions**: {listed(better)}, the largest gain first.",
            f"- **Captions**: {listed(free)} names fewer absent objects and no fewer of those that are there."
            + (f" {listed(paid)} pays for it with objects that are there." if paid else ""),
            f"- **Cheapest for questions**: {cheapest(times, better, 'world_pope')}; **for captions**: "
            f"{cheapest(times, free, 'world_chair')}.",
            "",
            "Differences to greedy, paired by picture, with 95 % intervals; accuracy is at the labels' share of yes, "
            f"the verdict is what no threshold can give. From `make demo`, on {machine(result['environment'])}.",
        ]
    )


def listed(methods: list[str]) -> str:
    """Return names in a row."""
    return ", ".join(f"`{method}`" for method in methods) or "none"


def cheapest(times: dict[tuple[str, str], float], among: list[str], task: str) -> str:
    """Return the method that takes the least time of some, and how much."""
    if not among:
        return "none"
    best = min(among, key=lambda method: times[task, method])
    return f"`{best}` ({times[task, best]:.2f} × greedy)"
