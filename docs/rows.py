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
